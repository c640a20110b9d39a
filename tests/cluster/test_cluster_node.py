"""The chart in a real Kubernetes: API server, controllers, scheduler, a booted node's kubelet."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from runtimes.distributions import DISTRIBUTIONS
from tests.support import cluster, containers, documents, helm, images, nodes, real, versions
from tests.support.cluster import Cluster
from tests.support.nodes import Node
from toolkit.runtime.client import cri
from tools import deploy, overlays

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]

CONFIG: Final = "/etc/containerd/config.toml"
DROP_IN: Final = "/etc/containerd/conf.d/99-nvidia.toml"
LABEL: Final = "nvidia-toolkit.io/ready"
CONDITION: Final = "nvidia-toolkit.io/Ready"
IN: Final = f"--namespace={helm.NAMESPACE}"
FAST: Final = ("--set", "daemonsets.minReadySeconds=0", "--set", "metrics.enabled=true")
DOCUMENTED: Final = (
    "helm install",
    "helm test",
    "exec POD",
    "logs POD",
    "--selector nvidia-toolkit.io/ready=true",
    "custom-columns",
    "get events",
    "label node NODE",
    "patch node NODE",
    "label nodes --all",
    "helm uninstall",
    "delete rolebinding",
    "apply --kustomize deploy/manifests",
    "delete daemonset",
    "delete --kustomize deploy/manifests",
    "apply --kustomize deploy/jobs",
    "install.yaml",
    "component=install",
    "revert.yaml",
    "component=revert",
    "delete --kustomize deploy/jobs",
)
"""What the documents' lines for a cluster are known by; each is run below."""
A_POD: Final[Mapping[str, Any]] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "user", "namespace": "default"},
    "spec": {
        "runtimeClassName": "nvidia",
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": "user",
                "image": containers.IMAGE,
                "imagePullPolicy": "Never",
                "command": ["echo", "a pod"],
            }
        ],
    },
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := images.why_not() or nodes.why_not():
        pytest.skip(reason)
    store = images.Store(tmp_path_factory.mktemp("images"))
    store.take_base()
    store.build()
    return store.archive()


@pytest.fixture(scope="module")
def kubernetes(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster.programs()
    with nodes.boot(cluster.SUITE) as node:
        if reason := containers.why_no_containers(node):
            pytest.skip(reason)
        containers.prepare_images(node)
        images.load(node, archive)
        with cluster.running(node, tmp_path_factory.mktemp("cluster")) as made:
            made.join()
            made.kubectl("label", "node", "node", "nvidia.com/gpu.present=true")
            yield made


def state(node: Node) -> dict[str, tuple[bytes, int]]:
    """Return bytes and mode of all that an installation may leave behind."""
    tops = [nodes.path(node, top) for top in ("/etc/containerd", "/usr/local")]
    found = [path for top in tops for path in top.rglob("*") if not path.is_symlink()]
    return {
        str(path): (b"" if path.is_dir() else path.read_bytes(), path.lstat().st_mode)
        for path in found
        # kubelet makes the mounted directory, and it stays, empty.
        if path != nodes.path(node, "/usr/local/nvidia")
    }


def install(kubernetes: Cluster, *options: str) -> None:
    """Install by the documented command line, until the one pod is ready."""
    forget_restarts(kubernetes.node)
    kubernetes.helm(
        "upgrade",
        "--install",
        helm.RELEASE,
        str(helm.CHART),
        IN,
        "--create-namespace",
        *helm.DOCUMENTED,
        *FAST,
        *options,
    )
    roll_out(kubernetes)


def forget_restarts(node: Node) -> None:
    """Give all restarts and reports of an hour: there are more than a real node sees in a day."""
    state = "/run/nvidia/toolkit"
    nodes.run(node, ("rm", "-f", f"{state}/restarts.json", f"{state}/report.json"))
    nodes.run(node, ("systemctl", "reset-failed", "containerd"), check=False)


def roll_out(kubernetes: Cluster) -> None:
    """Wait until the one pod is ready."""
    kubernetes.kubectl("rollout", "status", IN, "daemonset/nvidia-toolkit", "--timeout=90s")


def uninstall(kubernetes: Cluster) -> str:
    """Uninstall, until the pod is gone; return its last words."""
    return last_words(kubernetes, lambda: kubernetes.helm("uninstall", helm.RELEASE, IN))


def last_words(kubernetes: Cluster, take_away: Callable[[], object]) -> str:
    """Take the DaemonSet away, until the pod is gone; return what that said last."""
    with kubernetes.following(IN, "daemonset/nvidia-toolkit") as told:
        kubernetes.until(lambda: told.stat().st_size > 0, "the pod says nothing")
        take_away()
        kubernetes.until(lambda: not kubernetes.get("pods", IN)["items"], "the pod is not gone")
    return told.read_text(encoding="utf-8")


def sweep(node: Node) -> None:
    """Remove what is left of pods that ended, as kubelet does within a minute."""
    socket = nodes.SOCKETS["containerd"]
    for sandbox in cri.sandboxes(nodes.path(node, socket), timeout=5):
        if not sandbox.ready:
            containers.remove_sandbox(node, socket, sandbox.id)


def objects(kubernetes: Cluster) -> set[str]:
    found = kubernetes.get(
        "role,rolebinding,serviceaccount,daemonset",
        IN,
        f"--selector=app.kubernetes.io/instance={helm.RELEASE}",
    )
    return {each["kind"] for each in found["items"]}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--set", "toolkit.privileged=true"),
        ("--set", "operator.defaultRuntime=docker"),
        ("--set", "operator.distribution=canonical-k8s"),
        (
            "--set",
            "metrics.enabled=true",
            "--set",
            "networkPolicy.create=true",
            "--set",
            "priorityClass.create=true",
            "--set",
            "toolkit.extraMounts[0].path=/opt/a",
            "--set",
            "daemonsets.updateStrategy=OnDelete",
            "--set",
            "toolkit.imagePullSecrets[0]=key",
            "--set",
            "daemonsets.nodeSelector.a=b",
        ),
    ],
    ids=["defaults", "privileged", "docker", "distribution", "everything"],
)
def test_the_api_server_takes_what_the_chart_makes(
    kubernetes: Cluster, options: tuple[str, ...]
) -> None:
    kubernetes.kubectl("create", "namespace", helm.NAMESPACE, check=False)
    # A pod needs its RuntimeClass, which a dry run does not create.
    text = helm.template(*options, f"--kube-version={cluster.VERSION}", "--skip-tests")
    done = kubernetes.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--filename=-", text=text
    )
    assert done.stdout.count("(server dry run)") == len(helm.objects(text))
    assert not done.stderr.strip(), done.stderr


def test_the_api_server_takes_the_plain_manifests(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "namespace", helm.NAMESPACE, check=False)
    done = kubernetes.kubectl(
        "apply", "--dry-run=server", "--validate=strict", f"--kustomize={deploy.MANIFESTS}"
    )
    assert "daemonset.apps/nvidia-toolkit" in done.stdout


def test_the_api_server_takes_overlays_and_jobs(kubernetes: Cluster) -> None:
    kubernetes.kubectl("create", "namespace", helm.NAMESPACE, check=False)
    checked = ("--dry-run=server", "--validate=strict")
    jobs = []
    for row in DISTRIBUTIONS:
        if row.name != overlays.DEFAULT:
            overlay = f"--kustomize={overlays.OVERLAYS / row.name}"
            done = kubernetes.kubectl("apply", *checked, overlay)
            assert "daemonset.apps/nvidia-toolkit" in done.stdout, row.name
        for name in ("install", "revert"):
            text = (overlays.JOBS / row.name / f"{name}.yaml").read_text(encoding="utf-8")
            jobs.append(text.replace(overlays.PLACEHOLDER, "node"))
    done = kubernetes.kubectl("create", *checked, "--filename=-", text="---\n".join(jobs))
    assert done.stdout.count("created (server dry run)") == len(jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """How a tool deletes what it has applied: the order, the propagation, and what it leaves.

    `kinds` are those that it deletes last, in this order; all others come first. `annotation` is
    the option of an annotation with which an object stays. The tools do not wait for one object
    before they delete the next.
    """

    kinds: tuple[str, ...]
    cascade: str
    annotation: tuple[str, str]

    def order(self, applied: Mapping[str, Any]) -> int:
        kind = applied["kind"]
        return self.kinds.index(kind) if kind in self.kinds else -1

    def leaves(self, annotations: Mapping[str, str]) -> bool:
        name, option = self.annotation
        return option in annotations.get(name, "").split(",")


DELETIONS: Final = {
    # gitops-engine, pruneObject: everything of a wave at the same time. The worst order is chosen.
    "Argo CD prunes": Deletion(
        kinds=("DaemonSet",),
        cascade="foreground",
        annotation=("argocd.argoproj.io/sync-options", "Prune=false"),
    ),
    # fluxcd/pkg/ssa, DeleteAll and ReconcileOrder.
    "Flux prunes": Deletion(
        kinds=(
            "ConfigMap",
            "RoleBinding",
            "Role",
            "ServiceAccount",
            "ClusterRoleBinding",
            "PriorityClass",
            "RuntimeClass",
            "ClusterRole",
            "Namespace",
        ),
        cascade="background",
        annotation=("kustomize.toolkit.fluxcd.io/prune", "disabled"),
    ),
}


@pytest.mark.parametrize("name", DELETIONS)
def test_a_node_is_reverted_however_the_plain_manifests_are_pruned(
    kubernetes: Cluster, name: str
) -> None:
    """The calls that a tool sends, in its order; the tools themselves are not run."""
    node, deletion = kubernetes.node, DELETIONS[name]
    before = state(node)
    forget_restarts(node)
    kubernetes.kubectl("apply", f"--kustomize={deploy.MANIFESTS}")
    roll_out(kubernetes)
    assert state(node) != before
    applied = helm.objects(kubernetes.kubectl("kustomize", str(deploy.MANIFESTS)).stdout)

    def prune() -> None:
        for each in sorted(applied, key=deletion.order):
            if not deletion.leaves(each["metadata"].get("annotations", {})):
                what = f"{each['kind']}/{each['metadata']['name']}"
                how = (f"--cascade={deletion.cascade}", "--wait=false")
                kubernetes.kubectl("delete", IN, what, *how)

    told = last_words(kubernetes, prune)
    assert "the node was reverted" in told, told
    assert state(node) == before
    assert objects(kubernetes) == {"Role", "RoleBinding", "ServiceAccount"}
    kubernetes.kubectl("delete", f"--kustomize={deploy.MANIFESTS}", "--ignore-not-found")
    real.USED.add(f"the API calls with which {name}, on Kubernetes {versions.KUBERNETES}")


def test_the_documented_command_line_sets_a_node_up_and_uninstalling_gives_it_back(
    kubernetes: Cluster,
) -> None:
    node = kubernetes.node
    before = state(node)
    refused = kubernetes.kubectl("apply", "--filename=-", text=json.dumps(A_POD), check=False)
    assert 'RuntimeClass "nvidia" not found' in refused.stderr
    install(kubernetes)
    assert state(node) != before
    kubernetes.kubectl("apply", "--filename=-", text=json.dumps(A_POD))
    kubernetes.until(
        lambda: kubernetes.get("pod", "user")["status"]["phase"] == "Succeeded",
        "the pod of a user",
    )
    assert kubernetes.kubectl("logs", "user").stdout == "a pod\n"
    assert kubernetes.get("pod", "user")["spec"]["runtimeClassName"] == "nvidia"
    kubernetes.kubectl("delete", "pod", "user", "--wait=true")
    sweep(node)
    # An upgrade replaces the pod, and the runtime does not notice.
    pid, set_up = nodes.main_pid(node, "containerd"), state(node)
    old = kubernetes.get("pods", IN)["items"][0]["metadata"]["name"]
    install(kubernetes, "--set", "daemonsets.annotations.another=one")
    assert kubernetes.get("pods", IN)["items"][0]["metadata"]["name"] != old
    assert (nodes.main_pid(node, "containerd"), state(node)) == (pid, set_up)
    told = uninstall(kubernetes)
    assert "the node was reverted" in told, told
    assert state(node) == before
    assert objects(kubernetes) == {"Role", "RoleBinding", "ServiceAccount"}
    real.USED.add(
        f"the chart's whole life on Kubernetes {cluster.VERSION}, with kubelet on a booted"
        f" {node.suite} node"
    )


def test_what_was_kept_is_taken_over_by_the_next_installation_and_can_be_deleted(
    kubernetes: Cluster,
) -> None:
    before = state(kubernetes.node)
    install(kubernetes)
    uninstall(kubernetes)
    assert state(kubernetes.node) == before
    selector = f"--selector=app.kubernetes.io/instance={helm.RELEASE}"
    kubernetes.kubectl("delete", IN, "rolebinding,role,serviceaccount", selector)
    assert objects(kubernetes) == set()


def test_with_the_role_gone_there_is_no_answer_and_the_node_stays(kubernetes: Cluster) -> None:
    """Why the role is kept: this is what a plain role of the chart would come to."""
    node = kubernetes.node
    before = state(node)
    install(kubernetes)
    set_up = state(node)
    kubernetes.kubectl("delete", IN, "rolebinding", "nvidia-toolkit")
    uninstall(kubernetes)
    assert state(node) == set_up != before
    # The way out: install again, which brings the role back, and uninstall.
    install(kubernetes)
    uninstall(kubernetes)
    assert state(node) == before


# --- the report of the node's state ------------------------------------------------------------


def label(kubernetes: Cluster) -> str | None:
    """Return the value of the label that says that the node is ready; None without it."""
    found: str | None = kubernetes.get("node", "node")["metadata"]["labels"].get(LABEL)
    return found


def condition(kubernetes: Cluster) -> tuple[str, str]:
    """Return status and reason of the condition that says whether the node is ready."""
    for each in kubernetes.get("node", "node")["status"]["conditions"]:
        if each["type"] == CONDITION:
            return each["status"], each["reason"]
    return "", ""


def events(kubernetes: Cluster) -> set[tuple[str, str]]:
    """Return kind of object and reason of each Event that was sent."""
    found = kubernetes.get(
        "events", "--all-namespaces", "--field-selector=reportingComponent=nvidia-toolkit"
    )
    return {(each["involvedObject"]["kind"], each["reason"]) for each in found["items"]}


def test_the_label_is_there_while_the_node_is_ready_and_pods_wait_for_it(
    kubernetes: Cluster,
) -> None:
    node = kubernetes.node
    before = state(node)
    assert label(kubernetes) is None
    install(kubernetes)
    kubernetes.until(lambda: label(kubernetes) == "true", "the label")
    assert condition(kubernetes) == ("True", "Verified")
    selector = {LABEL: "true"}
    assert kubernetes.get("runtimeclass", "nvidia")["scheduling"]["nodeSelector"] == selector
    for name in ("nvidia-toolkit-node-report", "nvidia-toolkit-node-report-events"):
        policy = kubernetes.get("validatingadmissionpolicy", name)
        assert not policy["status"].get("typeChecking", {}).get("expressionWarnings")
    # Somebody removes the label: a pod with the RuntimeClass waits, until the agent restores it.
    kubernetes.kubectl("label", "node", "node", f"{LABEL}-")
    kubernetes.kubectl("apply", "--filename=-", text=json.dumps(A_POD))
    kubernetes.until(
        lambda: "PodScheduled" in str(kubernetes.get("pod", "user")["status"].get("conditions")),
        "the scheduler",
    )
    assert kubernetes.get("pod", "user")["spec"]["nodeSelector"] == selector
    assert "nodeName" not in kubernetes.get("pod", "user")["spec"]
    kubernetes.kubectl("delete", "pod", IN, "--selector=app.kubernetes.io/name=nvidia-toolkit")
    kubernetes.until(
        lambda: kubernetes.get("pod", "user")["status"]["phase"] == "Succeeded",
        "the pod of a user",
    )
    assert label(kubernetes) == "true"
    kubernetes.kubectl("delete", "pod", "user", "--wait=true")
    sweep(node)
    # Drift is repaired in a moment, so the label stays, and an Event says so.
    roll_out(kubernetes)
    nodes.path(node, DROP_IN).unlink()
    kubernetes.until(lambda: ("Node", "DriftRepaired") in events(kubernetes), "the Event")
    assert {("Node", "SetUp"), ("Pod", "SetUp"), ("Pod", "DriftRepaired")} <= events(kubernetes)
    assert label(kubernetes) == "true"
    forget_restarts(node)
    roll_out(kubernetes)
    told = uninstall(kubernetes)
    assert "the node was reverted" in told, told
    assert label(kubernetes) is None
    assert condition(kubernetes) == ("False", "Reverted")
    assert state(node) == before


def test_the_token_of_a_pod_changes_its_own_node_s_label_and_condition_alone(
    kubernetes: Cluster,
) -> None:
    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}}
    kubernetes.kubectl("apply", "--filename=-", text=json.dumps(other))
    install(kubernetes)
    kubernetes.until(lambda: label(kubernetes) == "true", "the label")
    [pod] = kubernetes.get("pods", IN)["items"]
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    asked = ("create", "token", IN, "nvidia-toolkit")
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={name}", f"--bound-object-uid={uid}")
    token = kubernetes.kubectl(*asked, *bound).stdout.strip()
    unbound = kubernetes.kubectl(*asked).stdout.strip()
    kept = kubernetes.get("node", "node")

    def patch(content: object, where: str = "node/status", as_: str = token) -> int:
        status, said = kubernetes.request(
            as_, "PATCH", f"/api/v1/nodes/{where}", content, "strategic-merge-patch+json"
        )
        assert status != 500, said
        return status

    def labelled(**labels: str | None) -> dict[str, Any]:
        return {"metadata": {"labels": labels}}

    def conditions(kind: str, status: str = "True") -> dict[str, Any]:
        return {"status": {"conditions": [{"type": kind, "status": status, "reason": "Test"}]}}

    own = {"metadata": {"labels": {LABEL: None}}} | conditions(CONDITION, "False")
    assert patch(own) == 200
    assert (label(kubernetes), condition(kubernetes)) == (None, ("False", "Test"))
    assert patch({"metadata": {"labels": {LABEL: "true"}}}) == 200
    refused: list[Any] = [
        labelled(other="true"),
        labelled(**{LABEL: "false"}),
        labelled(**{"kubernetes.io/hostname": None}),
        labelled(**{"nvidia.com/gpu.present": None}),
        labelled(**{"node-role.kubernetes.io/control-plane": ""}),
        {"metadata": {"annotations": {"a": "b"}}},
        {"metadata": {"finalizers": ["example.com/stay"]}},
        {"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
        ]}},
        conditions("Ready", "False"),
        conditions("MemoryPressure"),
        {"status": {"conditions": [{"$patch": "replace"}]}},
        {"status": {"capacity": {"nvidia.com/gpu": "8"}}},
        {"status": {"allocatable": {"cpu": "1m"}}},
        {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
        {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}},
        {"status": {"volumesInUse": ["x"]}},
        {"status": {"phase": "Terminated"}},
    ]  # fmt: skip
    assert {json.dumps(each): patch(each) for each in refused} == {
        json.dumps(each): 403 for each in refused
    }
    taint = {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "unschedulable": True}}
    # The API server ignores a spec here; through the Node itself the pod has no right.
    assert patch(taint) in {200, 403}
    assert [patch(content, "node") for content in (own, taint)] == [403, 403]
    assert patch(own, "other/status") == 403
    assert patch(own, as_=unbound) == 403
    for method, path in (
        ("GET", "nodes/node"),
        ("GET", "nodes"),
        ("DELETE", "nodes/other"),
        ("GET", "pods"),
        ("PUT", "nodes/node/status"),
    ):
        assert kubernetes.request(token, method, f"/api/v1/{path}", kept)[0] == 403
    now = kubernetes.get("node", "node")
    assert now["spec"] == kept["spec"]
    assert now["metadata"]["labels"] == kept["metadata"]["labels"]
    assert now["metadata"].get("annotations") == kept["metadata"].get("annotations")
    send_events(kubernetes, token, name)
    uninstall(kubernetes)
    kubernetes.kubectl("delete", "node", "other")


def send_events(kubernetes: Cluster, token: str, pod: str) -> None:
    """Send Events with the token of a pod: about itself, and about what it has no business with."""

    def send(kind: str, name: str, namespace: str, component: str = "nvidia-toolkit") -> int:
        about = {"kind": kind, "apiVersion": "v1", "name": name}
        event = {
            "metadata": {"generateName": "test.", "namespace": namespace},
            "involvedObject": about | ({"namespace": namespace} if kind != "Node" else {}),
            "reason": "Test",
            "source": {"component": component},
        }
        path = f"/api/v1/namespaces/{namespace}/events"
        return kubernetes.request(token, "POST", path, event)[0]

    assert send("Node", "node", "default") == 201
    assert send("Pod", pod, helm.NAMESPACE) == 201
    assert send("Node", "other", "default") == 403
    assert send("Pod", f"{pod}x", helm.NAMESPACE) == 403
    assert send("Pod", pod, "default") == 403
    assert send("Deployment", "coredns", "kube-system") == 403
    assert send("Node", "node", "default", "kubelet") == 403


# --- what the documents say ---------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Return the documented commands for a cluster by name; refuse one that no test runs."""
    lines: dict[str, str] = {}
    for block in documents.of_kind("sh cluster"):
        for line in block.commands:
            names = [name for name in DOCUMENTED if name in line]
            assert len(names) == 1, f"{block.place}: no test runs this: {line}"
            assert names[0] not in lines, f"{block.place}: only one of these is run: {line}"
            lines[names[0]] = line
    assert set(lines) == set(DOCUMENTED)
    return lines


def tag() -> str:
    """Return the name that the documented build gives the image."""
    [found] = [
        name
        for b in documents.of_kind("sh image")
        for name in re.findall(r"--tag[ =](\S+)", b.text)
    ]
    return str(found)


def test_every_documented_command_for_a_cluster_is_one_that_is_run() -> None:
    documented()


def test_the_documented_commands_for_a_cluster(kubernetes: Cluster) -> None:
    """Run each line as printed, but for POD. The node has the image that it would pull."""
    node, lines = kubernetes.node, documented()
    before = state(node)
    images.give(node, tag())
    forget_restarts(node)
    kubernetes.shell(lines.pop("helm install"))
    roll_out(kubernetes)
    assert state(node) != before
    [pod] = kubernetes.get("pods", IN)["items"]
    assert pod["spec"]["containers"][0]["image"] == tag()
    tested = kubernetes.shell(lines.pop("helm test"))
    assert re.search(r"Phase: +Succeeded", tested.stdout), tested.stdout
    words = "a container was started through the RuntimeClass nvidia on the node node"
    # helm writes the log of a hook to stderr.
    assert words in tested.stdout + tested.stderr
    # The pod that ended is gone, so the handler is not in use.
    assert {each["metadata"]["name"] for each in kubernetes.get("pods", IN)["items"]} == {
        pod["metadata"]["name"]
    }
    sweep(node)
    look_over(kubernetes, lines)
    look_into(kubernetes, pod, lines.pop("exec POD"), lines.pop("logs POD"))
    told = last_words(kubernetes, lambda: kubernetes.shell(lines.pop("helm uninstall")))
    assert "the node was reverted" in told, told
    assert state(node) == before
    assert objects(kubernetes) == {"Role", "RoleBinding", "ServiceAccount"}
    assert report_objects(kubernetes) == {
        "ClusterRole": 1, "ClusterRoleBinding": 1,
        "ValidatingAdmissionPolicy": 2, "ValidatingAdmissionPolicyBinding": 2,
    }  # fmt: skip
    kubernetes.shell(lines.pop("delete rolebinding"))
    assert objects(kubernetes) == set()
    assert report_objects(kubernetes) == {}
    images.give(
        node,
        helm.container(helm.objects((deploy.MANIFESTS / "daemonset.yaml").read_text("utf-8")))[
            "image"
        ],
    )
    forget_restarts(node)
    kubernetes.shell(lines.pop("apply --kustomize deploy/manifests"))
    roll_out(kubernetes)
    assert state(node) != before
    told = last_words(kubernetes, lambda: kubernetes.shell(lines.pop("delete daemonset")))
    assert "the node was reverted" in told, told
    assert state(node) == before
    kubernetes.shell(lines.pop("delete --kustomize deploy/manifests"))
    assert "NotFound" in kubernetes.kubectl("get", "namespace", helm.NAMESPACE, check=False).stderr
    set_up_and_revert_by_jobs(kubernetes, lines)
    assert lines == {}
    real.USED.add(
        f"helm {versions.HELM[helm.MAJORS[0]]} and kubectl {cluster.VERSION},"
        " by the documents' lines for a cluster"
    )


def set_up_and_revert_by_jobs(kubernetes: Cluster, lines: dict[str, str]) -> None:
    """Run the documented lines for sites without a DaemonSet, with a pod of a user in between."""
    node = kubernetes.node
    before = state(node)
    forget_restarts(node)
    kubernetes.kubectl("label", "node", "node", "nvidia-toolkit/batch=1")
    kubernetes.shell(lines.pop("apply --kustomize deploy/jobs"))
    kubernetes.shell(lines.pop("install.yaml"))
    kubernetes.shell(lines.pop("component=install"))
    assert state(node) != before
    [job] = kubernetes.get("jobs", IN)["items"]
    assert job["metadata"]["annotations"]["nvidia-toolkit/node"] == "node"
    kubernetes.kubectl("apply", "--filename=-", text=json.dumps(A_POD))
    kubernetes.until(
        lambda: kubernetes.get("pod", "user")["status"]["phase"] == "Succeeded",
        "the pod of a user",
    )
    kubernetes.kubectl("delete", "pod", "user", "--wait=true")
    sweep(node)
    kubernetes.shell(lines.pop("revert.yaml"))
    kubernetes.shell(lines.pop("component=revert"))
    assert state(node) == before
    kubernetes.shell(lines.pop("delete --kustomize deploy/jobs"))
    kubernetes.kubectl("label", "node", "node", "nvidia-toolkit/batch-")
    real.USED.add(f"Jobs that set a node up and revert it, on Kubernetes {versions.KUBERNETES}")


def report_objects(kubernetes: Cluster) -> Counter[str]:
    """Return how many objects of the report there are outside of namespaces, by kind."""
    found = kubernetes.get(
        "clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding",
        f"--selector=app.kubernetes.io/instance={helm.RELEASE}",
    )
    return Counter(each["kind"] for each in found["items"])


def look_over(kubernetes: Cluster, lines: dict[str, str]) -> None:
    """Run the documented lines that show the fleet, and those that clean up by hand."""
    kubernetes.until(lambda: label(kubernetes) == "true", "the label")
    said = kubernetes.shell(lines.pop("--selector nvidia-toolkit.io/ready=true")).stdout
    assert [line.split()[0] for line in said.splitlines()] == ["NAME", "node"]
    head, row = kubernetes.shell(lines.pop("custom-columns")).stdout.splitlines()
    assert head.split() == ["NODE", "READY", "SINCE", "REASON", "MESSAGE"]
    name, ready, _, reason, *message = row.split()
    assert (name, ready, reason) == ("node", "True", "Verified")
    assert re.fullmatch(r"nvidia-toolkit \S+ containerd 2\.\S+", " ".join(message)), row
    said = kubernetes.shell(lines.pop("get events")).stdout
    assert re.search(r"^default +.* SetUp +node/node +the node is set up: ", said, re.MULTILINE)
    assert re.search(rf"^{helm.NAMESPACE} +.* SetUp +pod/nvidia-toolkit-", said, re.MULTILINE)
    kubernetes.shell(lines.pop("label node NODE").replace("NODE", "node"))
    assert label(kubernetes) is None
    assert CONDITION in condition_types(kubernetes)
    kubernetes.shell(lines.pop("patch node NODE").replace("NODE", "node"))
    assert condition_types(kubernetes) >= {"Ready", "MemoryPressure"}
    assert CONDITION not in condition_types(kubernetes)
    kubernetes.kubectl("label", "node", "node", "example.com/old=true")
    kubernetes.shell(lines.pop("label nodes --all").replace("OLD", "example.com/old"))
    assert "example.com/old" not in kubernetes.get("node", "node")["metadata"]["labels"]


def condition_types(kubernetes: Cluster) -> set[str]:
    """Return the types of the node's conditions."""
    return {each["type"] for each in kubernetes.get("node", "node")["status"]["conditions"]}


def look_into(kubernetes: Cluster, pod: Mapping[str, Any], diagnose: str, previous: str) -> None:
    """Query a pod with the documented lines; the second also after an earlier container."""
    name = pod["metadata"]["name"]
    said = kubernetes.shell(diagnose.replace("POD", name)).stdout
    found = said.partition("\n\n")[0].splitlines()
    # The machine may have no driver.
    assert found[0] == "findings", said
    assert [
        line for line in found if re.match(r"  \d+\. ", line) and "driver is not" not in line
    ] == []
    assert "\n  runtime: containerd\n" in said
    previous = previous.replace("POD", name)
    refused = kubernetes.shell(previous, check=False)
    assert (
        f'previous terminated container "nvidia-toolkit" in pod "{name}" not found'
        in refused.stderr
    )
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    nodes.run(
        kubernetes.node,
        ("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container),
    )

    def is_back() -> bool:
        [status] = kubernetes.get("pod", name, IN)["status"]["containerStatuses"]
        return bool(status["restartCount"] == 1 and status["ready"])

    kubernetes.until(is_back, "the container is not started again")
    said = kubernetes.shell(previous).stdout
    assert "set up; watching" in said, said
