"""The entry point of `python -m nvidia_toolkit`, which is the same as `nvidia-toolkit`."""

from nvidia_toolkit import main

main()
