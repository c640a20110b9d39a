"""The agent: the process that keeps a node in sync, its child for every sync, metrics and probes.

May import reconcile, runtime, state, kube, node, settings and the modules beside the packages.
Start reading at daemon.py.
"""
