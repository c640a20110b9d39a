"""The edges: options and variables, the record, and whatever a daemon says of itself."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtimes.crio import ADAPTER as crio
from runtimes.docker import ADAPTER as docker
from runtimes.errors import ConfigError
from runtimes.model import ABSENT, Edit, Key
from tests.fuzz import laws, nodes
from tests.fuzz.strategies import (
    ANY_JSON,
    CRIO,
    JSON,
    TOML,
    altered,
    budget,
    mutated,
)
from toolkit.artifacts import toolkit_config
from toolkit.errors import NodeConfigError, StepError, UsageProblem
from toolkit.runtime.client import cri, grpc, protobuf
from toolkit.settings import resolve
from toolkit.settings.layout import InstallDir
from toolkit.settings.options import SETTINGS, Kind
from toolkit.state import journal, readiness_record, record
from toolkit.state import restart_budget as restarts

# --- options and variables ------------------------------------------------------------------------

_WORDS: Final = st.one_of(
    st.sampled_from(
        ["true", "FALSE", "1", "0", "yes", "off", "", " ", "10", "10s", "nan", "inf", "-1", "1e5",
         "1_0", "٣", "0x1", "docker", "containerd", "crio", "auto", "none", "systemd", "command",
         "file,", "command=x, file", "/a", "a/b", "/run/toolkit.pid", "nvidia", "a b", "\udcff",
         "\x00", "{}",
         "9" * 5000, "x" * 5000, "İ", "ﬀ", "..", "//"]
    ),
    st.text(max_size=8),
)  # fmt: skip
_OPTIONS: Final = st.dictionaries(
    st.sampled_from([row.name for row in SETTINGS]), _WORDS, max_size=8
)
_VARIABLES: Final = st.dictionaries(
    st.sampled_from(sorted({name for row in SETTINGS for name in row.variables})),
    _WORDS,
    max_size=8,
)


@budget(400)
@given(_OPTIONS, _VARIABLES)
def test_any_options_and_variables_are_settings_or_a_usage_problem(
    options: Mapping[str, str], variables: Mapping[str, str]
) -> None:
    with laws.bounded():
        try:
            found = resolve.resolve(options, variables)
        except UsageProblem:
            return
    for row in SETTINGS:
        match row.kind:
            case Kind.FLAG:
                assert isinstance(found.values[row.name], bool)
            case Kind.LIST:
                assert "" not in found.values[row.name]
            case Kind.SECONDS:
                assert 0 < found.values[row.name] < 100_000
            case Kind.COUNT:
                assert found.values[row.name] >= 0
            case Kind.VALUE:
                assert isinstance(found.values[row.name], str)
                assert not row.choices or found.values[row.name] in row.choices


# --- the record -----------------------------------------------------------------------------------

_RECORD: Final = record.Record(
    sequence=3,
    runtime="containerd",
    pending_reload=record.PendingReload(since=12.5),
    directories=("/etc/containerd/conf.d",),
    toolkit_digest="ab" * 32,
    unit="containerd.service",
    owned=(
        record.Owned(
            path="/etc/containerd/config.toml",
            local="/host/etc/containerd/config.toml",
            original=None,
            mode=0o644,
            uid=0,
            gid=0,
            label="c3lzdGVt",
            attributes=(("system.posix_acl_access", "AgAAAA=="), ("user.x", "")),
            written=("cd" * 32, "absent"),
            edits=(
                Edit(key=("version",), old=ABSENT, new=2, required_keys=("version",)),
                Edit(key=("plugins", "cri", "nvidia"), old={"a": [1, None]}, new={"o": {"x": 1.5}}),
                Edit(key=("imports",), old=["/a"], new=["/a", "/b"]),
            ),
        ),
    ),
)
_OPEN: Final = record.Transaction(
    operation=record.Operation.INSTALL,
    previous=_RECORD,
    baseline=record.Baseline(),
    files=_RECORD.owned,
    notified=True,
    failure="it failed",
)


def _written(record: record.Record) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        journal.save(Path(directory), record)
        return (InstallDir(Path(directory)).state / "state.json").read_bytes()


_RECORDS: Final = (
    _written(_RECORD),
    _written(record.Record(runtime="docker", owned=_RECORD.owned, open=_OPEN)),
    _written(record.Record()),
)
_IN_RECORDS: Final = (
    b"null", b"[]", b"{}", b"1e999", b"-1", b"true", b'""', b'"key": []', b'"readable_by": 1e999',
    b"Infinity", b"NaN", b'"readable_by": "1"', b'"new": null', b'"old": {}',
    b'"required_keys": [""]', b'"edits": {}', b'"open": 1', b"1.5", b'"mode": 99999999999999999999',
    b'"owned": [[]]', b'"handlers": [1]', b'"job": "x"', b"[" * 3000, b'"\\ud800"',
)  # fmt: skip
_STATES: Final = st.one_of(
    mutated(_RECORDS, _IN_RECORDS, 4), altered(_RECORDS), altered(_RECORDS), JSON
)
# A file of another kind than the record's: what it holds is no matter here.
_OTHERS: Final = (
    b"",
    b"version = 2\n[plugins.cri.nvidia]\no = {x = 1.5}\n",
    b'imports = ["/a", "/b"]\n[plugins]\n',
)


def _with(**changed: Any) -> dict[str, Any]:
    """Return a record in which the file of ours is another."""
    record: dict[str, Any] = json.loads(_RECORDS[0])
    record["owned"] = [{**record["owned"][0], **changed}]
    return record


_DAMAGED: Final = {
    "endless readability": {**json.loads(_RECORDS[0]), "readable_by": float("inf")},
    "an edit without a key": _with(edits=[{"key": [], "required_keys": [], "old": 1, "new": 2}]),
    "an original that no file is": _with(original="a\0b"),
    "an original elsewhere": _with(original="../../x"),
    "a path that is none": _with(local="a\0b"),
    "a label that is none": _with(label="!"),
    "an attribute that is none": _with(attributes={"user.x": "!"}),
    "an attribute that nobody can have": _with(attributes={"user.\0": "AAAA"}),
    "attributes that are none": _with(attributes=["user.x"]),
    "a mode that is none": _with(mode=10**30),
    "an owner that is none": _with(uid=-5),
    "a time that is none": {
        **json.loads(_RECORDS[0]),
        "pending_reload": {"since": float("nan"), "process": None},
    },
}


@pytest.mark.parametrize("content", _DAMAGED.values(), ids=_DAMAGED)
def test_a_record_with_values_that_cannot_be_is_damaged(content: dict[str, Any]) -> None:
    place = _place()
    InstallDir(place).state.mkdir(mode=0o700, exist_ok=True)
    (InstallDir(place).state / "state.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(NodeConfigError):
        journal.load(place)


@functools.cache
def _place() -> Path:
    """Return a directory that goes when the tests end."""
    keeper = tempfile.TemporaryDirectory()
    atexit.register(keeper.cleanup)
    return Path(keeper.name)


@budget(200)
@given(_STATES)
def test_any_record_is_understood_or_refused(state: bytes) -> None:
    place = _place()
    InstallDir(place).state.mkdir(mode=0o700, exist_ok=True)
    (InstallDir(place).state / "state.json").write_bytes(state)
    try:
        record = journal.load(place)
    except NodeConfigError:
        return
    with contextlib.suppress(StepError):
        journal.ownerships(place, record.owned)
    for owned in record.owned:
        nodes.taken_back(nodes.CONTAINERD, _OTHERS, owned.edits)
        nodes.taken_back(
            nodes.DOCKER, (b"", b'{"imports": ["/a", "/b"]}', b'{"version": 2}'), owned.edits
        )


# --- what lies on the node beside -----------------------------------------------------------------


_RESTARTS: Final = (b'{"format": 1, "boot": "x", "restarts": [1.5, 2]}\n',)


@budget(100)
@given(
    mutated(_RESTARTS, (b"1e999", b"9" * 400, b"NaN", b"null", b"{}")) | altered(_RESTARTS) | JSON
)
def test_any_count_of_restarts_is_read(state: bytes) -> None:
    path = _place() / "restarts.json"
    path.write_bytes(state)
    with (
        mock.patch("toolkit.node.procfs.boot_id", return_value="x"),
        mock.patch.object(restarts, "LOGGER"),
    ):
        restarts.Budget(path=path, most=1, window=600).restart_refusal()


@budget(100)
@given(JSON)
def test_any_readiness_record_is_read(state: bytes) -> None:
    path = _place() / "ready.json"
    path.write_bytes(state)
    assert isinstance(readiness_record.mismatch(path, {"format": 1}), str)


@budget(100)
@given(TOML)
def test_any_configuration_of_the_toolkit_is_completed_or_refused(present: bytes) -> None:
    asked: dict[Key, object] = {
        ("nvidia-container-runtime", "runtimes"): ["/usr/bin/runc"],
        ("disable-require",): True,
    }
    with laws.bounded():
        try:
            after = toolkit_config.configuration(present, "/x/config.toml", asked)
        except NodeConfigError:
            return
        assert toolkit_config.configuration(after, "/x/config.toml", asked) == after
    found = laws.read_toml(after)
    assert found["nvidia-container-runtime"]["runtimes"] == ["/usr/bin/runc"]


# --- what a daemon says ---------------------------------------------------------------------------

_CONDITION: Final = protobuf.encode([(1, "RuntimeReady"), (2, 1), (3, "why"), (4, "long")])
_POD: Final = protobuf.encode(
    [(1, "id"), (2, protobuf.encode([(1, "name"), (3, "space")])), (3, 0), (7, "nvidia")]
)
_ANSWERS: Final = (
    protobuf.encode([(2, "containerd"), (3, "2.1.4")]),
    protobuf.encode(
        [
            (1, protobuf.encode([(1, _CONDITION), (1, _CONDITION)])),
            (
                2,
                protobuf.encode(
                    [(1, "config"), (2, '{"containerd": {"runtimes": {"nvidia": {}}}}')]
                ),
            ),
            (3, protobuf.encode([(1, "nvidia")])),
        ]
    ),
    protobuf.encode([(1, _POD), (1, _POD)]),
    protobuf.encode([(2, protobuf.encode([(1, "info"), (2, '{"runtimeHandler": "nvidia"}')]))]),
)
_IN_WIRES: Final = (
    b"\x80" * 11,
    b"\x0a\x00",
    b"\x08",
    b"\xff" * 9 + b"\x01",
    b"\x0b",
    b"[" * 9000,
)
_WIRES: Final = mutated(_ANSWERS, _IN_WIRES) | st.binary(max_size=80)
_SOCKET: Final = Path("/run/x.sock")
_SECONDS: Final = 1.0


@budget(400)
@given(_WIRES, st.integers(0, 8))
def test_any_message_is_read_or_malformed(data: bytes, field: int) -> None:
    try:
        message = protobuf.decode(data)
    except protobuf.Malformed:
        return
    readers: tuple[Callable[[int], object], ...] = (
        message.number, message.flag, message.pieces, message.text, message.message,
        lambda field: list(message.messages(field)), message.texts_by_name,
    )  # fmt: skip
    for read in readers:
        with contextlib.suppress(protobuf.Malformed):
            read(field)
    assert all(0 < number < 1 << 29 for number in message.fields)


@budget(400)
@given(_WIRES)
def test_any_answer_over_cri_is_read_or_a_failed_call(data: bytes) -> None:
    readers: tuple[Callable[[], object], ...] = (
        lambda: cri.version(_SOCKET, timeout=_SECONDS),
        lambda: cri.status(_SOCKET, timeout=_SECONDS),
        lambda: cri.sandboxes(_SOCKET, timeout=_SECONDS),
        lambda: cri.containers(_SOCKET, timeout=_SECONDS),
        lambda: cri.sandbox_info(_SOCKET, "x", timeout=_SECONDS),
    )
    with mock.patch.object(grpc, "unary", return_value=data), laws.bounded():
        for read in readers:
            with contextlib.suppress(cri.CriFailed):
                read()
        assert isinstance(cri.cri_failure(_SOCKET, timeout=_SECONDS), str)


_SAID: Final = ANY_JSON | CRIO.map(lambda data: data.decode(errors="replace"))


@budget(300)
@given(_SAID)
def test_any_word_of_a_daemon_is_understood_or_a_value_error(said: str) -> None:
    try:
        config = json.loads(said)
    except (ValueError, RecursionError):
        config = None
    config = config if isinstance(config, dict) else None
    for of in (nodes.CONTAINERD, nodes.CRIO, nodes.DOCKER):
        with laws.bounded():
            with contextlib.suppress(ValueError):
                of.adapter.running(config, said)
            assert isinstance(of.adapter.handler_in(config or {}), str)
    assert all(isinstance(problem, str) for problem in crio.not_applied(nodes.CRIO.wish, {}, said))
    problems = docker.not_applied(nodes.DOCKER.wish, {nodes.DOCKER.wish.config: b"{}"}, said)
    assert all(isinstance(problem, str) for problem in problems)


@pytest.mark.parametrize("file", [b'{"runtimes": 1}', b'{"default-runtime": [1]}'])
def test_what_a_file_of_docker_says_is_told_or_refused(file: bytes) -> None:
    wish = nodes.DOCKER.wish
    seen = nodes.observe(nodes.DOCKER, nodes.Node(files={wish.config: file}), {wish.config: file})
    with contextlib.suppress(ConfigError):
        assert isinstance(docker.effective(wish, seen).default, str)
        docker.defined(wish, seen.files)


_RUNTIMES_THAT_CANNOT_RUN: Final = (
    rb'{"runtimes": {"x": {"path": "\ud800"}}}',
    rb'{"runtimes": {"x": {"path": "a\u0000b"}}}',
    rb'{"runtimes": {"x": {"path": ""}}}',
)


@pytest.mark.parametrize("file", _RUNTIMES_THAT_CANNOT_RUN)
def test_a_runtime_of_docker_that_cannot_run_is_no_low_level_one(file: bytes) -> None:
    files = {nodes.DOCKER.wish.config: file}
    found = nodes.plan(nodes.DOCKER, nodes.Node(files=files), files)
    assert found is not None
    nodes.runnable(found)


def test_a_deep_answer_of_docker_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        docker.running(None, "[" * 100_000)


@budget(100)
@given(ANY_JSON, ANY_JSON)
@example("{}", "{}")
@example('{"a": 1}', "{}")
@example('[{"Id": 1}]', "{}")
@example("[]", '{"HostConfig": []}')
def test_any_containers_of_docker_are_understood_or_a_value_error(
    containers: str, one: str
) -> None:
    with contextlib.suppress(ValueError):
        docker.usage(nodes.DOCKER.wish, {"/containers/json": containers})
    with contextlib.suppress(ValueError):
        docker.usage(
            nodes.DOCKER.wish, {"/containers/json": '[{"Id": "a"}]', "/containers/a/json": one}
        )
