"""Configurations that are no plain files at rest: links, a FIFO, one that grows or is edited."""

from __future__ import annotations

import os
import shutil
import time
from typing import Final

import pytest

from tests.faults import trees
from tests.faults.calls import Call
from tests.faults.conftest import Bench
from tests.faults.site import Run
from tests.faults.stops import stopped
from tests.faults.trees import CONFIG, Tree
from tests.support import fake_node
from tests.support.fake_node import needs_root

pytestmark = [
    pytest.mark.faults,
    needs_root,
    pytest.mark.skipif(
        shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
    ),
]

THEIRS: Final = b"\n# theirs\n"
LARGE: Final = 50 * 1024 * 1024
PATIENCE: Final = 60
"""Seconds that a run may take on a file of 50 MiB."""


def install(bench: Bench, **options: str) -> Run:
    return bench.site.run(["-n", *bench.options(**options)])


def revert(bench: Bench) -> Run:
    return bench.site.run(["revert", *bench.options()])


def fresh(bench: Bench) -> Tree:
    return bench.library.tree(bench.library.fresh(merging=False))


def test_a_link_stays_one_and_its_target_is_edited(bench: Bench) -> None:
    bench.begin()
    config = bench.site.real / CONFIG
    real = config.with_name("real.toml")
    config.rename(real)
    config.symlink_to("real.toml")
    before = bench.site.tree()
    assert install(bench).code == 0
    assert os.readlink(config) == "real.toml"
    assert b'default_runtime_name = "nvidia"' in real.read_bytes()
    assert revert(bench).code == 0
    assert trees.differences(bench.site.tree(), before) == []


def test_a_link_that_leads_out_of_the_node_is_refused(bench: Bench) -> None:
    """The node's root is a directory; its /etc/containerd is mounted elsewhere, as in a pod."""
    bench.begin()
    root = bench.site.real / "root"
    (root / "etc/containerd").mkdir(parents=True)
    outside = bench.site.real / "etc/elsewhere.toml"
    config = bench.site.real / CONFIG
    config.rename(outside)
    config.symlink_to("../elsewhere.toml")
    before = bench.site.tree()
    done = install(bench, host_root=str(bench.site.node.root / "root"), restart_mode="none")
    assert done.code == 4, done
    assert "which is not mounted from the node" in done.said
    assert trees.differences(bench.site.tree(), before) == []


@pytest.mark.timing
def test_a_fifo_is_refused_at_once(bench: Bench) -> None:
    bench.begin()
    config = bench.site.real / CONFIG
    config.unlink()
    os.mkfifo(config)
    before = bench.site.tree()
    began = time.monotonic()
    done = install(bench)
    assert time.monotonic() - began < 5
    assert done.code == 3, done
    assert "is not a regular file" in done.said
    assert trees.differences(bench.site.tree(), before) == []


def test_a_file_that_grows_while_it_is_read_is_refused(bench: Bench) -> None:
    bench.begin()
    path = str(bench.site.node.config)
    at_first_read = Call(name="read", about="", number=1, path=path)
    with stopped(bench.site, ["-n", *bench.options()], at_first_read) as run:
        with (bench.site.real / CONFIG).open("ab") as stream:
            stream.write(THEIRS)
        done = run.go_on()
    assert done.code == 3, done
    assert "changed while it was read" in done.said
    assert trees.differences(bench.site.tree(), fresh(bench)) == [f"{CONFIG} differs in content"]
    assert bench.site.starts() == 1


@pytest.mark.timing
@pytest.mark.timeout(300)
def test_a_file_of_50_mib_is_edited_or_refused_within_a_minute(bench: Bench) -> None:
    bench.begin()
    config = bench.site.real / CONFIG
    line = b"# " + b"x" * 77 + b"\n"
    with config.open("ab") as stream:
        stream.write(line * (LARGE // len(line)))
    before = bench.site.tree()
    words = (*bench.site.prefix, *fake_node.program("-n", *bench.options()))
    began = time.monotonic()
    with fake_node.started(words) as process:
        _, said = process.communicate(timeout=200)
    assert time.monotonic() - began < PATIENCE
    assert process.returncode in (0, 3), said
    if process.returncode == 0:
        assert config.read_bytes().endswith(line * 1000)
        assert revert(bench).code == 0
    assert trees.differences(bench.site.tree(), before) == []


@pytest.mark.parametrize(
    ("name", "about", "code"),
    [
        ("unlink", "toolkit-probe", 4),
        ("mkdir", "/.nvidia-toolkit$", 6),
        ("mkdir", "[.]partial$", 6),
        ("symlink", "toolkit-next$", 6),
    ],
)
def test_a_file_that_somebody_edits_after_the_plan_stays_as_they_wrote_it(
    bench: Bench, name: str, about: str, code: int
) -> None:
    """If the transaction was already open, it is rolled back; another exit code says so."""
    bench.begin()
    call = bench.call(name, about)
    with stopped(bench.site, ["-n", *bench.options()], call) as run:
        with (bench.site.real / CONFIG).open("ab") as stream:
            stream.write(THEIRS)
        edited = bench.site.tree()[CONFIG]
        done = run.go_on()
    bench.site.settle()
    assert done.code == code, done
    assert "the change was planned; " in done.said
    assert bench.site.tree()[CONFIG] == edited
    assert trees.differences(bench.site.tree(), fresh(bench)) == [f"{CONFIG} differs in content"]
    assert bench.site.starts() == 1
    assert install(bench).code == 0
    assert revert(bench).code == 0
    assert bench.site.tree()[CONFIG] == edited


def test_a_file_that_somebody_edits_after_the_write_keeps_what_they_wrote(bench: Bench) -> None:
    """The change is taken back, since the runtime does not want it; the edit is not."""
    bench.begin()
    bench.site.tell({"sick_if": "nvidia-cdi", "sick": {"handlers": ["runc"]}})
    signal = Call(name="pidfd_send_signal", about="", number=1)
    options = bench.options(reload_timeout="1")
    with stopped(bench.site, ["-n", *options], signal) as run:
        with (bench.site.real / CONFIG).open("ab") as stream:
            stream.write(THEIRS)
        done = run.go_on()
    bench.site.settle()
    assert done.code in (6, 7), done
    assert bench.site.tree()[CONFIG].data == fresh(bench)[CONFIG].data + THEIRS
