"""The meaning of containerd, CRI-O and Docker configuration: bytes in, plan out, without I/O.

May import: the standard library without I/O (no `os`, `subprocess`, clock or logging), tomli and
tomlkit.
Start reading at model.py, then planner.py.
"""
