"""The installer: everything that acts on the node. `runtimes` has the dialects of configuration.

May import: runtimes. pyproject.toml has the layers of its packages.
Start reading at reconcile/planning.py and reconcile/transaction.py.
"""

__version__ = "0.1.0"
