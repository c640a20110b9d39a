"""The API server: the lookup of the DaemonSet, and the report of the node's state."""
