"""Files that a real containerd does not load.

The one that breaks it is named or replaced; one that it skips without a message is named.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import pytest

from runtimes.errors import ConfigError
from runtimes.model import BinaryResult, ConfigPlan, Ownership, fingerprint
from tests.support import binaries, pure_plan
from tests.support.pure_plan import CONFIG, DROP_IN

MERGING: Final = ("2.1", "2.2", "2.3", "2.4")
# 2.3.7 and later load a drop-in whose version is higher than that of the root config.
BREAKING: Final = ("2.1", "2.2")
OTHER: Final = "/etc/containerd/conf.d/10-x.toml"
GONE: Final = "/opt/kata/containerd/config.d/kata-deploy.toml"
OURS: Final = {handler.name for handler in pure_plan.HANDLERS}
ROOT: Final = b"""\
version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""
UPSTREAM: Final = b"""\
version = 4
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "nvidia"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]
  BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
"""

Dump = Mapping[str, Any]


def plan(line: str, files: pure_plan.Files, **changed: Any) -> ConfigPlan:
    ask = partial(binaries.ask, binaries.find(line))
    return pure_plan.plan(pure_plan.desired(**changed), files, ask)


def refusal(line: str, files: pure_plan.Files) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(line, files)
    return caught.value


def load(line: str, files: Mapping[str, bytes]) -> BinaryResult:
    """Have the binary load the files at their real paths."""
    return binaries.load(binaries.find(line), CONFIG, frozenset(files.items()))


def handlers(line: str, files: Mapping[str, bytes]) -> Dump:
    answer = load(line, files)
    assert answer.ok, answer.err
    plugins = tomllib.loads(answer.out)["plugins"]
    found: Dump = plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    return found


# --- a drop-in of upstream that breaks containerd -------------------------------------------------


@pytest.mark.parametrize("line", BREAKING)
@pytest.mark.parametrize(
    "extra", [b"", b'[plugins."io.containerd.cri.v1.runtime"]\nenable_cdi = true\n']
)
def test_a_drop_in_of_upstream_that_breaks_containerd_is_replaced(line: str, extra: bytes) -> None:
    files = {CONFIG: ROOT, DROP_IN: UPSTREAM + extra}
    assert not load(line, files).ok
    found = plan(line, files)
    (change,) = found.changes
    assert (change.path, change.action, change.discards) == (DROP_IN, "modify", True)
    assert any("keeps containerd from starting: it is replaced" in note for note in found.notes)
    after = pure_plan.after(files, found)
    effective = handlers(line, after)
    assert set(effective) == {"runc", *OURS}
    assert effective["nvidia"]["options"]["SystemdCgroup"]
    # What did not load is not put back: without our keys, there is no such file.
    owned = Ownership(
        path=DROP_IN, original=None, written=(fingerprint(change.after),), edits=change.edits
    )
    ask = partial(binaries.ask, binaries.find(line))
    assert pure_plan.plan(pure_plan.desired(), after, ask, (owned,)).is_noop
    removed = pure_plan.removal(pure_plan.desired(), after, (owned,), ask)
    back = pure_plan.after(after, removed)
    assert back == {CONFIG: ROOT}
    assert set(handlers(line, back)) == {"runc"}


@pytest.mark.parametrize("line", sorted(set(MERGING) - set(BREAKING)))
def test_a_drop_in_of_upstream_that_is_loaded_is_edited_and_given_back(line: str) -> None:
    files = {CONFIG: ROOT, DROP_IN: UPSTREAM}
    assert load(line, files).ok
    found = plan(line, files)
    assert [(change.path, change.discards) for change in found.changes] == [(DROP_IN, False)]
    after = pure_plan.after(files, found)
    effective = handlers(line, after)
    assert set(effective) == {"runc", *OURS}
    assert effective["nvidia"]["options"]["SystemdCgroup"]
    ask, owned = partial(binaries.ask, binaries.find(line)), pure_plan.ownership(found)
    assert (
        pure_plan.after(after, pure_plan.removal(pure_plan.desired(), after, owned, ask)) == files
    )


@pytest.mark.parametrize("line", ["1.7", *BREAKING])
def test_a_drop_in_that_breaks_and_has_keys_of_others_is_named(line: str) -> None:
    other = b'[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["/opt/cni/bin"]\n'
    error = refusal(line, {CONFIG: ROOT, DROP_IN: UPSTREAM + other})
    assert error.path == DROP_IN
    assert "does not load it: " in error.why
    assert f"remove {DROP_IN} or repair it first" in error.hint


@pytest.mark.parametrize("line", binaries.LINES)
def test_a_drop_in_with_an_error_is_named_and_not_the_root_config(line: str) -> None:
    """The error has a row and a column, and the row is one of another file."""
    good = b"version = 2\n"
    files = {
        CONFIG: ROOT,
        "/etc/containerd/conf.d/05-good.toml": good,
        OTHER: b'version = 2\noom_score = "high"\n',
        "/etc/containerd/conf.d/20-good.toml": good,
    }
    assert not load(line, files).ok
    error = refusal(line, files)
    assert error.path == OTHER
    assert f"remove {OTHER} or repair it first" in error.hint


@pytest.mark.parametrize("line", binaries.LINES)
def test_an_error_in_the_root_config_is_the_root_config_s(line: str) -> None:
    error = refusal(line, {CONFIG: ROOT + b'[ttrpc]\nuid = "x"\n', OTHER: b"version = 2\n"})
    assert error.path == CONFIG
    assert "; repair it first" in error.hint


# --- an import that does not exist ----------------------------------------------------------------


@pytest.mark.parametrize("line", MERGING)
def test_an_import_that_ends_the_reading_before_our_drop_in_is_named(line: str) -> None:
    imports = f'version = 3\nimports = ["{GONE}", "/etc/containerd/conf.d/*.toml"]\n'.encode()
    other = b"""\
version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.x]
runtime_type = "io.containerd.runc.v2"
"""
    files = {CONFIG: imports, OTHER: other}
    # The real one says nothing and reads nothing more.
    assert "x" not in handlers(line, files)
    error = refusal(line, files)
    assert error.path == CONFIG
    assert (
        error.why
        == f"its `imports` names {GONE}, which does not exist: containerd reads nothing after it"
    )
    assert error.hint == f"remove {GONE} from `imports`, or create the file"


@pytest.mark.parametrize("line", MERGING)
def test_our_import_goes_before_one_that_ends_the_reading(line: str) -> None:
    files = {CONFIG: f'version = 3\nimports = ["{GONE}"]\n'.encode()}
    found = plan(line, files)
    assert (
        f"{CONFIG}: its `imports` names {GONE}, which does not exist: containerd reads nothing"
        " after it" in (found.notes)
    )
    after = pure_plan.after(files, found)
    assert tomllib.loads(after[CONFIG].decode())["imports"] == [
        "/etc/containerd/conf.d/*.toml",
        GONE,
    ]
    assert set(handlers(line, after)) >= OURS
    ask = partial(binaries.ask, binaries.find(line))
    removed = pure_plan.removal(pure_plan.desired(), after, pure_plan.ownership(found), ask)
    assert pure_plan.after(after, removed) == files


@pytest.mark.parametrize("line", MERGING)
def test_an_import_that_ends_the_reading_after_our_drop_in_is_only_noted(line: str) -> None:
    files = {
        CONFIG: f'version = 3\nimports = ["/etc/containerd/conf.d/*.toml", "{GONE}"]\n'.encode()
    }
    found = plan(line, files)
    assert any(f"names {GONE}, which does not exist" in note for note in found.notes)
    assert set(handlers(line, pure_plan.after(files, found))) >= OURS


@pytest.mark.parametrize("line", MERGING)
def test_what_is_not_read_is_no_source_for_our_handlers(line: str) -> None:
    """The file after the missing one has another default handler, unknown to containerd."""
    other = b"""\
version = 3
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "crun"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun.options]
BinaryName = "/opt/crun"
Root = "/run/crun"
"""
    files = {
        CONFIG: f'version = 3\nimports = ["{GONE}", "/etc/crun.toml"]\n'.encode(),
        "/etc/crun.toml": other,
    }
    found = plan(line, files)
    assert "/opt/crun" not in found.low_level
    assert b"/run/crun" not in pure_plan.after(files, found)[DROP_IN]


@pytest.mark.parametrize("line", ["1.6", "1.7"])
def test_containerd_1_does_not_start_without_an_import(line: str) -> None:
    files = {CONFIG: f'version = 2\nimports = ["{GONE}"]\n'.encode()}
    assert not load(line, files).ok
    assert GONE in refusal(line, files).why
