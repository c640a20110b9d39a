"""The commands in the documents work: those for a desk are run, the rest must match their targets.

Those for a node are run in tests/nodes/test_documents_node.py, those for a cluster in
tests/cluster/test_cluster_node.py, and the image is built in tests/cluster/test_image.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from tests.support import binaries, documents, fake_node, versions
from tests.support.documents import ROOT, Block
from toolkit.cli import command_line, parser
from toolkit.settings.options import SETTINGS

HARMLESS = {"plan", "status", "diagnose", "completion", "--help", "--version"}
FOREIGN = {
    "--previous": "kubectl logs",
    "--reuse-values": "helm",
    "--set": "helm",
    "--set-string": "helm",
    "--values": "helm",
    "--validate": "dockerd",
    "--add-runtime": "dockerd",
    "--default-runtime": "dockerd",
    "--container-runtime-endpoint": "the kubelet",
    "--build-arg": "docker build",
    "--gpus": "docker run",
}
"""Options of other programs that the documents name."""
MARKS = set("();<>|&")
STARTS = re.compile(r"--$|\w+=")
"""What precedes a command, other than marks: the end of another's options, or a variable."""
VARIABLES = {variable for row in SETTINGS for variable in row.variables} | {"POD_NAME", "NO_COLOR"}


def named(block: Block) -> str:
    return block.place


def test_there_is_something_to_look_at() -> None:
    assert len(documents.DOCUMENTS) > 10
    for name in ("desk", "node", "make", "cluster"):
        assert documents.of_kind(f"sh {name}"), name


UNITS = {"ms": 1e-3, "s": 1.0, "MB": 1.0}
COMPARED = {
    "5": "first install: socket dead",
    "6": "idle: memory (PSS)",
    "7": "first install of 64 MB, warm (every byte synced; the peer syncs none)",
}
"""The rows of the README that the benchmarks write elsewhere, by their numbers."""


def amount(cell: str) -> float:
    """Return the first number of a cell, in seconds or MB."""
    found = re.search(r"([\d.]+) (ms|s|MB)", cell)
    assert found is not None, cell
    return float(found[1]) * UNITS[found[2]]


@pytest.mark.parametrize("number", COMPARED)
def test_the_readme_compares_what_was_measured(number: str) -> None:
    lines = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {COMPARED[number]} |"))
    _, _, _, ours, theirs, *_ = row.split("|")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (shown,) = (line for line in readme if line.startswith(f"| {number}. "))
    _, _, upstream, here, _ = shown.split("|")
    # Shown with two digits.
    assert amount(upstream) == pytest.approx(amount(theirs), rel=0.05)
    assert amount(here) == pytest.approx(amount(ours), rel=0.05)


def test_the_versions_of_containerd_are_those_that_are_tested() -> None:
    text = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| containerd ([\d., ]+) \(([\d., ]+)[,)].*\|$", text, re.MULTILINE)
    named = {
        line: version
        for lines, versions in rows
        for line, version in zip(lines.split(", "), versions.split(", "), strict=True)
    }
    assert tuple(named) == binaries.LINES
    assert {line: f"v{named[line]}" for line in versions.CONTAINERD} == versions.CONTAINERD


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_every_block_belongs_to_a_class(document: Path) -> None:
    strange = [
        f"{b.place}: {b.kind!r}"
        for b in documents.blocks(document)
        if b.kind not in documents.CLASSES
    ]
    assert strange == [], "CONTRIBUTING.md lists the classes"


# --- what is run --------------------------------------------------------------------------------


@pytest.mark.parametrize("block", documents.of_kind("sh desk"), ids=named)
def test_a_desk_can_run_it(block: Block, tmp_path: Path) -> None:
    for words in ours(block):
        assert HARMLESS & set(words), f"{block.place}: {words} does not belong on a desk"
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env={"PATH": f"{fake_node.BIN}:{fake_node.ENVIRONMENT['PATH']}", "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", documents.of_kind("sh make"), ids=named)
def test_make_and_pytest_know_what_is_named(block: Block) -> None:
    for command in block.commands:
        words = shlex.split(command, comments=True)
        if words[:3] == [".venv/bin/python", "-m", "pytest"]:
            collect = [sys.executable, *words[1:], "--collect-only", "--quiet"]
            subprocess.run(
                collect, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
            )
            continue
        assert words[0] == "make", command
        subprocess.run(
            [*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )


def test_the_plan_in_the_readme_is_the_one_that_is_printed() -> None:
    [shown] = [b.text for b in documents.blocks(ROOT / "README.md") if "--- /src/" in b.text]
    config = ROOT / "examples/containerd/config.toml"
    done = fake_node.done("plan", "--diff=full", "--runtime", "containerd", "--config", str(config))
    diff = "".join(
        line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#")
    )
    assert diff.replace(str(ROOT), "/src/nvidia-toolkit") == shown


# --- what is parsed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [b for name in documents.SHELL for b in documents.of_kind(f"sh {name}")], ids=named
)
def test_the_shell_and_the_command_line_take_it(block: Block) -> None:
    subprocess.run(
        ["bash", "-n", "-c", block.text], capture_output=True, text=True, timeout=20, check=True
    )
    for words in ours(block):
        parse(words)


def test_the_image_has_the_arguments() -> None:
    known = set(
        re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    given = {
        arg
        for b in documents.of_kind("sh image")
        for arg in re.findall(r"--build-arg[ =](\w+)", b.text)
    }
    assert given <= known


@pytest.mark.parametrize("block", documents.of_kind("sh operator"), ids=named)
def test_the_operator_is_given_variables_that_there_are(block: Block) -> None:
    keys = [
        key for command in block.commands for key in values(shlex.split(command, comments=True))
    ]
    assert keys
    assert [
        key for key in keys if key.partition(".")[0] not in {"cdi", "operator", "toolkit"}
    ] == []
    assert set(re.findall(r"\.name=(\w+)", block.text)) <= VARIABLES


@pytest.mark.parametrize(
    "block", [*documents.of_kind("sh cluster"), *documents.of_kind("sh fleet")], ids=named
)
def test_the_chart_has_the_values(block: Block) -> None:
    keys = [
        key for command in block.commands for key in values(shlex.split(command, comments=True))
    ]
    if keys or "helm " in block.text:
        [path] = (ROOT / "deploy/helm").glob("*/files/values.strict.schema.json")
        schema = json.loads(path.read_text(encoding="utf-8"))
        assert [key for key in keys if not knows(schema, schema, steps(key))] == []


@pytest.mark.parametrize(
    "block", [b for kind in ("python", "toml", "json") for b in documents.of_kind(kind)], ids=named
)
def test_data_and_code_can_be_read(block: Block) -> None:
    match block.kind:
        case "python":
            compile(block.text, block.place, "exec")
        case "toml":
            tomllib.loads(block.text)
        case _:
            json.loads(block.text)


def test_a_manifest_sets_variables_that_there_are() -> None:
    given = {
        name
        for b in documents.of_kind("yaml")
        for name in re.findall(r"name: ([A-Z][A-Z0-9_]+)\b", b.text)
    }
    assert given <= VARIABLES


# --- what stands in the text --------------------------------------------------------------------


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_text_parse(document: Path) -> None:
    for span in documents.spans(document):
        if re.match(r"nvidia-toolkit [a-z-]", span):
            parse(shlex.split(span)[1:])


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_options_in_the_text_exist(document: Path) -> None:
    named = {m[0] for span in documents.spans(document) if (m := re.match(r"--[a-z][\w.-]*", span))}
    assert named - flags() - FOREIGN.keys() == set()


@pytest.mark.parametrize("document", documents.DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


# --- the checks are some ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["plan", "--no-such"], ["plann", "-q"], ["plan", "-o", "yaml"], ["plan", "further"]],
    ids=" ".join,
)
def test_a_command_that_is_none_is_found(words: list[str]) -> None:
    with pytest.raises(click.ClickException):
        parse(words)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("nvidia-toolkit plan --exit-code >x || test $? = 8", [["plan", "--exit-code"]]),
        ("kubectl --namespace nvidia-toolkit exec POD -- nvidia-toolkit diagnose", [["diagnose"]]),
        ("source <(nvidia-toolkit completion bash)    # a comment", [["completion", "bash"]]),
        ("A=1 nvidia-toolkit revert; nvidia-toolkit status", [["revert"], ["status"]]),
        ("man docs/man/nvidia-toolkit.1", []),
    ],
)
def test_our_commands_are_found_in_a_line(line: str, found: list[list[str]]) -> None:
    block = Block(document=ROOT / "README.md", line=1, kind="sh desk", text=f"{line}\n")
    assert list(ours(block)) == found


def test_a_value_that_the_chart_does_not_have_is_found() -> None:
    schema = {
        "properties": {
            "toolkit": {"$ref": "#/$defs/toolkit"},
            "labels": {"additionalProperties": {"type": "string"}},
        },
        "$defs": {
            "toolkit": {
                "properties": {"env": {"items": {"properties": {"name": {}}}}},
                "additionalProperties": False,
            }
        },
    }
    for key, is_there in {
        "toolkit.env[0].name": True,
        "toolkit.evn": False,
        "labels.x": True,
        "x": False,
    }.items():
        assert knows(schema, schema, steps(key)) is is_there, key
    assert values(shlex.split("helm install x y --set a.b=1,c[0]=2 --set-string d=3")) == [
        "a.b",
        "c[0]",
        "d",
    ]


# --- how ----------------------------------------------------------------------------------------


def ours(block: Block) -> Iterator[list[str]]:
    """Yield the words of every command of ours in a block, without its redirections."""
    for command in block.commands:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words: list[str] | None = None
        before = ";"
        for word in [*lexer, ";"]:
            is_mark = set(word) <= MARKS
            if is_mark and words is not None:
                yield words
                words = None
            elif words is not None:
                words.append(word)
            elif word.rpartition("/")[2] == "nvidia-toolkit" and (
                set(before) <= MARKS or STARTS.match(before)
            ):
                words = []
            before = word


def parse(words: Sequence[str]) -> None:
    """Parse a command line as the program does, and do nothing. Raises ClickException."""
    words = [word for word in words if word not in {"--help", "--help-all", "--version"}]
    if not words:
        return
    group = parser.app()
    name, *rest = command_line.explicit(list(words))
    if not rest:
        assert name in group.commands  # only its name is said
        return
    with click.Context(group, info_name="nvidia-toolkit") as context:
        _, command, _ = group.resolve_command(context, [name])
        assert command is not None
        command.make_context(name, rest, parent=context).close()


def flags() -> set[str]:
    """Return every long option that there is."""
    return {
        flag
        for command in parser.app().commands.values()
        for parameter in command.params
        for flag in parameter.opts
    } | {"--help", "--version"}


def values(words: Sequence[str]) -> list[str]:
    """Return the keys that a helm command sets."""
    found = []
    for flag, value in zip(words, [*words[1:], ""], strict=True):
        name, equals, same = flag.partition("=")
        if name in {"--set", "--set-string", "--set-json", "--set-file", "--set-literal"}:
            text = same if equals else value
            found += [pair.partition("=")[0] for pair in text.split(",") if "=" in pair]
    return found


def steps(key: str) -> list[str]:
    return [step for step in re.split(r"\.|(\[\d+\])", key) if step]


def knows(schema: dict[str, Any], root: dict[str, Any], path: Sequence[str]) -> bool:
    """Tell whether a schema has a place for a value."""
    if reference := schema.get("$ref"):
        schema = root
        for part in reference.removeprefix("#/").split("/"):
            schema = schema[part]
    if not path:
        return True
    step, *rest = path
    if step.startswith("["):
        return knows(schema.get("items", {}), root, rest)
    if step in schema.get("properties", {}):
        return knows(schema["properties"][step], root, rest)
    return bool(schema.get("additionalProperties", False))


def anchors(document: Path) -> set[str]:
    """Return what a link can lead to in a document, as forges make it of its headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
