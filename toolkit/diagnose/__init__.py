"""The `diagnose` command: a report of the node for bug reports, with the problems found.

May import: reconcile, discovery, runtime, cdi, state, kube, node, settings, and the modules beside
the packages.
Start reading at collect.py; findings.py has the problems that it names.
"""
