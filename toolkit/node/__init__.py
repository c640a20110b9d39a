"""The operating system of the node: paths, files, processes, sockets, commands. It knows no runtime.

May import the modules beside the packages.
Start reading at host.py.
"""
