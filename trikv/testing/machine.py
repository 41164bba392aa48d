"""The machine on which figures were measured, as one line: a figure says little without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Processor, cores, Python and system."""
    return f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux; `platform.processor()` is empty there
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
