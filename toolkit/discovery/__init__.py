"""Discover the container runtimes on the node, and select the one to configure.

May import: runtime, state, kube, node, settings, and the modules beside the packages.
Start reading at selection.py.
"""
