"""The immutable data types of the package: desired configuration, observation, change and plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

from runtimes.dataclass import dataclass, field, replace

Key = tuple[str, ...]
Tree = Mapping[str, Any]


class Absent(Enum):
    """The type of ABSENT, the value of a key that does not exist; distinct from JSON's null."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT
EMPTY: Final[Tree] = MappingProxyType({})


def without_empty_tables(tree: Tree) -> dict[str, Any]:
    """Return a tree without empty tables; a header without keys has no effect."""
    result: dict[str, Any] = {}
    for name, item in tree.items():
        reduced = without_empty_tables(item) if isinstance(item, Mapping) else item
        if not isinstance(item, Mapping) or reduced:
            result[name] = reduced
    return result


class RuntimeName(StrEnum):
    """The supported container runtimes."""

    CONTAINERD = "containerd"
    CRIO = "crio"
    DOCKER = "docker"


class DeliveryKind(StrEnum):
    """The way by which our keys get into the configuration with which the daemon starts."""

    FILES = "files"
    """The daemon reads the root config itself: we edit it in place, or it imports our drop-in."""
    MERGED = "merged"
    """The distribution generates the root config at each start and includes a drop-in directory."""
    TEMPLATE = "template"
    """The root config is a template with `${VARIABLES}`; the daemon reads the rendered file."""
    AUTO_DETECTED = "auto-detected"
    """Like MERGED; the distribution also adds handlers for programs found in a directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDelivery:
    """The way by which our keys reach the effective configuration, and its parameters.

    `rendered` is the file that the daemon reads if the root config is a template. `values` are the
    values of its variables as long as the rendered file does not show others. A root config that
    does not begin with `mark` was written by an administrator and is read as it is. `drop_ins` are
    alternative paths of the drop-in; the one that the root config imports is used. `merges_into` is
    the generated file into which the distribution itself merges drop-ins. `provided_handlers` are
    the handlers that the distribution creates for programs in `search_dir`; every release of it
    creates the first one. `default_step` tells the user how to set the default handler there. With
    `watches`, the distribution itself restarts the daemon when a drop-in changes. With `imports`,
    we may add an `imports` line to the root config.
    """

    kind: DeliveryKind = DeliveryKind.FILES
    rendered: str = ""
    values: tuple[tuple[str, str], ...] = ()
    mark: str = ""
    drop_ins: tuple[str, ...] = ()
    merges_into: str = ""
    provided_handlers: tuple[str, ...] = ()
    search_dir: str = ""
    default_step: str = ""
    watches: bool = False
    imports: bool = True

    @property
    def is_regenerated(self) -> bool:
        """Return whether a distribution renders the root config at start, so we never edit it."""
        return self.kind in (DeliveryKind.MERGED, DeliveryKind.AUTO_DETECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """An OCI runtime entry that we add: its name and the path of its binary on the node."""

    name: str
    binary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The desired configuration of a runtime.

    Paths are paths on the node, as its daemon sees them. `default` is the name of the handler to
    make the default; None leaves the default unchanged. If `drop_in` is empty, only the root config
    is edited. `directory` is the drop-in directory of a runtime that reads whole directories.
    `hook` is the path of our OCI hook file, whether it exists or not, and `hook_binary` the program
    that it runs; with `hook_mode`, the hook replaces the handlers. `override` are keys that take
    precedence over those that the handlers inherit (containerd only). `systemd_cgroup` is whether
    the kubelet uses the systemd cgroup driver; None if it was not looked up.
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
    delivery: ConfigDelivery = field(default_factory=ConfigDelivery)
    enable_cdi: bool | None = None
    runtime_type: str = "io.containerd.runc.v2"
    legacy: bool = False
    annotations: tuple[str, ...] = ()
    override: Tree = field(default_factory=lambda: EMPTY)
    systemd_cgroup: bool | None = None

    @property
    def names(self) -> frozenset[str]:
        """Return the names of our handlers."""
        return frozenset(handler.name for handler in self.handlers)

    @property
    def generated(self) -> frozenset[str]:
        """Return the paths of the files that the distribution generates; we own no keys in them."""
        root = {self.config} if self.delivery.is_regenerated else set()
        return frozenset({*root, self.delivery.rendered, self.delivery.merges_into} - {""})


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryQuery:
    """A command to run with the node's own binary of the runtime.

    `files` are staged for this command: the caller writes them and replaces `token(i)` in `argv`
    and in the staged data by the path of the i-th file. `names` are the files' paths on the node,
    for messages. `directories` are staged too, each as a mapping of file names to contents;
    `directory_token(i)` stands for the path of the i-th directory. With `is_lasting`, the result
    depends only on the binary and on what is staged, so it may be cached. With `is_stored`, the
    command is run in any case, and its result is cached for a lasting query that stages the same.
    It is run `times` times; if the results differ, the result is not stable.
    """

    name: str
    argv: tuple[str, ...]
    files: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    directories: tuple[Mapping[str, bytes], ...] = ()
    is_lasting: bool = False
    is_stored: bool = False
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryResult:
    """The result of a `BinaryQuery`: exit status, stdout, and the end of stderr.

    `is_stable` is false if the command was run several times and did not always print the same.
    """

    code: int
    out: str
    err: str
    is_stable: bool = True

    @property
    def ok(self) -> bool:
        """Return whether the command succeeded, and always with the same result."""
        return self.code == 0 and self.is_stable


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to the running daemon: the path of an HTTP GET on its socket."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The part of an effective configuration that matters to pods; None for what is not reported.

    `handlers` are the names of all handlers, with any owner. `by_systemd` are those that use
    the systemd cgroup driver. `version` is the version of the runtime, if the same reply contains
    it.
    """

    handlers: frozenset[str] | None = None
    default: str | None = None
    sandbox_image: str | None = None
    systemd_cgroup: frozenset[str] = frozenset()
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The names of containers that use our handlers, and the requests still needed to know all."""

    requests: tuple[Request, ...] = ()
    using: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A change of one key, recorded so that it can be reverted.

    `required_keys` names leaves of a table that we created. They must stay while the table contains
    keys that others added, because it is invalid without them.
    """

    key: Key
    old: Any
    new: Any
    required_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """The record of our changes to one file: its original content and the edits that we made.

    `original` is None if the file did not exist before. `written` are the fingerprints of the
    content that we wrote last and, in some cases, of the content that we wrote before that. The
    `old` of each edit is the value before our first change.
    """

    path: str
    original: bytes | None
    written: tuple[str, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The observed state of the node.

    `files` are contents by path (None: the file does not exist), `globs` are matches by pattern,
    and `answers` are results by the name of their query. `binary` is the path of the runtime's
    binary; without it no query can run. `argv` is the command line of the running daemon, empty if
    it is unknown. `owned` are the records of our earlier changes.
    """

    files: Mapping[str, bytes | None] = field(default_factory=lambda: MappingProxyType({}))
    globs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    results: Mapping[str, BinaryResult] = field(default_factory=lambda: MappingProxyType({}))
    binary: str | None = None
    argv: tuple[str, ...] = ()
    owned: tuple[Ownership, ...] = ()

    def data(self, path: str) -> bytes | None:
        """Return the content of a file; None if it does not exist or was not read."""
        return self.files.get(path)

    def ownership(self, path: str) -> Ownership | None:
        """Return the record of our changes to a file; None if there is none."""
        return next((owned for owned in self.owned if owned.path == path), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRequest:
    """The files and glob patterns that an adapter needs to read next.

    A glob follows Go's `filepath.Match`: `*` does not match a slash but does match a leading dot.
    `DIR/**` means all files below a directory, in the order of Go's `filepath.Walk`.
    """

    files: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()


Action = Literal["create", "modify", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """The change of one file: its content before and after (None: no file), and the edits of keys.

    `reset_content` is written and loaded first if the daemon is reloaded by a signal, because the
    daemon keeps the old value of a key that is removed from the file. With `discards`, the runtime
    does not start with the content before, so that a removal deletes the file instead of restoring
    it.
    """

    path: str
    before: bytes | None
    after: bytes | None
    edits: tuple[Edit, ...] = ()
    reset_content: bytes | None = None
    discards: bool = False

    @property
    def action(self) -> Action:
        """Return `create`, `modify` or `delete`."""
        if self.before is None:
            return "create"
        return "delete" if self.after is None else "modify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The handlers of others that our handlers are made from.

    `source` is the handler from which they inherit `settings`, "" if they inherit from none.
    `default` is the default handler that one of them replaces, "" if the default is left unchanged.
    """

    source: str = ""
    settings: Tree = field(default_factory=lambda: EMPTY)
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPlan:
    """The planned changes of configuration files, and notes for the user.

    `low_level` are the binaries of the handlers of others, the default handler's first; the
    toolkit's runtime calls one of them. `origin` is what our handlers are made from. `stayed` lists
    what a removal leaves in place because others edited it. `provided` are the handlers that
    the distribution itself creates once the toolkit is installed. `pending_restart` describes what
    the next start of the distribution changes; it is empty if there is nothing left to do.
    `warnings` are the notes that a run logs as well.
    """

    changes: tuple[FileChange, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    low_level: tuple[str, ...] = ()
    origin: Origin = field(default_factory=Origin)
    stayed: tuple[str, ...] = ()
    provided: frozenset[str] = frozenset()
    pending_restart: str = ""

    @property
    def is_noop(self) -> bool:
        """Return whether the plan changes no file."""
        return not self.changes

    @property
    def reset_contents(self) -> tuple[FileChange, ...]:
        """Return the changes to `reset_content`, which a daemon that reloads must load first."""
        return tuple(
            replace(c, after=c.reset_content, reset_content=None)
            for c in self.changes
            if c.reset_content is not None
        )


def fingerprint(data: bytes | None) -> str:
    """Return the SHA-256 of some content in hex, or `absent` for a missing file."""
    return "absent" if data is None else hashlib.sha256(data).hexdigest()


def token(index: int) -> str:
    """Return the placeholder for the path of the query's staged file number `index`."""
    return f"staged://{index};"


def directory_token(index: int) -> str:
    """Return the placeholder for the path of the query's staged directory number `index`."""
    return f"staged-directory://{index};"
