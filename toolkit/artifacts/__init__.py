"""The files of the NVIDIA Container Toolkit: those of the source, and those that are installed.

May import node, settings and the modules beside the packages.
Start reading at manifest.py.
"""
