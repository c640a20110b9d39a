"""Clients of the container runtimes' APIs: CRI over gRPC, Docker over HTTP, NRI over ttrpc.

May import: node, settings, and the modules beside the packages.
Start reading at cri.py.
"""
