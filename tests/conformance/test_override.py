"""Values of RUNTIME_CONFIG_OVERRIDE that `config dump` accepts and no pod survives."""

from __future__ import annotations

import tomllib
from functools import partial
from typing import Any, Final

import pytest

from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.model import BinaryQuery
from tests.conformance.test_corpus import root, runc
from tests.support import binaries, pure_plan

FILES: Final = {pure_plan.CONFIG: root(2, runc=runc(2))}
REFUSED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "type": (
        {"options": {"SystemdCgroup": "yes"}},
        "--runtime-config-override: options.SystemdCgroup must be true or false, but is 'yes'",
    ),
    "type in another case": (
        {"options": {"systemdcgroup": 1}},
        "--runtime-config-override: options.systemdcgroup must be true or false, but is 1",
    ),
    "number": (
        {"options": {"IoUid": "1000"}},
        (
            "--runtime-config-override: options.IoUid must be a whole number from 0 to 4294967295,"
            " but is '1000'"
        ),
    ),
    "typing error": (
        {"options": {"SystemdCgruop": True}},
        "--runtime-config-override: options.SystemdCgruop is not an option of runc's shim",
    ),
    "list": (
        {"pod_annotations": "a"},
        "--runtime-config-override: pod_annotations must be a list of strings, but is 'a'",
    ),
    "snapshotter": (
        {"snapshotter": "nydus"},
        "--runtime-config-override: containerd has no snapshotter 'nydus', only ",
    ),
}


@pytest.fixture(params=binaries.LINES)
def binary(request: pytest.FixtureRequest) -> binaries.Binary:
    return binaries.find(request.param)


@pytest.mark.binary
@pytest.mark.parametrize(("override", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_pod_survives_is_refused_by_name(
    override: dict[str, Any], message: str, binary: binaries.Binary
) -> None:
    with pytest.raises(UnsupportedSetup) as caught:
        pure_plan.plan(pure_plan.desired(override=override), FILES, partial(binaries.ask, binary))
    assert caught.value.why.startswith(message)
    assert caught.value.hint == "correct --runtime-config-override (RUNTIME_CONFIG_OVERRIDE)"


@pytest.mark.binary
@pytest.mark.parametrize("override", [{"foo": 1}, {"snapshotter": 5}, {"SystemdCgroup": True}])
def test_what_containerd_does_not_know_is_no_bug_of_ours(
    override: dict[str, Any], binary: binaries.Binary
) -> None:
    hint = ""
    try:
        pure_plan.plan(pure_plan.desired(override=override), FILES, partial(binaries.ask, binary))
    except (ConfigError, UnsupportedSetup) as error:
        hint = error.hint
    assert "RUNTIME_CONFIG_OVERRIDE" in hint
    assert "report" not in hint


@pytest.mark.binary
def test_a_type_that_is_inherited_names_the_handler_it_comes_from(binary: binaries.Binary) -> None:
    files = {pure_plan.CONFIG: root(2, runc=runc(2).replace("= true", '= "yes"'))}
    with pytest.raises(UnsupportedSetup) as caught:
        pure_plan.plan(pure_plan.desired(), files, partial(binaries.ask, binary))
    assert (
        caught.value.why
        == "the handler runc, whose options the toolkit's handlers inherit: options.SystemdCgroup"
        " must be true or false, but is 'yes'"
    )
    assert caught.value.hint.startswith("correct it in the configuration of containerd")


@pytest.mark.binary
@pytest.mark.parametrize(
    "override",
    [
        {"runtime_type": "io.containerd.kata.v2", "options": {"ConfigPath": "/etc/kata.toml"}},
        {"options": {"IoUid": 0, "IoGid": 4294967295, "CriuPath": "/criu", "NoPivotRoot": True}},
    ],
)
def test_what_pods_survive_is_accepted(override: dict[str, Any], binary: binaries.Binary) -> None:
    found = pure_plan.plan(
        pure_plan.desired(override=override), FILES, partial(binaries.ask, binary)
    )
    assert not found.is_noop


@pytest.mark.binary
def test_a_snapshotter_that_is_there_is_accepted(binary: binaries.Binary) -> None:
    proxy = '[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "/run/stargz.sock"\n'
    files = {pure_plan.CONFIG: FILES[pure_plan.CONFIG] + proxy.encode()}
    for name in ("native", "stargz"):
        wish = pure_plan.desired(override={"snapshotter": name})
        refusal = pure_plan.refusal(wish, files, partial(binaries.ask, binary))
        if binary.line == "1.6":  # It knows no snapshotter of a handler, and its dump shows that.
            assert refusal is not None
            assert f"would have no snapshotter = '{name}'" in refusal.why
        else:
            assert refusal is None


@pytest.mark.binary
def test_every_binary_names_its_snapshotters(binary: binaries.Binary) -> None:
    answer = binaries.ask(binary, BinaryQuery(name="default", argv=("config", "default")))
    names = [name for name in tomllib.loads(answer.out)["plugins"] if ".snapshotter.v1." in name]
    assert "io.containerd.snapshotter.v1.overlayfs" in names
