"""The chart's report of a node's state: when it is on, with which rights, and who waits for it."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.cluster.test_chart import env
from tests.support import documents, helm

NEW: Final = "--kube-version=1.30.0"
OLD: Final = "--kube-version=1.29.9"
POLICIES: Final = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
RIGHTS: Final = {"ClusterRole", "ClusterRoleBinding"}
LABEL: Final = "nvidia-toolkit.io/ready"


def mode(word: str) -> list[str]:
    return ["--set", f"nodeReport.enabled={word}"]


def kinds(found: list[dict[str, Any]]) -> set[str]:
    return {each["kind"] for each in found} & (POLICIES | RIGHTS)


def is_reporting(found: list[dict[str, Any]]) -> bool:
    """Return whether the pods report, whose token and variables must agree on that."""
    variables = helm.environment(found)
    is_on = variables.get("TOOLKIT_NODE_LABEL") == LABEL
    assert (variables.get("TOOLKIT_EVENTS") == "true") is is_on
    assert any(each["name"] == "POD_UID" for each in helm.container(found)["env"]) is is_on
    return is_on


def selectors(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the node selector of each RuntimeClass."""
    return {
        each["metadata"]["name"]: each.get("scheduling", {}).get("nodeSelector")
        for each in found
        if each["kind"] == "RuntimeClass"
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([NEW], POLICIES | RIGHTS),
        ([NEW, *mode("true")], POLICIES | RIGHTS),
        ([NEW, *mode("without-policy")], POLICIES | RIGHTS),
        ([OLD, *mode("without-policy")], RIGHTS),
    ],
)
def test_where_it_is_on_it_has_its_rights_and_where_possible_the_policies(
    options: list[str], expected: set[str]
) -> None:
    found = helm.rendered(*options)
    assert is_reporting(found)
    assert kinds(found) == expected
    for each in found:
        if each["kind"] in expected:
            assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    assert pod["tolerations"][-1] == {
        "key": "readiness.k8s.io/nvidia-toolkit",
        "operator": "Exists",
    }
    # Without a cluster to ask, nothing says that the nodes have the label.
    assert set(selectors(found).values()) == {None}
    found = helm.rendered(*options, "--set", "nodeReport.scheduling=true")
    selected = {name for name, each in selectors(found).items() if each == {LABEL: "true"}}
    assert selected == {"nvidia", "nvidia-cdi", "nvidia-legacy"}


@pytest.mark.parametrize(
    "options",
    [
        [OLD],
        [NEW, *mode("false")],
        [NEW, "--set", "rbac.create=false"],
        [NEW, "--set", "nodeReport.label=,nodeReport.condition=,nodeReport.events=false"],
    ],
)
def test_where_it_is_off_nothing_is_left_of_it(options: list[str]) -> None:
    found = helm.rendered(*options, *env(TOOLKIT_ON_EXIT="keep"))
    assert not is_reporting(found)
    assert kinds(found) == set()
    assert set(selectors(found).values()) == {None}
    pod = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_the_only_rights_are_to_patch_the_status_of_nodes_and_to_write_events() -> None:
    found = helm.rendered(NEW)
    assert helm.one(found, "ClusterRole")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    ]
    found = helm.rendered(NEW, "--set", "nodeReport.events=false")
    [rule] = helm.one(found, "ClusterRole")["rules"]
    assert rule["resources"] == ["nodes/status"]
    found = helm.rendered(NEW, "--set", "nodeReport.label=,nodeReport.condition=")
    [rule] = helm.one(found, "ClusterRole")["rules"]
    assert rule["resources"] == ["events"]


def test_a_version_without_policies_is_refused_if_it_is_asked_for() -> None:
    said = helm.refusal(OLD, *mode("true"))
    assert "nodeReport.enabled=true: Kubernetes v1.29.9 has no ValidatingAdmissionPolicy" in said
    assert "without-policy" in said


def test_the_account_of_every_pod_of_a_namespace_gets_no_rights() -> None:
    shared = ("--set", "serviceAccount.create=false")
    found = helm.rendered(NEW, *shared)
    assert not is_reporting(found)
    assert kinds(found) == set()
    for word in ("true", "without-policy"):
        said = helm.refusal(NEW, *shared, *mode(word))
        assert f"nodeReport.enabled={word}: the account `default` is that of every pod" in said
    assert is_reporting(helm.rendered(NEW, *shared, "--set", "serviceAccount.name=own"))


@pytest.mark.parametrize("name", ["label", "condition"])
@pytest.mark.parametrize("prefix", ["kubernetes.io", "node-role.kubernetes.io", "k8s.io"])
def test_a_name_of_kubernetes_is_refused(name: str, prefix: str) -> None:
    said = helm.refusal(NEW, "--set", f"nodeReport.{name}={prefix}/Ready")
    assert f"nodeReport.{name}: {prefix}/Ready belongs to Kubernetes" in said


def test_the_variables_are_set_by_values_alone() -> None:
    said = helm.refusal(NEW, *env(TOOLKIT_NODE_LABEL="example.com/ready"))
    assert "TOOLKIT_NODE_LABEL cannot be set here: set nodeReport.label" in said


def test_another_label_is_in_the_policy_as_well() -> None:
    found = helm.rendered(NEW, "--set", "nodeReport.label=example.com/gpu")
    [policy] = [
        each
        for each in found
        if each["kind"] == "ValidatingAdmissionPolicy"
        and not each["metadata"]["name"].endswith("-events")
    ]
    expressions = [each["expression"] for each in policy["spec"]["validations"]]
    assert sum("'example.com/gpu'" in each for each in expressions) == 1
    assert not any(LABEL in each for each in expressions)


@pytest.mark.parametrize("name", ["a b", "a'b", "-x/y", "x/y/z", "x/", "x/ready-", "Ready"])
def test_what_is_no_name_of_a_label_is_refused(name: str) -> None:
    assert "/nodeReport/label" in helm.refusal(NEW, "--set", f"nodeReport.label={name}")


def test_the_rule_of_the_node_readiness_controller_fits_the_chart() -> None:
    """The document shows the file, and its taint keeps no pod of the chart from a new node."""
    path = helm.ROOT / "deploy/examples/node-readiness-rule.yaml"
    [rule] = helm.objects(path.read_text(encoding="utf-8"))
    shown = [
        each
        for block in documents.of_kind("yaml")
        for each in helm.objects(block.text)
        if each.get("kind") == rule["kind"]
    ]
    assert shown == [rule]
    found = helm.rendered(NEW)
    assert rule["spec"]["conditions"] == [
        {"type": helm.environment(found)["TOOLKIT_NODE_CONDITION"], "requiredStatus": "True"}
    ]
    tolerated = helm.one(found, "DaemonSet")["spec"]["template"]["spec"]["tolerations"]
    assert {"key": rule["spec"]["taint"]["key"], "operator": "Exists"} in tolerated
