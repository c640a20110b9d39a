"""Every spelling of a secret is masked, and nothing that a support engineer needs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from runtimes.model import FileChange
from toolkit import redact
from toolkit.node.host import Host
from toolkit.reconcile import describe

CANARY: Final = "Zq7canary7qZ"
CRI: Final = 'plugins."io.containerd.grpc.v1.cri"'
JWT: Final = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx{CANARY}.c2lnbmF0dXJl"
PEM: Final = (
    f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\nMIIE{CANARY}\n-----END RSA PRIVATE KEY-----\n"
)

# --- configuration files, masked by their parsed place --------------------------------------------

TOML: Final = (
    f'[{CRI}.registry.headers]\nX-Team = "@"\n',
    f'[{CRI}.registry.headers]\nAuthorization = ["@", "Basic @"]\n',
    f'[{CRI}.registry]\nheaders = {{ X-Team = ["@"] }}\n',
    f'[{CRI}]\nregistry.headers.X-Team = ["@"]\n',
    f'[{CRI}.registry.configs."r.example".auth]\nother = "@"\n',
    f'[{CRI}.registry.configs."[::1]:5000".auth]\nusername = "@"\npassword = "@"\n',
    f'[{CRI}.registry.configs."r.example".tls]\nanything = "@"\n',
    f'{CRI}.registry.configs."r.example".whatever = "@"\n',
    f'[{CRI}.registry]\nconfigs = {{ "r.example" = {{ auth = {{ token = "@" }} }} }}\n',
    '[[registry]]\nauth = "@"\n[[registry]]\npassword = "@"\n',
    '[proxy_plugins.x.exports]\nssh_key = "@"\n',
    '[x]\ndb_pw = "@"\n',
    '[x]\n"db\\u005fpw" = "@"\n',
    '[x]\n"db\\x5fpw" = "@"\n',
    '[x]\n"\\U00000070assword" = "@"\n',
    "[x]\n'api-key' = '@'\n",
    '[x]\ntoken = """\n@\n  @"""\n',
    "[x]\ntoken = '''\n@\n'''\n",
    '[x]\ntokens = [\n  "@", # @\n  "@",\n]\n',
    '[x]\ntokens = [["@"], ["@"]]\n',
    '[x]\nlist = [{ name = "a", secret = "@" }]\n',
    '[stream_processors.x]\nenv = ["A=@", "B=@"]\n',
    '[stream_processors.x]\nargs = ["--password", "@", "--token=@"]\n',
    '[stream_processors.x]\nargs = ["MYPASS=@", "x"]\n',
    '[x]\nurl = "https://u:@(at)h.example/"\n',
    '[x]\nurl = "https://h.example/?sv=1&sig=@&se=2"\n',
    f'[x]\nanything = "{JWT}"\n',
    f'[x]\nanything = """{PEM}"""\n',
)
JSON: Final = (
    {"http-headers": {}, "headers": {"X-Team": "@"}},
    {"proxies": {"http-proxy": "http://h:3128/@"}},
    {"proxies": {"http-proxy": "http://u:@(at)h:3128"}},
    {"log-opts": {"splunk-token": "@", "env": "@"}},
    {"auths": {"r.example": {"auth": "@"}}},
    {"registry": {"configs": {"r.example": {"x": "@"}}}},
    {"list": [{"deep": [{"client_key": "@"}]}]},
    {"key-data": "@", "client-key-data": "@", "certificate-authority-data": "@"},
    {"env": ["A=@"], "environment": {"B": "@"}},
    {"pin_token": {"a": {"b": ["@", {"c": "@"}]}}},
    {"exec-opts": ["native.cgroupdriver=systemd", "x.secret=@"]},
    {"u": "s3://h/x?X-Amz-Signature=@&X-Amz-Credential=@"},
)


def filled(template: str) -> str:
    return template.replace("@", CANARY).replace("(at)", "@")


def keys_shown(before: str | None, after: str | None) -> str:
    change = FileChange(
        path="/etc/x",
        before=None if before is None else before.encode(),
        after=None if after is None else after.encode(),
    )
    return describe.changed_keys(Host(root=Path("/")), change)


FILES: Final = [*map(filled, TOML), *(filled(json.dumps(each)) for each in JSON)]


@pytest.mark.parametrize("content", FILES)
def test_a_secret_of_a_file_is_masked_by_its_place(content: str) -> None:
    assert CANARY in content
    for before, after in ((None, content), (content, None), (content, "")):
        shown = keys_shown(before, after)
        assert CANARY not in shown
        assert "***" in shown


@pytest.mark.parametrize("content", [each for each in FILES if not each.startswith("{")])
def test_what_others_wrote_beside_a_changed_key_is_not_shown(content: str) -> None:
    beside = "# @\nversion = 3\n".replace("@", CANARY)
    shown = keys_shown(f"{beside}{content}", f"{beside}{content}[runtimes.nvidia]\npath = '/n'\n")
    assert shown == '--- /etc/x\n+++ /etc/x\n+runtimes.nvidia.path = "/n"\n'


@pytest.mark.parametrize("content", [each for each in FILES if each.startswith("{")])
def test_what_others_wrote_on_the_same_line_is_not_shown(content: str) -> None:
    after = json.dumps({**json.loads(content), "default-runtime": "nvidia"})
    assert keys_shown(content, after) == '--- /etc/x\n+++ /etc/x\n+default-runtime = "nvidia"\n'


def test_a_file_that_cannot_be_parsed_is_compared_by_lines_without_context() -> None:
    before = f'{{{{ template }}}}\n# {CANARY}\nx = [\n  token = "{CANARY}"\na = 1\n'
    shown = keys_shown(before, before.replace("a = 1", f'a = 2\npassword = "{CANARY}"'))
    assert CANARY not in shown
    assert [line for line in shown.splitlines() if line[0] in "+-"][2:] == [
        "-a = 1", "+a = 2", '+password = "***"',
    ]  # fmt: skip


# --- other text, masked by name and form ----------------------------------------------------------

TEXT: Final = (
    # unit files and env files
    'Environment="HTTPS_PROXY=http://u:@(at)p.example:3128"\n',
    'Environment="A=b" "MYPASS=@ @" "C=d"\n',
    "Environment=A=b MYPASS=@ C=d\n",
    "Environment='MYPASS=@'\n",
    'Environment="DB_PW=@"\n',
    "MYPASS=@\n",
    "MYPASS=@ @ @\n",
    "export MYPASS=@\n",
    'export MYPASS="@ @"\n',
    "MYPASS='@\n@'\n",
    "DB_PW=@\n",
    "SSH_KEY=@\n",
    "AWS_SECRET_ACCESS_KEY=@/@+@=\n",
    "MYPASS=@ \\\n  @\n",
    "#MYPASS=@\n",
    "a; MYPASS='@ @' containerd --config /etc/x\n",
    'a; MYPASS="@"@ containerd\n',
    "ExecStart=/usr/bin/x --password=@ --level=info\n",
    'ExecStart=/usr/bin/x "--password=@ @" --level=info\n',
    # command lines
    "x --token @ --level=info",
    "x --token=@ --level=info",
    "x --registry-key '@ @' y",
    "x -auth=@ y",
    "`curl -H 'Authorization: @ @' https://h.example` failed",
    'curl -H "X-Auth-Token: @" https://h.example',
    "docker login --password=@ r.example",
    "env MYPASS=@ x",
    # URLs
    "https://h.example/b?sv=1&sig=@%2F@&se=2",
    "https://h.example/b?token=@",
    "https://h.example/b?X-Amz-Credential=@&X-Amz-Signature=@",
    "https://h.example/b?X-Goog-Signature=@#x",
    "GET https://u:@(at)h.example/v2/ failed",
    "https://@(at)h.example/v2/",
    "proxy=u:@(at)p.example:3128",
    # YAML
    "password: @\n",
    "users:\n- name: x\n  user:\n    token: @\n",
    "client-key-data: @\n",
    "token: |\n  @\n  @\nnext: 1\n",
    "token: >-\n  @\n\n  @\nnext: 1\n",
    "- token: |\n    @\n  next: 1\n",
    "token: @\n  @\nnext: 1\n",
    "token: '@\n  @'\nnext: 1\n",
    "tokens:\n- @\n- @\nnext: 1\n",
    "tokens:\n  - @\n  - @\nnext: 1\n",
    "headers:\n  X-Team: @\n  X-Other:\n  - @\nnext: 1\n",
    "env:\n- name: X\n  value: @\nnext: 1\n",
    "env: {X: @}\n",
    "auth: {username: x, other: @}\n",
    "{token: @}\n",
    "  tls:\n    anything: @\n  next: 1\n",
    # TOML and JSON in a message
    '[x.auth]\nother = "@"\n',
    '[x.registry.configs."[::1]:5000".tls]\nother = "@"\n',
    'a.headers.x = "@"\n',
    'toml: line 3: password = "@"',
    '{"a": 1, "token": "@", "b": 2}',
    '{"a": 1, "headers": {"x": ["@"]}, "b": 2}',
    '"{\\"token\\": \\"@\\"}"',
    "{'password': '@', 'a': 1}",
    '{"message": "bad token: @", "a": 1}',
    "map[password:@ user:x]",
    "{Username:x Password:@}",
    'level=error msg="login failed" token=@ pid=7',
    "plugins.x.registry.headers.X would change from '@' to '@'",
    "crio.auth.x would change from nothing to '@'",
    "/etc/x: a.headers.X-Team = ['@'] (required by other keys)",
    # forms
    f"said {JWT} here",
    f"before\n{PEM}after\n",
    "-----BEGIN PRIVATE KEY-----\n@\n@",
    "Authorization: Bearer @",
    "said Bearer @ here",
    "Proxy-Authorization: Basic @\n",
    "Cookie: a=@; b=@\n",
    "key nvapi-@@@ was refused",
    "key ghp_@@@ was refused",
)


@pytest.mark.parametrize("template", TEXT)
def test_a_secret_in_a_text_is_masked(template: str) -> None:
    said = filled(template)
    shown = redact.text(said)
    assert CANARY not in shown
    assert "***" in shown
    assert redact.text(shown) == shown
    for stays in (
        "next: 1",
        "h.example",
        "p.example:3128",
        "C=d",
        '"b": 2',
        "--level=info",
        "after",
    ):
        assert stays not in said or stays in shown


ARGV: Final = (
    ["x", "--token", "@", "--level=info"],
    ["x", "--token=@ @", "--level=info"],
    ["x", "--ssh-key=@", "--level=info"],
    ["x", "-e", "MYPASS=@ @", "--level=info"],
    ["x", "-e", "DB_PW=@\n@", "--level=info"],
    ["x", "https://u:@(at)h.example", "--level=info"],
    ["sh", "-c", "x --password=@", "--level=info"],
)


@pytest.mark.parametrize("template", ARGV)
def test_a_secret_of_a_command_line_is_masked(template: list[str]) -> None:
    shown = redact.argv([filled(word) for word in template])
    assert CANARY not in " ".join(shown)
    assert (shown[0], shown[-1]) == (template[0], "--level=info")


def test_there_are_enough_cases() -> None:
    assert len(FILES) + len(TEXT) + len(ARGV) > 100


# --- what has to stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "containerd --config /etc/containerd/config.toml --log-level info -l=debug",
        "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --tlsverify=false",
        "kubelet --anonymous-auth=false --tls-private-key-file=/etc/k/pki/kubelet.key --v=2",
        (
            "kubelet --authorization-mode=Webhook --token-auth-file=/etc/k/x"
            " --rotate-certificates=true"
        ),
        'sandbox_image = "registry.k8s.io/pause:3.9@sha256:abcdef0123"',
        "docker.io/library/x@sha256:abcdef0123 and https://r.example:5000/x@sha256:abcdef0123",
        "nvidia.com/gpu=all of nvidia-container-runtime.cdi 1.17.8, PID 4711, exit code 1",
        "/etc/containerd/auth.json cannot be read: No such file or directory",
        "open /etc/containerd/certs.d/r.example/auth: no such file or directory",
        "remote error: tls: bad certificate",
        "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        "failed to pull: unauthorized: authentication required",
        "/etc/containerd/config.toml:3:7: it is not valid TOML: invalid key: expected '='",
        "env: 'containerd': No such file or directory",
        (
            'time="2026-01-02T03:04:05Z" level=info msg="starting containerd" revision=abc'
            " version=v2.1.4"
        ),
        "Jan 02 03:04:05 node containerd[4711]: loading plugin io.containerd.grpc.v1.cri",
        (
            '{"path": "/usr/bin/runc", "default-runtime": "nvidia", "runtimes": {"nvidia": {"args":'
            " []}}}"
        ),
        (
            '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]\n  BinaryName'
            ' = "/n"\n'
        ),
        '[plugins."io.containerd.grpc.v1.cri".image_decryption]\n  key_model = "node"\n',
        "user@host.example, git@github.com:a/b, systemd unit getty@tty1.service",
        "unix:///run/containerd/containerd.sock",
        "https://r.example:5000/v2/?n=100&last=x",
        "TOKEN=",
        '{"token": null, "auth": false, "tls": true}',
        "ends without a key:\n",
    ],
)
def test_what_a_support_engineer_needs_stays(said: str) -> None:
    assert redact.text(said) == said
    assert redact.value({"message": said}) == {"message": said}


@pytest.mark.parametrize("said", ["containerd", "x --tls --config /x", "-l info --log-level=debug"])
def test_a_command_line_without_a_secret_stays(said: str) -> None:
    assert redact.argv(said.split()) == said.split()


def test_empty_values_stay() -> None:
    shown = {"auth": "", "headers": {}, "tokens": [], "tls": False, "password": None}
    assert redact.value(shown) == shown


def test_the_names_of_others_registries_stay() -> None:
    tree = {
        "registry": {
            "config_path": "/etc/certs.d",
            "mirrors": {"docker.io": {"endpoint": ["https://m"]}},
        }
    }
    assert redact.value(tree) == tree


# --- generated documents --------------------------------------------------------------------------

HIDDEN: Final = st.sampled_from(
    [
        ("headers", "X-Team"), ("registry", "configs", "r.example", "any"), ("auth", "any"),
        ("tls", "any"), ("env", "any"), ("environment", "any"), ("proxies", "any"), ("db_pw",),
        ("ssh_key",), ("MYPASS",), ("x-api-token",), ("client_secret",), ("password",),
        ("credentials", "any"),
    ]
)  # fmt: skip
ABOVE: Final = st.lists(
    st.sampled_from(["plugins", "io.containerd.grpc.v1.cri", "a b", "x"]), max_size=3
)
SECRET: Final = st.text(max_size=12).map(lambda text: f"{CANARY}{text}{CANARY}")
SHAPE: Final = st.recursive(
    SECRET, lambda inner: st.lists(inner, min_size=1, max_size=2), max_leaves=3
)


def nested(path: list[str], item: Any) -> dict[str, Any]:
    for name in reversed(path):
        item = {name: item}
    return item  # type: ignore[no-any-return]


@given(ABOVE, HIDDEN, SHAPE, st.sampled_from([None, 1]))
def test_no_generated_document_shows_a_secret(
    above: list[str], hidden: tuple[str, ...], item: Any, indent: int | None
) -> None:
    tree = {"shown": "kept", **nested([*above, *hidden], item)}
    assert CANARY not in repr(redact.value(tree))
    assert redact.value(tree)["shown"] == "kept"
    written = json.dumps(tree, indent=indent)
    assert CANARY not in keys_shown(None, written)
    assert '+shown = "kept"' in keys_shown(None, written)
    dumped = tomlkit.dumps(tree)
    # tomlkit does not write every character so that it can be read again.
    if tomllib.loads(dumped) == tree:
        assert CANARY not in keys_shown(dumped, None)
    if "configs" not in hidden:  # that is a place, which text has not
        assert CANARY not in redact.text(written)
        assert CANARY not in redact.text(dumped)


# --- long texts -----------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit",
    [
        "a", '"', "'", "\\", "a.", "a:b@", "--a ", "://a", "://", "a:", '"a\\', '\\"', "auth=[",
        "[a", "]",
        "x ", "://a:b", "u:p", "[\"'", "ghp_", "] ", "]#", "export ", "[[", "=",
        "auth:\n", "auth: x\n ", "token=", 'token="', "token='x", "token=\\", 'token:\\"',
        "token=[\"", "'token=", "token=a\"'", "?sig=&", "-----BEGIN A-----", "eyJ", "eyJaaaaaaaa.",
        "Bearer ", "- ", " ", "\n", "a would change from ", "@",
    ],
)  # fmt: skip
def test_a_long_text_takes_linear_time(unit: str) -> None:
    redact.text(unit * 50_000)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", ["a key: ", '"token: x" '])
def test_many_keys_in_one_line_take_linear_time(unit: str) -> None:
    redact.text(unit * 150_000)
