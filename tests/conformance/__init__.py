"""What real executables make of our configuration; no node is booted."""
