"""Checks that the files under deploy/ agree, are hardened, and let only known callers in."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from treadle.server.config import ServerConfig

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


def _container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any]
    [container] = _pod(objects)["spec"]["containers"]
    return container


def _kubernetes_settings(objects: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in _container(objects)["env"]}


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    """The one service of the Compose file."""
    services: dict[str, dict[str, Any]]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]
    [service] = services.values()
    return service


@pytest.fixture(params=["compose", "kubernetes"])
def settings(
    request: pytest.FixtureRequest, service: dict[str, Any], objects: dict[str, dict[str, Any]]
) -> dict[str, str]:
    """The variables that each of the two sets."""
    if request.param == "kubernetes":
        return _kubernetes_settings(objects)
    variables: dict[str, str] = service["environment"]
    return variables


def test_every_variable_is_a_setting(settings: dict[str, str]) -> None:
    names = {f"TREADLE_{field.name.upper()}" for field in dataclasses.fields(ServerConfig)}
    assert set(settings) <= names


def test_callers_need_tls_and_a_token(settings: dict[str, str]) -> None:
    for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "CALLERS_FILE", "STATE_KEY_FILE"):
        assert settings[f"TREADLE_{name}"].startswith("/run/secrets/")
    assert settings["TREADLE_AUDIT_LOG"] == "-"
    public = settings.get("TREADLE_PUBLIC_SERVICES", ServerConfig().public_services)
    assert public == "health", "reflection lists the calls"


def test_compose_mounts_the_folder_of_secrets(service: dict[str, Any]) -> None:
    """The folder, since a mounted file would not follow one that takes its place."""
    [mount] = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert mount["read_only"] is True
    assert mount["bind"] == {"create_host_path": False}
    for value in service["environment"].values():
        if value.startswith("/run/"):
            assert str(PurePosixPath(value).parent) == mount["target"]


def test_kubernetes_mounts_secrets_as_folders(objects: dict[str, dict[str, Any]]) -> None:
    spec = _pod(objects)["spec"]
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    folders = set()
    for mount in _container(objects)["volumeMounts"]:
        if mount["name"] in secrets:
            assert mount["readOnly"] is True
            assert "subPath" not in mount
            folders.add(mount["mountPath"])
    assert len(folders) == len(secrets) == 2
    files = [value for value in _kubernetes_settings(objects).values() if value[:5] == "/run/"]
    assert {str(PurePosixPath(file).parent) for file in files} == folders
    for secret in secrets.values():
        assert secret["defaultMode"] & 0o227 == 0, "others may not read, the group not write"


def test_compose_takes_every_right_from_the_container(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "user", "devices", "network_mode", "pid"}.isdisjoint(service)
    [tmp] = service["tmpfs"]
    assert tmp.startswith("/tmp:")
    assert {"noexec", "nosuid", "nodev"} <= set(tmp.partition(":")[2].split(","))
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_the_pod_fits_the_restricted_standard(objects: dict[str, dict[str, Any]]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    spec = _pod(objects)["spec"]
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"persistentVolumeClaim", "emptyDir", "secret"}
    container = _container(objects)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_no_secret_is_in_the_files(settings: dict[str, str]) -> None:
    """They name files; a value in a variable would be in `docker inspect` and in process lists."""
    for name, value in settings.items():
        assert "TOKEN" not in name
        if "KEY" in name:
            assert value.startswith("/run/secrets/")


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
    assert [(port["port"], port["protocol"]) for port in rule["ports"]] == [("grpc", "TCP")]


def test_the_service_leads_to_the_port_of_the_calls(objects: dict[str, dict[str, Any]]) -> None:
    ports = {port["name"]: port["containerPort"] for port in _container(objects)["ports"]}
    assert set(ports) == {"grpc", "health"}
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == ["grpc"]
    health = _kubernetes_settings(objects)["TREADLE_HEALTH_ADDRESS"]
    assert health.rpartition(":")[2] == str(ports["health"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert _container(objects)[probe]["grpc"] == {"port": ports["health"]}


def test_compose_publishes_on_this_machine_alone(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
