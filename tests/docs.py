"""The generated parts of docs/: `python -m tests.docs` writes them, the house test compares them."""

from __future__ import annotations

from pathlib import Path

from toolkit.options import Setting, grouped

ROOT = Path(__file__).resolve().parent.parent


def options() -> str:
    """Return docs/options.md."""
    lines = [
        "# Options and variables",
        "",
        "Every option works with every command. An option on the command line wins over its",
        "variables, of which the first one that is set counts; `CONTAINERD_*` counts only where the",
        "runtime is containerd, `DOCKER_*` only for docker, `CRIO_*` only for CRI-O. A flag without a",
        "value is true; it never takes the next word as its value; true is also written 1, t, yes or on,",
        "false 0, f, no or off, in any case. A list is separated by commas, or its option is given again. An",
        "empty variable is one that is not set. An empty option (`--drop-in-config=`) is one that is left",
        "out, unless its table says what it means, and is refused where the runtime could not be found",
        "without it. An option for one runtime is refused with another. Every problem is told, with exit",
        "code 2, before anything is looked at or changed.",
        "",
        "These tables are generated from `toolkit/options.py`.",
    ]
    for title, rows in grouped():
        lines += ["", f"## {title}", ""]
        lines += ["| option | variables | default | meaning |", "| --- | --- | --- | --- |", *map(_row, rows)]
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
    only = f" For {row.only} only." if row.only else ""
    return f"| {flags} | {variables} | {shown} | {row.help}{choices}{only}{pending} |"


if __name__ == "__main__":
    from tests import manual

    manual.write()
    (ROOT / "docs/options.md").write_text(options(), encoding="utf-8")
