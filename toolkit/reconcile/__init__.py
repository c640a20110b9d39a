"""Compare the node with the settings, change it in one transaction, verify, roll back, uninstall.

May import: runtime, cdi, artifacts, state, kube, node, settings, and the modules beside the
packages.
Start reading at planning.py, then transaction.py.
"""
