"""Starts the stand-in of fake_daemon.py.

A module is compiled once, a script at every start; that is a fifth of a start of the stand-in.
"""

import importlib
import os
import sys

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
importlib.import_module("fake_daemon").main()
