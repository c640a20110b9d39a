"""The container runtime of the node: locate it, observe it, restart it, check its health.

May import: runtime.client, artifacts, state, kube, node, settings, and the modules beside the
packages.
Start reading at locate.py; expectation.py decides whether a runtime has what it must have,
smoke_test.py starts a container, in_use.py finds what uses a handler, visibility.py compares the
files with what the daemon sees.
"""
