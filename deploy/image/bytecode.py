"""Compile modules to what an image needs of them: no docstrings, no columns of expressions.

Run with `-X no_debug_ranges`, and with lines of JSON on stdin: [source, target, name in the image].
A traceback has the file, the line and the function all the same. Not the text of the line, since
the sources stay behind; the columns would only mark a part of that.

`python -OO` would remove assertions as well, which are checks that h2, tomlkit and others make.
Docstrings stay where programs use them: those of classes (a dataclass without one derives one,
slowly) and of decorated functions (a command's help).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import marshal
import sys
from pathlib import Path

# PEP 552: named by the hash of the source, and not to be compared with it.
_FLAGS = 0b01


def compiled(source: bytes, name: str) -> bytes:
    """Return the content of a .pyc file; `name` is what tracebacks call the source."""
    code = compile(without_docstrings(ast.parse(source)), name, "exec", dont_inherit=True)
    head = importlib.util.MAGIC_NUMBER + _FLAGS.to_bytes(4, "little")
    return head + importlib.util.source_hash(source) + marshal.dumps(code)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove the docstrings of modules and of functions that have no decorator."""
    for node in ast.walk(tree):
        match node:
            case ast.Module(body=body):
                while _begins_with_text(body):
                    body.pop(0)
            case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
                if _begins_with_text(body) and not node.decorator_list:
                    # What follows must not become the docstring, and a body is not empty.
                    body[0] = ast.copy_location(ast.Pass(), body[0])
            case _:
                pass
    return tree


def _begins_with_text(body: list[ast.stmt]) -> bool:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *_]:
            return True
        case _:
            return False


def main() -> None:
    """Compile what stdin names."""
    for line in sys.stdin:
        source, target, name = json.loads(line)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_bytes(compiled(Path(source).read_bytes(), name))


if __name__ == "__main__":
    main()
