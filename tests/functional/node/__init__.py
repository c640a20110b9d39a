"""The operating system: files, processes, sockets, commands, the lock, and whom to trust."""
