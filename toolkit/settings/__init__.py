"""The settings: options, environment variables and defaults, resolved to one `Settings` object.

May import node and the modules beside the packages.
Start reading at options.py.
"""
