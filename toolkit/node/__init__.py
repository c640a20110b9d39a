"""The node's operating system: paths, files, processes, sockets, commands. It knows no runtime.

May import the modules beside the packages.
Start reading at host.py.
"""
