"""The agent: the process that keeps a node in sync, its child for each sync, probes, metrics, NRI.

May import: reconcile, runtime, cdi, state, kube, node, settings, and the modules beside the
packages.
Start reading at daemon.py; sync.py is what the child does, nri.py the NRI plugin.
"""
