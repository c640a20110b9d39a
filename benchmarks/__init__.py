"""Measurements beside the tests: they print, and nothing fails on a slow machine."""
