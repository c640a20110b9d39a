"""Kubernetes: the node's kubelet, the API server, and our DaemonSet.

May import: node, settings, and the modules beside the packages.
Start reading at kubelet.py.
"""
