"""No secret in any form gets through the masker, and what is not secret stays as it is."""

from __future__ import annotations

import json
import string
import tomllib
from typing import Any, Final

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from toolkit import redact

KEYS: Final = (
    "auth",
    "password",
    "passwd",
    "identitytoken",
    "identity_token",
    "username",
    "X-Registry-Auth",
    "client-secret",
    "credentials",
    "api_key",
    "DB_PASS",
    "registrytoken",
)
# Long enough that no text holds it by chance.
_TAIL: Final = st.text(string.ascii_letters + string.digits + "+/=._-", min_size=12, max_size=40)
SECRETS: Final = _TAIL.map(lambda tail: f"Zq7{tail}")
WILD: Final = st.text(min_size=6, max_size=30).map(lambda text: f"Zq7{text}7qZ")
OTHERS: Final = st.dictionaries(
    st.sampled_from(["debug", "root", "log-level", "runtimes"]),
    st.one_of(st.integers(), st.booleans(), st.sampled_from(["info", "/run/x", "runc"])),
)
SAMPLE: Final = """version = 2
[plugins."io.containerd.grpc.v1.cri".registry.configs."reg.example".auth]
  username = "robot"
  password = "hunter2hunter2"
  other = "kept back too"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
"""


@given(st.sampled_from(KEYS), WILD, OTHERS, st.sampled_from([None, 1, 4]))
def test_json_keeps_no_secret_and_stays_json(
    key: str, secret: str, others: Any, indent: int | None
) -> None:
    tree = {**others, "nested": [{"x": {key: secret}}], key: secret, "last": "stays"}
    written = json.dumps(tree, indent=indent)
    shown = redact.text(written)
    assert "Zq7" not in shown
    assert json.loads(shown) == {
        **others,
        "nested": [{"x": {key: "***"}}],
        key: "***",
        "last": "stays",
    }
    assert redact.text(shown) == shown


@given(st.sampled_from(KEYS), st.lists(st.one_of(WILD, SECRETS), min_size=1, max_size=4))
def test_json_keeps_no_list_of_secrets(key: str, secrets: list[str]) -> None:
    for indent in (None, 2):
        written = json.dumps(
            {key: secrets, "inner": {key: {"a": {"b": secrets}}}, "last": 1}, indent=indent
        )
        shown = redact.text(written)
        assert "Zq7" not in shown
        assert '"last": 1' in shown


@given(st.sampled_from(KEYS), WILD, OTHERS)
def test_toml_keeps_no_secret_and_stays_toml(key: str, secret: str, others: Any) -> None:
    tree = {
        **others,
        key: secret,
        "reg": {"configs": {"a.b": {"auth": {"x": secret}, key: secret}}},
    }
    written = tomlkit.dumps(tree)
    shown = redact.text(written)
    assert "Zq7" not in shown
    found = tomllib.loads(shown)
    assert {name: found[name] for name in others} == others
    assert found["reg"]["configs"]["a.b"] == {"auth": {"x": "***"}, key: "***"}
    assert redact.text(shown) == shown


@given(st.sampled_from(KEYS), SECRETS, st.sampled_from(['"""', "'''"]), st.sampled_from(["", "\n"]))
def test_toml_of_many_lines(key: str, secret: str, mark: str, first: str) -> None:
    written = f"a = 1\nx.{key}.y = {mark}{first}{secret}\n  {secret}{mark} # end\nb = 2\n"
    shown = redact.text(written)
    assert "Zq7" not in shown
    assert shown.startswith("a = 1\n")
    assert shown.endswith("b = 2\n")


@given(st.sampled_from(KEYS), WILD, st.booleans())
def test_a_command_line_keeps_no_secret(key: str, secret: str, equals: bool) -> None:  # noqa: FBT001
    words = [f"--{key}={secret}"] if equals else [f"--{key}", secret]
    shown = redact.argv(["dockerd", *words, "--debug", f"{key}={secret}"])
    assert "Zq7" not in " ".join(shown)
    assert (shown[0], shown[-2]) == ("dockerd", "--debug")
    assert redact.argv(shown) == shown


@given(st.sampled_from(KEYS), SECRETS)
def test_a_command_line_in_a_sentence_keeps_no_secret(key: str, secret: str) -> None:
    for said in (
        f"`x --{key} {secret} --debug` failed",
        f"`x --{key} '{secret} {secret}' y` failed",
    ):
        assert "Zq7" not in redact.text(said)
        assert redact.text(said).endswith("failed")


@given(
    SECRETS,
    st.sampled_from(["http", "https", "socks5"]),
    st.sampled_from(["u:{}", "{}", "{}:x", "u:a/{}"]),
)
def test_a_url_keeps_no_login(secret: str, scheme: str, login: str) -> None:
    part = secret if "/" in login else secret.replace("/", "%2F")
    url = f"{scheme}://{login.format(part)}@proxy.example:3128/path"
    for said in (url, f"HTTPS_PROXY={url}", f'"https-proxy": "{url}"', f"x http://a.b/c,{url} y"):
        shown = redact.text(said)
        assert "Zq7" not in shown
        assert "@proxy.example:3128/path" in shown
    assert "Zq7" not in redact.text(f"proxy=u:{secret}@proxy.example:3128")


@given(
    st.recursive(
        st.one_of(WILD, st.none(), st.integers()), lambda inner: st.lists(inner, max_size=3)
    )
)
def test_values_keep_nothing_below_a_secret_key(inner: Any) -> None:
    shown = redact.value({"a": [{"token": inner, "kept": 1}], "b": ("--token", "Zq7")})
    assert "Zq7" not in repr(shown)
    assert shown["a"][0]["kept"] == 1


@given(st.text(), st.text())
def test_any_text_is_masked_once_and_for_all(one: str, other: str) -> None:
    shown = redact.text(f"{one}auth: {other}")
    assert redact.text(shown) == shown


@pytest.mark.parametrize(
    "said",
    [
        "containerd --config /etc/containerd/config.toml -l info",
        'sandbox_image = "registry.k8s.io/pause:3.9@sha256:abcdef0123"',
        "/etc/containerd/auth.json cannot be read: No such file or directory",
        '{"path": "/usr/bin/runc", "default-runtime": "nvidia"}',
        "https://registry.example:5000/v2/",
        "[plugins]\n  x = 1\n",
        "ends without a key:\n",
    ],
)
def test_what_is_no_secret_stays(said: str) -> None:
    assert redact.text(said) == said


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("curl said Bearer abc.defghi", "curl said Bearer ***"),
        ('{"p\\u0061ssword": "x"}', '{"p\\u0061ssword": "***"}'),
        ('"auth":\n  "x",\n"y": 1', '"auth":***\n"y": 1'),
        ("TOKEN=a b c", "TOKEN=***"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_what_a_secret_becomes(said: str, shown: str) -> None:
    assert redact.text(said) == shown


def test_a_table_of_secrets_is_masked_as_a_whole() -> None:
    assert tomllib.loads(redact.text(SAMPLE)) == {
        "version": 2,
        "plugins": {
            "io.containerd.grpc.v1.cri": {
                "registry": {
                    "configs": {
                        "reg.example": {
                            "auth": dict.fromkeys(("username", "password", "other"), "***")
                        }
                    }
                },
                "containerd": {"default_runtime_name": "runc"},
            }
        },
    }


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit", ["a", '"', "'", "a.", "a:b@", "--a ", "://a", '"a\\', "auth=[", "[a", "x ", "auth:\n"]
)
def test_a_long_text_takes_no_long_time(unit: str) -> None:
    redact.text(unit * 50_000)
