"""Checks that the files under deploy/ agree, are hardened, and let only known callers in."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import promql_parser
import psycopg
import pytest
import yaml  # type: ignore[import-untyped]
from kustomization import MERGE_KEYS, Object, documents, render

from treadle.server.cli import build_parser, read_config
from treadle.server.config import ServerConfig
from treadle.server.storage.blobs.opening import url_fault
from treadle.server.telemetry.server_state import READINGS

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("single", "replicas", "ray")
OLDEST = "1.27"
"""The first Kubernetes whose probes know gRPC."""

Objects = dict[str, Object]
"""Objects by kind and name."""


def _named(objects: list[Object]) -> Objects:
    named = {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}
    assert len(named) == len(objects)
    return named


OBJECTS = {overlay: _named(render(KUBERNETES / overlay)) for overlay in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> Objects:
    """The Kubernetes objects of each overlay."""
    return OBJECTS[request.param]


def _pod(objects: Objects) -> dict[str, Any]:
    template: dict[str, Any] = objects["Deployment/treadle"]["spec"]["template"]
    return template


def _container(objects: Objects) -> dict[str, Any]:
    container: dict[str, Any]
    [container] = _pod(objects)["spec"]["containers"]
    return container


def _kubernetes_settings(objects: Objects) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in _container(objects)["env"]}


def _compose(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text("utf-8"))
    return read


def _servers(name: str) -> dict[str, dict[str, Any]]:
    """Returns the services of a Compose file that run Treadle."""
    services = _compose(name)["services"]
    return {name: service for name, service in services.items() if name[:7] == "treadle"}


SERVERS = {
    "compose": _servers("compose.yaml")["treadle"],
    "compose.replicas 1": _servers("compose.replicas.yaml")["treadle-1"],
    "compose.replicas 2": _servers("compose.replicas.yaml")["treadle-2"],
}


@pytest.fixture(params=sorted(SERVERS))
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each service of the Compose files that runs Treadle."""
    return SERVERS[request.param]


def _all_settings() -> Iterator[tuple[str, dict[str, str]]]:
    for name, service in SERVERS.items():
        yield name, service["environment"]
    for overlay, objects in OBJECTS.items():
        yield overlay, _kubernetes_settings(objects)


SETTINGS = dict(_all_settings())
REPLICAS = ("compose.replicas 1", "compose.replicas 2", "replicas")


@pytest.fixture(params=sorted(SETTINGS))
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """The variables that each file sets."""
    return SETTINGS[request.param]


def test_callers_need_tls_and_a_token(settings: dict[str, str]) -> None:
    for name in ("TLS_CERT_FILE", "TLS_KEY_FILE", "CALLERS_FILE", "STATE_KEY_FILE"):
        assert settings[f"TREADLE_{name}"].startswith("/run/secrets/")
    assert settings["TREADLE_AUDIT_LOG"] == "-"
    public = settings.get("TREADLE_PUBLIC_SERVICES", ServerConfig().public_services)
    assert public == "health", "reflection lists the calls"


@pytest.mark.parametrize("name", REPLICAS)
def test_replicas_share_the_database_and_the_blobs(name: str) -> None:
    settings = SETTINGS[name]
    assert settings["TREADLE_DATABASE_URL"].startswith("postgresql://")
    assert settings["TREADLE_BLOBS_URL"].startswith("s3://")


def test_no_secret_is_in_the_files(settings: dict[str, str]) -> None:
    """They name files; a value in a variable would be in `docker inspect` and in process lists."""
    for name, value in settings.items():
        assert not {"TOKEN", "PASSWORD", "SECRET"} & set(name.split("_"))
        if "KEY" in name:
            assert value.startswith("/run/secrets/")
        if name.endswith("_URL"):
            assert "@" not in value, "a user, and perhaps a password"


def test_compose_mounts_the_folder_of_secrets(service: dict[str, Any]) -> None:
    """The folder, since a mounted file would not follow one that takes its place."""
    [mount] = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert mount["read_only"] is True
    assert mount["bind"] == {"create_host_path": False}
    for value in service["environment"].values():
        if value.startswith("/run/"):
            assert str(PurePosixPath(value).parent) == mount["target"]


def test_kubernetes_mounts_secrets_as_folders(objects: Objects) -> None:
    spec = _pod(objects)["spec"]
    secrets = {volume["name"]: volume["secret"] for volume in spec["volumes"] if "secret" in volume}
    folders = set()
    for mount in _container(objects)["volumeMounts"]:
        if mount["name"] in secrets:
            assert mount["readOnly"] is True
            assert "subPath" not in mount
            folders.add(mount["mountPath"])
    assert len(folders) == len(secrets) >= 2
    files = [value for value in _kubernetes_settings(objects).values() if value[:5] == "/run/"]
    assert {str(PurePosixPath(file).parent) for file in files} == folders
    for secret in secrets.values():
        assert secret["defaultMode"] & 0o227 == 0, "others may not read, the group not write"


def test_compose_takes_every_right_from_the_container(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "user", "devices", "network_mode", "pid"}.isdisjoint(service)
    folders = {folder.partition(":")[0]: folder.partition(":")[2] for folder in service["tmpfs"]}
    assert "/tmp" in folders
    for options in folders.values():
        assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_what_replicas_need_is_as_hardened() -> None:
    services = _compose("compose.replicas.yaml")["services"]
    others = {name: service for name, service in services.items() if name[:7] != "treadle"}
    assert {"database", "objectstore"} < set(others)
    for name, service in others.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "pids_limit"} <= set(service), name
        assert not {"ports", "privileged", "devices", "pid"} & set(service), name
        assert ":" in service["image"].rpartition("/")[2], f"{name} names no version"
        if name == "objectstore-volume":  # root, with one right, without a network, for a moment
            assert service["cap_add"] == ["CHOWN"]
            assert service["network_mode"] == "none"
            assert service["restart"] == "no"
            continue
        assert "cap_add" not in service, name
        assert service["user"].partition(":")[0] not in ("", "0", "root"), name
        assert service["networks"] == ["storage"], name
    assert _compose("compose.replicas.yaml")["networks"]["storage"] == {"internal": True}


def test_services_wait_for_what_is_healthy() -> None:
    services = _compose("compose.replicas.yaml")["services"]
    seen = set()
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            seen.add(how["condition"])
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"][0] == "CMD", needed
            else:
                assert services[needed]["restart"] == "no", f"{name} waits for the end of {needed}"
    assert seen == {"service_healthy", "service_completed_successfully"}


def test_compose_replicas_differ_in_their_ports_alone() -> None:
    [first, second] = _servers("compose.replicas.yaml").values()
    assert first["ports"] != second["ports"]
    assert first | {"ports": []} == second | {"ports": []}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same(overlay: str) -> None:
    """These tests read what `render` makes of a kustomization: kubectl must make the same."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    rendered = _named(list(yaml.safe_load_all(printed)))
    assert _sorted(rendered) == _sorted(OBJECTS[overlay])


def _sorted(value: Any, name: str = "") -> Any:
    """Returns a value with lists in the order of their merge keys, which the patch may change."""
    if isinstance(value, dict):
        return {name: _sorted(item, name) for name, item in value.items()}
    if isinstance(value, list):
        items = [_sorted(item) for item in value]
        key = MERGE_KEYS.get(name)
        if key and all(key in item for item in items):
            return sorted(items, key=lambda item: str(item[key]))
        return items
    return value


def test_a_kustomization_with_anything_else_is_refused(tmp_path: Path) -> None:
    """So that no field is silently left out of what these tests see."""
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: my-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_manifests_fit_the_published_schemas(objects: Objects, version: str) -> None:
    for item in objects.values():
        if item["kind"] == "RayCluster":
            continue  # no published schema here has it: see the next test
        kubernetes_validate.validate(item, version, strict=True)


def test_the_pods_of_the_ray_cluster_fit_the_schemas_and_the_restricted_standard() -> None:
    """Of a RayCluster, which KubeRay defines, these are the parts that Kubernetes knows."""
    pods = _ray_pods()
    assert set(pods) == {"ray-head", "ray-worker"}
    for name, template in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **template}
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(pod, version, strict=True)
        _check_restricted(template["spec"])
        assert {volume["name"] for volume in template["spec"]["volumes"]} == {"tmp"}
        [container] = template["spec"]["containers"]
        ports = {port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["tcpSocket"]["port"] in ports


def test_the_server_and_the_ray_cluster_agree() -> None:
    objects = OBJECTS["ray"]
    settings = SETTINGS["ray"]
    assert settings["TREADLE_EXECUTOR"] == "ray"
    cluster = objects["RayCluster/treadle-ray"]
    service = f"{cluster['metadata']['name']}-head-svc"  # as KubeRay names it
    [head, worker] = _ray_pods().values()
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    assert settings["TREADLE_RAY_ADDRESS"] == f"ray://{service}:{ports['client']}"
    images = {pod["spec"]["containers"][0]["image"] for pod in (head, worker)}
    assert images == {_container(objects)["image"]}
    cpus = worker["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    assert int(settings["TREADLE_THREADS"]) <= int(cpus), "no node could run a job"
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_nobody_but_the_server_reaches_the_ray_cluster() -> None:
    """Ray asks nobody who they are, and runs what they send."""
    policy = OBJECTS["ray"]["NetworkPolicy/treadle-ray"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    allowed = [
        selector["podSelector"]["matchLabels"]
        for rule in policy["ingress"]
        for selector in rule["from"]
    ]
    assert allowed == [{"ray.io/cluster": "treadle-ray"}, {"app.kubernetes.io/name": "treadle"}]
    server = OBJECTS["ray"]["NetworkPolicy/treadle"]["spec"]
    [names, head] = server["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert head["to"][0]["podSelector"]["matchLabels"]["ray.io/cluster"] == "treadle-ray"


def _ray_pods() -> dict[str, dict[str, Any]]:
    """Returns the templates of the pods of the Ray cluster by the names of their containers."""
    spec = OBJECTS["ray"]["RayCluster/treadle-ray"]["spec"]
    templates = [group["template"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]
    return {template["spec"]["containers"][0]["name"]: template for template in templates}


def test_the_schemas_find_a_wrong_field() -> None:
    budget = OBJECTS["replicas"]["PodDisruptionBudget/treadle"]
    wrong = budget | {"spec": budget["spec"] | {"maxUnavailables": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailables"):
        kubernetes_validate.validate(wrong, OLDEST, strict=True)


def test_the_pod_fits_the_restricted_standard(objects: Objects) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    spec = _pod(objects)["spec"]
    _check_restricted(spec)
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"persistentVolumeClaim", "emptyDir", "secret"}


def _check_restricted(spec: dict[str, Any]) -> None:
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    [container] = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_a_single_server_keeps_its_data_and_replicas_do_not() -> None:
    kinds = {}
    for overlay, objects in OBJECTS.items():
        [data] = [volume for volume in _pod(objects)["spec"]["volumes"] if volume["name"] == "data"]
        [kinds[overlay]] = data.keys() - {"name"}
    claim = "persistentVolumeClaim"
    assert kinds == {"single": claim, "replicas": "emptyDir", "ray": claim}
    single = OBJECTS["single"]["Deployment/treadle"]["spec"]
    assert single["replicas"] == 1
    assert single["strategy"] == {"type": "Recreate"}


def test_what_selects_pods_selects_those_of_the_deployment(objects: Objects) -> None:
    labels = _pod(objects)["metadata"]["labels"].items()
    selectors = [
        objects["Deployment/treadle"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy/treadle"]["spec"]["podSelector"]["matchLabels"],
    ]
    selectors += [
        item["spec"]["selector"] for item in objects.values() if item["kind"] == "Service"
    ]
    if budget := objects.get("PodDisruptionBudget/treadle"):
        selectors.append(budget["spec"]["selector"]["matchLabels"])
    for constraint in _pod(objects)["spec"].get("topologySpreadConstraints", []):
        selectors.append(constraint["labelSelector"]["matchLabels"])
    for selector in selectors:
        assert selector
        assert selector.items() <= labels


def test_the_network_policy_lets_in_labelled_callers_of_the_port_alone(objects: Objects) -> None:
    policy = objects["NetworkPolicy/treadle"]
    assert policy["apiVersion"] == "networking.k8s.io/v1"
    spec = policy["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    [rule] = [rule for rule in spec["ingress"] if rule["ports"][0]["port"] == "grpc"]
    [caller] = rule["from"]
    assert set(caller) == {"podSelector"}, "other namespaces stay out"
    assert caller["podSelector"] == {"matchLabels": {"treadle-access": "true"}}
    assert [(port["port"], port["protocol"]) for port in rule["ports"]] == [("grpc", "TCP")]


def test_a_single_server_calls_nobody_and_replicas_their_storage() -> None:
    policies = {name: objects["NetworkPolicy/treadle"] for name, objects in OBJECTS.items()}
    assert policies["single"]["spec"]["egress"] == []
    assert len(policies["single"]["spec"]["ingress"]) == 1
    allowed = policies["replicas"]["spec"]["egress"]
    ports = {(port["protocol"], port["port"]) for rule in allowed for port in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("TCP", 5432), ("TCP", 443)}
    [scrape] = [rule for rule in policies["replicas"]["spec"]["ingress"] if "http" in str(rule)]
    assert set(scrape["from"][0]) == {"namespaceSelector"}
    assert SETTINGS["replicas"]["TREADLE_METRICS_ACCESS"] == "public"


def test_the_services_lead_to_the_port_of_the_calls(objects: Objects) -> None:
    ports = {port["name"]: port["containerPort"] for port in _container(objects)["ports"]}
    assert {"grpc", "health"} <= set(ports)
    for item in objects.values():
        if item["kind"] == "Service":
            assert [port["targetPort"] for port in item["spec"]["ports"]] == ["grpc"]
    health = _kubernetes_settings(objects)["TREADLE_HEALTH_ADDRESS"]
    assert health.rpartition(":")[2] == str(ports["health"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert _container(objects)[probe]["grpc"] == {"port": ports["health"]}


def test_clients_can_resolve_all_replicas() -> None:
    """A headless Service, whose name leads to the addresses of the pods that are ready."""
    spec = OBJECTS["replicas"]["Service/treadle-replicas"]["spec"]
    assert spec["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in spec


def test_the_autoscaler_reads_a_metric_that_the_server_has() -> None:
    autoscaler = OBJECTS["replicas"]["HorizontalPodAutoscaler/treadle"]["spec"]
    deployment = OBJECTS["replicas"]["Deployment/treadle"]
    target = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": "treadle"}
    assert autoscaler["scaleTargetRef"] == target
    assert "replicas" not in deployment["spec"], "an apply would set back what it scaled"
    [metric] = autoscaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {reading.name for reading in READINGS}
    [rule] = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text("utf-8"))["rules"][
        "custom"
    ]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    query = rule["metricsQuery"]
    for template, value in {
        "<<.Series>>": name,
        "<<.LabelMatchers>>": 'namespace="default"',
        "<<.GroupBy>>": "pod",
    }.items():
        assert template in query
        query = query.replace(template, value)
    promql_parser.parse(query)
    budget = OBJECTS["replicas"]["PodDisruptionBudget/treadle"]["spec"]
    assert budget["maxUnavailable"] < autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_the_scrape_finds_the_pods_and_names_them_as_the_adapter_needs() -> None:
    [scrape] = documents(DEPLOY / "prometheus-kubernetes.yaml")[0]["scrape_configs"]
    rules = {rule["source_labels"][0]: rule for rule in scrape["relabel_configs"]}
    labels = _pod(OBJECTS["replicas"])["metadata"]["labels"]
    label = rules["__meta_kubernetes_pod_label_app_kubernetes_io_name"]
    assert label["regex"] == labels["app.kubernetes.io/name"]
    names = {port["name"] for port in _container(OBJECTS["replicas"])["ports"]}
    assert rules["__meta_kubernetes_pod_container_port_name"]["regex"] in names
    [rule] = documents(DEPLOY / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    made = {rule.get("target_label") for rule in scrape["relabel_configs"]}
    assert set(rule["resources"]["overrides"]) <= made


def test_compose_publishes_on_this_machine_alone(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])


def test_the_server_takes_every_variable(settings: dict[str, str]) -> None:
    """Each stands in its help, and together they are settings with which a server could start."""
    variables = {name for name in settings if name.startswith("TREADLE_")}
    parser = build_parser()
    assert variables <= set(re.findall(r"TREADLE_\w+", parser.format_help()))
    config = read_config(vars(parser.parse_args([])), settings)
    assert config.shares_storage() == ("TREADLE_DATABASE_URL" in settings)
    assert not url_fault(config.blobs_url or "s3://bucket")


def test_the_database_is_in_a_file_that_libpq_reads() -> None:
    """So that no password is in a variable, and a new one needs no new start."""
    for name in REPLICAS:
        url = SETTINGS[name]["TREADLE_DATABASE_URL"]
        assert psycopg.conninfo.conninfo_to_dict(url) == {"service": "treadle"}
        assert SETTINGS[name]["PGSERVICEFILE"].startswith("/run/secrets/")
