"""Keys of the toolkit's own config.toml that an option sets: those that the toolkit knows."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import fake_node
from tests.support.fake_node import Node

pytestmark = fake_node.needs_root

CONFIG: Final = ".config/nvidia-container-runtime/config.toml"
# As the real program answers: the keys of `config default`, and an error for another one.
NVIDIA_CTK: Final = """#!/bin/sh
known='disable-require nvidia-container-cli.no-cgroups\
 nvidia-container-cli.environment swarm-resource'
if [ "$2" = default ]; then
  printf 'disable-require = false\\n#swarm-resource = "X"\\n\
[nvidia-container-cli]\\nenvironment = []\\n'
  echo '#no-cgroups = false'
  exit
fi
table=
for word; do
  case $word in *=true) ;; *) continue ;; esac
  case " $known " in
  *" ${word%=true} "*) ;;
  *) echo "time=\\"x\\" level=error msg=\\"invalid --set option $word: undefined field\\""\
 >&2; exit 1 ;;
  esac
  case $word in
  swarm-resource=*) echo 'swarm-resource = "true"' ;;
  disable-require=*) echo 'disable-require = true' ;;
  *.no-cgroups=*) table="${table}no-cgroups = true\\n" ;;
  *.environment=*) table="${table}environment = [\\"true\\"]\\n" ;;
  esac
done
[ -z "$table" ] || printf "[nvidia-container-cli]\\n$table"
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = fake_node.make_node(tmp_path)
    fake_node.write_program(made.source / "usr/bin/nvidia-ctk", NVIDIA_CTK)
    return made


def run(node: Node, text: str | None = None, **more: str) -> str:
    chosen = {} if text is None else {"toolkit_config": text}
    done = fake_node.done("-n", "--no-runtime-config", *node.options(**chosen, **more))
    return done.stdout + done.stderr


def config(node: Node) -> dict[str, Any]:
    return tomllib.loads((node.toolkit / CONFIG).read_text(encoding="utf-8"))


def refused(node: Node, text: str) -> str:
    done = fake_node.cli("-n", "--no-runtime-config", *node.options(toolkit_config=text))
    assert done.returncode == 2, done.stderr
    assert not node.toolkit.exists()
    return done.stderr


def test_keys_get_the_type_that_the_toolkit_has_for_them(node: Node) -> None:
    text = (
        "swarm-resource=1,nvidia-container-cli.no-cgroups=yes"
        ",nvidia-container-cli.environment=A=1,B=2"
    )
    run(node, text)
    assert config(node)["swarm-resource"] == "1"
    assert config(node)["nvidia-container-cli"]["no-cgroups"] is True
    assert config(node)["nvidia-container-cli"]["environment"] == ["A=1", "B=2"]
    assert "nothing to do" in run(node, text)


def test_a_key_that_is_left_out_gets_its_default_again_and_others_stay(node: Node) -> None:
    run(node, "disable-require=true,swarm-resource=GPU")
    path = node.toolkit / CONFIG
    edited = path.read_text(encoding="utf-8").replace("load-kmods = true", "load-kmods = false")
    path.write_text(edited, encoding="utf-8")
    options = node.options(no_runtime_config="true", toolkit_config="swarm-resource=GPU")
    planned = fake_node.done("plan", *options).stdout
    assert "the toolkit's config.toml: disable-require is true, and would be false" in planned
    run(node, "swarm-resource=GPU")
    found = config(node)
    assert (found["disable-require"], found["swarm-resource"]) == (False, "GPU")
    assert found["nvidia-container-cli"]["load-kmods"] is False
    run(node)
    assert config(node)["swarm-resource"] == ""


def test_plan_names_the_keys_that_a_run_resets(node: Node) -> None:
    run(node)
    path = node.toolkit / CONFIG
    edited = path.read_text(encoding="utf-8").replace('mode = "auto"', 'mode = "cdi"')
    path.write_text(edited, encoding="utf-8")
    planned = fake_node.done("plan", *node.options(no_runtime_config="true")).stdout
    reset = 'nvidia-container-runtime.mode is "cdi", and would be "auto"'
    assert f"the toolkit's config.toml: {reset}" in planned


def test_a_key_that_the_toolkit_does_not_know_is_refused_with_the_one_that_is_meant(
    node: Node,
) -> None:
    told = refused(node, "no-cgroups=true,disable-requires=true,swarm-resource=1")
    option = "--toolkit-config"
    meant = "did you mean nvidia-container-cli.no-cgroups?"
    assert f"{option}=no-cgroups: this toolkit has no such key; {meant}" in told
    assert (
        f"{option}=disable-requires: this toolkit has no such key; did you mean disable-require?"
        in told
    )
    assert f"{option}=swarm-resource" not in told


def test_a_value_of_another_type_is_refused(node: Node) -> None:
    assert "disable-require=perhaps: must be true or false" in refused(
        node, "disable-require=perhaps"
    )


def test_a_toolkit_that_cannot_say_is_refused(node: Node) -> None:
    fake_node.write_program(
        node.source / "usr/bin/nvidia-ctk", "#!/bin/sh\necho broken >&2\nexit 3\n"
    )
    assert "the keys cannot be checked" in refused(node, "disable-require=true")


def test_what_is_reset_is_named_without_its_secrets(node: fake_node.Node) -> None:
    chosen = "nvidia-container-cli.environment=HTTPS_PROXY=http://u:Zq7canary7qZ@p"
    words = ("-n", "--no-runtime-config")
    fake_node.done("run", *words, *node.options(toolkit_config=chosen))
    for form in ((), ("-o", "json")):
        shown = fake_node.done("plan", *form, words[1], *node.options()).stdout
        assert "nvidia-container-cli.environment is" in shown
        assert "Zq7canary7qZ" not in shown
