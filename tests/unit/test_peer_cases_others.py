"""The peer's own test tables for Docker and CRI-O: the same effect, or a reason why not.

The peer is NVIDIA's nvidia-ctk-installer. Its cases are read from beside the project, never copied.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest

from runtimes import planner
from runtimes.model import ABSENT, Desired, Edit, Handler, Observation, Ownership
from tests.support import nodes, pure_plan
from tests.unit import test_crio, test_docker

FOLDER: Final = nodes.CHECKOUT.parent / "shared" / "peer-cases"
DOCKER: Final = ("engine-docker.json", "installer-docker.json")
CRIO: Final = ("engine-crio.json", "installer-crio-config.json")
TEST_ROOT: Final = "/t"

# The peer's tables use types that no CRI-O knows; ours only copy a handler of the usual type.
WORDS: Final = {'"runcoci"': '"oci"', '"defaultoci"': '"oci"'}

Case = dict[str, Any]


@cache
def cases(names: tuple[str, ...]) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name in names:
        path = FOLDER / name
        if path.exists():
            found |= {case["id"]: case for case in json.loads(path.read_text("utf-8"))["cases"]}
    return found


def ids(names: tuple[str, ...], *operations: str) -> list[str]:
    return [key for key, case in cases(names).items() if case["operation"] in operations] or [
        "absent"
    ]


def case_of(names: tuple[str, ...], key: str) -> Case:
    if key == "absent":
        pytest.skip("there are no peer cases beside the project (../shared/peer-cases)")
    return cases(names)[key]


def text(found: str | None) -> str:
    found = (found or "").replace("{{ .testRoot }}", TEST_ROOT)
    for word, real in WORDS.items():
        found = found.replace(word, real)
    return found


def wish_of(case: Case, base: Desired, **changed: Any) -> Desired:
    """Return the wish that the peer's arguments are."""
    args = case["args"]
    runtimes = args.get("runtimes", [args])
    if isinstance(runtimes, dict):
        runtimes = [{"name": name, "path": path} for name, path in runtimes.items()]
    default = [r["name"] for r in runtimes if r.get("set_as_default", args["set_as_default"])]
    return replace(
        base,
        handlers=tuple(
            Handler(name=runtime["name"], binary=runtime["path"]) for runtime in runtimes
        ),
        default=default[0] if default else None,
        enable_cdi=args.get("enable_cdi") or None,
        **changed,
    )


# --- docker ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ids(DOCKER, "add", "setup"))
def test_docker_is_set_up_with_the_peer_s_effect(key: str) -> None:
    """There is no exception: the content is the same."""
    case = case_of(DOCKER, key)
    ours = test_docker.tree(
        test_docker.installed(wish_of(case, test_docker.desired()), case["input"].encode())[0]
    )
    if case["compare"] == "json-pointer":
        [pointer] = case["pointer"]
        assert ours.get(pointer) == case["expected"]
    else:
        assert ours == json.loads(case["expected"])


# What the peer leaves behind or takes with it, and we do not.
DOCKER_CLEANED_OTHERWISE: Final = {
    "installer/docker/cleanup/4": "the peer makes runc the default, whatever was it before set-up",
}


def as_recorded(content: dict[str, Any]) -> tuple[Ownership, ...]:
    """Return the record of a first set-up (nothing of ours before) that was edited since."""
    ours = [("runtimes", name) for name in content.get("runtimes", {})]
    if content.get("default-runtime") == "nvidia":
        ours.append(("default-runtime", ""))
    edits = []
    for holder, name in ours:
        key = (holder, name) if name else (holder,)
        new = content[holder][name] if name else content[holder]
        edits.append(Edit(key=key, old=ABSENT, new=new))
    if not edits:
        return ()
    return (Ownership(path=test_docker.CONFIG, original=b"[]", written=(), edits=tuple(edits)),)


@pytest.mark.parametrize("key", ids(DOCKER, "cleanup"))
def test_docker_is_cleaned_up_with_the_peer_s_effect(key: str) -> None:
    case = case_of(DOCKER, key)
    data = case["input"].encode()
    back = test_docker.removal(data, as_recorded(json.loads(data)))
    assert back.stayed == ()
    ours = {
        name: item
        for name, item in test_docker.tree(test_docker.after(data, back)).items()
        if item != {}
    }
    assert (ours == json.loads(case["expected"])) == (key not in DOCKER_CLEANED_OTHERWISE), ours
    if key in DOCKER_CLEANED_OTHERWISE:
        assert ours == {}


# Where the peer names another binary than ours runs in the end.
DOCKER_BINARY_OTHERWISE: Final = {
    "docker/get-runtime-config/0": "what ours replaces is the vendor's own: it would call itself",
}


@pytest.mark.parametrize("key", ids(DOCKER, "get-binary-path"))
def test_docker_s_low_level_runtime_is_found(key: str) -> None:
    case = case_of(DOCKER, key)
    found = test_docker.plan(test_docker.desired(), case["input"].encode()).low_level
    assert found == ("runc",)
    assert (not case["expected"]) == (key not in DOCKER_BINARY_OTHERWISE)


# --- cri-o ----------------------------------------------------------------------------------------


def crio_wish(case: Case) -> Desired:
    args = case["args"]
    drop_in = text(args.get("drop_in_config")) or test_crio.DROP_IN
    return wish_of(
        case,
        test_crio.desired(),
        config=text(args.get("top_level_config_path")) or test_crio.CONFIG,
        drop_in=drop_in,
        directory=drop_in.rpartition("/")[0],
        hook=f"{text(args['hooks_dir'])}/{args['hook_filename']}" if args.get("hooks_dir") else "",
        hook_mode=args.get("config_mode") == "hook",
        hook_binary=f"{args.get('runtime_dir')}/nvidia-container-runtime-hook",
    )


def before(case: Case, wish: Desired) -> dict[str, bytes]:
    if case["input"] is None:
        return {}
    return {wish.hook if wish.hook_mode else wish.config: text(case["input"]).encode()}


def observe(
    wish: Desired, files: pure_plan.Files, owned: tuple[Ownership, ...] = ()
) -> Observation:
    """Look without a binary: the peer's tests have none on their path either."""
    return Observation(
        files={path: files.get(path) for path in (wish.config, wish.drop_in, wish.hook)},
        globs={f"{wish.directory}/**": (wish.drop_in,) if wish.drop_in in files else ()},
        owned=owned,
    )


def set_up(case: Case, wish: Desired) -> tuple[dict[str, bytes], tuple[Ownership, ...]]:
    found = planner.plan(test_crio.ADAPTER, wish, observe(wish, before(case, wish)))
    return pure_plan.after(before(case, wish), found), test_docker.record(test_crio.ADAPTER, found)


CONFIG_MODE: Final = [key for key in ids(CRIO, "add", "setup") if "crio-hook" not in key]
HOOK_MODE: Final = [key for key in ids(CRIO, "setup") if "crio-hook" in key] or ["absent"]


@pytest.mark.parametrize("key", CONFIG_MODE)
def test_crio_is_set_up_with_the_peer_s_effect(key: str) -> None:
    case = case_of(CRIO, key)
    wish = crio_wish(case)
    after, _ = set_up(case, wish)
    peer = tomllib.loads(text(case["expected_drop_in"]))
    assert tomllib.loads(after[wish.drop_in].decode()) == peer
    assert {path: data for path, data in after.items() if path != wish.drop_in} == before(
        case, wish
    )


@pytest.mark.parametrize("key", HOOK_MODE)
def test_crio_s_hook_is_the_peer_s_but_for_its_path(key: str) -> None:
    """Ours finds the toolkit's own programs first, wherever the toolkit lies."""
    case = case_of(CRIO, key)
    wish = crio_wish(case)
    after, _ = set_up(case, wish)
    ours, peer = json.loads(after[wish.hook]), json.loads(case["expected"])
    [mine], [other] = ours["hook"].pop("env"), peer["hook"].pop("env")
    assert ours == peer
    assert mine == other.replace("PATH=", f"PATH={case['args']['runtime_dir']}:")
    assert after.keys() == {wish.hook}


# What the peer leaves behind or takes with it, and we do not.
CRIO_CLEANED_OTHERWISE: Final = {
    "installer/crio-config/lifecycle/0/cleanup": (
        "the drop-in stays and names binaries that go away"
    ),
    "installer/crio-config/lifecycle/1/cleanup": (
        "the drop-in stays and names binaries that go away"
    ),
    "installer/crio-config/lifecycle/2/cleanup": (
        "the drop-in stays and names binaries that go away"
    ),
    "installer/crio-config/lifecycle/3/cleanup": (
        "the drop-in stays and names binaries that go away"
    ),
    "installer/crio-hook/lifecycle/5/cleanup": "the hook that was there before is not given back",
}


@pytest.mark.parametrize("key", ids(CRIO, "cleanup"))
def test_crio_gets_its_original_files_back(key: str) -> None:
    """Ours always does; the peer's result says the same where the table has no reason."""
    cleaned = case_of(CRIO, key)
    case = case_of(CRIO, key.replace("/cleanup", "/setup"))
    wish = crio_wish(case)
    after, owned = set_up(case, wish)
    back = planner.removal(test_crio.ADAPTER, observe(wish, after, owned))
    assert pure_plan.after(after, back) == before(case, wish)
    peer = (cleaned["expected"], cleaned["expected_drop_in"])
    assert (peer == (case["input"], case["input_drop_in"])) == (key not in CRIO_CLEANED_OTHERWISE)


@pytest.mark.parametrize("key", ids(CRIO, "get-binary-path"))
def test_crio_s_low_level_runtime_is_the_peer_s(key: str) -> None:
    """The toolkit runs what the default handler ran; a handler that is not there adds nothing."""
    case = case_of(CRIO, key)
    found = test_crio.plan(
        test_crio.desired(), {test_crio.CONFIG: case["input"].encode()}
    ).low_level
    assert found == ("/usr/libexec/crio/crun", "/usr/libexec/crio/runc")
    assert case["expected"] in {"", found[0]}


@pytest.mark.parametrize(
    ("names", "reasons"),
    [
        (DOCKER, DOCKER_CLEANED_OTHERWISE.keys() | DOCKER_BINARY_OTHERWISE.keys()),
        (CRIO, CRIO_CLEANED_OTHERWISE.keys()),
    ],
    ids=["docker", "crio"],
)
def test_every_reason_is_about_a_case(names: tuple[str, ...], reasons: set[str]) -> None:
    if not cases(names):
        pytest.skip("there are no peer cases beside the project (../shared/peer-cases)")
    assert reasons <= cases(names).keys()
