"""Write toolkit/settings/values.py from the table of settings: their names and types, for mypy.

`python -m tools.values` (`make generate`) writes it; with `--check` it only reports a difference.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from toolkit.settings.options import GROUPS, SETTINGS, Kind

PATH: Final = Path(__file__).resolve().parents[1] / "toolkit/settings/values.py"
_TYPES: Final = {
    Kind.FLAG: "bool",
    Kind.LIST: "tuple[str, ...]",
    Kind.SECONDS: "float",
    Kind.COUNT: "int",
    Kind.VALUE: "str",
}
_HEAD: Final = '''\
"""The names and types of the settings. Generated from options.py: run `make generate`."""

from __future__ import annotations


class Values:
    """The value of every setting as an attribute. A setting without a value is empty."""

'''


def text() -> str:
    """Return what the module has to be."""
    return _HEAD + "".join(f"    {row.name}: {_TYPES[row.kind]}\n" for row in SETTINGS)


def without_group() -> list[str]:
    """Return the settings that no group has: neither --help-all nor a document shows those."""
    grouped = {name for _, names in GROUPS for name in names}
    return [row.name for row in SETTINGS if row.name not in grouped]


def main() -> int:
    """Write the module; with `--check` return 1 where it is out of date.

    A setting without a group ends it as well, because all that is generated next would lack it.
    """
    if missing := without_group():
        sys.stderr.write(
            f"tools.values: {', '.join(missing)}: in SETTINGS of toolkit/settings/options.py, and"
            " in no group of GROUPS below it: add it to one\n"
        )
        return 1
    if "--check" in sys.argv[1:]:
        return int(PATH.read_text(encoding="utf-8") != text())
    PATH.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
