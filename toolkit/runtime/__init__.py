"""The container runtime of the node: locate it, observe it, restart it, check its health.

May import: runtime.client, artifacts, state, kube, node, settings, and the modules beside the
packages.
Start reading at locate.py.
"""
