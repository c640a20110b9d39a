"""The effect of our files in each distribution, by real containerds: rendered, merged, filled."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import planner
from runtimes.errors import ConfigError, UnsupportedSetup
from runtimes.formats import toml_editor
from tests.support import binaries, distros, nodes, pure_plan

OLD: Final = ("1.6", "1.7")
NEW: Final = ("2.1", "2.2", "2.3", "2.4")
DROP_IN: Final = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/99-nvidia.toml"
SECTIONS: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
CORPUS: Final = nodes.CHECKOUT.parent / "shared" / "corpus"


def ask(line: str) -> pure_plan.Ask:
    return partial(binaries.ask, binaries.find(line))


def effective(line: str, config: str, files: Mapping[str, bytes]) -> tuple[dict[str, Any], str]:
    """Return the handlers and default of a real containerd with these files, staged by hand."""
    seen = pure_plan.observe(pure_plan.desired(config=config, drop_in=""), files, ask(line))
    dump = tomllib.loads(seen.results["effective"].out)
    section = next(s for name in SECTIONS if "containerd" in (s := dump["plugins"].get(name, {})))
    return section["containerd"]["runtimes"], section["containerd"].get("default_runtime_name", "")


def binary(handlers: Mapping[str, Any], name: str) -> str:
    return str(handlers[name]["options"]["BinaryName"])


# --- k3s and RKE2 -------------------------------------------------------------------------------


@pytest.mark.parametrize("line", NEW)
@pytest.mark.parametrize("default", ["nvidia", None])
def test_k3s_that_imports_a_directory_gets_one_file_there(
    line: str, default: str | None, tmp_path: Path
) -> None:
    """P04: the rendered file and its templates stay; what is rendered later agrees with it."""
    wish = distros.wish("k3s", default=default)
    files = {distros.CONFIG: distros.k3s(tmp_path)}
    found = pure_plan.plan(wish, files, ask(line))
    assert [change.path for change in found.changes] == [DROP_IN]
    assert not found.pending_restart
    # The next start renders handlers for the same programs, since the files are there then.
    after = pure_plan.after(
        {**files, distros.CONFIG: distros.k3s(distros.with_toolkit(tmp_path))}, found
    )
    handlers, said = effective(line, distros.CONFIG, after)
    assert said == (default or "runc")
    assert {name: binary(handlers, name) for name in wish.names} == {
        h.name: h.binary for h in wish.handlers
    }
    assert handlers["nvidia"]["options"]["SystemdCgroup"] is False
    assert pure_plan.plan(wish, after, ask(line), pure_plan.ownership(found)).is_noop
    back = pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
    assert set(pure_plan.after(after, back)) == {distros.CONFIG}


@pytest.mark.parametrize("line", NEW)
def test_k3s_with_a_template_of_schema_2_gets_it_where_that_one_imports(
    line: str, tmp_path: Path
) -> None:
    place = distros.CONFIG.replace("config.toml", "config.toml.d/99-nvidia.toml")
    files = {distros.CONFIG: distros.k3s(tmp_path, "-version=2")}
    found = pure_plan.plan(distros.wish("k3s"), files, ask(line))
    assert [change.path for change in found.changes] == [place]
    handlers, said = effective(line, distros.CONFIG, pure_plan.after(files, found))
    assert said == "nvidia"
    assert binary(handlers, "nvidia").startswith(pure_plan.TOOLKIT)


@pytest.mark.parametrize("line", binaries.LINES)
def test_k3s_without_such_a_directory_makes_the_handlers_itself(line: str, tmp_path: Path) -> None:
    """P04: no file of the runtime is ours; await its next start, then there is nothing to do."""
    version = "-version=2" if line in OLD else "-version=3"
    files = {distros.CONFIG: distros.k3s(tmp_path, version, "-imports=false")}
    wish = distros.nowhere(distros.wish("k3s"))
    found = pure_plan.plan(wish, files, ask(line))
    assert found.is_noop
    assert found.provided == {"nvidia"}
    assert "nvidia runs nothing yet" in found.pending_restart
    assert any("does not provide the handler nvidia-legacy" in note for note in found.notes)
    made = {distros.CONFIG: distros.k3s(distros.with_toolkit(tmp_path), version, "-imports=false")}
    after = pure_plan.plan(wish, made, ask(line))
    assert after.is_noop
    assert not after.pending_restart
    handlers, said = effective(line, distros.CONFIG, made)
    assert said == "runc"
    assert {name: binary(handlers, name) for name in ("nvidia", "nvidia-cdi")} == {
        h.name: h.binary for h in wish.handlers[:2]
    }


@pytest.mark.parametrize("line", OLD)
def test_an_import_is_not_used_where_it_would_replace_the_section(
    line: str, tmp_path: Path
) -> None:
    """containerd 1.x: a drop-in there takes CNI, the sandbox image and runc away."""
    files = {distros.CONFIG: distros.k3s(tmp_path, "-version=2")}
    found = pure_plan.plan(distros.nowhere(distros.wish("k3s")), files, ask(line))
    assert found.is_noop
    assert found.provided == {"nvidia"}


@pytest.mark.parametrize("name", ["k3s", "rke2"])
def test_where_the_default_cannot_be_set_the_admin_is_told_how(name: str, tmp_path: Path) -> None:
    wish = distros.wish(name)
    files = {wish.config: distros.k3s(tmp_path, "-imports=false")}
    with pytest.raises(
        UnsupportedSetup, match="the default handler cannot be set to nvidia"
    ) as refused:
        pure_plan.plan(wish, files, ask("2.1"))
    assert (
        f"write `default-runtime: nvidia` into /etc/rancher/{name}/config.yaml"
        in refused.value.hint
    )
    assert distros.row(name).units[0] in refused.value.hint


def test_the_documented_setting_of_the_default_is_as_good(tmp_path: Path) -> None:
    setting = tmp_path / "etc/rancher/k3s/config.yaml"
    setting.parent.mkdir(parents=True)
    setting.write_text("default-runtime: nvidia\n", encoding="utf-8")
    files = {distros.CONFIG: distros.k3s(distros.with_toolkit(tmp_path), "-imports=false")}
    found = pure_plan.plan(distros.wish("k3s"), files, ask("2.1"))
    assert found.is_noop
    assert not found.pending_restart


@pytest.mark.parametrize(
    ("changed", "why", "hint"),
    [
        (
            {"handlers": tuple(replace(h, binary=f"/opt{h.binary}") for h in pure_plan.HANDLERS)},
            (
                "it searches for the toolkit in /usr/local/nvidia/toolkit, not in"
                " /opt/usr/local/nvidia/toolkit"
            ),
            "use --toolkit-install-dir=/usr/local/nvidia",
        ),
        (
            {"handlers": (replace(pure_plan.HANDLERS[0], name="gpu"), *pure_plan.HANDLERS[1:])},
            "it does not provide the handler gpu",
            "omit --runtime-class, and NVIDIA_RUNTIME_NAME",
        ),
    ],
)
def test_what_k3s_would_not_find_is_refused(
    changed: dict[str, Any], why: str, hint: str, tmp_path: Path
) -> None:
    files = {distros.CONFIG: distros.k3s(tmp_path, "-imports=false")}
    with pytest.raises(UnsupportedSetup, match=why) as refused:
        pure_plan.plan(distros.wish("k3s", default=None, **changed), files, ask("2.1"))
    assert refused.value.hint == hint
    # With a drop-in the program's path is said, and may be any.
    assert pure_plan.plan(
        distros.wish("k3s", default=None, **changed),
        {distros.CONFIG: distros.k3s(tmp_path)},
        ask("2.1"),
    ).changes


def test_a_file_that_was_not_rendered_yet_is_waited_for() -> None:
    with pytest.raises(
        UnsupportedSetup, match="not found: its distribution writes it at each start"
    ):
        pure_plan.plan(distros.wish("k3s"), {}, ask("2.1"))


def test_a_go_template_is_refused(tmp_path: Path) -> None:
    """P04: elsewhere it is read as TOML (`keys cannot contain {`), or the base is lost."""
    path = f"{distros.CONFIG}.tmpl"
    files = {path: b'{{ template "base" . }}\n', distros.CONFIG: distros.k3s(tmp_path)}
    with pytest.raises(ConfigError, match="it is a Go template, which cannot be edited") as refused:
        pure_plan.plan(pure_plan.desired(config=path), files, ask("2.1"))
    assert "omit --config" in refused.value.hint


def test_an_admin_s_template_is_rendered_with_ours_beside_it(tmp_path: Path) -> None:
    template = tmp_path / distros.CONFIG.lstrip("/").replace("config.toml", "config-v3.toml.tmpl")
    template.parent.mkdir(parents=True)
    more = (
        b"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.custom]\nruntime_type ="
        b' "io.x.v1"\n'
    )
    template.write_bytes(b'{{ template "base" . }}\n' + more)
    files = {distros.CONFIG: distros.k3s(tmp_path)}
    assert more in files[distros.CONFIG]
    found = pure_plan.plan(distros.wish("k3s"), files, ask("2.2"))
    handlers, said = effective("2.2", distros.CONFIG, pure_plan.after(files, found))
    assert said == "nvidia"
    assert {"custom", "runc", "nvidia"} <= set(handlers)


def test_rke2_as_it_was_rendered_has_its_handler_already() -> None:
    """A real rendered file of the collection, with two handlers that RKE2 made."""
    path = CORPUS / "containerd/rke2-rendered-nvidia-quoted-keys.toml"
    if not path.exists():
        pytest.skip("the collection of configurations is not here")
    wish = distros.nowhere(distros.wish("rke2"))
    for line in OLD:
        found = pure_plan.plan(wish, {wish.config: path.read_bytes()}, ask(line))
        assert found.is_noop
        assert not found.pending_restart


# --- microk8s -----------------------------------------------------------------------------------


def templates() -> dict[str, bytes]:
    path = CORPUS / "templates/microk8s-containerd-template.toml"
    real = {"as shipped": path.read_bytes()} if path.exists() else {}
    return {"ours": distros.MICROK8S, **real}


@pytest.mark.parametrize("line", binaries.LINES)
@pytest.mark.parametrize("which", templates())
def test_microk8s_template_is_edited_and_keeps_its_variables(line: str, which: str) -> None:
    """P21: what the wrapper makes of it is judged, and the same bytes come back."""
    template = templates()[which]
    wish = distros.wish("microk8s", drop_in="")
    files = {distros.TEMPLATE: template, wish.delivery.rendered: distros.microk8s(template)}
    found = pure_plan.plan(wish, files, ask(line))
    assert [change.path for change in found.changes] == [distros.TEMPLATE]
    edited = found.changes[0].after or b""
    kept = [word for word in template.split() if b"${" in word and word != b'"${RUNTIME}"']
    assert [word for word in edited.split() if b"${" in word][: len(kept)]
    for word in kept:
        assert edited.count(word) >= template.count(word)
    rendered = distros.microk8s(edited)
    handlers, said = effective(line, "/r.toml", {"/r.toml": rendered})
    assert said == "nvidia"
    assert {name: binary(handlers, name) for name in wish.names} == {
        h.name: h.binary for h in wish.handlers
    }
    assert {handlers[name]["runtime_type"] for name in wish.names} == {"io.containerd.runc.v2"}
    after = {distros.TEMPLATE: edited, wish.delivery.rendered: rendered}
    assert pure_plan.plan(wish, after, ask(line), pure_plan.ownership(found)).is_noop
    back = pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
    assert pure_plan.after(after, back)[distros.TEMPLATE] == template


def test_microk8s_handlers_follow_the_type_that_the_variable_has() -> None:
    """On a node without cgroup2 the wrapper says v1; ours say what runc says."""
    wish = distros.wish("microk8s", drop_in="")
    values = {**distros.SNAP, "RUNTIME_TYPE": "io.containerd.runc.v1"}
    files = {
        distros.TEMPLATE: distros.MICROK8S,
        wish.delivery.rendered: distros.microk8s(distros.MICROK8S, values),
    }
    found = pure_plan.plan(wish, files, ask("1.7"))
    tree = toml_editor.tree(found.changes[0].after or b"", distros.TEMPLATE)
    runtimes = tree["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["nvidia"]["runtime_type"] == "${RUNTIME_TYPE}"


@pytest.mark.parametrize("line", binaries.LINES)
def test_the_binary_is_asked_about_what_it_would_be_started_with(line: str) -> None:
    """The variables' values are those that the wrapper filled in last, wherever they stand now."""
    wish = distros.wish("microk8s", drop_in="")
    rendered = distros.microk8s(distros.MICROK8S)
    moved = distros.MICROK8S.replace(b"# The keys of", b"\n\n# The keys of")
    seen = pure_plan.observe(
        wish, {distros.TEMPLATE: moved, wish.delivery.rendered: rendered}, ask(line)
    )
    said = seen.results["effective"].out
    assert "${" not in said
    assert "/var/snap/microk8s/7394/args/cni-network" in said
    found = planner.plan(pure_plan.ADAPTER, wish, seen)
    question = planner.candidate_query(pure_plan.ADAPTER, wish, seen, found)
    assert question is not None
    assert not any(b"${" in data for data in question.files)


def test_the_generated_file_counts_for_nothing_in_a_removal() -> None:
    wish = distros.wish("microk8s", drop_in="")
    files = {
        distros.TEMPLATE: distros.MICROK8S,
        wish.delivery.rendered: distros.microk8s(distros.MICROK8S),
    }
    found = pure_plan.plan(wish, files, ask("1.7"))
    rendered = distros.microk8s(found.changes[0].after or b"")
    left = {distros.TEMPLATE: distros.MICROK8S, wish.delivery.rendered: rendered}
    assert pure_plan.ADAPTER.defined(wish, left) == frozenset()


# --- k0s and Canonical Kubernetes ---------------------------------------------------------------


@pytest.mark.parametrize("line", NEW)
def test_k0s_imports_our_file_and_gets_no_line(line: str) -> None:
    """P14: its root config is its own, and has no place for an import of ours."""
    wish = distros.wish("k0s")
    files = distros.k0s({}, before_136=False)
    found = pure_plan.plan(wish, files, ask(line))
    assert [change.path for change in found.changes] == ["/etc/k0s/containerd.d/nvidia.toml"]
    after = pure_plan.after(files, found)
    assert b"imports" not in after["/etc/k0s/containerd.d/nvidia.toml"]
    assert b"version = 3" in after["/etc/k0s/containerd.d/nvidia.toml"]
    _, said = effective(line, wish.config, after)
    assert said == "nvidia"
    assert pure_plan.plan(wish, after, ask(line), pure_plan.ownership(found)).is_noop
    assert (
        pure_plan.after(
            after, pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
        )
        == files
    )


@pytest.mark.parametrize("line", OLD)
def test_k0s_before_1_36_merges_our_file_itself(line: str) -> None:
    """Its containerd 1.7 would replace the section; it is judged with what k0s makes of the two."""
    wish = distros.wish("k0s")
    files = distros.k0s({}, before_136=True)
    found = pure_plan.plan(wish, files, ask(line))
    assert [change.path for change in found.changes] == [wish.drop_in]
    drop_in = {wish.drop_in: found.changes[0].after or b""}
    after = {**drop_in, **distros.k0s(drop_in, before_136=True)}
    handlers, said = effective(line, wish.config, after)
    assert said == "nvidia"
    assert {"runc", *wish.names} <= set(handlers)
    assert pure_plan.plan(wish, after, ask(line), pure_plan.ownership(found)).is_noop
    gone = pure_plan.after(
        after, pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
    )
    assert wish.drop_in not in gone


IMPORTS: Final = b'imports = ["/etc/containerd/conf.d/*.toml"]\n'
CANONICAL: Final = b"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "ghcr.io/canonical/k8s-snap/pause:3.10"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


@pytest.mark.parametrize("line", binaries.LINES)
@pytest.mark.parametrize("imports", [IMPORTS, b""], ids=["imports", "does not"])
def test_canonical_k8s_root_config_gets_no_import_of_ours(line: str, imports: bytes) -> None:
    data = imports + CANONICAL
    wish = replace(
        distros.wish("canonical-k8s"), config=pure_plan.CONFIG, drop_in=pure_plan.DROP_IN
    )
    files = {pure_plan.CONFIG: data}
    found = pure_plan.plan(wish, files, ask(line))
    in_drop_in = line in NEW and bool(imports)
    assert [change.path for change in found.changes] == [
        pure_plan.DROP_IN if in_drop_in else pure_plan.CONFIG
    ]
    after = pure_plan.after(files, found)
    assert after[pure_plan.CONFIG].startswith(imports + b"version = 2\n")
    handlers, said = effective(line, pure_plan.CONFIG, after)
    assert said == "nvidia"
    assert {"runc", *wish.names} <= set(handlers)
    assert (
        pure_plan.after(
            after, pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
        )
        == files
    )


# --- CRI that is off ----------------------------------------------------------------------------

PACKAGE: Final = b"""# Docker's package of containerd

disabled_plugins = ["cri"]

#root = "/var/lib/containerd"
"""


def cri_is_off(line: str, files: Mapping[str, bytes]) -> bool:
    seen = pure_plan.observe(pure_plan.desired(), files, ask(line))
    disabled = tomllib.loads(seen.results["effective"].out)["disabled_plugins"]
    return bool(disabled)


@pytest.mark.parametrize("line", binaries.LINES)
def test_cri_is_enabled_only_where_that_is_asked(line: str) -> None:
    files = {pure_plan.CONFIG: PACKAGE}
    plain = pure_plan.plan(pure_plan.desired(), files, ask(line))
    assert any("use --enable-cri to enable it" in note for note in plain.notes)
    assert cri_is_off(line, pure_plan.after(files, plain))
    wish = pure_plan.desired(enable_cri=True)
    found = pure_plan.plan(wish, files, ask(line))
    assert not any("--enable-cri" in note for note in found.notes)
    after = pure_plan.after(files, found)
    assert not cri_is_off(line, after)
    assert effective(line, pure_plan.CONFIG, after)[1] == "nvidia"
    assert pure_plan.plan(wish, after, ask(line), pure_plan.ownership(found)).is_noop
    assert (
        pure_plan.after(
            after, pure_plan.removal(wish, after, pure_plan.ownership(found), ask(line))
        )
        == files
    )


def test_other_disabled_plugins_stay() -> None:
    zfs = "io.containerd.snapshotter.v1.zfs"
    data = f'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "{zfs}"]\n'.encode()
    found = pure_plan.plan(pure_plan.desired(enable_cri=True), {pure_plan.CONFIG: data}, ask("2.1"))
    after = tomllib.loads(
        pure_plan.after({pure_plan.CONFIG: data}, found)[pure_plan.CONFIG].decode()
    )
    assert after["disabled_plugins"] == [zfs]
