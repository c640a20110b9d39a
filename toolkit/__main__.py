"""`python -m toolkit` is `nvidia-toolkit`."""

from toolkit.cli import main

main()
