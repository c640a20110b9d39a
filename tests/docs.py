"""The generated parts of docs/: `python -m tests.docs` writes them, the house test compares them."""

from __future__ import annotations

from pathlib import Path

from toolkit.options import SETTINGS, Setting

ROOT = Path(__file__).resolve().parent.parent


def options() -> str:
    """Return docs/options.md."""
    lines = [
        "# Options and variables",
        "",
        "Every option works with every command. An option on the command line wins over its",
        "variables, of which the first one that is set counts; `CONTAINERD_*` counts only where the",
        "runtime is containerd, `DOCKER_*` only for docker, `CRIO_*` only for CRI-O. A flag without a",
        "value is true; it never takes the next word as its value.",
        "",
        "This table is generated from `toolkit/options.py`.",
        "",
        "| option | variables | default | meaning |",
        "| --- | --- | --- | --- |",
        *map(_row, SETTINGS),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Setting) -> str:
    flags = ", ".join(f"`{flag}`" for flag in row.flags)
    variables = ", ".join(f"`{variable}`" for variable in row.variables)
    default = row.default
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    shown = "" if default in (None, "") else f"`{default}`"
    choices = f" One of {', '.join(row.choices)}." if row.choices else ""
    pending = f" Refused when it is asked for: {row.pending}." if row.pending else ""
    return f"| {flags} | {variables} | {shown} | {row.help}{choices}{pending} |"


if __name__ == "__main__":
    (ROOT / "docs/options.md").write_text(options(), encoding="utf-8")
