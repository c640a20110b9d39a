"""The `diagnose` command: a report of the node for bug reports, with the problems found.

May import: reconcile, runtime, cdi, state, kube, node, settings, and the modules beside the
packages.
Start reading at collect.py.
"""
