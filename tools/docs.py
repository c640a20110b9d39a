"""The generated parts of docs/: `python -m tools.docs` writes them, a test compares them."""

from __future__ import annotations

from pathlib import Path

from toolkit.settings.options import Setting, grouped
from tools import differences

ROOT = Path(__file__).resolve().parent.parent
_DIFFERENCES = "## Differences from the upstream image"


def options() -> str:
    """Return docs/options.md."""
    lines = [
        "# Options and variables",
        "",
        (
            "Every option works with every command but `completion`. `--help` shows the ten that"
            " are often needed, `--help-all` all that"
        ),
        "the command uses.",
        "",
        (
            "- An option on the command line takes precedence over its variables. If several of its"
            " variables"
        ),
        "  are set, the first one counts, and one for the node's runtime before those for others.",
        (
            "- `CONTAINERD_*` counts only for containerd, `DOCKER_*` only for Docker, `CRIO_*` only"
            " for CRI-O,"
        ),
        (
            "  except the variables of `--set-as-default` and `--runtime-class`, which count for"
            " every runtime."
        ),
        "  One that has no effect is named in the log.",
        (
            "- A flag without a value is true, and never takes the next word as its value. True is"
            " `true`, `1`,"
        ),
        "  `t`, `yes` or `on`; false is `false`, `0`, `f`, `no` or `off`, in upper or lower case.",
        "- The items of a list are separated by commas, or the option is repeated.",
        (
            "- An empty variable of a flag means false; any other empty variable counts as not set."
            " An empty"
        ),
        (
            "  option (`--drop-in-config=`) counts as not given, unless its row says what it means."
            " It is"
        ),
        "  refused if the runtime cannot be found without it.",
        "- An option for one runtime is refused with another.",
        "- All invalid values are reported together, with exit code 2, before anything is changed.",
        "",
        "These tables are generated from `toolkit/settings/options.py`.",
    ]
    for title, rows in grouped():
        lines += ["", f"## {title}", ""]
        lines += [
            "| option | variables | default | meaning |",
            "| --- | --- | --- | --- |",
            *map(_row, rows),
        ]
    return "\n".join(lines) + "\n"


def gpu_operator(text: str) -> str:
    """Return the text of docs/gpu-operator.md with the table of differences as it is generated."""
    head, _, _ = text.partition(_DIFFERENCES)
    return (
        f"{head}{_DIFFERENCES}\n\nGenerated from `tools/differences.py`, which"
        " `tests/conformance/test_side_by_side.py` holds against both\nprograms: every option,"
        f" alias and variable, with each runtime.\n\n{differences.table()}"
    )


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
    pending = f" Refused if enabled: {row.pending}." if row.pending else ""
    only = f" For {row.only} only." if row.only else ""
    return f"| {flags} | {variables} | {shown} | {row.help}{choices}{only}{pending} |"


if __name__ == "__main__":
    from tools import manual

    manual.write()
    (ROOT / "docs/options.md").write_text(options(), encoding="utf-8")
    page = ROOT / "docs/gpu-operator.md"
    page.write_text(gpu_operator(page.read_text(encoding="utf-8")), encoding="utf-8")
