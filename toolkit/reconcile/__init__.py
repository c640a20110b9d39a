"""Compare the node with the settings, change it in one transaction, verify, roll back, uninstall.

May import: runtime, cdi, artifacts, state, kube, node, settings, and the modules beside the
packages.
Start reading at planning.py (what is to be done), then preflight.py (what is refused before a
change), transaction.py, rollback.py, uninstall.py (`revert`) and readiness.py.
"""
