"""The selected runtime: the kubelet's, the named one or the earlier one; none if ambiguous."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from runtimes import distributions, registry
from runtimes.model import RuntimeName
from tests.support import fake_node
from toolkit.agent import sync
from toolkit.deadline import Cancellation
from toolkit.discovery import candidates, endpoints, selection
from toolkit.errors import UsageProblem
from toolkit.kube import kubelet
from toolkit.kube.kubelet import KubeletConfig
from toolkit.node.host import Host
from toolkit.reconcile import planning, preflight, transaction, uninstall
from toolkit.reconcile.context import Context
from toolkit.runtime import locate
from toolkit.settings.resolve import Settings, resolve
from toolkit.state import journal
from toolkit.state.record import Record

SOCKETS = {
    "containerd": "run/containerd/containerd.sock",
    "docker": "var/run/docker.sock",
    "crio": "var/run/crio/crio.sock",
    "k3s": "run/k3s/containerd/containerd.sock",
    "k0s": "run/k0s/containerd.sock",
}
PROGRAMS = {"docker": "dockerd", "crio": "crio"}


@dataclass(kw_only=True)
class Site:
    """A node's root below a directory, where stand-ins listen at the places that are known."""

    node: fake_node.Node
    stack: ExitStack
    words: list[KubeletConfig] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.node.root

    def start(
        self, place: str, *, cri: bool = False, path: str = "", config: str = ""
    ) -> fake_node.Daemon:
        """Start a stand-in where one is expected, or at another path of the node."""
        socket = self.root / (path or SOCKETS[place])
        socket.parent.mkdir(parents=True, exist_ok=True)
        home = self.root.parent / place
        name = PROGRAMS.get(place, "containerd")
        if cri:
            home.mkdir(exist_ok=True)
            told = home / "cri.json"
            told.write_text(json.dumps({"well": {}, "config": str(self.node.config)}))
            started = fake_node.daemon(socket, home=home, name=name, cri=str(told), config=config)
        else:
            speech = "http" if place == "docker" else "grpc"
            started = fake_node.daemon(socket, home=home, name=name, speech=speech, config=config)
        return self.stack.enter_context(started)

    def socket(self, place: str) -> str:
        return str(self.root / SOCKETS[place])

    def says(self, endpoint: str, *, docker: bool = False) -> None:
        """Let a kubelet say which socket it uses."""
        by = "--container-runtime-endpoint"
        self.words[:] = [
            KubeletConfig(pid=42, program="kubelet", endpoint=endpoint, by=by, docker=docker)
        ]

    def options(self, **more: str) -> dict[str, str]:
        return {
            "host_root": str(self.root),
            "toolkit_install_dir": str(self.node.install_dir),
            "toolkit_source_root": str(self.node.source),
            "pid_file": str(self.node.pid_file),
            "config_source": "file",
            "restart_mode": "signal",
            "reload_timeout": "10",
            **more,
        }

    def settle(
        self,
        environment: Mapping[str, str] | None = None,
        last: Mapping[str, str] | None = None,
        **more: str,
    ) -> Settings:
        options, environment = self.options(**more), environment or {}
        return selection.select(resolve(options, environment), options, environment, last)

    def context(self, settings: Settings) -> Context:
        adapter = registry.ADAPTERS[RuntimeName(settings.runtime)]
        return Context(settings=settings, adapter=adapter, stop=Cancellation())

    def install(self, settings: Settings) -> None:
        transaction.converge(settings, self.context(settings).adapter)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(node=fake_node.make_node(tmp_path / "node"), stack=stack)
        monkeypatch.setattr(kubelet, "configs", lambda _root=None: tuple(made.words))
        # A stand-in has the root of this machine, which stands for the node's here.
        monkeypatch.setattr(endpoints, "root", lambda _host, _found: ("/", False))
        yield made


def refused(site: Site, **more: str) -> UsageProblem:
    with pytest.raises(UsageProblem) as caught:
        site.settle(None, None, **more)
    assert caught.value.exit_code == 2
    return caught.value


def against(settings: Settings) -> str:
    (found,) = settings.contradictions
    return f"{found.problem} -> {found.hint}"


# --- the kubelet's word -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "runtime"),
    [
        ("/run/containerd/containerd.sock", "containerd"),
        ("/var/run/crio/crio.sock", "crio"),
        ("/run/crio/crio.sock", "crio"),
    ],
)
def test_the_kubelet_s_runtime_is_taken_whatever_else_runs(
    site: Site, endpoint: str, runtime: str
) -> None:
    for place in ("containerd", "docker", "crio"):
        site.start(place)
    site.says(endpoint)
    settings = site.settle()
    assert (settings.runtime, settings.contradictions) == (runtime, ())
    assert not settings.is_given("runtime")


def test_a_kubelet_behind_cri_dockerd_uses_docker(site: Site) -> None:
    site.says("/run/cri-dockerd.sock", docker=True)
    assert site.settle().runtime == "docker"


def test_its_socket_brings_the_distribution_s_files_along(site: Site) -> None:
    site.start("containerd")
    site.start("k0s")
    site.says("/run/k0s/containerd.sock")
    settings = site.settle()
    assert settings.socket == site.socket("k0s")
    assert settings.config == str(site.root / "etc/k0s/containerd.toml")
    assert settings.drop_in_config == str(site.root / "etc/k0s/containerd.d/nvidia.toml")


def test_a_socket_at_no_known_place_is_asked(site: Site) -> None:
    site.start("crio", path="run/odd.sock")
    site.says("/run/odd.sock")
    settings = site.settle()
    assert (settings.runtime, settings.socket) == (
        "crio",
        str(site.root / "run/odd.sock"),
    )


def test_links_of_the_node_lead_where_the_node_means_them(site: Site) -> None:
    """`/var/run` is a link to `/run`, which in a pod is the pod's own."""
    (site.root / "var").mkdir()
    (site.root / "var/run").symlink_to("/run")
    site.start("crio", path="run/crio/crio.sock")
    site.says("/var/run/crio/crio.sock")
    assert site.settle().socket == str(site.root / "run/crio/crio.sock")


def test_two_kubelets_that_differ_are_no_word(site: Site) -> None:
    site.start("containerd", cri=True)
    site.says("/run/containerd/containerd.sock")
    first = site.words[0]
    site.says("/run/crio/crio.sock")
    site.words.append(first)
    assert site.settle().runtime == "containerd", "the only one that answers"


@pytest.mark.parametrize("starter", [42, 7])
def test_the_containerd_that_k3s_has_started_is_its_own(
    site: Site, starter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start("containerd", cri=True)
    site.start("k3s", cri=True)
    site.words[:] = [
        KubeletConfig(pid=42, program="k3s-server", endpoint="", by="", embedder="k3s")
    ]
    monkeypatch.setattr(endpoints, "parent", lambda _found: (starter, "k3s-server"))
    if starter == 42:
        assert site.settle().socket == site.socket("k3s")
    else:
        assert "2 container runtimes answer" in str(refused(site))


# --- nobody says which --------------------------------------------------------------------------


def test_two_are_refused_and_each_way_out_leads_to_one(site: Site) -> None:
    site.start("containerd", cri=True)
    crio = site.start("crio")
    error = refused(site)
    assert error.problems[0].startswith(
        "2 container runtimes answer on this node, and no kubelet says which one it uses:"
    )
    assert f"crio on /var/run/crio/crio.sock (PID {crio.pid}," in error.problems[0]
    for place in ("containerd", "crio"):
        assert f"--socket={site.socket(place)} ({place})" in error.hint
        assert site.settle(socket=site.socket(place)).runtime == place
    assert site.settle(runtime="crio").runtime == "crio"


def test_two_containerds_are_refused_also_where_containerd_was_named(site: Site) -> None:
    site.start("containerd", cri=True)
    site.start("k3s", cri=True)
    error = refused(site, runtime="containerd")
    assert f"--socket={site.socket('k3s')} (containerd of k3s)" in error.hint
    assert site.settle(socket=site.socket("k3s")).config.endswith(
        "k3s/agent/etc/containerd/config.toml"
    )


def test_docker_with_its_containerd_behind_it_is_docker(site: Site) -> None:
    site.start("docker")
    site.start("containerd")
    assert site.settle().runtime == "docker"


def test_a_containerd_that_serves_cri_beside_docker_may_be_meant(site: Site) -> None:
    site.start("docker")
    site.start("containerd", cri=True)
    assert "--socket" in refused(site).hint


def test_the_containerd_that_dockerd_has_started_is_docker_s(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start("docker")
    site.start("containerd", path="run/docker/containerd/containerd.sock", cri=True)
    monkeypatch.setattr(endpoints, "parent", lambda _found: (7, "dockerd"))
    assert site.settle().runtime == "docker"


def test_docker_s_containerd_does_not_stand_beside_k3s(site: Site) -> None:
    """P03: the first containerd on the path is docker's, and its files are none of ours."""
    site.start("docker")
    site.start("containerd")
    site.start("k3s", cri=True)
    assert site.settle(runtime="containerd").socket == site.socket("k3s")


def test_a_containerd_alone_is_taken_whether_it_serves_cri_or_not(site: Site) -> None:
    site.start("containerd")
    assert site.settle().runtime == "containerd"


def test_nothing_there_is_refused(site: Site) -> None:
    error = refused(site)
    assert error.problems == ("no container runtime found on this node, and none is configured",)
    assert "--runtime (containerd, crio or docker)" in error.hint


def test_one_with_another_root_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start("containerd")
    monkeypatch.setattr(endpoints, "root", lambda _host, _found: ("/pod", True))
    assert "its root directory (/pod) is not the node's" in refused(site).problems[1]


# --- rootless -----------------------------------------------------------------------------------


def test_a_user_s_own_socket_is_refused_and_never_asked(site: Site) -> None:
    path = site.root / "run/user/1000/docker.sock"
    path.parent.mkdir(parents=True)
    with fake_node.listening(path) as server:
        server.settimeout(0)
        assert "a user's rootless runtime" in refused(site).problems[1]
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("named", ["auto", "docker"])
def test_a_user_s_own_socket_that_was_given_is_refused(site: Site, named: str) -> None:
    error = refused(site, socket="/run/user/1000/docker.sock", runtime=named)
    (problem,) = error.problems
    assert (
        problem == "--socket=/run/user/1000/docker.sock: this is a user's rootless runtime,"
        " which a Kubernetes node does not use"
    )


# --- what was named contradicts the node --------------------------------------------------------


def test_a_runtime_that_is_not_the_kubelet_s_is_refused(site: Site) -> None:
    site.start("docker")
    site.start("containerd")
    site.says("/run/containerd/containerd.sock")
    before = fake_node.snapshot(site.root)
    settings = site.settle({"RUNTIME": "docker"})
    assert (
        against(settings) == "RUNTIME=docker: the kubelet (PID 42) uses containerd on"
        " /run/containerd/containerd.sock, set by --container-runtime-endpoint -> leave"
        " --runtime out, or set --runtime=containerd; use --allow-non-kubelet-runtime to"
        " configure docker anyway, although kubelet's pods do not use it"
    )
    with pytest.raises(UsageProblem, match="nothing was changed"):
        site.install(settings)
    assert fake_node.snapshot(site.root) == before
    assert site.settle(runtime="docker", allow_non_kubelet_runtime="true").contradictions == ()


def test_a_socket_that_is_not_the_kubelet_s_is_refused(site: Site) -> None:
    site.start("containerd")
    site.start("k0s")
    site.says("/run/k0s/containerd.sock")
    given = site.socket("containerd")
    said = against(site.settle(runtime="containerd", socket=given))
    assert f"set --socket={site.socket('k0s')}" in said
    assert (
        site.settle(
            runtime="containerd", socket=given, allow_non_kubelet_runtime="true"
        ).contradictions
        == ()
    )
    assert site.settle(runtime="containerd", socket=site.socket("k0s")).contradictions == ()


def test_a_mount_of_the_kubelet_s_socket_is_the_same_socket(site: Site) -> None:
    site.start("containerd")
    site.says("/run/containerd/containerd.sock")
    (site.root.parent / "sock-dir").symlink_to(site.root / "run/containerd")
    seen = str(site.root.parent / "sock-dir/containerd.sock")
    assert site.settle(runtime="containerd", socket=seen).contradictions == ()


def test_docker_named_where_only_containerd_is(site: Site) -> None:
    """P23: one word for the whole cluster, and a node that has something else."""
    daemon = site.start("containerd")
    before = fake_node.snapshot(site.root)
    settings = site.settle({"RUNTIME": "docker"})
    assert against(settings).startswith(
        "RUNTIME=docker: docker not found on this node, but containerd on"
        f" /run/containerd/containerd.sock (PID {daemon.pid}, "
    )
    with pytest.raises(UsageProblem):
        site.install(settings)
    with pytest.raises(UsageProblem):
        sync.first(site.context(settings))
    assert fake_node.snapshot(site.root) == before


def test_a_socket_given_that_another_runtime_answers(site: Site) -> None:
    daemon = site.start("containerd", path="run/mine.sock")
    given = str(site.root / "run/mine.sock")
    settings = site.settle(runtime="docker", socket=given)
    place = locate.target(settings, registry.ADAPTERS[RuntimeName.DOCKER])
    (found,) = place.contradictions
    assert found.problem.startswith(
        f"--runtime=docker: {given} is answered by containerd (PID {daemon.pid}, "
    )
    with pytest.raises(UsageProblem) as caught:
        site.install(settings)
    assert caught.value.exit_code == 2


def test_a_plan_says_what_speaks_against_it(site: Site) -> None:
    site.start("containerd")
    settings = site.settle(runtime="docker")
    context = site.context(settings)
    (blocked,) = preflight.forecast(context, planning.make_plan(context), patience=0).blocked
    assert blocked.problem.startswith("--runtime=docker: docker not found on this node")
    assert blocked.code == 2


def test_a_runtime_that_is_named_and_down_is_planned_for_all_the_same(site: Site) -> None:
    settings = site.settle(runtime="containerd")
    assert (settings.contradictions, settings.discovered) == ((), {"runtime": "containerd"})
    assert settings.socket == "/run/containerd/containerd.sock"


def test_a_socket_without_anybody_and_without_a_runtime_is_refused(site: Site) -> None:
    error = refused(site, socket="/is/not/there")
    assert error.problems == ("--socket=/is/not/there: no container runtime answers there",)


def test_variables_of_a_runtime_count_once_it_is_found(site: Site) -> None:
    site.start("crio")
    variables = {"CRIO_CONFIG": "/crio.conf", "CONTAINERD_CONFIG": "/containerd.toml"}
    assert site.settle(variables).config == "/crio.conf"
    site.start("containerd", path="run/mine.sock")
    variables["CONTAINERD_SOCKET"] = str(site.root / "run/mine.sock")
    site.says("/run/mine.sock")
    settings = site.settle(variables)
    assert (settings.runtime, settings.config) == (
        "containerd",
        "/containerd.toml",
    )


# --- a node that was set up ---------------------------------------------------------------------


def again(site: Site, last: Mapping[str, str] | None = None, **more: str) -> Settings:
    """Return the settings of a site whose programs are this machine's own."""
    own = {"host_root": "/", "config": str(site.node.config), "drop_in_config": ""}
    return site.settle(None, last, **own, **more)


def set_up(site: Site) -> tuple[fake_node.Daemon, Settings]:
    """Set the site up for a containerd that only the kubelet has named."""
    daemon = site.start("containerd", path="run/c.sock", cri=True)
    site.says(str(site.node.socket))
    settings = again(site)
    site.install(settings)
    return daemon, settings


def end(daemon: fake_node.Daemon) -> None:
    """End a stand-in for good."""
    with daemon.lock:
        daemon.stopped = True
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()


def test_one_that_is_down_for_a_moment_is_still_the_one(site: Site) -> None:
    daemon, settings = set_up(site)
    assert (settings.runtime, settings.contradictions) == ("containerd", ())
    end(daemon)
    site.words.clear()
    assert again(site).runtime == "containerd"


def test_a_round_has_the_runtime_of_the_round_before(site: Site) -> None:
    """A daemon's child receives what was found; a stopped runtime changes none of it."""
    daemon, settings = set_up(site)
    first = sync.first(site.context(settings))
    assert first["found"] == {"runtime": "containerd", "socket": str(site.node.socket)}
    end(daemon)
    site.words.clear()
    before = fake_node.snapshot(site.root / "etc")
    settings = again(site, first["found"])
    assert dict(settings.discovered) == first["found"]
    later = sync.later(site.context(settings), "check", first)
    assert (later["found"], later["code"]) == (first["found"], 0), later
    assert fake_node.snapshot(site.root / "etc") == before


def test_a_migrated_node_is_left_alone_and_can_be_taken_back(site: Site) -> None:
    before = site.node.config.read_bytes()
    _, first = set_up(site)
    changed = site.node.config.read_bytes()
    assert changed != before
    site.start("crio", path="run/crio.sock")
    site.says(str(site.root / "run/crio.sock"))
    settings = again(site)
    said = against(settings)
    assert said.startswith(
        "this node is configured for containerd, but the kubelet (PID 42) uses crio on"
    )
    assert "nvidia-toolkit revert --runtime containerd" in said
    with pytest.raises(UsageProblem):
        site.install(settings)
    later = sync.later(site.context(again(site, first.discovered)), sync.CONVERGE, {})
    assert (later["code"], later["outcome"]) == (2, "failed")
    assert site.node.config.read_bytes() == changed
    named = again(site, runtime="containerd", socket=str(site.node.socket))
    assert named.contradictions
    uninstall.revert(named, site.context(named).adapter)
    assert site.node.config.read_bytes() == before
    assert again(site).runtime == "crio"


# --- what is nobody's in particular ---------------------------------------------------------------


def test_the_usual_socket_is_nobody_s_in_particular(site: Site) -> None:
    """Canonical Kubernetes may listen there too; a containerd without a config file is not its."""
    host = Host(root=site.node.root)
    found = endpoints.row(host, RuntimeName.CONTAINERD, "/run/containerd/containerd.sock")
    assert found is distributions.plain(RuntimeName.CONTAINERD)


def test_a_kubelet_s_socket_that_is_down_keeps_its_place(site: Site) -> None:
    """Where nobody can see it, the path is the node's and names no process."""
    word = KubeletConfig(
        pid=1, program="kubelet", endpoint="/run/containerd/gone.sock", by="a test"
    )
    known = replace(word, endpoint="/run/k0s/containerd.sock")
    found = candidates.runtime_of_kubelet(Host(root=site.node.root), known)
    assert found is not None
    assert not str(found.seen_at).startswith("/proc/")


def test_a_k3s_that_made_the_handlers_itself_is_remembered_by_its_unit(site: Site) -> None:
    install_dir = site.node.install_dir
    install_dir.mkdir(parents=True, exist_ok=True)
    journal.save(
        install_dir,
        Record(runtime="containerd", unit="k3s.service", toolkit_digest="0123456789abcdef"),
    )
    question = selection.inputs_of(resolve({"toolkit_install_dir": str(install_dir)}, {}), {}, {})
    assert question.previous["runtime"] == "containerd"
    assert question.previous["socket"].endswith("/run/k3s/containerd/containerd.sock")


# --- a distribution in another directory ----------------------------------------------------------

RENDERED = """\
version = 2
root = "{data}/agent/containerd"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
"""


def elsewhere(site: Site, data: str) -> tuple[fake_node.Daemon, Path]:
    """Start a containerd like k3s and RKE2 with another data directory; return its config too."""
    config = f"{data}/agent/etc/containerd/config.toml"
    rendered = site.root / config.lstrip("/")
    rendered.parent.mkdir(parents=True)
    rendered.write_text(RENDERED.format(data=data), encoding="utf-8")
    return site.start("k3s", cri=True, config=config), rendered


@pytest.mark.parametrize(
    ("data", "name"), [("/ssd/rancher/k3s", "k3s"), ("/ssd/rancher/rke2", "rke2")]
)
def test_a_data_directory_is_the_one_that_the_daemon_was_started_with(
    site: Site, data: str, name: str
) -> None:
    elsewhere(site, data)
    site.says("/run/k3s/containerd/containerd.sock")
    found = site.settle()
    assert found.config == str(site.root / f"{data}/agent/etc/containerd/config.toml".lstrip("/"))
    assert found.drop_in_config.endswith(
        f"{data}/agent/etc/containerd/config-v3.toml.d/99-nvidia.toml"
    )
    place = locate.target(found, registry.ADAPTERS[RuntimeName.CONTAINERD])
    assert place.desired.config == f"{data}/agent/etc/containerd/config.toml"
    assert place.desired.delivery.is_regenerated
    assert f"/etc/rancher/{name}/config.yaml" in place.desired.delivery.default_step
    question = selection.inputs_of(found, site.options(), {})
    assert question.kubelet is not None
    assert f"uses containerd of {name} on" in question.kubelet.description


def test_a_run_without_a_kubelet_is_where_the_one_before_was(site: Site) -> None:
    """No file of its configuration is ours, its unit is unknown: the record says where it was."""
    daemon, rendered = elsewhere(site, "/ssd/rancher/rke2")
    site.says("/run/k3s/containerd/containerd.sock")
    settings = site.settle(set_as_default="false")
    place = locate.target(settings, registry.ADAPTERS[RuntimeName.CONTAINERD])
    location = locate.location(settings, place)
    assert dict(location) == {
        "socket": "/run/k3s/containerd/containerd.sock",
        "config": "/ssd/rancher/rke2/agent/etc/containerd/config.toml",
        "drop_in_config": "/ssd/rancher/rke2/agent/etc/containerd/config-v3.toml.d/99-nvidia.toml",
    }
    site.node.install_dir.mkdir(parents=True)
    record = Record(runtime="containerd", toolkit_digest="0123456789abcdef", location=location)
    journal.save(site.node.install_dir, record)
    site.words.clear()
    for is_up in (True, False):
        if not is_up:
            end(daemon)
        found = site.settle(set_as_default="false")
        assert (found.config, found.socket) == (str(rendered), site.socket("k3s"))
        context = site.context(found)
        plan = planning.make_plan(context)
        assert plan.target.desired.config == "/ssd/rancher/rke2/agent/etc/containerd/config.toml"
        assert plan.target.desired.delivery.is_regenerated
        assert plan.config_plan.changes == ()
    site.says("/run/k3s/containerd/containerd.sock")
    assert site.settle().config == str(rendered)


def test_a_path_from_the_settings_is_not_remembered(site: Site) -> None:
    _, settings = set_up(site)
    record = journal.load(site.node.install_dir)
    assert settings.is_given("config")
    assert record.location == (("socket", str(site.node.socket)),)
    site.words.clear()
    other = {"host_root": "/", "config_source": "file"}
    assert site.settle(None, None, **other).config == "/etc/containerd/config.toml"
