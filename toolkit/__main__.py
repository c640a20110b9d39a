"""The entry point of `python -m toolkit`, which is the same as `nvidia-toolkit`."""

from toolkit.cli.main import main

main()
