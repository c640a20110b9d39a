"""The chart by the real helm: documented command line, mounts, every wrong value, manifests."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pytest
import yaml

from runtimes.distributions import DISTRIBUTIONS
from tests.support import cluster, helm
from tests.support.containers import DEFAULT_MOUNTS
from tests.support.containers import FEW as CAPABILITIES
from toolkit import __version__
from toolkit.settings.options import SETTINGS
from toolkit.settings.resolve import resolve
from tools import deploy, overlays

pytestmark = [pytest.mark.binary, pytest.mark.timeout(120)]

GENERATED: Final = sorted(
    path
    for home in (deploy.MANIFESTS, *deploy.GENERATED)
    for path in home.rglob("*")
    if path.is_file()
)
"""The generated files below deploy/ that are there, besides those of the chart."""
HOST: Final = {"/host": ("/", False)}


def env(**variables: str) -> list[str]:
    """Return the options that set toolkit.env."""
    words = []
    for index, (name, value) in enumerate(variables.items()):
        words += ["--set", f"toolkit.env[{index}].name={name}"]
        words += ["--set-string", f"toolkit.env[{index}].value={value}"]
    return words


def test_helm_has_no_complaint() -> None:
    done = helm.run("lint", str(helm.CHART), "--strict")
    assert done.returncode == 0, done.stdout


def test_the_chart_has_the_program_s_version() -> None:
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_documented_command_line_renders() -> None:
    found = helm.rendered(*helm.DOCUMENTED)
    told = helm.environment(found)
    assert told["RUNTIME"] == "containerd"
    assert {name: told[name] for name in told if name.startswith("CONTAINERD_")} == {
        "CONTAINERD_CONFIG": "/etc/containerd/config.toml",
        "CONTAINERD_SOCKET": "/run/containerd/containerd.sock",
        "CONTAINERD_RUNTIME_CLASS": "nvidia",
        "CONTAINERD_SET_AS_DEFAULT": "true",
    }
    settings = resolve({}, told)
    assert settings.config == "/etc/containerd/config.toml"
    assert settings.set_as_default
    assert set(helm.mounts(found)) == {"/host", *DEFAULT_MOUNTS}
    classes = {
        each["metadata"]["name"]: each["handler"]
        for each in found
        if each["kind"] == "RuntimeClass"
    }
    ours = {name: name for name in ("nvidia", "nvidia-cdi", "nvidia-legacy")}
    assert classes == ours | {"nvidia-toolkit-pod-runc": "runc"}


NAMES: Final = ("NVIDIA_RUNTIME_NAME", "CONTAINERD_RUNTIME_CLASS", "DOCKER_RUNTIME_NAME")


@pytest.mark.parametrize("runtime", ["containerd", "docker", "crio"])
@pytest.mark.parametrize(
    "given", [(), *((each,) for each in NAMES), NAMES[1:], NAMES], ids="+".join
)
def test_the_runtime_class_names_the_handler_that_the_program_adds(
    runtime: str, given: tuple[str, ...]
) -> None:
    """The program takes the variable of another runtime too, as the upstream installer does."""
    values = {name: f"gpu-{name[:4].lower()}" for name in given}
    found = helm.rendered("--set", f"operator.defaultRuntime={runtime}", *env(**values))
    settings = resolve({}, helm.environment(found))
    assert settings.runtime_class in (values.values() if given else {"nvidia"})
    handlers = {each["handler"] for each in found if each["kind"] == "RuntimeClass"}
    assert handlers - {"runc"} == {settings.runtime_class, "nvidia-cdi", "nvidia-legacy"}


@pytest.mark.parametrize(
    ("options", "handler"),
    [
        ([], "runc"),
        (["--set", "daemonsets.runtimeHandler=crun"], "crun"),
        (["--set", "daemonsets.runtimeHandler=none"], None),
        (["--set", "operator.defaultRuntime=crio"], None),
        (
            ["--set", "operator.defaultRuntime=crio", "--set", "daemonsets.runtimeHandler=crun"],
            "crun",
        ),
    ],
)
def test_the_pods_themselves_do_not_run_through_our_handlers(
    options: list[str], handler: str | None
) -> None:
    found = helm.rendered("--set", "runtimeClasses.create=false", *options)
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    classes = {
        each["metadata"]["name"]: each["handler"]
        for each in found
        if each["kind"] == "RuntimeClass"
    }
    name = f"nvidia-toolkit-pod-{handler}"
    assert classes == ({} if handler is None else {name: handler})
    assert pod.get("runtimeClassName") == (None if handler is None else name)


@pytest.mark.parametrize(
    "options",
    [["--set", "cdi.nriPluginEnabled=true"], env(ENABLE_NRI_PLUGIN="true")],
    ids=["value", "variable"],
)
def test_the_nri_plugin_gets_its_socket_and_no_runtime_class_names_a_handler(
    options: list[str],
) -> None:
    found = helm.rendered(*options)
    settings = resolve({}, helm.environment(found))
    assert settings.runs_plugin
    assert settings.nri_namespace == found[0]["metadata"].get("namespace", "default")
    assert helm.mounts(found)["/run/nri"] == ("/run/nri", False)
    classes = {each["metadata"]["name"] for each in found if each["kind"] == "RuntimeClass"}
    assert classes == {"nvidia-toolkit-pod-runc"}
    off = helm.rendered(*options, *env(ENABLE_NRI_PLUGIN="false"))
    assert "/run/nri" not in helm.mounts(off)


def test_a_truth_may_be_given_without_set_string() -> None:
    words = [word for word in helm.DOCUMENTED if word != "--set-string"]
    words.insert(-1, "--set")
    told = helm.environment(helm.rendered(*words))
    assert told["CONTAINERD_SET_AS_DEFAULT"] == "true"


NVIDIA: Final = {"/run/nvidia": True, "/usr/local/nvidia": True}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], {"/etc/containerd": True, "/run/containerd": False}),
        (["--set", "operator.defaultRuntime=crio"], {"/etc/crio": True, "/run/crio": False}),
        # The node's /run/docker.sock lies in /run itself; /var/run leads there.
        (["--set", "operator.defaultRuntime=docker"], {"/etc/docker": True, "/run": False}),
        (
            env(CONTAINERD_CONFIG="/opt/c/etc/c.toml", CONTAINERD_SOCKET="/var/run/c/c.sock"),
            {"/opt/c/etc": True, "/etc/containerd/conf.d": True, "/run/c": False},
        ),
        (
            env(CONTAINERD_CONFIG="/opt/c/c.toml", RUNTIME_DROP_IN_CONFIG="/opt/c/conf.d/x.toml"),
            {"/opt/c": True, "/run/containerd": False},
        ),
        (
            env(
                CONTAINERD_CONFIG="/opt/c/c.toml",
                RUNTIME_DROP_IN_CONFIG="/opt/c/conf.d/x.toml",
                RUNTIME_SOCKET="/opt/c/s",
            ),
            {"/opt/c": True},
        ),
        (
            env(TOOLKIT_INSTALL_DIR="/opt/nvidia"),
            {"/etc/containerd": True, "/run/containerd": False, "/opt/nvidia": True},
        ),
        (
            ["--set", "operator.defaultRuntime=crio", *env(CRIO_CONFIG_MODE="hook")],
            {"/etc/crio": True, "/run/crio": False, "/usr/share/containers/oci/hooks.d": True},
        ),
        (
            ["--set", "operator.distribution=k3s"],
            {"/var/lib/rancher/k3s/agent/etc/containerd": True, "/run/k3s/containerd": False},
        ),
        (["--set", "operator.distribution=k0s"], {"/etc/k0s": True, "/run/k0s": False}),
        (
            [
                "--set",
                "toolkit.extraMounts[0].path=/opt/a",
                "--set",
                "toolkit.extraMounts[0].readOnly=true",
            ],
            {"/etc/containerd": True, "/run/containerd": False, "/opt/a": False},
        ),
    ],
)
def test_the_mounts_follow_from_the_settings(options: list[str], wanted: dict[str, bool]) -> None:
    found = helm.mounts(helm.rendered(*options))
    nvidia = {
        path: restart_method
        for path, restart_method in NVIDIA.items()
        if "/opt/nvidia" not in wanted or "local" not in path
    }
    assert found == HOST | {
        path: (path, restart_method) for path, restart_method in (nvidia | wanted).items()
    }


@pytest.mark.parametrize("row", DISTRIBUTIONS, ids=[row.name for row in DISTRIBUTIONS])
def test_every_distribution_gets_what_it_needs(row: Any) -> None:
    plain = row.name == row.runtime
    options = ["--set", f"operator.defaultRuntime={row.runtime}"]
    options += [] if plain else ["--set", f"operator.distribution={row.name}"]
    found = helm.rendered(*options)
    seen = helm.mounts(found)
    written = [row.config, *([row.drop_in] if row.drop_in else [])]
    for path, must_write in [(path, True) for path in written] + [
        (path, False) for path in row.sockets
    ]:
        real = PurePosixPath(path.replace("/var/run/", "/run/"))
        ways = [seen[str(above)][1] for above in real.parents if str(above) in seen]
        assert any(ways) or (ways and not must_write), path
    assert not any(
        restart_method for path, (_, restart_method) in seen.items() if path.count("/") == 1
    )
    told = helm.environment(found)
    assert told.get("RUNTIME_SOCKET") == (None if plain else row.sockets[0])
    resolve({}, told)


def test_the_schema_lets_every_distribution_through() -> None:
    schema = json.loads(deploy.STRICT.read_text(encoding="utf-8"))
    named = schema["properties"]["operator"]["properties"]["distribution"]["enum"]
    assert named == [
        "",
        *(row.name for row in DISTRIBUTIONS if row.name != row.runtime),
        "openshift",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--set", "operator.defaultRuntme=docker"],
            "unknown value operator.defaultRuntme: did you mean operator.defaultRuntime?",
        ),
        (
            ["--set", "operator.defaultRuntime=podman"],
            "operator.defaultRuntime=podman: must be one of containerd, crio, docker",
        ),
        (
            ["--set", "operator.distribution=k4s"],
            "operator.distribution=k4s: must be one of k3s, rke2,",
        ),
        (
            ["--set", "operator.runtimeClass=NVIDIA"],
            "at '/operator/runtimeClass': 'NVIDIA' does not match",
        ),
        (["--set", "tolkit.installDir=/x"], "unknown value tolkit: did you mean toolkit?"),
        (["--set", "toolkit.installDir=usr"], "at '/toolkit/installDir': 'usr' does not match"),
        (["--set", "toolkit.digest=sha256:1"], "at '/toolkit/digest':"),
        (
            ["--set", "toolkit.imagePullPolicy=never"],
            "toolkit.imagePullPolicy=never: must be one of Always, IfNotPresent, Never; did you",
        ),
        (
            ["--set", "toolkit.privileged=no"],
            "toolkit.privileged=no: must be one of auto, true, false",
        ),
        (["--set", "toolkit.gracePeriodSeconds=30s"], "at '/toolkit/gracePeriodSeconds':"),
        (
            ["--set", "toolkit.env.CONTAINERD_CONFIG=/x"],
            "at '/toolkit/env': got object, want array",
        ),
        (
            env(CONTAINERD_CONFG="/x/y"),
            "CONTAINERD_CONFG: no setting of the program; did you mean CONTAINERD_CONFIG?",
        ),
        (
            env(CONTAINERD_CONFIG="/a/b", CONTAINERD_SOCKET="run/c"),
            "at '/toolkit/env/1/value': 'run/c' does not",
        ),
        (
            env(CONTAINERD_SET_AS_DEFAULT="maybe"),
            "toolkit.env[0]: CONTAINERD_SET_AS_DEFAULT=maybe: must be true or false",
        ),
        (
            env(TOOLKIT_ON_EXIT="later"),
            "toolkit.env[0]: TOOLKIT_ON_EXIT=later: must be one of keep, revert, auto",
        ),
        (env(TOOLKIT_GRACE_PERIOD="soon"), "at '/toolkit/env/0/value': 'soon' does not match"),
        (
            ["--set", "toolkit.env[0].name=RUNTIME_SOCKET"],
            "at '/toolkit/env/0': missing property 'value'",
        ),
        (
            ["--set", "daemonsets.rollingUpdate.maxUnavailable=0%"],
            "at '/daemonsets/rollingUpdate/maxUnavailable':",
        ),
        (["--set", "daemonsets.updateStrategy=Recreate"], "at '/daemonsets/updateStrategy':"),
        (
            ["--set", "daemonsets.tolerations[0].efect=NoSchedule"],
            "tolerations[0].efect: did you mean daemonsets.tolerations[0].effect?",
        ),
        (["--set", "metrics.port=99999"], "at '/metrics/port': maximum"),
        (["--set", "podMonitor.interval=often"], "at '/podMonitor/interval':"),
        (
            ["--set", "networkPolicy.create=maybe"],
            "networkPolicy.create=maybe: must be one of auto, true, false",
        ),
        (["--set", "priorityClass.value=2000000000"], "at '/priorityClass/value': maximum"),
        # What no schema can say.
        (
            env(CONTAINERD_CONFIG="/etc/config.toml"),
            "something lies directly in /etc, and that is never mounted",
        ),
        (
            env(CONTAINERD_CONFIG="/etc/x/../c.toml"),
            "something lies directly in /etc, and that is never mounted",
        ),
        (
            env(TOOLKIT_INSTALL_DIR="/"),
            "something lies directly in /, and that is never mounted writable",
        ),
        (
            env(CONTAINERD_SOCKET="/containerd.sock"),
            "a socket lies directly in /: give it a directory",
        ),
        (["--set", "toolkit.extraMounts[0].path=/var/lib"], "something lies directly in /var/lib"),
        (
            ["--set", "operator.defaultRuntime=crio", "--set", "operator.distribution=k3s"],
            "k3s runs containerd",
        ),
        (
            ["--set", "podMonitor.create=true"],
            "there is nothing to monitor without metrics.enabled=true",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(options: list[str], words: str) -> None:
    assert words in helm.refusal(*options)


def test_every_variable_of_the_table_is_let_through() -> None:
    texts = {"flag": "true", "seconds": "5", "count": "5"}
    given = {}
    for row in SETTINGS:
        for name in row.variables:
            fallback = row.choices[0] if row.choices else "/opt/a/b/toolkit.pid"
            given[name] = texts.get(str(row.kind), fallback)
    # These are refused: see test_chart_values.py.
    del given["RUNTIME"], given["TOOLKIT_DAEMONSET"], given["NO_DAEMON"]
    del given["TOOLKIT_NODE_LABEL"], given["TOOLKIT_NODE_CONDITION"], given["TOOLKIT_EVENTS"]
    told = helm.environment(helm.rendered(*env(**given)))
    missing = {name for name in given if name not in told} - {"ROOT"}
    assert missing == set()


def test_a_stop_may_take_as_long_as_the_program_believes() -> None:
    for options, seconds in (
        ([], 30),
        (["--set", "toolkit.gracePeriodSeconds=45"], 45),
        (env(TOOLKIT_GRACE_PERIOD="50.5s"), 51),
    ):
        found = helm.rendered(*options)
        pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] == seconds
        assert resolve({}, helm.environment(found)).grace_period == seconds


def test_the_role_allows_one_read_and_stays_until_the_pods_have_asked() -> None:
    found = helm.rendered()
    role = helm.one(found, "Role")
    assert role["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["daemonsets"],
            "resourceNames": [helm.one(found, "DaemonSet")["metadata"]["name"]],
            "verbs": ["get"],
        }
    ]
    for kind in ("Role", "RoleBinding", "ServiceAccount"):
        assert helm.one(found, kind)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert (
        helm.environment(found)["TOOLKIT_DAEMONSET"]
        == helm.one(found, "DaemonSet")["metadata"]["name"]
    )


FEW: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"], "add": [*CAPABILITIES]},
    "seccompProfile": {"type": "RuntimeDefault"},
    "seLinuxOptions": {"type": "spc_t"},
    "appArmorProfile": {"type": "Unconfined"},
}
"""What a container that is not privileged has, besides what each has."""
UNCONFINED: Final = "container.apparmor.security.beta.kubernetes.io/nvidia-toolkit"


@pytest.mark.parametrize(
    ("options", "is_privileged"),
    [
        ([], False),
        (["--set", "operator.defaultRuntime=docker"], False),
        (["--set", "operator.defaultRuntime=crio"], False),
        (["--set", "operator.distribution=k3s"], False),
        (env(CDI_ENABLED="false"), False),
        (env(CDI_ENABLED="true"), True),
        (env(ENABLE_CDI="1"), True),
        ([*env(CDI_ENABLED="true"), "--set", "toolkit.privileged=false"], False),
        (["--set", "toolkit.privileged=true"], True),
        (["--set", "toolkit.privileged=auto"], False),
    ],
)
def test_the_container_has_no_more_rights_than_it_needs(
    options: list[str], *, is_privileged: bool
) -> None:
    found = helm.rendered(*options, "--kube-version=1.30.0")
    each = {"runAsUser": 0, "readOnlyRootFilesystem": True}
    rights = {"privileged": True} if is_privileged else FEW
    assert helm.container(found)["securityContext"] == each | rights
    assert helm.container(found)["resources"]["requests"]
    pod = helm.one(found, "DaemonSet")["spec"]["template"]
    assert pod["spec"]["hostPID"] is True
    assert not {"hostNetwork", "hostIPC"} & pod["spec"].keys()
    assert UNCONFINED not in pod["metadata"]["annotations"]
    # Before Kubernetes 1.30 the field is an annotation.
    older = helm.rendered(*options, "--kube-version=1.29.0")
    assert "appArmorProfile" not in helm.container(older)["securityContext"]
    annotations = helm.one(older, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]
    assert annotations.get(UNCONFINED) == (None if is_privileged else "unconfined")


@pytest.mark.parametrize(
    ("options", "asks"),
    [([], True), (env(TOOLKIT_ON_EXIT="auto"), True), (env(TOOLKIT_ON_EXIT="keep"), False),
     (env(ON_EXIT="revert"), False)],
)  # fmt: skip
def test_the_pod_has_a_token_only_where_it_asks_the_api_server(
    options: list[str], *, asks: bool
) -> None:
    found = helm.rendered(*options, "--set", "nodeReport.enabled=false")
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is asks
    assert helm.one(found, "ServiceAccount")["automountServiceAccountToken"] is False


def test_what_is_optional_is_there_when_it_is_asked_for() -> None:
    found = helm.rendered(
        "--set",
        "metrics.enabled=true",
        "--set",
        "podMonitor.create=true",
        "--set",
        "networkPolicy.create=true",
        "--set",
        "priorityClass.create=true",
        "--set",
        "daemonsets.updateStrategy=OnDelete",
        "--set",
        "daemonsets.rollingUpdate=null",
    )
    kinds = {each["kind"] for each in found}
    assert {"PodMonitor", "NetworkPolicy", "PriorityClass"} <= kinds
    container = helm.container(found)
    port = container["ports"][0]
    assert helm.environment(found)["TOOLKIT_METRICS_ADDRESS"] == f"0.0.0.0:{port['containerPort']}"
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == helm.one(found, "PriorityClass")["metadata"]["name"]
    assert not {"PodMonitor", "NetworkPolicy", "PriorityClass"} & {
        each["kind"] for each in helm.rendered()
    }


METRICS: Final = ("--set", "metrics.enabled=true")


@pytest.mark.parametrize("options", [(), METRICS], ids=["bare", "with metrics"])
def test_no_probe_needs_a_port(options: tuple[str, ...]) -> None:
    """A client that keeps the pages busy must not be able to make a pod not ready, or end it."""
    container = helm.container(helm.rendered(*options))
    commands = {"readiness": "--quiet", "startup": "--live", "liveness": "--live"}
    for kind, option in commands.items():
        probe = container[f"{kind}Probe"]
        assert probe["exec"] == {"command": ["nvidia-toolkit", "status", option]}
        assert set(probe) & {"httpGet", "tcpSocket", "grpc"} == set()
    assert ("ports" in container) == bool(options)


def test_the_probes_end_a_pod_late_and_can_be_tuned() -> None:
    def patience(*options: str) -> dict[str, int]:
        container = helm.container(helm.rendered(*options))
        probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness")}
        return {
            kind: probe["periodSeconds"] * probe["failureThreshold"]
            for kind, probe in probes.items()
        }

    assert patience() == {"startup": 300, "liveness": 120}
    longer = (
        "--set=daemonsets.startupProbe.failureThreshold=300",
        "--set=daemonsets.livenessProbe.periodSeconds=60",
    )
    assert patience(*longer) == {"startup": 600, "liveness": 360}
    # The entry point waits for the driver before the program starts, for as long as it takes.
    year = 365 * 86400
    assert patience("--set=toolkit.waitForDriver=true")["startup"] > year
    assert "failureThreshold" in helm.refusal("--set=daemonsets.livenessProbe.failureThreshold=0")


def policy(*options: str) -> dict[str, Any] | None:
    """Return what the chart's network policy says."""
    found = [each["spec"] for each in helm.rendered(*options) if each["kind"] == "NetworkPolicy"]
    return found[0] if found else None


def test_metrics_are_not_for_every_pod_unless_that_is_said() -> None:
    assert policy() is None
    spec = policy(*METRICS)
    assert spec is not None
    # What the pods send is left alone: the port of the API server is not the same everywhere.
    assert (spec["policyTypes"], "egress" in spec) == (["Ingress"], False)
    assert spec["ingress"] == [
        {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 9400}]},
    ]
    assert policy(*METRICS, "--set", "networkPolicy.create=false") is None


@pytest.mark.parametrize("metrics", [(), METRICS], ids=["bare", "with metrics"])
def test_a_whole_policy_also_holds_what_is_sent(metrics: tuple[str, ...]) -> None:
    spec = policy(*metrics, "--set", "networkPolicy.create=true")
    assert spec is not None
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [each["port"] for each in spec["egress"][0]["ports"]] == [443, 6443]
    assert ("ingress" in spec) == bool(metrics)


def test_who_reads_the_metrics_can_be_named() -> None:
    word = (
        "networkPolicy.from[0].namespaceSelector.matchLabels"
        ".kubernetes\\.io/metadata\\.name=monitoring"
    )
    spec = policy(*METRICS, "--set", word)
    assert spec is not None
    assert spec["ingress"][0]["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


# By the files that are there: rendering them takes helm, and collecting tests must not need it.
@pytest.mark.parametrize(
    "path",
    [deploy.STRICT, deploy.SCHEMA, deploy.ROWS, deploy.README, *GENERATED],
    ids=lambda path: str(path.relative_to(helm.ROOT / "deploy")),
)
def test_generated_files_are_up_to_date(path: Path) -> None:
    wanted = deploy.generated()
    assert path in wanted, "nothing generates this file; run `make generate`"
    assert path.read_text(encoding="utf-8") == wanted[path], "run `make generate`"


def test_no_manifest_is_missing_or_left_over() -> None:
    others = {deploy.STRICT, deploy.SCHEMA, deploy.ROWS, deploy.README}
    assert set(GENERATED) == deploy.generated().keys() - others


@pytest.mark.parametrize(
    ("home", "options"),
    [
        (deploy.MANIFESTS, ()),
        *(
            (overlays.OVERLAYS / row.name, overlays.options(row))
            for row in DISTRIBUTIONS
            if row.name != overlays.DEFAULT
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_kustomize_makes_the_chart_s_objects(home: Path, options: tuple[str, ...]) -> None:
    made = kustomized(home)
    assert made.pop(("Namespace", helm.NAMESPACE))
    chart = {
        (each["kind"], each["metadata"]["name"]): each
        for each in helm.rendered(overlays.KUBERNETES, "--skip-tests", *options)
    }
    assert made.keys() == chart.keys()
    for name, found in made.items():
        assert _bare(found) == _bare(chart[name]), name
        assert not re.search(r"[Hh]elm", str(found))


@pytest.mark.parametrize("row", DISTRIBUTIONS, ids=[row.name for row in DISTRIBUTIONS])
def test_a_job_is_the_pod_of_the_daemonset_with_a_command_that_ends(row: Any) -> None:
    found = helm.rendered(overlays.KUBERNETES, *overlays.options(row))
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    for name, command in (("install", "run --no-daemon"), ("revert", "revert")):
        text = (overlays.JOBS / row.name / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.count(overlays.PLACEHOLDER) == 2
        [job] = helm.objects(text)
        spec = job["spec"]["template"]["spec"]
        [own] = spec["containers"]
        assert " ".join(own["args"]) == command
        for key in ("image", "securityContext", "volumeMounts"):
            assert own[key] == container[key], key
        for key in ("volumes", "hostPID", "tolerations", "runtimeClassName"):
            assert spec.get(key) == pod.get(key), key
        resolve({}, {each["name"]: each["value"] for each in own["env"]})
        assert "serviceAccountName" not in spec
        assert not spec["automountServiceAccountToken"]
        selector = helm.one(found, "DaemonSet")["spec"]["selector"]["matchLabels"]
        assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    # What has to be there first: the classes, and neither a DaemonSet nor rights.
    needed = kustomized(overlays.JOBS / row.name)
    assert {kind for kind, _ in needed} <= {"Namespace", "RuntimeClass"}
    classes = {each["metadata"]["name"] for each in found if each["kind"] == "RuntimeClass"}
    assert {name for kind, name in needed if kind == "RuntimeClass"} == classes
    assert not any("scheduling" in each for each in needed.values())


def test_what_an_overlay_changes_is_found() -> None:
    before = {"a": 1, "b": {"c": 1, "d": 2}, "env": [{"name": "x", "value": "1"}, {"name": "y"}]}
    after = {"b": {"c": 1, "d": 3}, "env": [{"name": "x", "value": "2"}], "list": [1]}
    assert overlays.patch(before, after) == {
        "a": None,
        "b": {"d": 3},
        "env": [{"name": "x", "value": "2"}, {"name": "y", "$patch": "delete"}],
        "list": [1],
    }
    assert overlays.patch(before, before) == {}


REPORT: Final = (
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
)


def test_what_outlives_the_daemonset_is_left_by_helm_argo_cd_and_flux() -> None:
    kept = {
        "helm.sh/resource-policy": "keep",
        "argocd.argoproj.io/sync-options": "Delete=false,Prune=false",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }
    own = "--set-string=serviceAccount.annotations.a=b"
    for each in helm.rendered(own, overlays.KUBERNETES):
        annotations = each["metadata"].get("annotations", {})
        if each["kind"] in {"Role", "RoleBinding", "ServiceAccount", *REPORT}:
            more = {"a": "b"} if each["kind"] == "ServiceAccount" else {}
            assert annotations == kept | more, each["kind"]
        else:
            assert not kept.keys() & annotations.keys(), each["kind"]
    plain = {name: value for name, value in kept.items() if "helm.sh" not in name}
    for (kind, _), each in kustomized(deploy.MANIFESTS).items():
        is_kept = kind in {"Namespace", "Role", "RoleBinding", "ServiceAccount", *REPORT}
        assert each["metadata"].get("annotations", {}) == (plain if is_kept else {}), kind


def kustomized(home: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects that kustomize makes of a directory, by kind and name."""
    done = subprocess.run(
        (str(cluster.programs() / "kubectl"), "kustomize", str(home)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {(each["kind"], each["metadata"]["name"]): each for each in helm.objects(done.stdout)}


def _bare(value: Any) -> Any:
    """Return an object without what only helm needs, and lists of named things in one order."""
    if isinstance(value, list):
        bare = [_bare(each) for each in value]
        keys = [key for key in ("name", "mountPath") if all(key in each for each in value)]
        return sorted(bare, key=lambda each: [each[key] for key in keys]) if keys else bare
    if not isinstance(value, dict):
        return value
    kept = {
        key: _bare(each)
        for key, each in value.items()
        if not key.startswith("helm.sh/") and key != "app.kubernetes.io/managed-by"
    }
    return {key: each for key, each in kept.items() if (key, each) != ("annotations", {})}
