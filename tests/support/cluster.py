"""A real Kubernetes on a booted node: control plane and etcd beside it, kubelet in it.

All of it is built from one go.mod, since Kubernetes' replace lines count only where it is the main
module. The control plane runs on the test machine in the node's network, so that two never meet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import helm, nodes, real, versions
from tests.support.availability import Unavailable
from tests.support.kubernetes import Authority, private_bytes
from tests.support.nodes import Node, NodeError

VERSION: Final = versions.KUBERNETES
SUITE: Final = "forky"
"""The node's suite: kubelet of 1.36 and later speaks to containerd 2 alone."""

_PROGRAMS: Final = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
)
_ETCD: Final = "go.etcd.io/etcd/server/v3"
_CNI_PLUGINS: Final = "github.com/containernetworking/plugins/plugins"
_CNI: Final = ("main/ptp", "main/loopback", "ipam/host-local")
_BUILD_TIME: Final = 2400
_SERVICE: Final = "10.96.0.1"
_TOKEN: Final = "the-administrator"  # noqa: S105 - of a cluster that lives for a minute
_NETWORK: Final = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "subnet": "10.244.0.0/24",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}
_KUBELET: Final = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    # A node of the tests has no controllers of its own to share out.
    "cgroupDriver": "cgroupfs",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "failCgroupV1": False,
    "failSwapOn": False,
    "localStorageCapacityIsolation": False,
    "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%"},
    "resolvConf": "",
    "protectKernelDefaults": False,
}
_TUNED: Final = {
    "vm/overcommit_memory": 1, "kernel/panic": 10, "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000, "kernel/keys/root_maxbytes": 25000000,
}  # fmt: skip


@cache
def programs() -> Path:
    """Return a directory with Kubernetes and etcd, built on first use. Raises Unavailable."""
    home = nodes.cache() / "go" / f"kubernetes-v{VERSION}"
    home.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in (*_PROGRAMS, "etcd", "cni") if not (home / name).exists()]
        if missing:
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                _build(Path(scratch), missing)
                for name in missing:
                    (Path(scratch) / name).rename(home / name)
    return home


def _build(scratch: Path, missing: Sequence[str]) -> None:
    if shutil.which("go") is None:
        raise Unavailable(f"Kubernetes {VERSION} is not built: it needs Go 1.26 or newer on PATH")
    told = json.loads(_go(scratch, "mod", "download", "-json", f"k8s.io/kubernetes@v{VERSION}"))
    parts = re.findall(
        r"^\t(k8s\.io/\S+) v0\.0\.0$",
        Path(told["GoMod"]).read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    wanted = [f"k8s.io/kubernetes v{VERSION}", *(f"{part} v0{VERSION[1:]}" for part in parts)]
    lines = "".join(f"\t{line}\n" for line in wanted)
    (scratch / "go.mod").write_text(
        f"module cluster\n\ngo 1.26.0\n\nrequire (\n{lines})\n", encoding="utf-8"
    )
    version = "k8s.io/component-base/version"
    major, minor, _ = VERSION.split(".")
    told = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    linked = "-s -w " + " ".join(f"-X {version}.{name}={value}" for name, value in told.items())
    for name in missing:
        if name == "cni":
            for plugin in _CNI:
                module = f"{_CNI_PLUGINS}/{plugin}@{versions.CNI_PLUGINS}"
                _go(
                    scratch,
                    "install",
                    "-trimpath",
                    "-ldflags=-s -w",
                    module,
                    GOBIN=str(scratch / "cni"),
                )
            continue
        package = _ETCD if name == "etcd" else f"k8s.io/kubernetes/cmd/{name}"
        _go(
            scratch,
            "build",
            "-mod=mod",
            "-trimpath",
            f"-ldflags={linked}",
            "-o",
            str(scratch / name),
            package,
        )


def _go(scratch: Path, *words: str, **environment: str) -> str:
    done = subprocess.run(
        ("go", *words),
        cwd=scratch,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=_BUILD_TIME,
    )
    if done.returncode != 0:
        raise Unavailable(f"Kubernetes {VERSION} cannot be built here: {done.stderr[-800:]}")
    return done.stdout


class ControlPlane:
    """A control plane in the network of a process, and helm and kubectl to speak to it."""

    def __init__(self, pid: int, home: Path) -> None:
        self.home = home
        self.authority = _authority(home / "pki")
        self.kubeconfig = self._kubeconfig()
        self.enter = ("nsenter", f"--target={pid}", "--net", "--")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[str, ...]] = {}

    def kubectl(
        self, *words: str, check: bool = True, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; refuse its failure, unless told otherwise."""
        done = subprocess.run(
            (*self.enter, str(programs() / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
            env={"PATH": nodes.PATH, "HOME": str(self.home)},
        )
        if check and done.returncode != 0:
            raise NodeError(f"kubectl {' '.join(words)}: {done.stderr}{done.stdout}")
        return done

    def request(
        self, token: str, method: str, path: str, content: object, kind: str = "json"
    ) -> tuple[int, str]:
        """Send a request with a token, which kubectl would precede by another; return the answer.

        `kind` is the kind of a patch: `strategic-merge-patch+json` or `merge-patch+json`.
        """
        script = (
            "import http.client, ssl, sys\n"
            "token, method, path, body, kind, ca = sys.argv[1:]\n"
            "client = http.client.HTTPSConnection("
            f"'{_SERVICE}', context=ssl.create_default_context(cafile=ca), timeout=30)\n"
            "client.request(method, path, body, {'Authorization': f'Bearer {token}',"
            " 'Content-Type': f'application/{kind}'})\n"
            "answer = client.getresponse(); print(answer.status, answer.read().decode())"
        )
        done = subprocess.run(
            (
                *self.enter,
                sys.executable,
                "-c",
                script,
                token,
                method,
                path,
                json.dumps(content),
                kind,
                str(self.authority.path),
            ),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        status, _, said = done.stdout.partition(" ")
        return int(status), said

    def shell(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a line in the checkout as a user with helm, kubectl, KUBECONFIG; it must succeed."""
        done = subprocess.run(
            (*self.enter, "bash", "-eu", "-o", "pipefail", "-c", line),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
            cwd=helm.ROOT,
            env={
                "PATH": f"{helm.find().parent}:{programs()}:{nodes.PATH}",
                "HOME": str(self.home),
                "KUBECONFIG": str(self.kubeconfig),
            },
        )
        if check and done.returncode != 0:
            raise NodeError(f"{line}: {done.stderr}{done.stdout}")
        return done

    @contextlib.contextmanager
    def following(self, *words: str) -> Iterator[Path]:
        """Write pods' logs to a file, which is returned, until they end or are not needed."""
        path = self.home / "pods.txt"
        with path.open("wb") as log:
            process = subprocess.Popen(
                (
                    *self.enter,
                    str(programs() / "kubectl"),
                    f"--kubeconfig={self.kubeconfig}",
                    "logs",
                    "--follow",
                    *words,
                ),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={"PATH": nodes.PATH, "HOME": str(self.home)},
            )
        try:
            yield path
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        finally:
            process.kill()
            process.wait(20)

    def get(self, *words: str) -> Any:
        """Return what the API says of something."""
        return json.loads(self.kubectl("get", "--output=json", *words).stdout)

    def helm(self, *words: str, major: str = helm.MAJORS[0]) -> str:
        """Run helm; refuse its failure."""
        done = helm.run(*words, kubeconfig=self.kubeconfig, prefix=self.enter, major=major)
        if done.returncode != 0:
            raise NodeError(f"helm {' '.join(words)}: {done.stderr}{self.logs()}")
        return done.stdout

    def until(self, holds: Callable[[], bool], what: str, timeout: float = 60) -> None:
        """Wait until something holds; what kubectl has to tell is asked less often."""
        deadline = time.monotonic() + timeout
        while True:
            began = time.monotonic()
            if holds():
                return
            if began > deadline:
                raise NodeError(f"waited in vain for {timeout:g} s: {what}: {self.logs()}")
            time.sleep(min(1, max(0.2, 2 * (time.monotonic() - began))))

    def logs(self) -> str:
        """Return the last words of every program."""
        files = sorted(self.home.glob("*.log"))
        return "".join(
            f"\n--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-1500:]}"
            for path in files
        )

    def start(self, *api_server: str, controllers: Sequence[str] = ()) -> None:
        """Start the control plane, and wait until it answers.

        `api_server` and `controllers` are more options of kube-apiserver and of
        kube-controller-manager.
        """
        real.USED.add(f"Kubernetes v{VERSION}: API server, controllers and scheduler")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{_SERVICE}/32", "dev", "lo"),
        ):
            subprocess.run((*self.enter, "ip", *words), check=False, capture_output=True)
        self.run(
            "etcd",
            f"--data-dir={self.home}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
        )
        pki = self.home / "pki"
        (self.home / "tokens.csv").write_text(
            f'{_TOKEN},admin,admin,"system:masters"\n', encoding="utf-8"
        )
        self.run(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=443",
            "--bind-address=0.0.0.0",
            f"--advertise-address={_SERVICE}",
            "--service-cluster-ip-range=10.96.0.0/24",
            f"--tls-cert-file={pki}/api.both.pem",
            f"--tls-private-key-file={pki}/api.both.pem",
            f"--token-auth-file={self.home}/tokens.csv",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/accounts.key",
            f"--service-account-signing-key-file={pki}/accounts.key",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            *api_server,
        )
        self.until(self.is_serving, "the API server")
        self.run(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--root-ca-file={self.authority.path}",
            f"--service-account-private-key-file={pki}/accounts.key",
            "--use-service-account-credentials=false",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *controllers,
        )
        self.run(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )

    def is_serving(self) -> bool:
        """Return whether the API server says that it is ready."""
        return self.kubectl("get", "--raw=/readyz", check=False).stdout == "ok"

    def run(self, name: str, *words: str, program: Path | None = None) -> None:
        """Start a program of the control plane, or another one beside it, until `stop`."""
        # With its parent goes the child, however the test ends.
        argv = (str(program or programs() / name), *words)
        self._commands[name] = ("setpriv", "--pdeathsig", "KILL", "--", *self.enter, *argv)
        self.begin_again(name)

    def begin_again(self, name: str) -> None:
        """Start a program once more as before, after `end`."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self._commands[name],
                cwd=self.home,
                env={"PATH": nodes.PATH, "HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, name: str) -> None:
        """Kill one program, as a crash does."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(20)

    def stop(self) -> None:
        """End the control plane."""
        for name in reversed([*self.processes]):
            self.end(name)

    def _kubeconfig(self) -> Path:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://{_SERVICE}:443",
                        "certificate-authority-data": _base64(self.authority.path),
                    },
                }
            ],
            "users": [{"name": "admin", "user": {"token": _TOKEN}}],
        }
        path = self.home / "admin.conf"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        path.chmod(0o600)
        return path


class Cluster(ControlPlane):
    """A control plane in the network of a booted node, whose kubelet joins it."""

    def __init__(self, node: Node, home: Path) -> None:
        super().__init__(node.pid, home)
        self.node = node

    def start(self, *api_server: str, controllers: Sequence[str] = ()) -> None:
        """Start the control plane where the node's kubelet may set what its network needs."""
        real.USED.add(f"Kubernetes v{VERSION}: kubelet")
        nodes.run(self.node, ("sh", "-c", "mount -o remount,rw /proc/sys/net 2>/dev/null; true"))
        super().start(*api_server, controllers=controllers)

    def join(self) -> None:
        """Make the booted node one of the cluster."""
        node = self.node
        for plugin in (programs() / "cni").iterdir():
            _put(node, f"/usr/lib/cni/{plugin.name}", plugin.read_bytes())
        _put(node, "/etc/cni/net.d/10-pods.conflist", json.dumps(_NETWORK).encode())
        _put(node, "/usr/local/bin/kubelet", (programs() / "kubelet").read_bytes())
        _put(node, "/etc/kubernetes/kubelet.conf", self.kubeconfig.read_bytes())
        _put(node, "/etc/kubernetes/kubelet.yaml", json.dumps(_KUBELET).encode())
        _put(
            node,
            "/etc/systemd/system/kubelet.service",
            b"[Service]\nExecStart=/usr/local/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf"
            b" --config=/etc/kubernetes/kubelet.yaml --hostname-override=node --node-ip=10.96.0.1"
            b"\nRestart=always\nRestartSec=1\n",
        )
        # It wants to read the kernel's log, which is not the node's.
        nodes.run(node, ("ln", "-s", "null", "/dev/kmsg"))
        # It requires these of the kernel, the test machine's: the node sees them as set.
        for name, value in _TUNED.items():
            _put(node, f"/run/tuned/{name}", f"{value}\n".encode())
            nodes.run(node, ("mount", "--bind", f"/run/tuned/{name}", f"/proc/sys/{name}"))
        nodes.run(node, ("systemctl", "daemon-reload"))
        nodes.run(node, ("systemctl", "start", "kubelet"))
        try:
            self.until(self._is_ready, "the node")
        except NodeError as error:
            said = nodes.run(
                node, ("journalctl", "--unit=kubelet", "--no-pager", "--lines=40"), check=False
            ).stdout
            raise NodeError(f"{error}\n{said}") from error

    def _is_ready(self) -> bool:
        told = self.kubectl("get", "node", "node", "--output=json", check=False)
        conditions = json.loads(told.stdout)["status"]["conditions"] if told.returncode == 0 else []
        return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


@contextlib.contextmanager
def running(node: Node, home: Path) -> Iterator[Cluster]:
    """Run a control plane for a node."""
    made = Cluster(node, home)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def alone(home: Path, *api_server: str) -> Iterator[ControlPlane]:
    """Run a control plane without a node, in a network of its own. Raises Unavailable.

    No node is taken for dead: simulated ones send no heartbeats.
    """
    if os.geteuid() != 0:
        raise Unavailable("only root can make a network namespace")
    programs()
    # `unshare` replaces itself: this process is what holds the namespace.
    argv = ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sleep", "infinity")
    holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        _await_namespace(holder)
        made = ControlPlane(holder.pid, home)
        try:
            made.start(*api_server, controllers=("--node-monitor-grace-period=24h",))
            yield made
        finally:
            made.stop()
    finally:
        holder.kill()
        holder.wait(20)


def _await_namespace(holder: subprocess.Popen[bytes]) -> None:
    here = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{holder.pid}/ns/net").readlink() == here:
        if holder.poll() is not None or time.monotonic() > deadline:
            raise NodeError("unshare makes no network namespace")
        time.sleep(0.01)


def _authority(home: Path) -> Authority:
    home.mkdir()
    made = Authority.first(home, "root")
    made.server("api", f"IP:{_SERVICE}", "IP:127.0.0.1", "DNS:kubernetes.default.svc")
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (home / "accounts.key").write_bytes(private_bytes(accounts))
    return made


def _base64(path: Path) -> str:
    return subprocess.run(
        ("base64", "--wrap=0", str(path)), check=True, capture_output=True, text=True
    ).stdout


def _put(node: Node, target: str, data: bytes) -> None:
    path = nodes.path(node, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
