"""The manifests, as kustomize builds them: schemas, settings, security, and who names whom."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from ingest.cli import app
from ingest.config import PREFIX, Settings, load
from ingest.lab.embedded import Mosquitto
from ingest.lab.until import until
from tests.prometheus import ask, program, prometheus
from tests.support import (
    publisher,
    sample,
    working,
)

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ["dev", "prod", "scale"]
CUSTOM = {"ServiceMonitor", "ScaledObject"}
"""Kinds that Kubernetes' own schemas do not have."""
Manifest = dict[str, Any]


@cache
def build(overlay: str) -> list[Manifest]:
    tool = shutil.which("kustomize") or shutil.which(
        "kustomize", path=str(Path(sys.prefix) / "kustomize")
    )
    if tool is None:
        pytest.skip("no kustomize: tests/install-tools makes it where there is Go")
    text = subprocess.check_output([tool, "build", str(K8S / "overlays" / overlay)], text=True)
    return list(yaml.safe_load_all(text))


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in build(overlay) if manifest["kind"] in kinds]


def pods(overlay: str) -> Iterator[tuple[str, Manifest]]:
    """(name, pod template) of whatever runs pods."""
    for manifest in of_kind(overlay, "StatefulSet", "Deployment", "Job"):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field(overlay: str) -> None:
    for manifest in build(overlay):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, "1.34", strict=True)
    names = [(m["kind"], m["metadata"]["name"]) for m in build(overlay)]
    assert len(set(names)) == len(names)
    namespace = "iov-dev" if overlay == "dev" else "iov"
    for manifest in build(overlay):
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace


def environment(overlay: str, container: Manifest) -> dict[str, str]:
    """What a container's process has, of secrets what their example says."""
    found: dict[str, str] = {}
    examples = yaml.safe_load_all((K8S / "overlays/prod/secrets.example.yaml").read_text())
    secrets = {s["metadata"]["name"]: s["stringData"] for s in examples}
    for manifest in of_kind(overlay, "Secret"):
        secrets[manifest["metadata"]["name"]] = {
            key: base64.b64decode(value).decode() for key, value in manifest["data"].items()
        }
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(overlay, "ConfigMap")}
    for source in container.get("envFrom", []):
        (kind, reference), *_ = source.items()
        found |= (maps if kind == "configMapRef" else secrets)[reference["name"]]
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value", "iov-ingest-0")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists_and_the_settings_are_complete(overlay: str) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    ours = [
        (name, template["spec"]["containers"][0])
        for name, template in pods(overlay)
        if name.startswith("iov-ingest")
    ]
    assert len(ours) == 2
    for _, container in ours:
        environ = environment(overlay, container)
        settings = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        assert settings.keys() <= known
        mounted = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for name in [name for name in settings if name.endswith("_FILE")]:
            path = settings.pop(name)
            assert any(path.startswith(f"{place}/") for place in mounted), name
        load(environ=settings, needs=["IOV_DATABASE_URL", "IOV_MQTT_URL"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_keeps_to_the_restricted_standard(overlay: str) -> None:
    """Source: Kubernetes, "Pod Security Standards"."""
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pods(overlay):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"]["drop"] == ["ALL"], name
        assert {next(iter(v.keys() - {"name"})) for v in spec.get("volumes", [])} <= {
            "configMap", "secret", "emptyDir",
        }, name  # fmt: skip
        tag = spec["containers"][0]["image"].rpartition(":")[2]
        assert tag not in {"latest", ""}, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_names_whom(overlay: str) -> None:
    (worker,) = of_kind(overlay, "StatefulSet")
    name, template = worker["metadata"]["name"], worker["spec"]["template"]
    labels = template["metadata"]["labels"]
    (role,) = of_kind(overlay, "Role")
    assert role["rules"] == [
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": [name],
         "verbs": ["get"]},
    ]  # fmt: skip
    (service,) = [s for s in of_kind(overlay, "Service") if s["metadata"]["name"] == name]
    assert worker["spec"]["serviceName"] == name
    selectors = [service["spec"]["selector"], worker["spec"]["selector"]["matchLabels"]]
    budgets = of_kind(overlay, "PodDisruptionBudget")
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in budgets]
    spreads = template["spec"]["topologySpreadConstraints"]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in spreads]
    policies = of_kind(overlay, "NetworkPolicy")
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in policies]
    assert len(selectors) >= 5
    assert all(selector.items() <= labels.items() for selector in selectors)
    for monitor in of_kind(overlay, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    (container,) = template["spec"]["containers"]
    default = Settings.model_fields["http_port"].default
    assert container["ports"] == [{"name": "http", "containerPort": default}]
    assert template["spec"]["enableServiceLinks"] is False
    job_labels = dict(pods(overlay))["iov-ingest-migrate"]["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= job_labels.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_commands_exist(overlay: str) -> None:
    for name, template in pods(overlay):
        if not name.startswith("iov-ingest"):
            continue
        (container,) = template["spec"]["containers"]
        commands = [container["args"]]
        if hook := container.get("lifecycle", {}).get("preStop"):
            program_, *command = hook["exec"]["command"]
            assert program_ == "iov-ingest"
            assert command == ["leave", "--if-scaled-in"]
            commands.append(command)
        for command in commands:
            ended = CliRunner().invoke(app, [*command, "--help"])
            assert ended.exit_code == 0, command


def test_workers_are_counted_by_what_they_do_and_by_keda_alone() -> None:
    (worker,) = of_kind("scale", "StatefulSet")
    assert "replicas" not in worker["spec"]
    (scaled,) = of_kind("scale", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == worker["metadata"]["name"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert len(queries) == 2
    assert not any("lag" in query for query in queries)
    # A writer that does not wait is busy at any load.
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert int(environment("scale", container)["IOV_BATCH_WAIT_MS"]) >= 10


async def test_a_real_prometheus_answers_what_keda_asks(
    broker: Mosquitto, database: Any, catalogue: Any, tmp_path: Path
) -> None:
    program("prometheus")
    (scaled,) = of_kind("scale", "ScaledObject")
    async with (
        working(broker.url, database.url, catalogue) as worker,
        prometheus(tmp_path, worker.service.http_port or 0) as url,
        publisher(broker.url) as publish,
    ):
        await until(lambda: ask(url, "iov_ready == 1"), "the first scrape")
        for seq in range(20):
            await publish(sample(seq))
        await worker.settles(20)
        await until(lambda: ask(url, "sum(iov_samples_stored_total) == 20"))
        for trigger in scaled["spec"]["triggers"]:
            assert trigger["metricType"] == "Value"
            # Only a cluster gives targets a namespace.
            query = trigger["metadata"]["query"].replace(', namespace="iov"', "")
            (answer,) = await ask(url, query)
            assert 0 <= float(answer["value"][1]) < float(trigger["metadata"]["threshold"])
