"""Malformed and hostile bytes, sent to a real cluster, and the rules that the cluster must keep whatever arrives.

`web_cases.py` and `rpc_cases.py` make the bytes, from a seed and without I/O. `drive.py` plays them over sockets; it
also has a worker that answers nonsense. `judge.py` compares what came back with the rules. `run.py` plays block after
block. `scripts/fuzz.py` is the command.
"""
