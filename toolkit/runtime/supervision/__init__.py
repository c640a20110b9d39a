"""Supervisors of a runtime, which start it again: a systemd unit, a program, or this one.

May import: node, settings, and the modules beside the packages.
Start reading at supervisor.py.
"""
