"""Checks that the files under deploy/ agree: labels, ports, and who may call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

DEPLOY = Path(__file__).parents[1] / "deploy"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The Kubernetes objects by their kind; there is one of each."""
    read = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    by_kind = {item["kind"]: item for item in read}
    assert len(by_kind) == len(read)
    return by_kind


def _pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    template: dict[str, Any] = objects["Deployment"]["spec"]["template"]
    return template


def test_what_selects_pods_selects_those_of_the_deployment(
    objects: dict[str, dict[str, Any]],
) -> None:
    labels = _pod(objects)["metadata"]["labels"].items()
    selectors = (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    )
    for selector in selectors:
        assert selector
        assert selector.items() <= labels


def test_the_network_policy_lets_in_labelled_callers_of_the_port_alone(
    objects: dict[str, dict[str, Any]],
) -> None:
    policy = objects["NetworkPolicy"]
    assert policy["apiVersion"] == "networking.k8s.io/v1"
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["egress"] == []
    [rule] = spec["ingress"]
    [caller] = rule["from"]
    assert set(caller) == {"podSelector"}, "other namespaces stay out"
    assert caller["podSelector"] == {"matchLabels": {"treadle-access": "true"}}
    [container] = _pod(objects)["spec"]["containers"]
    ports = [(port["name"], "TCP") for port in container["ports"]]
    assert [(port["port"], port["protocol"]) for port in rule["ports"]] == ports


def test_the_service_leads_to_a_port_of_the_container(objects: dict[str, dict[str, Any]]) -> None:
    [container] = _pod(objects)["spec"]["containers"]
    names = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == names
    probes = [container[probe]["grpc"]["port"] for probe in ("startupProbe", "livenessProbe")]
    assert set(probes) == {port["containerPort"] for port in container["ports"]}


def test_compose_publishes_on_this_machine_alone() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(str(port).startswith("127.0.0.1:") for port in published)
