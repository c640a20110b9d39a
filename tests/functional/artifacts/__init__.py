"""The toolkit's files on the node, the wrappers, and the programs and modules of the image."""
