"""The workshop: it touches the node and knows no dialect."""

__version__ = "0.1.0"
