"""The peer's own test tables: the same meaning has the same effect; each exception has a reason.

The peer is NVIDIA's nvidia-ctk-installer. Its cases are read from beside the project, never copied.
"""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final

import pytest

from runtimes.model import Desired, Handler
from tests.support import nodes, pure_plan
from tests.unit.test_planner import deep, modern

FOLDER: Final = nodes.CHECKOUT.parent / "shared" / "peer-cases"
FILES: Final = (
    "engine-containerd-config.json",
    "engine-containerd-config-v1.json",
    "engine-containerd-config-drop-in.json",
    "installer-containerd-config.json",
)
SECTIONS: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri")
TEST_ROOT: Final = "/t"

# The peer's tables use words that no containerd knows; ours only copy a handler that runs runc.
WORDS: Final = {
    'runtime_type = "type"': 'runtime_type = "io.containerd.runc.v1"',
    'runtime_type = "defaulttype"': 'runtime_type = "io.containerd.runc.v2"',
}

Case = dict[str, Any]


@cache
def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name in FILES:
        path = FOLDER / name
        if path.exists():
            found |= {case["id"]: case for case in json.loads(path.read_text("utf-8"))["cases"]}
    return found


def ids(operation: str) -> list[str]:
    return [name for name, case in cases().items() if case["operation"] == operation] or ["absent"]


def case_of(name: str) -> Case:
    if name == "absent":
        pytest.skip("there are no peer cases beside the project (../shared/peer-cases)")
    return cases()[name]


def text(found: str | None) -> str | None:
    if found is None:
        return None
    found = found.replace("{{ .testRoot }}", TEST_ROOT)
    for word, real in WORDS.items():
        found = found.replace(word, real)
    return found


def tree(found: str | None) -> dict[str, Any]:
    return tomllib.loads(text(found) or "")


def wish(case: Case) -> Desired:
    """Return the wish that the peer's arguments are."""
    args = case["args"]
    runtimes = args.get("runtimes") or [args]
    default = [runtime["name"] for runtime in runtimes if runtime["set_as_default"]]
    return pure_plan.desired(
        config=text(args.get("top_level_config_path")) or pure_plan.CONFIG,
        drop_in=text(args.get("drop_in_config")) or "",
        handlers=tuple(
            Handler(name=runtime["name"], binary=runtime["path"]) for runtime in runtimes
        ),
        default=default[0] if default else None,
        enable_cdi=args["enable_cdi"] or None,
        runtime_type=args["runtime_type"],
        legacy=args["use_legacy_config"],
        annotations=tuple(args["annotations"]),
    )


def before(case: Case, wanted: Desired) -> dict[str, bytes]:
    found = text(case["input"])
    return {} if found is None else {wanted.config: found.encode()}


def section(content: dict[str, Any]) -> dict[str, Any]:
    plugins = content.get("plugins", {})
    return next((plugins[name] for name in SECTIONS if name in plugins), {})


def solid(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tree without what is zero, which says as much as what is absent."""
    cut = {key: solid(item) if isinstance(item, dict) else item for key, item in content.items()}
    return {key: item for key, item in cut.items() if item not in ("", 0, False, [], {})}


def effect(content: dict[str, Any], wanted: Desired) -> dict[str, Any]:
    """Return what a configuration means for our handlers."""
    cri = section(content)
    runtimes = cri.get("containerd", {}).get("runtimes", {})
    return {
        "handlers": {name: solid(runtimes.get(name, {})) for name in wanted.names},
        "default": cri.get("containerd", {}).get("default_runtime_name", ""),
        "cdi": cri.get("enable_cdi", False),
    }


def peer_effect(case: Case, wanted: Desired) -> dict[str, Any]:
    """Return what the peer's files mean: its root with its drop-in merged over it."""
    if case["operation"] == "setup":
        return effect(deep(tree(case["expected"]), tree(case["expected_drop_in"])), wanted)
    root = {} if case["output"] == "in-place" else tree(case["input"])
    return effect(deep(root, tree(case["expected"])), wanted)


# What we do otherwise on purpose: the part of the effect, and why.
OTHERWISE: Final = {
    "installer/containerd-v1/lifecycle/0/setup": (
        "cdi",
        "the peer writes enable_cdi into plugins.cri.containerd, where no containerd looks for it",
    ),
}


@pytest.mark.parametrize("name", [*ids("add"), *ids("setup")])
def test_set_up_has_the_peer_s_effect(name: str) -> None:
    case = case_of(name)
    wanted = wish(case)
    files = before(case, wanted)
    after = pure_plan.after(files, pure_plan.plan(wanted, files))
    ours = effect(tomllib.loads(after.get(wanted.config, b"").decode()), wanted)
    peers = peer_effect(case, wanted)
    differing = [part for part in ours if ours[part] != peers[part]]
    part, _why = OTHERWISE.get(name, (None, ""))
    assert differing == ([part] if part else []), (ours, peers)


# What the peer leaves behind or takes with it, and we do not.
CLEANED_OTHERWISE: Final = {
    "installer/containerd-v1/lifecycle/0/cleanup": (
        "enable_cdi stays in a table where nothing reads it"
    ),
    "installer/containerd-v1/lifecycle/3/cleanup": (
        "the default that was there before is not restored"
    ),
    "installer/containerd-v2/lifecycle/6/cleanup": "the import that set-up added stays",
    "installer/containerd-v2/lifecycle/7/cleanup": (
        "the import stays; the user's own nvidia and default go"
    ),
    "installer/containerd-v2/lifecycle/8/cleanup": "the import that set-up added stays",
    "installer/containerd-v2/lifecycle/9/cleanup": "the import that set-up added stays",
    "installer/containerd-v2/lifecycle/10/cleanup": "the import that set-up added stays",
    "installer/containerd-v3/lifecycle/11/cleanup": "the import that set-up added stays",
    "installer/containerd-v3/lifecycle/12/cleanup": "the import that set-up added stays",
    "installer/containerd-v3/lifecycle/13/cleanup": "the import that set-up added stays",
    "installer/containerd-v3/lifecycle/14/cleanup": "the import that set-up added stays",
}


@pytest.mark.parametrize("name", ids("cleanup"))
def test_clean_up_gives_the_original_bytes(name: str) -> None:
    """Ours always does; the peer's result says the same where the table has no reason."""
    cleaned = case_of(name)
    case = case_of(name.replace("/cleanup", "/setup"))
    wanted = wish(case)
    files = before(case, wanted)
    found = pure_plan.plan(wanted, files)
    after = pure_plan.after(files, found)
    assert (
        pure_plan.after(after, pure_plan.removal(wanted, after, pure_plan.ownership(found)))
        == files
    )
    is_same = solid(tree(cleaned["expected"])) == solid(tree(case["input"]))
    assert is_same == (name not in CLEANED_OTHERWISE)


@pytest.mark.parametrize("name", ids("ensure-imports"))
def test_the_drop_in_is_imported_as_the_peer_does(name: str) -> None:
    case = case_of(name)
    drop_in = case["args"]["drop_in_path"]
    root = f"version = 2\n{case['input'] or ''}"
    found = pure_plan.plan(
        pure_plan.desired(drop_in=drop_in), {pure_plan.CONFIG: root.encode()}, modern
    )
    [change] = [change for change in found.changes if change.path == pure_plan.CONFIG]
    assert tomllib.loads((change.after or b"").decode())["imports"] == case["expected"]
    assert PurePosixPath(drop_in).suffix == ".toml"


@pytest.mark.parametrize("name", ids("get-binary-path"))
def test_the_low_level_runtime_is_found_as_the_peer_does(name: str) -> None:
    """The toolkit runs what the handlers ran before; a handler that is not there adds nothing."""
    case = case_of(name)
    found = pure_plan.plan(pure_plan.desired(), {pure_plan.CONFIG: case["input"].encode()})
    handlers = section(tomllib.loads(case["input"]))["containerd"]["runtimes"]
    assert (case["args"]["name"] in handlers) == bool(case["expected"])
    assert found.low_level == ("/usr/bin/runc",)
