"""The socket that the kubelet uses, by a made-up /proc: its arguments and files, no guesses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from toolkit.kube import kubelet
from toolkit.kube.kubelet import KubeletConfig

FLAG = "--container-runtime-endpoint"


def process(
    proc: Path,
    *argv: str,
    pid: int = 42,
    name: str = "kubelet",
    namespace: str = "pid:[1]",
    environ: str = "",
) -> Path:
    """Make a process with a root of its own; return that root."""
    home = proc / str(pid)
    (home / "ns").mkdir(parents=True)
    (home / "root").mkdir()
    (home / "cwd").mkdir()
    (home / "comm").write_text(f"{name}\n")
    (home / "cmdline").write_bytes("\0".join([name, *argv, ""]).encode())
    (home / "environ").write_text(environ)
    (home / "ns/pid").symlink_to(namespace)
    (home / "ns/user").symlink_to("user:[1]")
    (home / "exe").symlink_to(sys.executable)
    own = os.geteuid()
    (home / "status").write_text(f"Name:\t{name}\nUid:\t{own}\t{own}\t{own}\t{own}\n")
    if not (proc / "self/ns").exists():
        (proc / "self/ns").mkdir(parents=True)
        (proc / "self/ns/pid").symlink_to("pid:[1]")
        (proc / "self/ns/user").symlink_to("user:[1]")
    return home / "root"


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def only(proc: Path) -> KubeletConfig:
    (word,) = kubelet.configs(proc=proc)
    return word


@pytest.mark.parametrize(
    "argv",
    [
        (f"{FLAG}=unix:///run/crio/crio.sock",),
        (FLAG, "unix:///run/crio/crio.sock", "--v=2"),
        (f"{FLAG}=/run/crio/crio.sock",),
        (f"{FLAG}=unix:///a.sock", f"{FLAG}=unix:///run/crio/crio.sock"),
    ],
    ids=["=", "next word", "a path", "the last one counts"],
)
def test_its_flag(tmp_path: Path, argv: tuple[str, ...]) -> None:
    process(tmp_path, *argv)
    word = only(tmp_path)
    assert (word.pid, word.endpoint, word.by, word.docker) == (
        42,
        "/run/crio/crio.sock",
        FLAG,
        False,
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/c.sock\n",
            "/run/c.sock",
        ),
        ('containerRuntimeEndpoint: "unix:///run/c.sock"   # ours\n', "/run/c.sock"),
        ("containerRuntimeEndpoint: '/run/c.sock'\r\n", "/run/c.sock"),
        ('{"kind": "K", "containerRuntimeEndpoint": "unix:///run/c.sock"}', "/run/c.sock"),
        ('containerRuntimeEndpoint: ""\n', None),
        ("containerRuntimeEndpoint:\n", None),
        ("# containerRuntimeEndpoint: unix:///run/c.sock\n", None),
        ("nested:\n  containerRuntimeEndpoint: unix:///run/c.sock\n", None),
        ("containerRuntimeEndpoint: |\n  unix:///run/c.sock\n", None),
        ("containerRuntimeEndpoint: *other\n", None),
        ("containerRuntimeEndpoint: /a\ncontainerRuntimeEndpoint: /b\n", None),
        ("containerRuntimeEndpoint: tcp://127.0.0.1:1\n", None),
        ('{"containerRuntimeEndpoint": 1}', None),
        ("{", None),
        ("", None),
    ],
)
def test_its_config_file_is_read_strictly(text: str, path: str | None) -> None:
    assert (kubelet.endpoint(text) or None) == path


def test_the_config_file_is_that_of_its_own_root_and_its_links_too(tmp_path: Path) -> None:
    root = process(tmp_path, "--config", "/var/lib/kubelet/config.yaml")
    write(root, "data/config.yaml", "containerRuntimeEndpoint: unix:///run/c.sock\n")
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/kubelet").symlink_to("/data")
    word = only(tmp_path)
    assert (word.endpoint, word.by) == ("/run/c.sock", "/var/lib/kubelet/config.yaml")


def test_a_flag_counts_more_than_a_drop_in_and_that_more_than_the_file(tmp_path: Path) -> None:
    argv = ["--config=/c.yaml", "--config-dir=/c.d"]
    root = process(tmp_path / "a", *argv)
    write(root, "c.yaml", "containerRuntimeEndpoint: /file\n")
    write(root, "c.d/10-a.conf", "containerRuntimeEndpoint: /first\n")
    write(root, "c.d/20-b.conf", "containerRuntimeEndpoint: /second\n")
    write(root, "c.d/30-c.txt", "containerRuntimeEndpoint: /never\n")
    assert (only(tmp_path / "a").endpoint, only(tmp_path / "a").by) == (
        "/second",
        "/c.d/20-b.conf",
    )
    process(tmp_path / "b", f"{FLAG}=/flag", *argv)
    assert only(tmp_path / "b").endpoint == "/flag"


def test_microk8s_names_a_file_of_arguments_with_variables(tmp_path: Path) -> None:
    root = process(
        tmp_path,
        "--kubelet-args-file=/var/snap/microk8s/7/args/kubelet",
        name="kubelite",
        environ="A=b\0SNAP_COMMON=/var/snap/microk8s/common\0",
    )
    text = f"--v=1\n#{FLAG}=/no\n{FLAG}=${{SNAP_COMMON}}/run/containerd.sock\n"
    write(root, "var/snap/microk8s/7/args/kubelet", text)
    word = only(tmp_path)
    assert word.endpoint == "/var/snap/microk8s/common/run/containerd.sock"
    assert word.by == f"{FLAG} in /var/snap/microk8s/7/args/kubelet"


@pytest.mark.parametrize(
    "argv",
    [
        ("--container-runtime=docker",),
        (f"{FLAG}=unix:///run/cri-dockerd.sock",),
        (f"{FLAG}=unix:///var/run/dockershim.sock",),
    ],
)
def test_it_uses_docker_through_a_shim(tmp_path: Path, argv: tuple[str, ...]) -> None:
    process(tmp_path, *argv)
    assert only(tmp_path).docker


def test_one_that_says_nothing(tmp_path: Path) -> None:
    process(tmp_path, "--v=2", "--config=/is/not/there")
    process(tmp_path, "server", pid=43, name="k3s-server")
    first, second = kubelet.configs(proc=tmp_path)
    assert (first.endpoint, first.embedder) == ("", "")
    assert (second.endpoint, second.embedder) == ("", "k3s")


def test_another_node_s_kubelet_and_other_programs_do_not_count(tmp_path: Path) -> None:
    process(tmp_path, f"{FLAG}=/a", namespace="pid:[2]")
    process(tmp_path, f"{FLAG}=/a", pid=43, name="kubelet-helper")
    (tmp_path / "44").mkdir()
    assert kubelet.configs(proc=tmp_path) == ()


def test_no_process_at_all(tmp_path: Path) -> None:
    assert kubelet.configs(proc=tmp_path / "none") == ()


def test_to_look_through_a_thousand_processes_opens_one_file_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in range(1000):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text("containerd-shim\n")
    opened = []
    real = os.open

    def count(path: str, flags: int) -> int:
        opened.append(path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", count)
    assert kubelet.configs(proc=tmp_path) == ()
    assert len(opened) == 1000


@pytest.mark.parametrize(
    ("argv", "text", "driver"),
    [
        (("--cgroup-driver=systemd",), "cgroupDriver: cgroupfs\n", "systemd"),
        (
            ("--config=/k.yaml",),
            "kind: KubeletConfiguration\ncgroupDriver: systemd # kubeadm\n",
            "systemd",
        ),
        (("--config=/k.yaml",), '{"cgroupDriver": "systemd"}', "systemd"),
        (("--config=/k.yaml",), "kind: KubeletConfiguration\n", "cgroupfs"),
        ((), "cgroupDriver: systemd\n", "cgroupfs"),
    ],
)
def test_its_cgroup_driver(tmp_path: Path, argv: tuple[str, ...], text: str, driver: str) -> None:
    write(process(tmp_path, *argv), "k.yaml", text)
    assert kubelet.cgroup_driver(proc=tmp_path) == driver


def test_a_cgroup_driver_of_nobody_or_of_two_is_unknown(tmp_path: Path) -> None:
    assert kubelet.cgroup_driver(proc=tmp_path / "none") is None
    process(tmp_path, "--cgroup-driver=systemd")
    process(tmp_path, pid=43)
    assert kubelet.cgroup_driver(proc=tmp_path) is None
