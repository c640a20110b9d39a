"""The nouns of the house, frozen: what is wanted, what was seen, what would change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

Key = tuple[str, ...]
Tree = Mapping[str, Any]


class Absent(Enum):
    """The value of a key that is not there; TOML and JSON both need it apart from null."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT
EMPTY: Final[Tree] = MappingProxyType({})


class RuntimeName(StrEnum):
    """The container runtimes that the program knows."""

    CONTAINERD = "containerd"
    CRIO = "crio"
    DOCKER = "docker"


class ReachKind(StrEnum):
    """How our keys get into the configuration that a daemon starts with."""

    FILES = "files"
    """The daemon reads the root config as it is: it is edited in place, or imports a drop-in of ours."""
    MERGED = "merged"
    """The root config is made anew at each start, and with it goes a directory of drop-ins."""
    TEMPLATE = "template"
    """The root config is a template with `${VARIABLES}`; the daemon reads what is made of it."""
    MADE = "made"
    """As MERGED, and handlers are made for the programs that are found in a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How our keys reach the effective configuration, with what that needs.

    `rendered` is what the daemon reads where the root config is a template, and
    `values` are variables that are known whatever was made of it last. A root config
    that does not begin with `mark` is a person's own, and read as it is.
    `drop_ins` are further places of the drop-in, of which the one counts that the
    root config imports. `merges_into` is a generated file into which drop-ins
    are merged by a distribution that does so itself. `makes` are the handlers that
    the distribution makes for programs in `looks_in`, the first of them for sure;
    `default_step` is what a person does there to set the default handler.
    `watches` tells that the distribution itself starts the daemon anew where a
    drop-in changes. `imports` tells whether the root config may get an `imports` line.
    """

    kind: ReachKind = ReachKind.FILES
    rendered: str = ""
    values: tuple[tuple[str, str], ...] = ()
    mark: str = ""
    drop_ins: tuple[str, ...] = ()
    merges_into: str = ""
    makes: tuple[str, ...] = ()
    looks_in: str = ""
    default_step: str = ""
    watches: bool = False
    imports: bool = True

    @property
    def is_made_anew(self) -> bool:
        """Tell whether the root config is written by the distribution at each start, and so never by us."""
        return self.kind in (ReachKind.MERGED, ReachKind.MADE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """An OCI runtime entry that we add: its name and the binary it runs, as the node sees it."""

    name: str
    binary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What is wanted of a runtime's configuration.

    Paths are those of the node, as its daemon sees them. `default` is the name
    of the handler that shall be the default one, or None to leave the default
    to others. `drop_in` may be empty: then only the root config is edited.
    `directory` is where a runtime that reads whole directories finds drop-ins.
    `hook` is the OCI hook file of ours, present or not, and `hook_binary` what
    it runs; with `hook_mode` the hook takes the place of the handlers.
    `override` are keys that win over what the handlers inherit; only
    containerd's have them.
    """

    runtime: RuntimeName
    config: str
    drop_in: str
    handlers: tuple[Handler, ...]
    default: str | None
    directory: str = ""
    hook: str = ""
    hook_mode: bool = False
    hook_binary: str = ""
    enable_cri: bool = False
    reach: Reach = field(default_factory=Reach)
    enable_cdi: bool | None = None
    runtime_type: str = "io.containerd.runc.v2"
    legacy: bool = False
    annotations: tuple[str, ...] = ()
    override: Tree = field(default_factory=lambda: EMPTY)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of our handlers."""
        return frozenset(handler.name for handler in self.handlers)

    @property
    def generated(self) -> frozenset[str]:
        """Return the paths that the distribution writes at each start: what they hold is not ours."""
        root = {self.config} if self.reach.is_made_anew else set()
        return frozenset({*root, self.reach.rendered, self.reach.merges_into} - {""})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A command to ask the node's own binary.

    `files` are staged for that one command; wherever `token(i)` stands in
    `argv` or in a staged file's data, the asker puts the path at which the
    i-th staged file can be read. `names` are those that the files have on the
    node, for people. `directories` are staged as well, each a mapping of names
    to contents; `directory_token(i)` stands for the i-th one's path. `is_lasting`
    tells that the answer depends on the binary alone, on no file of the node.
    """

    name: str
    argv: tuple[str, ...]
    files: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    directories: tuple[Mapping[str, bytes], ...] = ()
    is_lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the node's binary said: exit status, stdout, and the end of stderr."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Tell whether the command succeeded."""
        return self.code == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something to ask the running daemon: a path to GET over HTTP on its socket."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """An effective configuration in what matters to pods; None where it is not told.

    `handlers` are all of them, ours and others', and `by_systemd` those whose
    containers systemd puts into their cgroup. `version` is the runtime's own,
    where it says so along with the rest.
    """

    handlers: frozenset[str] | None = None
    default: str | None = None
    sandbox_image: str | None = None
    by_systemd: frozenset[str] = frozenset()
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Who still runs through our handlers, and what must be asked to know it."""

    requests: tuple[Request, ...] = ()
    using: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One key's change, remembered so that it can be taken back.

    `essential` names leaves of a table of ours that must stay as long as
    somebody else's keys stay beside them, since the table is invalid without.
    """

    key: Key
    old: Any
    new: Any
    essential: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What we changed in one file: the edits, oldest value first, and the bytes before and after.

    `original` is None where the file did not exist before us. `written` are the
    fingerprints of what we wrote last and perhaps of what we wrote before.
    """

    path: str
    original: bytes | None
    written: tuple[str, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was seen on the node: files by path (None: absent), globs, answers, what we own.

    `binary` is the node's own binary where one is known; without it no
    question can be answered. `argv` is the running daemon's command line, empty
    where none is seen.
    """

    files: Mapping[str, bytes | None] = field(default_factory=lambda: MappingProxyType({}))
    globs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    answers: Mapping[str, Answer] = field(default_factory=lambda: MappingProxyType({}))
    binary: str | None = None
    argv: tuple[str, ...] = ()
    owned: tuple[Ownership, ...] = ()

    def data(self, path: str) -> bytes | None:
        """Return the bytes of a file that was looked at; None where it is absent."""
        return self.files.get(path)

    def ownership(self, path: str) -> Ownership | None:
        """Return what we own in a file, or None."""
        return next((owned for owned in self.owned if owned.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What an adapter wants to have looked at next: files by path, and glob patterns.

    A glob is one of containerd's: `*` does not match a slash but does match a
    leading dot, as in Go's `filepath.Match`. `DIR/**` are all files below a
    directory, in the order of Go's `filepath.Walk`.
    """

    files: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()


Action = Literal["create", "modify", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One file's bytes before and after (None: absent), and the edits that lead from one to the other.

    `stone` are bytes that a daemon which reloads has to read on the way, since
    it does not notice that a key is gone.
    """

    path: str
    before: bytes | None
    after: bytes | None
    edits: tuple[Edit, ...] = ()
    stone: bytes | None = None

    @property
    def action(self) -> Action:
        """Say what happens to the file."""
        if self.before is None:
            return "create"
        return "delete" if self.after is None else "modify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would change, and what a person should know about it.

    `low_level` are the binaries of the handlers that are not ours, the default
    one first: what the toolkit runs in the end. `stayed` names what a removal
    leaves because somebody else edited it. `made` are handlers that the
    distribution makes by itself once the toolkit is there, and `unmade` says,
    where it has not yet, what its next start will do; empty where it has.
    """

    changes: tuple[FileChange, ...] = ()
    notes: tuple[str, ...] = ()
    low_level: tuple[str, ...] = ()
    stayed: tuple[str, ...] = ()
    made: frozenset[str] = frozenset()
    unmade: str = ""

    @property
    def is_noop(self) -> bool:
        """Tell whether nothing would change."""
        return not self.changes

    @property
    def stones(self) -> tuple[FileChange, ...]:
        """Return the changes to what a daemon that reloads has to read on the way."""
        return tuple(replace(c, after=c.stone, stone=None) for c in self.changes if c.stone is not None)


def fingerprint(data: bytes | None) -> str:
    """Return what tells a content from others: its SHA-256 in hex, or a word for an absent file."""
    return "absent" if data is None else hashlib.sha256(data).hexdigest()


def token(index: int) -> str:
    """Return the mark that stands for the path of a question's staged file."""
    return f"staged://{index};"


def directory_token(index: int) -> str:
    """Return the mark that stands for the path of a question's staged directory."""
    return f"staged-directory://{index};"
