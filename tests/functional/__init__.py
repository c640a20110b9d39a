"""The program as processes of its own, against fake runtimes; needs Python and nothing else."""
