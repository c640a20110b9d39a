"""The program on booted nodes with real runtimes under systemd."""
