"""The command line.

May import every other package and the modules beside the packages.
Start reading at main.py.
"""
