"""The runtime on this node: its selection, what it reports, its restart, and its health."""
