"""Real faults: at every call that changes a file, the program is killed or the call refused.

strace does both to the real program while it works on a throw-away node:

- `calls` lists the calls of a run and says which of them change something, and how each may fail;
- `warm` is the program with all imports done, forked once per run (several thousand runs);
- `runtime` is the stand-in for containerd, restarted as quickly;
- `site` is one node with both, `trees` what lies on it;
- `stories` are the operations, `laws` what has to hold after a fault, `campaign` all points.

`python -m tests.faults` does it completely and prints a table; pytest runs one test per operation.
"""
