"""Where a node's time goes under load: samples of its stack, summed up by layer, and the budget of one operation.

    bench/profile.sh                                  # finds py-spy, or says how to install it, and runs this file
    bench/profile.sh --what get --mode sync --connections 128
    bench/profile.sh --budget                         # the budget as a table, next to what the bare layers cost
    bench/profile.sh --into bench/README.md           # the same, put into that file

A cluster of five workers is put under wrk's load twice. The first time nothing looks on: that gives the rate and the
processor time of the master and of the workers for one request. The second time py-spy takes samples of the master and
of one worker, `--hertz` times a second. A sample counts for the layer of its innermost frame (*self time*); what
belongs to no layer, such as Python's own library, counts for its caller's. Samples of threads that sleep do not count,
nor do those that wait for the next event.

A system call is told by the line of source that the sample was taken in (`_CALLS_SYSTEM`). How many samples fall there
says little: a thread that has been woken and waits for a core runs already, as py-spy sees it, and sampling itself
stops a node where it enters the kernel. But the kernel counts its own time for a process apart. So *system calls* are
that time, and the layers share out the rest by their samples.

Written to `--directory`: for master and worker, `NAME.collapsed` (a stack a line, with its count, as flamegraph.pl and
speedscope read it) and `NAME.speedscope.json` (for https://www.speedscope.app, or `npx speedscope FILE`).

What it costs: py-spy stops the node for some hundred microseconds at each sample, so a profiled run is some percent
slower. That is why the microseconds come from the other one. Left out: what C code does inside, and other threads than
Trio's, as that of a RocksDB commit; they are in the collapsed stacks.
"""

from __future__ import annotations

import argparse
import json
import linecache
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench import micro
from bench.common import Bar, add_outputs, draw_bars, today, user_and_system_s_of, write_outputs
from bench.wrk import KeyServer, Measured, check_wrk, draw_keys, pids_of, run_wrk, spell_key, tell_cpu
from trikv.testing.machine import describe_machine
from trikv.testing.processes.cluster import LocalCluster

WORKERS: Final = 5
KEYS: Final = 2_000
ROOT: Final = Path(__file__).resolve().parent.parent
LOOP: Final = "/trio/_core/_run.py"  # where Trio's loop is: a stack without it is another thread's

# The layers by the beginnings of their files, the first that fits; in the order in which a put passes them.
LAYERS: Final[Mapping[str, Sequence[str]]] = {
    "lane": ("trikv/web/lane.py", "trikv/web/server.py", "trikv/coordinator/deadlines.py"),
    "handler": ("trikv/web/",),
    "strategy and rounds": ("trikv/coordinator/replicas.py", "trikv/core/tally.py", "trikv/api.py", "trikv_"),
    "link and frames": (
        "trikv/net/", "trikv/core/frames.py", "trikv/core/session.py", "trikv/core/calls.py",
    ),
    "worker and storage": (
        "trikv/worker/", "trikv/storage/", "trikv/core/fence.py", "trikv/core/digest.py", "trikv/core/lineage.py",
    ),
    "coordinator": ("trikv/coordinator/", "trikv/core/"),
    "the rest of the node": ("trikv/",),
    "trio": ("trio/", "outcome/", "<attrs generated"),
}  # fmt: skip
SYSTEM: Final = "system calls"

# A line that does little but a system call: ours, Trio's sockets, and Trio's epoll.
_CALLS_SYSTEM: Final = re.compile(
    r"\bos\.(read|write|fsync)\(|\.(send|recv|sendmsg|recv_into|poll)\("
    r"|return fn\(self\._sock|epoll\.(modify|register)\("
)
_FRAME: Final = re.compile(r"(.*) \((.*):(\d+)\)")
_BEFORE_MODULES: Final = re.compile(
    rf"\((?:[^;()]*/(?:site|dist)-packages/|[^;()]*/lib/python3\.\d+/|{re.escape(str(ROOT))}/(?:plugins/(?=trikv_))?)"
)


class Frame(NamedTuple):
    """`file` is a whole path."""

    file: str
    line: int

    @classmethod
    def parse(cls, text: str) -> Frame:
        """Of `function (file:line)`; C functions have no line."""
        found = _FRAME.fullmatch(text)
        return cls("", 0) if found is None else cls(found[2], int(found[3]))

    @property
    def module(self) -> str:
        """The path from the package on."""
        return shorten(f"({self.file}")[1:]

    @property
    def calls_system(self) -> bool:
        return _CALLS_SYSTEM.search(linecache.getline(self.file, self.line)) is not None


def shorten(stacks: str) -> str:
    """Without what stands before a package in paths."""
    return _BEFORE_MODULES.sub("(", stacks)


def layer_of(stack: str) -> str | None:
    """The layer that a sample counts for; None: for nothing. Its frames are joined by `;`, the outermost first."""
    if LOOP not in stack:
        return None
    frames = [Frame.parse(text) for text in reversed(stack.split(";"))]
    if frames[0].calls_system:
        return SYSTEM
    for module in (frame.module for frame in frames):
        for layer, beginnings in LAYERS.items():
            if module.startswith(tuple(beginnings)):
                return layer
    return "trio"  # whose loop is there


def sum_up(collapsed: str) -> Counter[str]:
    """Samples by layer, from lines of `stack count`."""
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        if (layer := layer_of(stack)) is not None:
            counts[layer] += int(count)
    return counts


class Spent(NamedTuple):
    """Microseconds for one operation: of a process's own code, and of the kernel for it."""

    own_us: float
    kernel_us: float

    def by_layer(self, samples: Counter[str]) -> dict[str, float]:
        """The kernel's are the system calls; the layers share out the others by their samples."""
        own = samples.total() - samples[SYSTEM]
        if not own:
            raise SystemExit("error: py-spy met the node's own code in no sample; take more, with --seconds or --hertz")
        shared = {layer: samples[layer] / own * self.own_us for layer in LAYERS if samples[layer]}
        return {**shared, SYSTEM: self.kernel_us}


def to_speedscope(name: str, collapsed: str) -> dict[str, object]:
    """The stacks as a document of speedscope's file format."""
    frames: dict[str, int] = {}
    samples, weights = [], []
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        samples.append([frames.setdefault(frame, len(frames)) for frame in stack.split(";")])
        weights.append(int(count))
    profile = {
        "type": "sampled", "name": name, "unit": "none", "startValue": 0, "endValue": sum(weights),
        "samples": samples, "weights": weights,
    }  # fmt: skip
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": [profile],
        "name": name,
        "exporter": "trikv bench/layers.py",
    }


# --- a run ------------------------------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """By role: how many samples of its own code there were, and the microseconds of one operation by layer. Those of
    the workers are what all of them take."""

    measured: Measured
    samples: Mapping[str, int]
    us: Mapping[str, Mapping[str, float]]


def run(options: argparse.Namespace) -> Profile:
    options.directory.mkdir(parents=True, exist_ok=True)
    with (
        LocalCluster(mode=options.mode, workers=WORKERS, storage=options.storage) as cluster,
        tempfile.TemporaryDirectory(prefix="trikv-bench-") as directory,
    ):
        with cluster.client() as client:
            for number in range(KEYS):
                client.put(spell_key(number).encode(), b"x" * options.value_bytes)
        server = KeyServer("trikv", cluster.master.http_port, pids_of(cluster))
        keys = Path(directory) / "keys"
        keys.write_text("\n".join(draw_keys("uniform", KEYS, options.seed)))
        script = server.script(options.what, keys, 0, options.value_bytes)
        run_wrk(server, script, options.connections, 1)  # warm
        pids = {"master": [cluster.master.pid], "worker": [node.pid for node in cluster.workers]}
        before = {role: _spent_s(of_role) for role, of_role in pids.items()}
        measured = run_wrk(server, script, options.connections, options.seconds)
        operations = measured.rate * options.seconds
        spent = {
            role: Spent(*(1e6 * (b - a) / operations for a, b in zip(before[role], _spent_s(of_role), strict=True)))
            for role, of_role in pids.items()
        }
        recording = {
            role: _record(options, of_role[0], options.directory / f"{role}.collapsed")
            for role, of_role in pids.items()
        }
        run_wrk(server, script, options.connections, options.seconds + 1)
        for role, process in recording.items():
            _, said = process.communicate()
            if process.returncode:
                raise SystemExit(
                    f"error: py-spy could not look at the {role}: {said.strip()}\n"
                    "It needs the right to trace: run it as root, or allow it with sysctl kernel.yama.ptrace_scope=0"
                )
    samples = {}
    for role in recording:
        file = options.directory / f"{role}.collapsed"
        samples[role] = sum_up(file.read_text())
        file.write_text(shorten(file.read_text()))
        document = to_speedscope(f"trikv {role}, {options.mode} {options.what}", file.read_text())
        file.with_suffix(".speedscope.json").write_text(json.dumps(document))
    return Profile(
        measured,
        {role: counts.total() - counts[SYSTEM] for role, counts in samples.items()},
        {role: spent[role].by_layer(counts) for role, counts in samples.items()},
    )


def _spent_s(pids: Sequence[int]) -> tuple[float, float]:
    spent = [user_and_system_s_of(pid) for pid in pids]
    return sum(own_s for own_s, _ in spent), sum(kernel_s for _, kernel_s in spent)


def _record(options: argparse.Namespace, pid: int, file: Path) -> subprocess.Popen[str]:
    command = [
        options.py_spy, "record", "--pid", str(pid), "--duration", f"{options.seconds:.0f}", "--rate",
        str(options.hertz), "--full-filenames", "--format", "raw", "--output", str(file),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


# --- the report -------------------------------------------------------------------------------------------------------


def tell(profile: Profile) -> None:
    for role, us in profile.us.items():
        whose = "the master" if role == "master" else f"all {WORKERS} workers, by the samples of one"
        total_us = sum(us.values())
        print(f"{whose}: {total_us:.0f} us of processor time an operation ({profile.samples[role]:,} samples)")
        for layer, layer_us in sorted(us.items(), key=lambda row: -row[1]):
            print(f"  {layer:30}{layer_us / total_us:7.1%}{layer_us:9.1f} us")


# What stands beside a layer in the budget: cases of `bench/micro.py --bare`, by their layer there and their name.
BESIDE: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "lane": [("python", "a regular expression over the head of a put")],
    "link and frames": [
        ("python", "cbor2.dumps of a list of ten, 1 in one"),
        ("python", "cbor2.loads of a list of ten, 1 in one"),
    ],
    "trio": [("trio", "a checkpoint"), ("trio", "a task sleeps and is woken by another")],
    SYSTEM: [("sockets", "a send and a recv on loopback, 150 bytes")],
}


def spell_budget(profile: Profile, options: argparse.Namespace) -> str:
    """The budget as a table in Markdown."""
    bare = {
        (result.layer, result.name): result.least_us
        for result in micro.measure_all(micro.BARE, repeats=5, burst_s=0.02, says=lambda line: None)
    }
    echo_us = bare["trio", "one side of an echo over loopback, 32 at once"]
    master, workers = profile.us["master"], profile.us["worker"]
    lines = [
        f"One {options.mode} {options.what} with {options.connections} connections, {WORKERS} workers "
        f"({options.storage}) and values of {options.value_bytes} bytes,",
        f"at {profile.measured.rate:,.0f} operations a second; {describe_machine()},",
        f"{today()}; other programs took {profile.measured.others_cores:.1f} cores.",
        "",
        "| layer | master, µs | workers, µs | its bare parts, µs |",
        "|---|---|---|---|",
    ]
    for layer in [*LAYERS, SYSTEM]:
        if layer in master or layer in workers:
            told = "; ".join(f"{bare[case]:.1f}: {case[1]}" for case in BESIDE.get(layer, ()))
            lines.append(f"| {layer} | {_cell(master, layer)} | {_cell(workers, layer)} | {told} |")
    lines.append(
        f"| all | {sum(master.values()):.0f} | {sum(workers.values()):.0f} | "
        f"{echo_us:.1f}: one side of an echo of 150 bytes in Trio, 32 at once |"
    )
    return "\n".join(lines)


def _cell(us: Mapping[str, float], layer: str) -> str:
    return f"{us[layer]:.1f}" if us.get(layer, 0.0) >= 0.05 else ""


def put_into(text: str, budget: str) -> str:
    """The text with this budget between its two marks, in place of the former one."""
    before, begin, rest = text.partition("<!-- budget -->\n")
    _, end, after = rest.partition("<!-- end of budget -->\n")
    if not (begin and end):
        raise SystemExit("error: the file has no lines <!-- budget --> and <!-- end of budget --> to put it between")
    return f"{before}{begin}{budget}\n{end}{after}"


def draw(profile: Profile, title: str) -> str:
    sections = {
        role: [Bar(layer, us[layer], f"{us[layer]:.1f} us, {us[layer] / sum(us.values()):.0%}") for layer in us]
        for role, us in profile.us.items()
    }
    return draw_bars(f"Microseconds of one operation by layer: {title}", describe_machine(), sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--py-spy", default=os.environ.get("PY_SPY", "py-spy"), help="the program (default py-spy)")
    parser.add_argument("--mode", default="quorum", help="default quorum")
    parser.add_argument("--what", choices=("put", "get"), default="put", help="default put")
    parser.add_argument("--storage", default="memory", help="the workers' engine (default memory)")
    parser.add_argument("--connections", type=int, default=32, help="default 32")
    parser.add_argument("--value-bytes", type=int, default=100, help="default 100")
    parser.add_argument("--seconds", type=float, default=10, help="with samples, and without (default 10)")
    parser.add_argument("--hertz", type=int, default=400, help="samples a second (default 400)")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--directory", type=Path, default=Path("profile"), help="for the stacks (default ./profile)")
    parser.add_argument(
        "--budget", action="store_true", help="also print the budget as a table, beside the bare layers"
    )
    parser.add_argument("--into", type=Path, metavar="README", help="put that table there, between its two marks")
    add_outputs(parser)
    options = parser.parse_args()
    check_wrk()
    title = f"{options.mode} {options.what}, {options.connections} connections, seed {options.seed}"
    print(f"{describe_machine()}; {title}", flush=True)
    profile = run(options)
    print(f"{profile.measured.rate:,.0f} operations a second; CPU us: {tell_cpu([profile.measured])}")
    tell(profile)
    print(f"stacks: {options.directory}/master.collapsed, worker.collapsed, and *.speedscope.json")
    if options.budget or options.into is not None:
        budget = spell_budget(profile, options)
        print(f"\n{budget}")
        if options.into is not None:
            options.into.write_text(put_into(options.into.read_text(), budget))
    rows = [{"role": role, "samples": profile.samples[role], "us": us} for role, us in profile.us.items()]
    write_outputs(options, "layers", rows, draw(profile, title))


if __name__ == "__main__":
    main()
