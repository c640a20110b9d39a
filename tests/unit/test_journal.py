"""The record: it can be read in ten years, and the oldest original wins."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.model import ABSENT, Edit, Effective, FileChange
from tests.support import fake_node
from toolkit import __version__
from toolkit.errors import NodeConfigError, StepError
from toolkit.node import files
from toolkit.settings.layout import InstallDir
from toolkit.state import journal
from toolkit.state.record import Baseline, Operation, Owned, PendingReload, Record, Transaction

PATH: Final = "/etc/containerd/config.toml"
ORIGINAL: Final = b"# original\n"
# Written by hand, as the first release writes it: a later one must read it.
GOLDEN: Final = """
{
 "toolkit_digest": "0123456789abcdef",
 "directories": ["/usr/local/nvidia", "/etc/containerd/conf.d"],
 "format": 1,
 "owned": [
  {
   "edits": [
    {"key": ["version"], "new": 2, "required_keys": ["version"]},
    {"key": ["plugins", "a.b", "default"], "new": "nvidia", "old": "runc", "required_keys": []},
    {"key": ["gone"], "old": null, "required_keys": []}
   ],
   "gid": 20,
   "label": "bGFiZWw=",
   "local": "/runtime/config-dir/config.toml",
   "mode": 416,
   "original": "%s",
   "path": "/etc/containerd/config.toml",
   "uid": 10,
   "written": ["aa", "bb"]
  },
  {
   "edits": [],
   "gid": 0,
   "label": null,
   "local": "/etc/x.toml",
   "mode": 420,
   "original": null,
   "path": "/etc/x.toml",
   "uid": 0,
   "written": ["cc"]
  }
 ],
 "readable_by": 1,
 "pending_reload": {"since": 1000.5, "process": null, "boot_id": "", "uptime": null},
 "restarting": false,
 "displaced": "/usr/local/nvidia/.toolkit-before",
 "runtime": "containerd",
 "sequence": 7,
 "tool": "0.1.0"
}
""".replace("%s", hashlib.sha256(ORIGINAL).hexdigest())
RECORD: Final = Record(
    sequence=7,
    runtime="containerd",
    pending_reload=PendingReload(since=1000.5),
    directories=("/usr/local/nvidia", "/etc/containerd/conf.d"),
    toolkit_digest="0123456789abcdef",
    displaced="/usr/local/nvidia/.toolkit-before",
    owned=(
        Owned(
            path=PATH,
            local="/runtime/config-dir/config.toml",
            original=hashlib.sha256(ORIGINAL).hexdigest(),
            mode=0o640,
            uid=10,
            gid=20,
            label="bGFiZWw=",
            written=("aa", "bb"),
            edits=(
                Edit(key=("version",), old=ABSENT, new=2, required_keys=("version",)),
                Edit(key=("plugins", "a.b", "default"), old="runc", new="nvidia"),
                Edit(key=("gone",), old=None, new=ABSENT),
            ),
        ),
        Owned(
            path="/etc/x.toml", local="/etc/x.toml", original=None, mode=0o644, uid=0, gid=0,
            label=None, written=("cc",), edits=(),
        ),
    ),
)  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = InstallDir(tmp_path).state / "state.json"
    path.parent.mkdir()
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seen(data: bytes, mode: int = 0o644) -> files.FileSnapshot:
    return files.FileSnapshot(data=data, mode=mode, uid=1, gid=2, label=None)


def change(before: bytes | None, after: bytes, **edit: Any) -> FileChange:
    return FileChange(
        path=PATH,
        before=before,
        after=after,
        edits=tuple(Edit(key=(k,), old=v[0], new=v[1]) for k, v in edit.items()),
    )


def remember(
    tmp_path: Path,
    record: Record,
    todo: FileChange,
    *,
    without_us: bytes | None,
    mode: int = 0o644,
) -> Record:
    owned = journal.remember(
        tmp_path, record.owned, todo, local=Path(PATH), without_us=without_us,
        snapshot=None if todo.before is None else seen(todo.before, mode),
    )  # fmt: skip
    return replace(record, owned=owned)


def original(tmp_path: Path, record: Record) -> bytes | None:
    return journal.ownerships(tmp_path, record.owned)[0].original


# --- on disk ------------------------------------------------------------------------------------


OPEN: Final = replace(
    RECORD,
    open=Transaction(
        operation=Operation.REVERT,
        previous=RECORD,
        baseline=Baseline(
            has=Effective(handlers=frozenset({"a", "b"}), default="a", sandbox_image="pause"),
            was_healthy=True,
            supports_cri=True,
        ),
        files=RECORD.owned,
        notified=True,
        failure="it broke",
    ),
)


def test_an_open_transaction_is_read_as_it_was_written(tmp_path: Path) -> None:
    saved = journal.save(tmp_path, OPEN)
    assert journal.load(tmp_path) == saved


@pytest.mark.parametrize(
    "damage", ["operation", "previous", "baseline", "files", "notified", "failure"]
)
def test_an_open_transaction_that_is_damaged_is_refused(
    tmp_path: Path, state: Path, damage: str
) -> None:
    journal.save(tmp_path, OPEN)
    content = json.loads(state.read_bytes())
    content["open"][damage] = 7
    state.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(NodeConfigError, match=r"is damaged"):
        journal.load(tmp_path)


def test_what_is_not_needed_any_more_is_pruned(tmp_path: Path) -> None:
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours"), without_us=ORIGINAL)
    opened = journal.remember(
        tmp_path,
        (),
        change(b"before", b"after"),
        local=Path(PATH),
        snapshot=seen(b"before"),
        without_us=b"before",
    )
    record = replace(
        record,
        open=Transaction(
            operation=Operation.INSTALL, previous=Record(), baseline=Baseline(), files=opened
        ),
    )
    kept = InstallDir(tmp_path).originals
    journal.prune(tmp_path, record)
    assert {path.name for path in kept.iterdir()} == {sha(ORIGINAL), sha(b"before")}
    journal.prune(tmp_path, journal.close_transaction(record))
    assert {path.name for path in kept.iterdir()} == {sha(ORIGINAL)}


def test_the_golden_record_is_read(tmp_path: Path, state: Path) -> None:
    state.write_text(GOLDEN, encoding="utf-8")
    assert journal.load(tmp_path) == RECORD


def test_the_golden_record_is_what_is_written(tmp_path: Path, state: Path) -> None:
    saved = journal.save(tmp_path, RECORD)
    assert saved.sequence == 8
    assert json.loads(state.read_bytes()) == json.loads(GOLDEN) | {
        "sequence": 8,
        "tool": __version__,
        "format": 2,
        "unit": None,
        "open": None,
    }


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    assert journal.load(tmp_path) == Record()
    assert Record().is_empty
    assert not RECORD.is_empty


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    record = remember(tmp_path, Record(), change(ORIGINAL, b"a"), without_us=ORIGINAL)
    journal.save(tmp_path, record)
    modes = {name: seen.mode & 0o7777 for name, seen in fake_node.snapshot(tmp_path).items()}
    assert modes == {
        ".nvidia-toolkit": 0o700,
        ".nvidia-toolkit/originals": 0o700,
        f".nvidia-toolkit/originals/{sha(ORIGINAL)}": 0o600,
        ".nvidia-toolkit/state.json": 0o600,
    }


def test_a_record_of_a_later_version_that_allows_it_is_read(tmp_path: Path, state: Path) -> None:
    content = json.loads(GOLDEN) | {"format": 2, "readable_by": 1, "something new": [1]}
    state.write_text(json.dumps(content), encoding="utf-8")
    assert journal.load(tmp_path) == RECORD


def test_a_record_for_later_versions_only_is_refused(tmp_path: Path, state: Path) -> None:
    state.write_text('{"format": 3, "readable_by": 3, "tool": "9.9.9"}', encoding="utf-8")
    with pytest.raises(NodeConfigError) as caught:
        journal.load(tmp_path)
    assert (
        str(caught.value)
        == f"{state} was written by nvidia-toolkit 9.9.9 and needs a newer version"
    )
    assert caught.value.hint == "use that version or a newer one"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"readable_by": "soon"}',
        GOLDEN[:-40],
        GOLDEN.replace('"sequence": 7', '"sequence": "x"'),
        GOLDEN.replace('"uid": 10,', ""),
        GOLDEN.replace('"written": ["cc"]', '"written": 3'),
        GOLDEN.replace('"key": ["version"]', '"kay": ["version"]'),
        GOLDEN.replace('"path": "/etc/x.toml"', '"path": 5'),
        GOLDEN.replace('"original": null', '"original": 5'),
        "\udcff",
        "[" * 100_000,
    ],
    ids=[
        "empty", "no JSON", "null", "list", "no keys", "no number", "cut off", "no sequence",
        "no owner", "no list", "no key",
        "a number for a path", "a number for a hash", "no UTF-8", "too deep",
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, state: Path, text: str) -> None:
    state.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(NodeConfigError) as caught:
        journal.load(tmp_path)
    assert str(caught.value).startswith(f"{state} is damaged: ")
    assert (
        caught.value.hint
        == f"keep {state.parent} and report the problem; if you remove it, the original files can"
        " no longer be restored"
    )


def test_every_save_replaces_the_record_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.save(tmp_path, RECORD)

    def fail(*_: Any, **__: Any) -> None:
        raise StepError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(files, "fill", fail)
        with pytest.raises(StepError):
            journal.save(tmp_path, Record())
    assert journal.load(tmp_path).owned == RECORD.owned


# --- originals ----------------------------------------------------------------------------------


def test_the_oldest_original_wins_over_two_upgrades(tmp_path: Path) -> None:
    record = remember(
        tmp_path, Record(), change(ORIGINAL, b"one", a=(1, 2)), without_us=ORIGINAL, mode=0o640
    )
    record = journal.close_transaction(record)
    record = remember(
        tmp_path, record, change(b"one", b"two", a=(2, 3)), without_us=b"never asked for"
    )
    assert record.owned[0].written == (sha(b"two"), sha(b"one"))
    record = journal.close_transaction(record)
    record = remember(
        tmp_path, record, change(b"two", b"three", b=(ABSENT, 1)), without_us=b"never asked for"
    )
    assert original(tmp_path, record) == ORIGINAL
    assert (record.owned[0].mode, record.owned[0].uid, record.owned[0].gid) == (0o640, 1, 2)
    assert record.owned[0].edits == (
        Edit(key=("a",), old=1, new=3),
        Edit(key=("b",), old=ABSENT, new=1),
    )


def test_an_edit_by_someone_between_two_writes_is_part_of_the_original(tmp_path: Path) -> None:
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours", a=(1, 2)), without_us=ORIGINAL)
    record = journal.close_transaction(record)
    theirs = change(b"ours and theirs", b"ours again and theirs", b=(1, 2))
    record = remember(tmp_path, record, theirs, without_us=b"# original\ntheirs", mode=0o600)
    assert original(tmp_path, record) == b"# original\ntheirs"
    assert record.owned[0].written[0] == sha(b"ours again and theirs")
    assert record.owned[0].mode == 0o600
    assert [edit.key for edit in record.owned[0].edits] == [("a",), ("b",)]


def test_a_file_that_was_not_there_has_no_original(tmp_path: Path) -> None:
    record = remember(tmp_path, Record(), change(None, b"ours"), without_us=None)
    assert original(tmp_path, record) is None
    assert record.owned[0].mode == 0o644


def test_a_crash_before_the_write_does_not_make_the_plan_an_original(tmp_path: Path) -> None:
    todo = change(ORIGINAL, b"ours", a=(1, 2))
    record = remember(tmp_path, Record(), todo, without_us=ORIGINAL)
    journal.save(tmp_path, record)
    record = remember(tmp_path, journal.load(tmp_path), todo, without_us=ORIGINAL)
    assert original(tmp_path, record) == ORIGINAL
    assert record.owned[0].edits == todo.edits
    assert len(record.owned) == 1


def test_a_crash_after_the_write_knows_both_contents(tmp_path: Path) -> None:
    record = journal.close_transaction(
        remember(tmp_path, Record(), change(ORIGINAL, b"one"), without_us=ORIGINAL)
    )
    record = remember(tmp_path, record, change(b"one", b"two"), without_us=None)
    journal.save(tmp_path, record)
    assert journal.load(tmp_path).owned[0].written == (sha(b"two"), sha(b"one"))


def test_settled_forgets_what_was_written_before_and_what_is_owed() -> None:
    record = journal.close_transaction(RECORD)
    assert record.pending_reload is None
    assert [owned.written for owned in record.owned] == [("aa",), ("cc",)]
    assert record.owned[0].original == RECORD.owned[0].original


def test_settled_keeps_what_is_still_owed() -> None:
    assert journal.close_transaction(
        RECORD, pending=PendingReload(since=7.5)
    ).pending_reload == PendingReload(since=7.5)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_an_original_that_is_lost_is_not_replaced_by_a_guess(tmp_path: Path, damage: str) -> None:
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours"), without_us=ORIGINAL)
    kept = InstallDir(tmp_path).originals / sha(ORIGINAL)
    if damage == "missing":
        kept.unlink()
    else:
        kept.write_bytes(b"changed")
    with pytest.raises(StepError) as caught:
        journal.ownerships(tmp_path, record.owned)
    assert str(caught.value) == f"the original of {PATH} was not found in {kept}"
    assert "revert --force" in caught.value.hint
    forced = journal.ownerships(tmp_path, record.owned, even_if_gone=True)[0]
    assert (forced.original, forced.written) == (
        b"",
        (),
    ), "it counts as edited since, and as there before us"


def test_the_bytes_of_an_original_that_is_lost_may_lie_in_its_place(tmp_path: Path) -> None:
    local = tmp_path / "config.toml"
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours"), without_us=ORIGINAL)
    record = replace(record, owned=(replace(record.owned[0], local=str(local)),))
    shutil.rmtree(InstallDir(tmp_path).originals)
    local.write_bytes(ORIGINAL)
    assert original(tmp_path, record) == ORIGINAL


def test_an_original_that_was_half_kept_is_kept_again(tmp_path: Path) -> None:
    kept = InstallDir(tmp_path).originals / sha(ORIGINAL)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"ha")
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours"), without_us=ORIGINAL)
    assert original(tmp_path, record) == ORIGINAL


# --- forget -------------------------------------------------------------------------------------


def test_forget_leaves_nothing(tmp_path: Path) -> None:
    record = remember(tmp_path, Record(), change(ORIGINAL, b"ours"), without_us=ORIGINAL)
    journal.save(tmp_path, record)
    journal.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
    journal.forget(tmp_path)


def test_forget_leaves_what_is_not_ours_and_says_so(tmp_path: Path) -> None:
    journal.save(tmp_path, RECORD)
    notes = InstallDir(tmp_path).state / "notes.txt"
    notes.touch()
    with pytest.raises(StepError) as caught:
        journal.forget(tmp_path)
    assert str(caught.value) == f"{notes.parent} cannot be removed: Directory not empty"
    assert notes.exists()
