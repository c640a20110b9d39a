"""The definition of worse after a change: the runtime's report against its report before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes import planner, registry
from runtimes.containerd import ADAPTER as containerd
from runtimes.docker import ADAPTER as docker
from runtimes.model import ABSENT, Edit, Effective, Observation, Ownership, RuntimeName
from tests.support import pure_plan
from toolkit.deadline import Deadline
from toolkit.errors import ReloadError
from toolkit.node.host import Host
from toolkit.runtime import expectation, health
from toolkit.runtime.expectation import Expected
from toolkit.runtime.health import Health
from toolkit.runtime.locate import Target
from toolkit.state.record import Baseline

OURS: Final = frozenset({"nvidia", "nvidia-cdi", "nvidia-legacy"})
_FOR_EVER: Final = 3600
"""In seconds: a test that waits that long times out."""
BEFORE: Final = Effective(
    handlers=frozenset({"runc", "kata"}), default="runc", sandbox_image="pause:1"
)
AFTER: Final = Effective(
    handlers=frozenset({"runc", "kata"}) | OURS, default="nvidia", sandbox_image="pause:1"
)


def has(of: Effective = BEFORE, **changed: Any) -> Effective:
    return replace(of, **changed)


def names(*handlers: str) -> frozenset[str]:
    return frozenset(handlers)


# --- planner.unwell -----------------------------------------------------------------------------


def regressions(
    now: Effective, *before: Effective, default: str | None = "nvidia", ours: frozenset[str] = OURS
) -> list[str]:
    return planner.regressions(ours, default, before, now)


def test_what_has_all_that_it_had_and_what_was_asked_for_is_well() -> None:
    assert regressions(AFTER, BEFORE, BEFORE) == []


def test_where_nothing_is_known_of_before_only_the_default_counts() -> None:
    assert regressions(AFTER) == []
    assert regressions(has(AFTER, default="runc")) == ["the default handler is runc, not nvidia"]
    assert regressions(has(AFTER, handlers=names(), sandbox_image="other")) == []


def test_every_handler_that_is_gone_is_named() -> None:
    now = has(AFTER, handlers=OURS)
    assert regressions(now, BEFORE) == [
        "the handler kata is missing; it existed before",
        "the handler runc is missing; it existed before",
    ]


def test_handlers_of_ours_may_go() -> None:
    before = has(handlers=names("runc", "nvidia", "old-name"))
    now = has(handlers=names("runc"))
    assert regressions(now, before, default=None, ours=OURS | {"old-name"}) == []
    assert regressions(now, before, default=None) == [
        "the handler old-name is missing; it existed before"
    ]


def test_a_handler_that_somebody_had_taken_out_of_the_files_may_go() -> None:
    files = has(handlers=names("runc"))
    assert regressions(has(AFTER, handlers=OURS | {"runc"}), BEFORE, files) == []
    assert regressions(has(AFTER, handlers=OURS | {"kata"}), BEFORE, files) == [
        "the handler runc is missing; it existed before"
    ]


def test_a_handler_that_somebody_had_put_into_the_files_may_come_and_may_stay_away() -> None:
    files = has(handlers=names("runc", "kata", "gvisor"))
    with_it = has(AFTER, handlers=(AFTER.handlers or names()) | {"gvisor"})
    assert regressions(with_it, BEFORE, files) == []
    assert regressions(AFTER, BEFORE, files) == []


@pytest.mark.parametrize(
    "before",
    [(has(handlers=None), BEFORE), (BEFORE, has(handlers=None))],
    ids=["running", "files"],
)
def test_where_only_one_of_both_is_known_it_counts_alone(before: tuple[Effective, ...]) -> None:
    now = has(AFTER, handlers=OURS | {"runc"})
    assert regressions(now, *before) == ["the handler kata is missing; it existed before"]


def test_handlers_that_nobody_names_now_are_not_missed() -> None:
    assert regressions(has(AFTER, handlers=None), BEFORE) == []


def test_the_default_that_was_asked_for_is_the_only_right_one() -> None:
    assert regressions(has(AFTER, default="runc"), BEFORE, BEFORE) == [
        "the default handler is runc, not nvidia"
    ]
    assert regressions(has(AFTER, default=None), BEFORE) == []


def test_a_default_that_nobody_asked_for_stays() -> None:
    assert regressions(BEFORE, BEFORE, default=None) == []
    assert regressions(has(default="kata"), BEFORE, default=None) == [
        "the default handler is kata, but was runc before"
    ]
    assert regressions(has(default=None), BEFORE, default=None) == []


def test_a_default_of_ours_may_be_given_back_to_whomever() -> None:
    assert regressions(has(default="kata"), has(default="nvidia"), default=None) == []
    assert (
        regressions(has(default="kata"), has(default="kata"), has(default="nvidia"), default=None)
        == []
    )


def test_a_handler_of_others_that_we_made_the_default_may_be_it_no_more() -> None:
    before = has(AFTER, default="theirs")
    assert planner.regressions(OURS, None, [before], BEFORE, raised=names("theirs")) == []
    assert planner.regressions(OURS, None, [before], BEFORE, raised=names("other")) != []


def test_a_default_that_somebody_had_changed_in_the_files_may_be_taken_up() -> None:
    files = has(default="kata")
    assert regressions(has(default="kata"), BEFORE, files, default=None) == []
    assert regressions(has(default="runc"), BEFORE, files, default=None) == []
    assert regressions(has(default="gvisor"), BEFORE, files, default=None) == [
        "the default handler is gvisor, but was kata, runc before"
    ]


def test_the_sandbox_image_stays() -> None:
    assert regressions(has(AFTER, sandbox_image="pause:2"), BEFORE) == [
        "the sandbox image is pause:2, but was pause:1 before"
    ]
    files = has(sandbox_image="pause:2")
    assert regressions(has(AFTER, sandbox_image="pause:2"), BEFORE, files) == []
    assert regressions(has(AFTER, sandbox_image="pause:3"), BEFORE, files) == [
        "the sandbox image is pause:3, but was pause:1, pause:2 before"
    ]


def test_a_sandbox_image_that_is_not_told_is_no_change() -> None:
    assert regressions(has(AFTER, sandbox_image=None), BEFORE) == []
    assert regressions(AFTER, has(sandbox_image=None), has(sandbox_image=None)) == []


def test_everything_that_is_wrong_is_told() -> None:
    now = Effective(handlers=OURS | {"runc"}, default="runc", sandbox_image="x")
    assert len(regressions(now, BEFORE)) == 3


def test_former_names_of_ours_are_known_by_the_record() -> None:
    runtimes = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes")
    keys = [
        (*runtimes, "gpu"),
        (*runtimes, "runc"),
        (*runtimes[:-1], "default_runtime_name"),
        ("version",),
    ]
    owned = Ownership(
        path="/x",
        original=None,
        written=(),
        edits=tuple(Edit(key=key, old=ABSENT, new={}) for key in keys),
    )
    docker_s = replace(owned, edits=(Edit(key=("runtimes", "old"), old=ABSENT, new={}),))
    assert planner.former(Observation(owned=(owned, docker_s))) == {"gpu", "old"}
    assert planner.former(Observation()) == frozenset()


@pytest.mark.parametrize("runtime", RuntimeName)
def test_what_we_made_the_default_is_known_by_the_record(runtime: RuntimeName) -> None:
    adapter, desired = registry.ADAPTERS[runtime], pure_plan.desired(runtime=runtime)
    made = planner.plan(
        adapter, desired, Observation(files={desired.config: None, desired.drop_in: None})
    )
    owned = [Ownership(path=c.path, original=None, written=(), edits=c.edits) for c in made.changes]
    assert planner.defaults(Observation(owned=tuple(owned))) == {"nvidia"}
    assert planner.defaults(Observation()) == frozenset()


# --- what is expected ---------------------------------------------------------------------------


def expected(**changed: Any) -> Expected:
    """Return what a first install expects."""
    usual: dict[str, Any] = {
        "desired": pure_plan.desired(),
        "ours": OURS,
        "present": OURS,
        "absent": frozenset(),
        "default": "nvidia",
        "baseline": Baseline(has=BEFORE, files=BEFORE, supports_cri=True, has_network=True),
    }
    return Expected(**{**usual, **changed})


def lacking(now: Health, **changed: Any) -> list[str]:
    return expected(**changed).unmet(containerd, now)


def test_a_runtime_that_took_everything_up_lacks_nothing() -> None:
    assert lacking(Health(effective=AFTER)) == []


def test_every_handler_of_ours_that_is_missing_is_named() -> None:
    now = Health(effective=has(AFTER, handlers=names("runc", "kata", "nvidia")))
    assert lacking(now) == [
        "the runtime does not know the handler nvidia-cdi",
        "the runtime does not know the handler nvidia-legacy",
    ]


def test_every_handler_of_ours_that_should_be_gone_is_named() -> None:
    now = Health(effective=has(AFTER, default="runc"))
    assert lacking(now, present=frozenset(), absent=OURS, default=None) == [
        "the runtime still knows the handler nvidia",
        "the runtime still knows the handler nvidia-cdi",
        "the runtime still knows the handler nvidia-legacy",
    ]
    gone = Health(effective=BEFORE)
    assert lacking(gone, present=frozenset(), absent=OURS, default=None) == []


def test_a_runtime_that_serves_no_cri_any_more_is_told_of_that_alone() -> None:
    now = Health(effective=Effective(), no_cri="UNIMPLEMENTED")
    assert lacking(now) == ["the runtime no longer serves CRI: UNIMPLEMENTED"]


def test_a_runtime_that_never_served_cri_need_not_do_so_now() -> None:
    never = Baseline(has=Effective(), files=BEFORE, supports_cri=False)
    assert lacking(Health(effective=Effective(), no_cri="UNIMPLEMENTED"), baseline=never) == []
    assert lacking(Health(effective=AFTER), baseline=never) == []


def test_a_network_that_was_ready_has_to_be_so_again() -> None:
    assert lacking(Health(effective=AFTER, network="no plugin")) == [
        "the network is no longer ready: no plugin"
    ]
    never = Baseline(has=BEFORE, files=BEFORE, supports_cri=True, has_network=False)
    assert lacking(Health(effective=AFTER, network="no plugin"), baseline=never) == []


def test_without_a_baseline_only_what_was_asked_for_counts() -> None:
    sparse = Health(
        effective=Effective(handlers=OURS, default="nvidia", sandbox_image="x"), network="none"
    )
    assert lacking(sparse, baseline=None) == []
    assert lacking(
        Health(effective=Effective(handlers=names(), default="runc")), baseline=None
    ) == [
        "the runtime does not know the handler nvidia",
        "the runtime does not know the handler nvidia-cdi",
        "the runtime does not know the handler nvidia-legacy",
        "the default handler is runc, not nvidia",
    ]


def test_a_runtime_that_serves_cri_and_names_no_handler_has_not_said_that_it_has_ours() -> None:
    silent = Health(effective=has(AFTER, handlers=None))
    assert lacking(silent) == ["the runtime does not list its handlers"]
    assert lacking(silent, present=frozenset()) == []


def test_handlers_that_a_runtime_without_cri_cannot_name_are_not_missed() -> None:
    off = Health(effective=has(AFTER, handlers=None), no_cri="it is off")
    assert lacking(off, baseline=None) == []


def test_somebody_s_edit_that_only_waited_for_a_restart_is_no_fault_of_ours() -> None:
    pending = Effective(handlers=names("runc", "gvisor"), default="gvisor", sandbox_image="pause:2")
    baseline = Baseline(has=BEFORE, files=pending, supports_cri=True, has_network=True)
    now = Effective(handlers=OURS | {"runc", "gvisor"}, default="gvisor", sandbox_image="pause:2")
    assert lacking(Health(effective=now), baseline=baseline, default=None) == []


def test_what_the_pending_edit_and_the_runtime_both_had_is_missed_all_the_same() -> None:
    pending = replace(BEFORE, handlers=names("runc", "gvisor"))
    baseline = Baseline(has=BEFORE, files=pending, supports_cri=True, has_network=True)
    now = has(AFTER, handlers=OURS | {"gvisor"})
    assert lacking(Health(effective=now), baseline=baseline) == [
        "the handler runc is missing; it existed before"
    ]


def test_everything_that_is_lacking_is_told_once() -> None:
    now = Health(
        effective=Effective(handlers=names("kata"), default="kata", sandbox_image="x"),
        network="no plugin",
    )
    assert lacking(now) == [
        "the network is no longer ready: no plugin",
        "the runtime does not know the handler nvidia",
        "the runtime does not know the handler nvidia-cdi",
        "the runtime does not know the handler nvidia-legacy",
        "the handler runc is missing; it existed before",
        "the default handler is kata, not nvidia",
        "the sandbox image is x, but was pause:1 before",
    ]


# --- Docker, by its own files -------------------------------------------------------------------

_DAEMON: Final = "/etc/docker/daemon.json"


def runtimes(*handlers: str) -> dict[str, dict[str, str]]:
    return {handler: {"path": handler} for handler in handlers}


def of_docker(**info: Any) -> list[str]:
    entries = {handler.name: {"path": handler.binary} for handler in pure_plan.HANDLERS}
    file = json.dumps({"runtimes": entries, "default-runtime": "nvidia"}).encode()
    wish = pure_plan.desired(runtime=RuntimeName.DOCKER, config=_DAEMON, drop_in="")
    said = {"Runtimes": runtimes("runc", "kata", *OURS), "DefaultRuntime": "nvidia", **info}
    body = json.dumps(said)
    now = Health(effective=docker.running(None, body), no_cri="it has none", body=body)
    before = replace(BEFORE, sandbox_image=None)
    baseline = Baseline(has=before, files=before)
    return expected(desired=wish, files={_DAEMON: file}, baseline=baseline).unmet(docker, now)


def test_dockerd_is_held_against_its_file() -> None:
    assert of_docker() == []
    assert of_docker(Runtimes=runtimes("runc", "kata", "nvidia")) == [
        "dockerd does not know the handler nvidia-cdi",
        "dockerd does not know the handler nvidia-legacy",
    ]


def test_dockerd_that_lost_somebody_s_runtime_is_told_so() -> None:
    assert of_docker(Runtimes=runtimes("runc", *OURS)) == [
        "the handler kata is missing; it existed before"
    ]


def test_dockerd_with_another_default_is_told_so() -> None:
    assert of_docker(DefaultRuntime="runc") == [
        "dockerd's default handler is runc, not nvidia",
        "the default handler is runc, not nvidia",
    ]


# --- waiting for it -----------------------------------------------------------------------------


class Runtime:
    """A runtime with one answer after the other, the last repeated, that records the queries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *says: Health) -> None:
        self.says = list(says)
        self.timeouts: list[float] = []
        monkeypatch.setattr(health, "query", self._once)

    def _once(self, *_: Any, timeout: Callable[[], float]) -> Health:
        self.timeouts.append(timeout())
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


WELL: Final = Health(effective=AFTER)
SICK: Final = Health(effective=Effective(), problems=("it is not ready", "nor well"))
OLD: Final = Health(effective=BEFORE)


@pytest.fixture
def confirmed(tmp_path: Path) -> Callable[[float], Health]:
    place = Target(
        host=Host(root=Path("/")),
        desired=pure_plan.desired(),
        install_dir=tmp_path,
        launch_file=tmp_path / "launch.json",
        socket=tmp_path / "c.sock",
        process=None,
        no_process="",
        binary=None,
    )
    return lambda seconds: expectation.confirmed(place, containerd, expected(), Deadline(seconds))


Confirmed = Callable[[float], Health]


def test_a_runtime_that_is_as_expected_is_asked_once(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch, WELL)
    assert confirmed(60) is WELL
    assert len(runtime.timeouts) == 1
    assert 59 < runtime.timeouts[0] <= 60


def test_a_runtime_is_asked_until_it_is_well_and_as_expected(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch, SICK, SICK, OLD, WELL)
    assert confirmed(60) is WELL
    assert len(runtime.timeouts) == 4


def test_when_patience_is_over_all_that_is_wrong_is_told(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runtime(monkeypatch, SICK)
    begin = time.monotonic()
    with pytest.raises(ReloadError) as caught:
        confirmed(0.3)
    assert time.monotonic() - begin >= 0.3
    assert str(caught.value) == "the runtime did not apply the change: it is not ready; nor well"
    assert caught.value.hint == "see the runtime's log"


def test_it_is_asked_once_and_given_a_second_where_there_is_no_patience(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch, SICK)
    with pytest.raises(ReloadError):
        confirmed(0)
    assert [round(each, 1) for each in runtime.timeouts] == [1]


def test_a_well_runtime_that_did_not_take_it_up_is_not_waited_for_to_the_end(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.3)
    Runtime(monkeypatch, SICK, SICK, OLD)
    begin = time.monotonic()
    with pytest.raises(
        ReloadError, match=r"does not know the handler nvidia;.*the default handler is runc"
    ):
        confirmed(_FOR_EVER)
    assert time.monotonic() - begin >= 0.3


def test_a_sick_runtime_is_waited_for_to_the_end(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectation, "SETTLING", 0.05)
    Runtime(monkeypatch, *[SICK] * 6, WELL)
    assert confirmed(60) is WELL


def test_a_well_runtime_still_has_a_while_to_take_it_up(
    confirmed: Confirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runtime(monkeypatch, *[OLD] * 5, WELL)
    assert confirmed(60) is WELL
    assert 5 <= expectation.SETTLING < 30
