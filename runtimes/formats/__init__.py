"""Editors for TOML and JSON files that keep every byte that is not edited.

May import: runtimes.model, runtimes.errors; tomlkit only where something is written, tomli only for
what `tomllib` refuses.
Start reading at toml_editor.py, then json_editor.py.
"""
