"""Bytes that nobody should send, sent to a real cluster; and rules that it must keep whatever arrives.

`web_cases.py` and `rpc_cases.py` make the bytes, from a seed and without any I/O; `drive.py` plays them over sockets,
and has a worker that answers nonsense; `judge.py` holds what came back against the rules; `run.py` does it block by
block. `scripts/fuzz.py` is the command.
"""
