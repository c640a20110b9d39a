"""The chart's values as people try them: each is honoured, or refused with the value to set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support import api_schemas, helm, versions
from tests.support.containers import FEW as CAPABILITIES
from toolkit import __version__
from toolkit.settings.resolve import resolve
from tools import deploy

pytestmark = [pytest.mark.binary, pytest.mark.timeout(120)]

Objects = list[dict[str, Any]]


def given(**values: Any) -> list[str]:
    """Return the options that set values; `__` in a name is the dot of a path."""
    return [
        word
        for name, value in values.items()
        for word in ("--set-json", f"{name.replace('__', '.')}={json.dumps(value)}")
    ]


def daemonset(found: Objects) -> dict[str, Any]:
    return dict(helm.one(found, "DaemonSet"))


def pod(found: Objects) -> dict[str, Any]:
    return dict(daemonset(found)["spec"]["template"]["spec"])


# --- values that are honoured ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, f"localhost/nvidia-toolkit:{__version__}"),
        ({"global__imageRegistry": "mirror:5000"}, f"mirror:5000/nvidia-toolkit:{__version__}"),
        (
            {"global__imageRegistry": "mirror.example", "toolkit__repository": "r.example/team/a"},
            f"mirror.example/team/a/nvidia-toolkit:{__version__}",
        ),
        (
            {"global__imageRegistry": "mirror.example/", "toolkit__repository": "team"},
            f"mirror.example/team/nvidia-toolkit:{__version__}",
        ),
    ],
)
def test_a_global_registry_replaces_that_of_the_image(
    values: Mapping[str, Any], image: str
) -> None:
    found = helm.rendered(*given(**values))
    assert helm.container(found)["image"] == image
    assert helm.one(found, "Pod")["spec"]["containers"][0]["image"] == image


def test_pull_secrets_are_names_or_objects_and_those_of_global_count() -> None:
    found = helm.rendered(
        *given(
            global__imagePullSecrets=["a", {"name": "b"}],
            toolkit__imagePullSecrets=[{"name": "c"}, "a"],
        )
    )
    wanted = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert pod(found)["imagePullSecrets"] == wanted
    assert helm.one(found, "Pod")["spec"]["imagePullSecrets"] == wanted
    assert "imagePullSecrets" not in pod(helm.rendered())


@pytest.mark.parametrize(
    ("values", "name", "label"),
    [
        ({"nameOverride": "gpu"}, "nvidia-toolkit-gpu", "gpu"),
        ({"nameOverride": "toolkit"}, "nvidia-toolkit", "toolkit"),
        ({"fullnameOverride": "gpu"}, "gpu", "nvidia-toolkit"),
    ],
)
def test_names_can_be_replaced(values: Mapping[str, Any], name: str, label: str) -> None:
    found = helm.rendered(*given(**values))
    made = daemonset(found)
    assert made["metadata"]["name"] == name
    assert made["metadata"]["labels"]["app.kubernetes.io/name"] == label
    assert made["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == label
    assert helm.environment(found)["TOOLKIT_DAEMONSET"] == name
    assert helm.one(found, "Role")["rules"][0]["resourceNames"] == [name]
    assert pod(found)["serviceAccountName"] == name


def test_the_namespace_can_be_replaced_everywhere() -> None:
    every = given(
        namespaceOverride="gpu", metrics__enabled=True, podMonitor__create=True,
        networkPolicy__create=True, cdi__nriPluginEnabled=True, priorityClass__create=True,
    )  # fmt: skip
    found = helm.rendered(*every)
    namespaces = {each["metadata"].get("namespace") for each in found}
    assert namespaces == {"gpu", None}
    assert helm.NAMESPACE not in [
        each["metadata"]["namespace"] for each in found if "namespace" in each["metadata"]
    ]
    assert helm.one(found, "RoleBinding")["subjects"][0]["namespace"] == "gpu"
    assert helm.environment(found)["NRI_NAMESPACE"] == "gpu"


def test_objects_outside_of_namespaces_do_not_meet_those_of_another_namespace() -> None:
    def names(*options: str) -> set[str]:
        return {
            each["metadata"]["name"]
            for each in helm.rendered("--set", "priorityClass.create=true", *options)
            if each["kind"] in {"PriorityClass", "RuntimeClass"}
            and not each["metadata"]["name"].startswith("nvidia-l")
            and each["metadata"]["name"] not in {"nvidia", "nvidia-cdi"}
        }

    assert names() == {"nvidia-toolkit", "nvidia-toolkit-pod-runc"}
    assert names("--namespace=gpu") == {"gpu.nvidia-toolkit", "gpu.nvidia-toolkit-pod-runc"}


@pytest.mark.parametrize(
    ("values", "is_on"),
    [
        ({"cdi__enabled": True}, True),
        ({"cdi__enabled": False}, False),
        ({"cdi__enabled": True, "toolkit__env": [{"name": "ENABLE_CDI", "value": "no"}]}, False),
    ],
)
def test_cdi_is_generated_where_it_is_enabled(values: Mapping[str, Any], *, is_on: bool) -> None:
    found = helm.rendered(*given(**values))
    assert resolve({}, helm.environment(found)).cdi_enabled is is_on
    assert ("/run/cdi" in helm.mounts(found)) is is_on
    assert helm.container(found)["securityContext"].get("privileged", False) is is_on


def test_the_pod_is_what_a_cluster_needs() -> None:
    volume = {"name": "more", "configMap": {"name": "c"}}
    mount = {"name": "more", "mountPath": "/more"}
    initial = {"name": "first", "image": "a/b:1"}
    found = helm.rendered(
        *given(
            toolkit__enabled=True,
            toolkit__hostNetwork=True,
            toolkit__extraVolumes=[volume],
            toolkit__extraVolumeMounts=[mount],
            daemonsets__initContainers=[initial],
            daemonsets__podSecurityContext={"supplementalGroups": [7]},
            daemonsets__revisionHistoryLimit=3,
            daemonsets__readinessProbe__periodSeconds=30,
        )
    )
    spec = pod(found)
    assert spec["hostNetwork"] is True
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert volume in spec["volumes"]
    assert mount in helm.container(found)["volumeMounts"]
    assert spec["initContainers"] == [initial]
    assert spec["securityContext"] == {"supplementalGroups": [7]}
    assert daemonset(found)["spec"]["revisionHistoryLimit"] == 3
    assert helm.container(found)["readinessProbe"]["periodSeconds"] == 30
    without = helm.rendered(*given(daemonsets__livenessProbe=None, toolkit__imagePullSecrets=None))
    assert "livenessProbe" not in helm.container(without)
    assert pod(helm.rendered(*given(daemonsets__dnsPolicy="Default")))["dnsPolicy"] == "Default"
    assert not {"hostNetwork", "dnsPolicy"} & pod(helm.rendered()).keys()


@pytest.mark.parametrize(
    ("value", "strategy"),
    [
        (None, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}),
        ("RollingUpdate", {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}),
        ("OnDelete", {"type": "OnDelete"}),
        ({"type": "OnDelete"}, {"type": "OnDelete"}),
        (
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        ),
        (
            {"rollingUpdate": {"maxUnavailable": "5%", "maxSurge": 0}},
            {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "5%", "maxSurge": 0}},
        ),
    ],
)
def test_the_update_strategy_is_a_name_or_an_object(value: Any, strategy: Any) -> None:
    done = helm.run("template", "x", str(helm.CHART), *given(daemonsets__updateStrategy=value))
    assert done.returncode == 0
    # Helm warns where the default is of another type than the value.
    assert "warning" not in done.stderr
    assert daemonset(helm.objects(done.stdout))["spec"]["updateStrategy"] == strategy


def test_common_labels_are_everywhere_and_no_pod_changes_with_the_chart_s_version() -> None:
    found = helm.rendered(*given(commonLabels={"team": "gpu"}, daemonsets__labels={"a": "b"}))
    assert {each["metadata"]["labels"]["team"] for each in found} == {"gpu"}
    template = daemonset(found)["spec"]["template"]
    assert template["metadata"]["labels"] == {
        "app.kubernetes.io/name": "nvidia-toolkit",
        "app.kubernetes.io/instance": "nvidia-toolkit",
        "team": "gpu",
        "a": "b",
    }
    assert "team" not in daemonset(found)["spec"]["selector"]["matchLabels"]


def test_another_chart_can_have_this_one_as_a_dependency(tmp_path: Path) -> None:
    """Its values arrive below the chart's name, with the globals of all, and a condition."""
    shutil.copytree(helm.CHART, tmp_path / "charts/nvidia-toolkit")
    of = {"name": "nvidia-toolkit", "version": __version__, "condition": "nvidia-toolkit.enabled"}
    chart = {"apiVersion": "v2", "name": "all", "version": "1.0.0", "dependencies": [of]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
    values = ("--set", "global.imageRegistry=mirror", "--set", "global.storageClass=x")

    def rendered(*options: str) -> Objects:
        done = helm.run("template", "x", str(tmp_path), *values, *options)
        assert done.returncode == 0, done.stderr
        return helm.objects(done.stdout)

    found = rendered("--set", "nvidia-toolkit.enabled=true")
    assert helm.container(found)["image"] == f"mirror/nvidia-toolkit:{__version__}"
    assert daemonset(found)["metadata"]["name"] == "x-nvidia-toolkit"
    assert rendered("--set", "nvidia-toolkit.enabled=false") == []


def test_extra_objects_are_objects_or_templates() -> None:
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: '{{ .Release.Name }}-s'}\n"
    as_object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    found = helm.rendered(*given(extraObjects=[as_object, text]))
    assert helm.one(found, "ConfigMap")["metadata"]["name"] == "c"
    assert helm.one(found, "Secret")["metadata"]["name"] == "nvidia-toolkit-s"


# --- values that are refused ----------------------------------------------------------------------

ONE: Final = {"name": "CONTAINERD_CONFIG", "value": "/a/b"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"toolkit__enabled": False}, "toolkit.enabled=false: this chart installs nothing but"),
        ({"daemonsets__readinessProbe": None}, "only daemonsets.livenessProbe can be null"),
        ({"enabled": False}, "enabled=false: this chart installs nothing but the toolkit; leave"),
        (
            {"daemonsets__podSecurityContext": {"runAsNonRoot": True}},
            "daemonsets.podSecurityContext.runAsNonRoot=true: the installer writes files",
        ),
        (
            {"toolkit__env": [{"name": "NO_DAEMON", "value": True}]},
            "toolkit.env[0]: NO_DAEMON=true ends the container, and a DaemonSet starts it again",
        ),
        (
            {"toolkit__extraEnv": [{"name": "NO_DAEMON", "value": "yes"}]},
            "toolkit.extraEnv[0]: NO_DAEMON=true ends the container",
        ),
        (
            {"toolkit__env": [ONE, ONE]},
            "toolkit.env[1]: CONTAINERD_CONFIG is given twice, first in toolkit.env[0]; keep one",
        ),
        (
            {"toolkit__env": [ONE], "toolkit__extraEnv": [ONE]},
            "toolkit.extraEnv[0]: CONTAINERD_CONFIG is given twice, first in toolkit.env[0]",
        ),
        (
            {"toolkit__env": [{"name": "RUNTIME", "value": "crio"}]},
            "toolkit.env[0]: RUNTIME cannot be set here: set operator.defaultRuntime",
        ),
        (
            {"toolkit__extraEnv": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]},
            "toolkit.extraEnv[0]: NVIDIA_VISIBLE_DEVICES cannot be set here: the chart sets it",
        ),
        (
            {"toolkit__extraEnv": [{"name": "TOOLKIT_INSTALL_DIR", "value": "/opt/a"}]},
            "TOOLKIT_INSTALL_DIR cannot be set here: set it in toolkit.env",
        ),
        (
            {
                "metrics__enabled": True,
                "toolkit__env": [{"name": "TOOLKIT_METRICS_ADDRESS", "value": "127.0.0.1:1"}],
            },
            "TOOLKIT_METRICS_ADDRESS cannot be set here: set metrics.host and metrics.port",
        ),
        (
            {"daemonsets__updateStrategy": {"rollingUpdate": {"maxSurge": 1}}},
            "two pods would configure one node at a time",
        ),
        (
            {"commonLabels": {"app.kubernetes.io/instance": "x"}},
            "commonLabels: the chart itself sets app.kubernetes.io/instance; use another name",
        ),
        (
            {"commonLabels": {"a": "b"}, "daemonsets__labels": {"a": "c"}},
            "daemonsets.labels: a is in commonLabels already; set it in one place",
        ),
        ({"toolkit__enviroment": 1}, "unknown value toolkit.enviroment: did you mean toolkit.env?"),
        ({"tolerations": []}, "unknown value tolerations: did you mean daemonsets.tolerations?"),
        ({"resources": {}}, "unknown value resources: did you mean toolkit.resources?"),
        ({"image__tag": "1"}, "did you mean toolkit.repository, toolkit.image and toolkit.version"),
        ({"driver__enabled": False}, "unknown value driver: it belongs to the GPU Operator"),
        ({"zzz": 1}, "unknown value zzz: `helm show values` lists all"),
        ({"daemonsets__dnsPolicy": "None"}, "daemonsets.dnsPolicy=None: must be one of"),
        (
            {"operator__distribution": "openshift"},
            "but operator.defaultRuntime is containerd; set operator.defaultRuntime=crio",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_the_one_to_set(
    values: Mapping[str, Any], words: str
) -> None:
    said = helm.refusal(*given(**values))
    assert words in said
    # One line, and helm's own advice.
    assert len([line for line in said.splitlines() if line]) <= 2


def test_the_same_is_refused_by_every_helm() -> None:
    for major in helm.MAJORS:
        said = helm.refusal("--set", "toolkit.enviroment=x", major=major)
        assert "unknown value toolkit.enviroment: did you mean toolkit.env?" in said, major
        # To lint is to check one's values before the installation; `fail` alone would pass here.
        done = helm.run("lint", str(helm.CHART), "--set", "toolkit.enviroment=x", major=major)
        assert done.returncode != 0, done.stdout
        assert "unknown value toolkit.enviroment: did you mean toolkit.env?" in done.stdout


# --- Kubernetes, its distributions and their versions ---------------------------------------------

EVERYTHING: Final = given(
    global__imagePullSecrets=["a"],
    commonLabels={"a": "b"},
    toolkit__hostNetwork=True,
    toolkit__extraMounts=[{"path": "/opt/a", "readOnly": True}],
    toolkit__extraVolumes=[{"name": "more", "emptyDir": {}}],
    toolkit__extraVolumeMounts=[{"name": "more", "mountPath": "/more"}],
    toolkit__extraEnv=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    cdi__enabled=True,
    daemonsets__nodeSelector={"a": "b"},
    daemonsets__podSecurityContext={"fsGroup": 1},
    daemonsets__initContainers=[{"name": "first", "image": "a/b:1"}],
    daemonsets__updateStrategy={"type": "RollingUpdate"},
    metrics__enabled=True,
    networkPolicy__create=True,
    priorityClass__create=True,
    runtimeClasses__keep=True,
    serviceAccount__annotations={"a": "b"},
)
OPENSHIFT: Final = (
    "--set", "operator.defaultRuntime=crio", "--set", "operator.distribution=openshift",
)  # fmt: skip
SETS: Final[Mapping[str, Sequence[str]]] = {
    "defaults": (),
    "everything": EVERYTHING,
    "OpenShift": (*OPENSHIFT, "--set", "daemonsets.updateStrategy=OnDelete"),
}


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
def test_every_version_of_kubernetes_knows_each_field(options: Sequence[str]) -> None:
    for minor in versions.KUBERNETES_MINORS:
        found = helm.rendered(*options, f"--kube-version=1.{minor}.0")
        wrong = [text for each in found for text in api_schemas.errors(each, minor)]
        assert wrong == [], f"1.{minor}"


def test_an_unknown_field_is_found() -> None:
    """The check above can fail: AppArmor's field came with 1.30, and a typo is none of any."""
    found = daemonset(helm.rendered("--kube-version=1.30.0"))
    path = "DaemonSet.spec.template.spec.containers[0].securityContext.appArmorProfile"
    assert api_schemas.errors(found, 29) == [f"{path}: unknown field"]
    found["spec"]["minReadySecond"] = 1
    found["spec"]["minReadySeconds"] = "10"
    assert len(api_schemas.errors(found, 30)) == 2


@pytest.mark.parametrize("options", SETS.values(), ids=SETS)
@pytest.mark.parametrize("major", helm.MAJORS)
def test_every_helm_has_no_complaint(options: Sequence[str], major: str) -> None:
    done = helm.run("lint", str(helm.CHART), "--strict", *options, major=major)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout
    assert "[INFO]" not in done.stdout, done.stdout


def test_openshift_gets_constraints_that_allow_what_the_pods_have_and_no_more() -> None:
    found = helm.rendered(*OPENSHIFT)
    allowed = helm.one(found, "SecurityContextConstraints")
    has = helm.container(found)["securityContext"]
    assert allowed["allowedCapabilities"] == [*CAPABILITIES] == has["capabilities"]["add"]
    assert not allowed["allowPrivilegedContainer"]
    assert not allowed["allowPrivilegeEscalation"]
    assert not allowed["allowHostNetwork"]
    assert allowed["allowHostPID"]
    assert allowed["users"] == [f"system:serviceaccount:{helm.NAMESPACE}:nvidia-toolkit"]
    assert helm.mounts(found).keys() >= {"/etc/crio", "/run/crio"}
    # These would be for every pod of the namespace.
    said = helm.refusal(*OPENSHIFT, "--set", "serviceAccount.create=false")
    assert "name one in serviceAccount.name" in said
    wider = helm.one(
        helm.rendered(*OPENSHIFT, "--set", "cdi.enabled=true"), "SecurityContextConstraints"
    )
    assert wider["allowPrivilegedContainer"]
    for other in ((), (*OPENSHIFT, "--set", "securityContextConstraints.create=false")):
        kinds = {each["kind"] for each in helm.rendered(*other)}
        assert "SecurityContextConstraints" not in kinds


@pytest.mark.parametrize("name", ["k3s", "rke2"])
def test_what_a_distribution_ships_is_not_rendered_without_a_server(name: str) -> None:
    found = helm.rendered("--set", f"operator.distribution={name}")
    classes = {each["metadata"]["name"] for each in found if each["kind"] == "RuntimeClass"}
    assert classes == {"nvidia-cdi", "nvidia-legacy", "nvidia-toolkit-pod-runc"}


def test_the_test_pod_is_not_one_of_the_daemonset_s() -> None:
    found = helm.rendered(*given(daemonsets__nodeSelector={"a": "b"}))
    made = helm.one(found, "Pod")
    selector = daemonset(found)["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= made["metadata"]["labels"].items()
    assert made["spec"]["runtimeClassName"] == "nvidia"
    assert made["spec"]["nodeSelector"] == {"a": "b"}
    assert made["spec"]["tolerations"] == pod(found)["tolerations"]
    for none in ({"helmTest__create": False}, {"cdi__nriPluginEnabled": True}):
        assert "Pod" not in {each["kind"] for each in helm.rendered(*given(**none))}


# --- what people read -----------------------------------------------------------------------------


def test_every_value_is_described_once_and_the_editors_know_it() -> None:
    strict = json.loads(deploy.STRICT.read_text(encoding="utf-8"))
    values = yaml.safe_load(deploy.VALUES.read_text(encoding="utf-8"))
    described = deploy.descriptions()

    def check(rule: Mapping[str, Any], inner: Mapping[str, Any], path: str) -> None:
        if "properties" not in rule or not inner:
            return
        assert set(inner) <= set(rule["properties"]), path
        if path not in {"daemonsets.updateStrategy", "toolkit.resources"}:
            assert set(inner) == set(rule["properties"]), f"{path}: not in values.yaml"
        for name, value in inner.items():
            here = f"{path}.{name}".lstrip(".")
            below = rule["properties"][name]
            is_described = here in described or path in described
            assert is_described or isinstance(value, dict), f"{here} has no comment"
            if isinstance(value, dict):
                check(below, value, here)

    check(strict, values, "")
    for path, text in described.items():
        assert deploy._at(strict, path)["description"] == text


def test_the_schema_that_helm_enforces_leaves_names_and_choices_to_the_template() -> None:
    """Helm would answer with all names, and before the template that knows the closest one."""
    text = deploy.SCHEMA.read_text(encoding="utf-8")
    enforced = json.loads(text)
    assert '"additionalProperties": false' not in text
    assert "enum" not in enforced["properties"]["operator"]["properties"]["defaultRuntime"]
    assert '"additionalProperties": false' in deploy.STRICT.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [(), (*EVERYTHING, "--set", "podMonitor.create=true")],
    ids=["defaults", "everything"],
)
def test_the_notes_have_at_most_ten_lines(options: Sequence[str]) -> None:
    assert len(notes(*options).splitlines()) <= 10


def test_the_notes_say_what_shuts_the_podmonitor_s_prometheus_out() -> None:
    monitored = ("--set", "metrics.enabled=true", "--set", "podMonitor.create=true")
    words = "the PodMonitor needs a Prometheus there; set networkPolicy.from for others"
    assert words in notes(*monitored)
    assert words not in notes(*monitored, "--set", "networkPolicy.create=false")
    assert "is shipped with k3s" in notes("--set", "operator.distribution=k3s")
    assert "no NetworkPolicy applies" in notes(*monitored, "--set", "toolkit.hostNetwork=true")


def test_the_notes_say_why_there_may_be_no_pods() -> None:
    """A DaemonSet without a node counts as rolled out, and `helm test` then waits in vain."""
    assert "such as nvidia.com/gpu.present=true" in notes()
    term = {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}
    wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    chosen = notes(*given(daemonsets={"nodeAffinity": wanted}))
    assert "No node fits daemonsets.nodeAffinity, or the namespace lacks" in chosen


def test_the_notes_say_that_an_upgrade_forgets_values() -> None:
    words = "only with --reuse-values"
    assert words in notes("--is-upgrade")
    assert words not in notes()
    assert words not in notes("--is-upgrade", "--set", "toolkit.repository=registry.example.com")


def notes(*options: str) -> str:
    """Return the notes of an installation: `helm template` has them only in another template."""
    name = f"{helm.CHART.name}/templates/NOTES.txt"
    text = f'kind: Notes\ntext: {{{{ include "{name}" . | toJson }}}}\n'
    found = helm.rendered(*options, *given(extraObjects=[text]))
    return str(helm.one(found, "Notes")["text"]).strip()


def test_the_chart_s_metadata_is_what_catalogues_ask_for() -> None:
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert {"icon", "home", "sources", "maintainers", "keywords"} <= chart.keys()
    [image] = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert image["image"] == helm.container(helm.rendered())["image"]
    changes = yaml.safe_load(chart["annotations"]["artifacthub.io/changes"])
    assert {each["kind"] for each in changes} <= {
        "added", "changed", "deprecated", "removed", "fixed", "security",
    }  # fmt: skip
