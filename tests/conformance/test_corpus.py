"""Every collected configuration on every real containerd: refused, or changed in our keys only.

What is effective is read from the binary with the files at their real paths, and compared here by
hand: neither the program's staging nor its judge has a part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest
import tomli

from runtimes.errors import ConfigError
from runtimes.model import Desired
from tests.support import binaries, nodes, pure_plan

CORPUS: Final = nodes.CHECKOUT.parent / "shared" / "corpus" / "containerd"
CASES: Final = sorted(path.name for path in CORPUS.glob("*.toml")) or ["absent"]

SECTIONS: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")
V2: Final = 'plugins."io.containerd.grpc.v1.cri"'
V3: Final = 'plugins."io.containerd.cri.v1.runtime"'
NEWEST: Final = {"1.6": 2, "1.7": 2, "2.1": 3, "2.2": 3, "2.3": 4, "2.4": 4}
OURS: Final = frozenset(handler.name for handler in pure_plan.HANDLERS)
# An empty one is made "podsandbox" when the CRI plugin checks its configuration.
SANDBOX: Final = ("sandboxer", "sandbox_mode")
RUNC: Final = ("io.containerd.runc.", "io.containerd.runtime.v1.")

Dump = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a binary reports of a configuration."""

    handlers: Mapping[str, Dump]
    default: str
    rest: Mapping[tuple[str, ...], Any]
    """Every other value that is not zero, by its key."""


def told(dump: Dump) -> Told:
    """Split a dump into what we may change and what we may not."""
    plugins = dump.get("plugins", {})
    section: Dump = next(
        (plugins[name] for name in SECTIONS if "containerd" in plugins.get(name, {})), {}
    )
    containerd = section.get("containerd", {})
    rest = {}
    for key, value in flat(dump):
        inside = key[2:4] if key[:1] == ("plugins",) and key[1:2] and key[1] in SECTIONS else ()
        ours = inside == ("containerd", "default_runtime_name") or (
            inside == ("containerd", "runtimes") and key[4] in OURS
        )
        if not ours and key != ("imports",):
            rest[key] = value
    return Told(
        handlers={
            name: dict(flat_dict(table)) for name, table in containerd.get("runtimes", {}).items()
        },
        default=containerd.get("default_runtime_name", ""),
        rest=rest,
    )


def flat(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what is not zero, by key: containerd does not tell zero from absent."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from flat(below, (*key, name))
    elif value not in ("", 0, False, []) and not (
        key[-1:] and key[-1] in SANDBOX and value == "podsandbox"
    ):
        yield key, value


def flat_dict(table: Dump) -> Iterator[tuple[str, Any]]:
    for key, value in flat(table):
        yield ".".join(key), value


def dump(binary: binaries.Binary, files: pure_plan.Files) -> Dump:
    """Return what the binary would run with, the files being where they are meant to be."""
    present = {pure_plan.CONFIG: b"", **files} if pure_plan.CONFIG not in files else files
    answer = binaries.load(binary, pure_plan.CONFIG, frozenset(present.items()))
    assert answer.ok, answer.err
    return tomli.loads(answer.out)


def source(before: Told) -> Dump:
    """Return the handler whose options ours must have: the default, or what else runs runc."""
    for name in (before.default, "runc", "crun"):
        table = before.handlers.get(name)
        if table is None or name.startswith("nvidia"):
            continue
        if str(table.get("runtime_type") or RUNC[0]).startswith(RUNC):
            return table
    return {"runtime_type": "io.containerd.runc.v2"}


def without_binary(table: Dump) -> dict[str, Any]:
    """Return a handler without the keys that ours must change (`Runtime` is for shim version 1)."""
    binary = ("options.binaryname", "options.runtime")
    return {key: value for key, value in table.items() if key.lower() not in binary}


def check(before: Told, after: Told) -> None:
    """Compare what is effective before and after: our keys are there, and nothing else differs."""
    assert after.rest == before.rest
    assert before.handlers.keys() <= after.handlers.keys()
    if not after.handlers:
        return  # no CRI plugin in this binary's configuration
    assert after.default == "nvidia"
    inherited = without_binary(source(before))
    inherited.setdefault("runtime_type", "io.containerd.runc.v2")
    for handler in pure_plan.HANDLERS:
        table = after.handlers[handler.name]
        assert table["options.BinaryName"] == handler.binary
        existing = before.handlers.get(handler.name, {})
        assert without_binary(table) == {**without_binary(existing), **inherited}


def check_way(wish: Desired, files: pure_plan.Files, binary: binaries.Binary) -> ConfigError | None:
    """Go there and back again on one binary; return the refusal where it is refused."""
    ask = partial(binaries.ask, binary)
    try:
        found = pure_plan.plan(wish, files, ask)
    except ConfigError as refusal:
        return refusal
    after = pure_plan.after(files, found)
    check(told(dump(binary, files)), told(dump(binary, after)))
    owned = pure_plan.ownership(found)
    again = pure_plan.plan(wish, after, ask, owned)
    assert again.is_noop, [(change.path, change.edits) for change in again.changes]
    assert pure_plan.after(after, pure_plan.removal(wish, after, owned, ask)) == dict(files)
    return None


# The others are built with Go first.
_LINES: Final = [
    pytest.param(line, marks=[pytest.mark.smoke] if line in binaries.SUITES else [])
    for line in binaries.LINES
]


@pytest.fixture(params=_LINES)
def binary(request: pytest.FixtureRequest) -> binaries.Binary:
    return binaries.find(request.param)


@pytest.mark.binary
@pytest.mark.parametrize("name", CASES)
def test_only_our_keys_change(name: str, binary: binaries.Binary) -> None:
    if name == "absent":
        pytest.skip(f"there is no corpus beside the project (../{'/'.join(CORPUS.parts[-3:])})")
    files = {pure_plan.CONFIG: (CORPUS / name).read_bytes()}
    refusal = check_way(pure_plan.desired(), files, binary)
    if refusal is None:
        return
    assert refusal.path.startswith("/etc/containerd/")
    assert refusal.why
    # What is refused is what this containerd cannot use, or what the table says.
    answer = binaries.load(binary, pure_plan.CONFIG, frozenset(files.items()))
    assert not answer.ok or newer(files[pure_plan.CONFIG], binary), str(refusal)


def newer(data: bytes, binary: binaries.Binary) -> bool:
    """Return whether a file's schema version is newer than the binary: 1.6 ignores its plugins."""
    version = tomli.loads(data.decode()).get("version", 1)
    return bool(version > NEWEST[binary.line])


# --- where runc comes from, and how the root names the rest ---------------------------------------

CRI: Final = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: SECTIONS[0], 4: SECTIONS[0]}


def root(version: int, extra: str = "", runc: str = "") -> bytes:
    """Return a root config with settings that a careless merge would lose."""
    cri = f'plugins."{CRI[version]}"'
    return (
        f"version = {version}\n{extra}\n"
        f'[{cri}.cni]\nbin_dir = "/home/kubernetes/bin"\n{runc}'
        f"[grpc]\nmax_recv_message_size = 4242\n"
    ).encode()


def runc(version: int) -> str:
    runtimes = f'plugins."{CRI[version]}".containerd.runtimes.runc'
    return (
        f'[{runtimes}]\nruntime_type = "io.containerd.runc.v2"\n'
        f'[{runtimes}.options]\nSystemdCgroup = true\nBinaryName = "/opt/bin/runc"\n'
    )


def in_another(version: int) -> pure_plan.Files:
    """Return a root whose runc is in another file that it imports."""
    other = f"version = {version}\n{runc(version)}".encode()
    return {
        pure_plan.CONFIG: root(version, 'imports = ["/etc/containerd/other.d/*.toml"]'),
        "/etc/containerd/other.d/10-runc.toml": other,
    }


PLACES: Final = {
    "root": lambda version: {pure_plan.CONFIG: root(version, runc=runc(version))},
    "built-in": lambda version: {pure_plan.CONFIG: root(version)},
    "other-file": in_another,
}


@pytest.mark.binary
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("version", CRI)
def test_no_root_version_breaks_the_runtime(
    version: int, place: str, binary: binaries.Binary
) -> None:
    """P01, P12: with any root version, wherever runc is, the runtime loads and keeps the rest."""
    files = PLACES[place](version)
    refusal = check_way(pure_plan.desired(), files, binary)
    assert (refusal is not None) == (version > NEWEST[binary.line]), refusal


@pytest.mark.binary
@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_drop_in_has_the_root_file_s_version(version: int, binary: binaries.Binary) -> None:
    if version > NEWEST[binary.line]:
        wanted = r"does not load it|would not be in effect"
        with pytest.raises(ConfigError, match=wanted):
            pure_plan.plan(
                pure_plan.desired(),
                {pure_plan.CONFIG: root(version)},
                partial(binaries.ask, binary),
            )
        return
    found = pure_plan.plan(
        pure_plan.desired(), {pure_plan.CONFIG: root(version)}, partial(binaries.ask, binary)
    )
    after = {change.path: change.after for change in found.changes}
    # 1.x would replace the whole section by what a drop-in has, so there must be none.
    assert (pure_plan.DROP_IN in after) == (binary.line >= "2")
    for data in after.values():
        assert tomli.loads((data or b"").decode())["version"] == version


NODES: Final[Mapping[str, pure_plan.Files]] = {
    "no files": {},
    "empty root": {pure_plan.CONFIG: b""},
    "comments only": {pure_plan.CONFIG: b"# nothing\n# at all\n"},
    "version only": {pure_plan.CONFIG: b"version = 2\n"},
    "no version": {pure_plan.CONFIG: b"oom_score = -999\n"},
    "other drop-in imported": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(2)),
        "/etc/containerd/conf.d/10-other.toml": (
            (
                f"version = 2\n{runc(2)}[{V2}.containerd.runtimes.kata]\nruntime_type ="
                ' "io.containerd.kata.v2"\n'
            ).encode()
        ),
    },
    "other drop-in asleep": {
        pure_plan.CONFIG: root(2, "imports = []", runc(2)),
        "/etc/containerd/conf.d/10-asleep.toml": (
            f'version = 2\n[{V2}]\nsandbox_image = "x"\n'.encode()
        ),
    },
    "other drop-in asleep, no imports": {
        pure_plan.CONFIG: root(2, "", runc(2)),
        "/etc/containerd/conf.d/10-asleep.toml": (
            f'version = 2\n[{V2}]\nsandbox_image = "x"\n'.encode()
        ),
    },
    "import without a glob": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/10.toml"]', runc(2)),
        "/etc/containerd/10.toml": b"version = 2\noom_score = -5\n",
    },
    "import with dots": {
        pure_plan.CONFIG: root(2, 'imports = ["./nowhere/../10.toml"]', runc(2)),
        "/etc/containerd/10.toml": b"version = 2\noom_score = -5\n",
    },
    "relative glob": {
        # 1.6 looks for it below its working directory, 1.7 and later beside the file.
        pure_plan.CONFIG: root(2, 'imports = ["other.d/*.toml"]', runc(2)),
        "/etc/containerd/other.d/10.toml": f"version = 2\n{runc(2)}".encode(),
    },
    "import in two steps": {
        pure_plan.CONFIG: b'version = 2\nimports = ["/etc/containerd/k0s.d/*.toml"]\n',
        "/etc/containerd/k0s.d/nvidia.toml": (
            b'imports = ["/etc/containerd/conf.d/*.toml"]\nversion = 2\n'
        ),
        "/etc/containerd/k0s.d/runc.toml": f"version = 2\n{runc(2)}".encode(),
    },
    "import of itself": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/config.toml"]', runc(2)),
    },
    "import of itself through a glob": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/*.toml"]', runc(2)),
        "/etc/containerd/z.toml": b"version = 2\noom_score = -7\n",
    },
    "imported twice": {
        pure_plan.CONFIG: root(
            2, 'imports = ["/etc/containerd/a.toml", "/etc/containerd/*.toml"]', runc(2)
        ),
        "/etc/containerd/a.toml": b"version = 2\noom_score = -7\n",
    },
    "later import wins the default": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(2)),
        "/etc/containerd/conf.d/zz-last.toml": (
            (f'version = 2\n[{V2}.containerd]\ndefault_runtime_name = "runc"\n').encode()
        ),
    },
    "foreign drop-in under our name": {
        pure_plan.CONFIG: root(2, 'imports = ["/etc/containerd/conf.d/*.toml"]', runc(2)),
        pure_plan.DROP_IN: (
            (
                f'version = 2\n{runc(2)}[{V2}.containerd.runtimes.nvidia.options]\nRoot = "/r"\n'
            ).encode()
        ),
    },
    "a default that does not exist": {
        pure_plan.CONFIG: root(
            2, "", f'[{V2}.containerd]\ndefault_runtime_name = "gone"\n{runc(2)}'
        ),
    },
    "other spelling of the binary": {
        pure_plan.CONFIG: root(
            2,
            "",
            runc(2)
            + f'[{V2}.containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n'
            + f'[{V2}.containerd.runtimes.nvidia.options]\nbinaryName = "/usr/bin/old"\n',
        )
    },
}


# What may be refused: where another file has the last word, we say so and touch nothing.
MAY_REFUSE: Final[Mapping[str, str]] = {
    "later import wins the default": "the default handler would be 'runc', not nvidia",
    "relative glob": "is relative, which containerd 1.6 and 1.7 resolve differently",
}


@pytest.mark.binary
@pytest.mark.parametrize("node", NODES)
def test_only_our_keys_change_however_the_files_are_laid_out(
    node: str, binary: binaries.Binary
) -> None:
    refusal = check_way(pure_plan.desired(), NODES[node], binary)
    if refusal is not None:
        reason = MAY_REFUSE.get(node)
        assert reason is not None, str(refusal)
        assert reason in str(refusal)


@pytest.mark.binary
def test_the_default_stays_where_it_is_not_wished(binary: binaries.Binary) -> None:
    files = {pure_plan.CONFIG: root(2, runc=runc(2))}
    found = pure_plan.plan(pure_plan.desired(default=None), files, partial(binaries.ask, binary))
    before, after = (told(dump(binary, each)) for each in (files, pure_plan.after(files, found)))
    assert (after.default, after.rest) == (before.default, before.rest)
    assert after.handlers.keys() == before.handlers.keys() | OURS


@pytest.mark.binary
def test_cdi_is_on_where_the_binary_knows_it(binary: binaries.Binary) -> None:
    files = {pure_plan.CONFIG: root(2, runc=runc(2))}
    found = pure_plan.plan(pure_plan.desired(enable_cdi=True), files, partial(binaries.ask, binary))
    before, after = (
        told(dump(binary, each)).rest for each in (files, pure_plan.after(files, found))
    )
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    # 1.6 does not know the key, 1.7 has it off, and 2.x on.
    assert changed == ({("plugins", CRI[2], "enable_cdi"): True} if binary.line == "1.7" else {})
    assert before.items() <= after.items()


SECTION: Final = f"[{V2}.containerd"
NEWER_TOML: Final[Mapping[str, str]] = {
    "options over several lines": (
        f"""{SECTION}.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  options = {{
    SystemdCgroup = true,
    BinaryName = "runc",
  }}
"""
    ),
    "handlers over several lines": (
        f"""{SECTION}]
runtimes = {{
  # the usual one
  runc = {{ runtime_type = "io.containerd.runc.v2" }}, # why
  crun = {{ runtime_type = "io.containerd.runc.v2", options = {{
    BinaryName = "/opt/crun"
  }} }}
}}
"""
    ),
    "no comma at the end": (
        f"""{SECTION}]
runtimes = {{
  runc = {{ runtime_type = "io.containerd.runc.v2", options = {{
    BinaryName = "/opt/runc" }} }}
}}
"""
    ),
    "comma before a brace": (
        f'{SECTION}.runtimes]\nrunc = {{ runtime_type = "io.containerd.runc.v2", }}\n'
    ),
    "byte": f'[{V2}.registry.headers]\n  X-Note = ["f\\xfcr"]\n',
    "escape": f'[{V2}.registry.headers]\n  X-Note = ["\\e"]\n',
    "spelled name": f'{SECTION}."\\x72untimes".runc]\nruntime_type = "io.containerd.runc.v2"\n',
}


@pytest.mark.binary
@pytest.mark.parametrize("name", NEWER_TOML)
def test_toml_1_1_is_edited_where_the_binary_loads_it_and_refused_in_its_words_elsewhere(
    name: str, binary: binaries.Binary
) -> None:
    data = f"version = 2\n{NEWER_TOML[name]}".encode()
    files = {pure_plan.CONFIG: data}
    loaded = binaries.load(binary, pure_plan.CONFIG, frozenset(files.items()))
    refusal = check_way(pure_plan.desired(), files, binary)
    if not loaded.ok:
        assert refusal is not None
        assert "does not load it" in refusal.why
        assert "It is TOML 1.1, which this containerd does not read" in refusal.hint
        return
    if name == "spelled name" and binary.line < "2":  # it reads no escapes in a header's key
        assert refusal is not None
        assert "would not be in effect" in refusal.why
        return
    assert refusal is None, str(refusal)
    if binary.line >= "2":
        change = pure_plan.plan(pure_plan.desired(), files, partial(binaries.ask, binary))
        root = pure_plan.after(files, change)[pure_plan.CONFIG]
        assert root.replace(b'imports = ["/etc/containerd/conf.d/*.toml"]\n', b"") == data


@pytest.mark.binary
@pytest.mark.parametrize("line", ["2.1", "2.4"])
def test_the_newest_toml_is_loaded_by_what_says_so(line: str) -> None:
    """No release may refuse all of it unnoticed."""
    files = ((pure_plan.CONFIG, f"version = 2\n{text}".encode()) for text in NEWER_TOML.values())
    for file in files:
        assert binaries.load(binaries.find(line), pure_plan.CONFIG, frozenset({file})).ok, file


# --- without a binary -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_without_a_binary_the_files_alone_lead_there_and_back(name: str) -> None:
    if name == "absent":
        pytest.skip(f"there is no corpus beside the project (../{'/'.join(CORPUS.parts[-3:])})")
    files = {pure_plan.CONFIG: (CORPUS / name).read_bytes()}
    refusal = pure_plan.refusal(pure_plan.desired(), files)
    assert (refusal is not None) == name.startswith("broken-"), str(refusal)
    if refusal is not None:
        assert refusal.path == pure_plan.CONFIG
        return
    found = pure_plan.plan(pure_plan.desired(), files)
    after = pure_plan.after(files, found)
    owned = pure_plan.ownership(found)
    assert pure_plan.plan(pure_plan.desired(), after, owned=owned).is_noop
    assert pure_plan.after(after, pure_plan.removal(pure_plan.desired(), after, owned)) == files
    # Somebody edited it since: every line of theirs, and every line that was there, is there.
    edited = {pure_plan.CONFIG: after[pure_plan.CONFIG] + b"# foreign\n"}
    left = pure_plan.after(edited, pure_plan.removal(pure_plan.desired(), edited, owned))[
        pure_plan.CONFIG
    ]
    assert full(tomli.loads(left.decode())) == full(tomli.loads(files[pure_plan.CONFIG].decode()))
    assert b"# foreign" in left


def full(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without empty tables: a header that is left without keys says nothing."""
    cut = {name: full(item) if isinstance(item, dict) else item for name, item in content.items()}
    return {name: item for name, item in cut.items() if item != {}}


@pytest.mark.binary
def test_keys_over_the_inherited_ones_are_in_effect_or_refused(binary: binaries.Binary) -> None:
    files = {pure_plan.CONFIG: root(2, runc=runc(2))}
    ask = partial(binaries.ask, binary)
    override = {"options": {"SystemdCgroup": False, "Root": "/r"}, "pod_annotations": ["a"]}
    found = pure_plan.plan(pure_plan.desired(override=override), files, ask)
    handlers = told(dump(binary, pure_plan.after(files, found))).handlers
    for handler in pure_plan.HANDLERS:
        table = handlers[handler.name]
        assert (table["options.Root"], table["pod_annotations"]) == ("/r", ["a"])
        assert "options.SystemdCgroup" not in table, "it is false"
        assert table["options.BinaryName"] == handler.binary
    # Options of the low-level runtime lie below `options`: beside it containerd drops them.
    refusal = pure_plan.refusal(pure_plan.desired(override={"SystemdCgroup": True}), files, ask)
    assert refusal is not None
    assert "the handler nvidia would have no SystemdCgroup = true" in str(refusal)
