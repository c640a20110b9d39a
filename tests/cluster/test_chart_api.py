"""The chart on a real API server: RuntimeClasses of others, two releases, other handlers.

There is no kubelet and no node: what is looked at are the objects in the cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.support import cluster, helm, real
from tests.support.cluster import ControlPlane
from tests.support.nodes import NodeError

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

HANDLERS: Final = ("nvidia", "nvidia-cdi", "nvidia-legacy")
CRIO: Final = ("--set", "operator.defaultRuntime=crio", "--set", "daemonsets.runtimeHandler=crun")
KEEP: Final = ("--set", "runtimeClasses.keep=true")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with cluster.alone(tmp_path_factory.mktemp("cluster")) as made:
        real.USED.add(f"the chart's objects on the API server of Kubernetes {cluster.VERSION}")
        yield made


@pytest.fixture(autouse=True)
def _clean(server: ControlPlane) -> Iterator[None]:
    yield
    for release in json.loads(server.helm("list", "--all-namespaces", "--output=json")):
        server.helm("uninstall", release["name"], f"--namespace={release['namespace']}")
    server.kubectl("delete", "runtimeclass", "--all", "--wait=false")
    server.kubectl(
        "delete", "role,rolebinding,serviceaccount", "--all-namespaces",
        "--selector=helm.sh/chart",
    )  # fmt: skip


def install(server: ControlPlane, name: str, *options: str, major: str = helm.MAJORS[0]) -> str:
    """Install or upgrade a release in a namespace of its name; return what helm says."""
    return server.helm(
        "upgrade", "--install", name, str(helm.CHART), f"--namespace={name}", "--create-namespace",
        *options, major=major,
    )  # fmt: skip


def uninstall(server: ControlPlane, name: str) -> None:
    server.helm("uninstall", name, f"--namespace={name}")


def classes(server: ControlPlane) -> dict[str, str]:
    """Return the release that each RuntimeClass belongs to; empty where it is none's."""
    return {
        each["metadata"]["name"]: each["metadata"]
        .get("annotations", {})
        .get("meta.helm.sh/release-name", "")
        for each in server.get("runtimeclass")["items"]
    }


def create(server: ControlPlane, name: str, **metadata: Any) -> None:
    """Create a RuntimeClass as somebody else does."""
    made = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name, **metadata},
        "handler": name,
    }
    server.kubectl("create", "--filename=-", text=json.dumps(made))


@pytest.mark.parametrize("major", helm.MAJORS)
def test_the_runtimeclass_that_k3s_ships_is_left_as_it_is(server: ControlPlane, major: str) -> None:
    create(server, "nvidia", labels={"objectset.rio.cattle.io/hash": "x"})
    said = install(server, "gpu", "--set", "operator.distribution=k3s", major=major)
    wanted = {"nvidia": "", "nvidia-cdi": "gpu", "nvidia-legacy": "gpu"}
    own = "gpu-nvidia-toolkit-pod-runc"
    assert "RuntimeClass nvidia is left as it is: it was not created by helm." in said
    assert {name: of for name, of in classes(server).items() if name in HANDLERS} == wanted
    uninstall(server, "gpu")
    assert classes(server) == {"nvidia": ""}
    assert own not in classes(server)


LABEL: Final = {"nvidia-toolkit.io/ready": "true"}
WITH_REPORT: Final = ("--set", "nodeReport.enabled=auto")
"""helm keeps the values of the last release where none are given."""
WITHOUT_REPORT: Final = ("--set", "nodeReport.enabled=false")


def selectors(server: ControlPlane) -> list[Any]:
    """Return the node selectors of the RuntimeClasses of the handlers; None where there is none."""
    found = [server.get("runtimeclass", name) for name in HANDLERS]
    return [each.get("scheduling", {}).get("nodeSelector") for each in found]


def test_pods_wait_for_the_label_only_where_nodes_get_it(server: ControlPlane) -> None:
    install(server, "a", "--set", "daemonsets.nodeSelector.pool=a")
    assert selectors(server) == [None] * 3
    uninstall(server, "a")
    install(server, "a")
    assert selectors(server) == [LABEL] * 3
    # The nodes that run get the label by the upgrade that turns the report on: not yet with it.
    for options, selector in ((WITHOUT_REPORT, None), (WITH_REPORT, None), (WITH_REPORT, LABEL)):
        install(server, "a", *options)
        assert selectors(server) == [selector] * 3


def test_an_account_loses_its_rights_with_the_report(server: ControlPlane) -> None:
    for options in (WITH_REPORT, WITHOUT_REPORT, WITHOUT_REPORT, WITH_REPORT):
        install(server, "a", *options)
        rules = server.get("clusterrole", "a.a-nvidia-toolkit-node-report")["rules"]
        assert bool(rules) == (options == WITH_REPORT)


def test_the_last_step_of_an_uninstallation_leaves_other_releases_alone(
    server: ControlPlane,
) -> None:
    def kept() -> set[str]:
        kinds = (
            "serviceaccount,role,rolebinding,clusterrole,clusterrolebinding,"
            "validatingadmissionpolicy,validatingadmissionpolicybinding"
        )
        found = server.get(kinds, "--all-namespaces", "--selector=helm.sh/chart")["items"]
        return {
            f"{each['metadata'].get('namespace', '')} {each['kind']}/{each['metadata']['name']}"
            for each in found
        }

    before = kept()
    server.helm("install", "same", str(helm.CHART), "--namespace=one", "--create-namespace", *KEEP)
    one = kept() - before
    said = server.helm(
        "install", "same", str(helm.CHART), "--namespace=two", "--create-namespace", *KEEP
    )
    two = kept() - one - before
    assert len(one) == len(two) == 9
    server.helm("uninstall", "same", "--namespace=two")
    [line] = said.rpartition("delete what the pods needed for that:\n")[2].splitlines()
    server.shell(line)
    assert kept() - before == one


def test_without_what_k3s_ships_the_server_s_answer_counts(server: ControlPlane) -> None:
    install(server, "gpu", "--set", "operator.distribution=k3s")
    assert {name: classes(server)[name] for name in HANDLERS} == dict.fromkeys(HANDLERS, "gpu")
    # An upgrade keeps its own, and so does a next one.
    install(server, "gpu", "--set", "operator.distribution=k3s")
    assert {name: classes(server)[name] for name in HANDLERS} == dict.fromkeys(HANDLERS, "gpu")


def test_the_runtimeclasses_of_the_gpu_operator_are_left_as_they_are(server: ControlPlane) -> None:
    owner = {"apiVersion": "nvidia.com/v1", "kind": "ClusterPolicy", "name": "cluster-policy"}
    for name in HANDLERS:
        create(server, name, ownerReferences=[owner | {"uid": "0" * 8}])
    said = install(server, "gpu")
    assert said.count("it belongs to the ClusterPolicy cluster-policy.") == 3
    assert said.count("set toolkit.enabled=false in its ClusterPolicy") == 1
    uninstall(server, "gpu")
    assert classes(server) == dict.fromkeys(HANDLERS, "")


def test_without_the_lookup_the_conflict_is_helm_s(server: ControlPlane) -> None:
    create(server, "nvidia")
    with pytest.raises(NodeError, match=r"nvidia.*exists and cannot be imported"):
        install(server, "gpu", "--set", "runtimeClasses.lookup=false")


@pytest.mark.parametrize("first", ["a", "b"], ids=["first goes first", "second goes first"])
def test_two_releases_share_the_runtimeclasses_in_any_order(
    server: ControlPlane, first: str
) -> None:
    pools: Mapping[str, tuple[str, ...]] = {"a": KEEP, "b": (*KEEP, *CRIO)}
    install(server, "a", *pools["a"])
    said = install(server, "b", *pools["b"])
    assert said.count("it belongs to the release a/a.") == 3
    made = classes(server)
    assert {made[name] for name in HANDLERS} == {"a"}
    own = {"a-nvidia-toolkit-pod-runc": "a", "b-nvidia-toolkit-pod-crun": "b"}
    assert {name.partition(".")[2]: of for name, of in made.items() if name not in HANDLERS} == own
    # Upgrades in the other order change nothing.
    for name in ("b", "a"):
        install(server, name, *pools[name])
        assert classes(server) == made
    other = "b" if first == "a" else "a"
    uninstall(server, first)
    left = classes(server)
    assert set(HANDLERS) < set(left)
    assert [of for name, of in left.items() if name not in HANDLERS] == [other]
    # The one that stays can be upgraded, and the one that went comes back.
    install(server, other, *pools[other])
    install(server, first, *pools[first])
    assert classes(server) == made
    for name in ("a", "b"):
        uninstall(server, name)
    assert set(classes(server)) == set(HANDLERS)


def test_without_keep_an_upgrade_of_the_second_release_creates_them_again(
    server: ControlPlane,
) -> None:
    install(server, "a")
    install(server, "b")
    uninstall(server, "a")
    assert not set(HANDLERS) & set(classes(server))
    install(server, "b")
    assert {classes(server)[name] for name in HANDLERS} == {"b"}


def test_the_same_name_in_two_namespaces(server: ControlPlane) -> None:
    options = ("--create-namespace", "--set", "priorityClass.create=true")
    for namespace in ("one", "two"):
        server.helm("install", "x", str(helm.CHART), f"--namespace={namespace}", *options)
    names = {each["metadata"]["name"] for each in server.get("priorityclass")["items"]}
    assert {"one.x-nvidia-toolkit", "two.x-nvidia-toolkit"} <= names


@pytest.mark.parametrize("major", helm.MAJORS)
def test_another_handler_of_the_pods_is_an_upgrade_like_any_other(
    server: ControlPlane, major: str
) -> None:
    def own() -> tuple[list[str], str | None]:
        spec = server.get("daemonset", "nvidia-toolkit", f"--namespace={helm.NAMESPACE}")["spec"]
        names = [name for name in classes(server) if name not in HANDLERS]
        return names, spec["template"]["spec"].get("runtimeClassName")

    for handler in ("runc", "crun", "none", "runc"):
        install(server, helm.RELEASE, "--set", f"daemonsets.runtimeHandler={handler}", major=major)
        name = f"nvidia-toolkit-pod-{handler}"
        assert own() == (([], None) if handler == "none" else ([name], name))


def test_values_of_all_kinds_are_taken_by_the_api_server(server: ControlPlane) -> None:
    """Not rendered alone: the server refuses what contradicts itself."""
    values = {
        "namespaceOverride": "elsewhere",
        "fullnameOverride": "renamed",
        "commonLabels": {"team": "gpu"},
        "global": {"imageRegistry": "mirror:5000", "imagePullSecrets": ["a", {"name": "b"}]},
        "toolkit": {
            "hostNetwork": True,
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        },
        "cdi": {"enabled": True},
        "daemonsets": {
            "podSecurityContext": {"supplementalGroups": [7]},
            "initContainers": [{"name": "first", "image": "a/b:1"}],
            "updateStrategy": {"type": "OnDelete"},
        },
        "metrics": {"enabled": True},
        "networkPolicy": {"create": True},
        "priorityClass": {"create": True},
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}},
        ],
    }
    server.kubectl("create", "namespace", "elsewhere")
    path = server.home / "values.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    server.helm(
        "install", "gpu", str(helm.CHART), "--namespace=gpu", "--create-namespace",
        f"--values={path}",
    )  # fmt: skip
    made = server.get("daemonset", "renamed", "--namespace=elsewhere")
    template = made["spec"]["template"]
    assert made["spec"]["updateStrategy"]["type"] == "OnDelete"
    assert template["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert template["spec"]["containers"][0]["image"].startswith("mirror:5000/nvidia-toolkit:")
    assert template["spec"]["priorityClassName"] == "elsewhere.renamed"
    uninstall(server, "gpu")
    assert not server.get("daemonset", "--namespace=elsewhere")["items"]
