"""The command line and its settings: what is read, what is printed, and the examples."""
