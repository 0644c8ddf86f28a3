"""Metrics, dashboards and the chart: what is written there exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart
from helm_python.chart import lint
from prometheus_client import REGISTRY, CollectorRegistry

import feedback.curator  # noqa: F401 (registers the curator's metrics)
from deploy.config import keys, load
from feedback.config import KafkaSecurity
from feedback.relay import RelayMetrics
from serve.engines.base import EngineLoad
from serve.metrics import Metrics
from train.metrics import TrainMetrics

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "hustings"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def series() -> dict[str, str]:
    """Every series name that a process exports, and its metric's name and type in one."""
    registry = CollectorRegistry()
    Metrics(registry).watch_engine(EngineLoad, frozenset)
    RelayMetrics(registry)
    found = {}
    for metric in (m for r in (registry, REGISTRY, TrainMetrics().registry) for m in r.collect()):
        if metric.name.startswith("hustings_"):
            suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.type, [""])
            found.update({metric.name + suffix: metric.name for suffix in suffixes})
    return found


def names_in(text: str) -> set[str]:
    return set(re.findall(r"hustings_[a-z_]+", text))


def labels() -> dict[str, tuple[str, ...]]:
    """The labels of every metric by its name, as those who make it wrote it down."""
    registry = CollectorRegistry()
    Metrics(registry).watch_engine(EngineLoad, frozenset)
    RelayMetrics(registry)
    found = {}
    for each in (registry, REGISTRY, TrainMetrics().registry):
        for collector in list(each._collector_to_names):
            for metric in collector.collect():
                name = metric.name + ("_total" if metric.type == "counter" else "")
                found[name] = tuple(getattr(collector, "_labelnames", ()))
    return {name: told for name, told in found.items() if name.startswith("hustings_")}


def test_every_metric_has_a_row_of_its_own_with_its_labels_in_the_documentation() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = []
    for row in (line for line in text.splitlines() if line.startswith("| `hustings_")):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        named = re.fullmatch(r"`([a-z_]+)(?:\{(\w+)\})?`", cells[0])
        assert named, f"one metric a row: {cells[0]}"
        listed = cells[1] if len(cells) == 3 else named[2] or ""
        documented.append((named[1], tuple(filter(None, listed.split(", ")))))
    assert sorted(documented) == sorted(labels().items())


@pytest.mark.parametrize("file", [RULES, *DASHBOARDS], ids=lambda path: path.name)
def test_queries_use_series_that_exist(file: Path) -> None:
    used = names_in(file.read_text(encoding="utf-8"))
    assert used
    assert used <= set(series())


def test_what_an_alert_waits_to_see_rise_is_there_from_the_start() -> None:
    """A counter that is born with its first event is 1 and never rises: the first rejection was unsaid."""
    registry = CollectorRegistry()
    Metrics(registry)
    exported = {
        (sample.name, *sorted(sample.labels.items()))
        for each in (registry, REGISTRY, TrainMetrics().registry)
        for metric in each.collect()
        for sample in metric.samples
    }
    rising = re.findall(r'increase\((hustings_\w+)\{(\w+)="(\w+)"\}', RULES.read_text(encoding="utf-8"))
    assert len(rising) == 4
    for name, label, value in rising:
        assert any(found[0] == name and (label, value) in found[1:] for found in exported), (name, value)


def test_what_a_panel_counts_by_hours_is_there_from_the_start() -> None:
    """Of each choice the first vote was left out, and the day's only published cycle was none."""
    registry = CollectorRegistry()
    Metrics(registry)
    exported = {
        (sample.name, value)
        for each in (registry, TrainMetrics().registry)
        for metric in each.collect()
        for sample in metric.samples
        for value in sample.labels.values()
    }
    choices = {("hustings_votes_total", choice) for choice in ("a", "b", "tie", "both_bad", "ranking")}
    cycles = {("hustings_train_cycles_total", outcome) for outcome in ("published", "refused", "failed")}
    assert choices | cycles <= exported


def test_dashboard_panels_have_queries_and_do_not_overlap() -> None:
    assert DASHBOARDS
    for file in DASHBOARDS:
        panels = json.loads(file.read_text(encoding="utf-8"))["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert all(0 <= x < 24 for x, _ in cells)
            taken |= cells
            assert panel["type"] == "row" or all(target["expr"] for target in panel["targets"])


GIVEN: dict[str, Any] = {"kafka": "kafka:9092", "ledger": {"secretName": "ledger"}}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with Chart.load(CHART) as chart:
        output = chart.render(values=values, name="demo")
    texts = output.values() if isinstance(output, dict) else [output]
    return [part for text in texts for part in yaml.safe_load_all(text) if part]


def containers(parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        if part["kind"] == "Deployment":
            yield from part["spec"]["template"]["spec"]["containers"]


def test_the_chart_passes_lint() -> None:
    result = lint(CHART, values=GIVEN)
    assert not result["errors"]
    assert not [message for message in result["messages"] if message["severity"] >= 2], "2 is a warning, 3 an error"


def test_the_chart_renders_every_process_with_valid_arguments() -> None:
    parts = rendered({**GIVEN, "config": {"train.schedule.new_comparisons": 128}})
    found = {container["name"]: container for container in containers(parts)}
    assert set(found) == {"serve", "curate", "train"}
    for container in found.values():
        arguments = [str(argument) for argument in container["args"]]
        settings = [arguments[n + 1].split("=")[0] for n, argument in enumerate(arguments) if argument == "--set"]
        assert set(settings) <= set(keys())
        assert "train.schedule.new_comparisons=128" in arguments
        assert {"name": "HUSTINGS_KAFKA", "value": "kafka:9092"} in container["env"]
    assert found["train"]["args"][:3] == ["train", "--serve-url", "http://demo-hustings"]
    assert {"PersistentVolumeClaim", "Secret", "Service", "Deployment"} == {part["kind"] for part in parts}


def test_the_chart_hands_on_every_kind_of_value() -> None:
    """A list came out as Go prints it, which no key takes: no chart could name engine servers."""
    given = {
        "serve.engine_urls": ["http://a:1", "http://b:2"],
        "serve.releases.keep_previous": False,
        "train.schedule.max_hours": 0.5,
        "train.schedule.new_comparisons": 1_000_000,
        "serve.chat.mode": "chat",
        "serve.engine_seed": "none",
    }
    key = {"name": "HUSTINGS_ENGINE_KEY", "value": "k"}
    for container in containers(rendered({**GIVEN, "config": given, "extraEnv": [key]})):
        arguments = container["args"]
        settings = [arguments[n + 1] for n, argument in enumerate(arguments) if argument == "--set"]
        config = load(None, settings, environment={})
        assert config.serve.engine_urls == ("http://a:1", "http://b:2")
        assert config.serve.releases.keep_previous is False
        assert (config.train.schedule.max_hours, config.train.schedule.new_comparisons) == (0.5, 1_000_000)
        assert (config.serve.chat.mode, config.serve.engine_seed) == ("chat", None)
        assert key in container["env"]


def test_the_chart_takes_existing_parts_and_options() -> None:
    values = {
        **GIVEN,
        "secrets": {"existing": "mine"},
        "storage": {"existingClaim": "disk"},
        "train": {"enabled": False},
        "serve": {"gpu": 1},
        "ingress": {"enabled": True, "host": "chat.example.org", "tlsSecret": "tls"},
        "monitoring": {"podMonitor": True},
    }
    parts = rendered(values)
    assert {"Deployment", "Service", "Ingress", "PodMonitor"} == {part["kind"] for part in parts}
    serve, curate = containers(parts)
    assert serve["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert curate["name"] == "curate"


def test_no_probe_kills_a_pod_that_loads_its_model_or_lets_streams_end() -> None:
    """The start was probed by /readyz for 15 minutes: what the engine may take alone, and less than a large model."""
    given = {**GIVEN, "config": {"serve.shutdown_grace_s": 120.5}}
    for values, grace_s in ((GIVEN, 10), (given, 120.5)):
        (serve,) = (part for part in rendered(values) if part["metadata"]["name"] == "demo-hustings-serve")
        pod = serve["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= grace_s + 30
        probes = {name: probe for name, probe in pod["containers"][0].items() if name.endswith("Probe")}
        paths = {name.removesuffix("Probe"): probe["httpGet"]["path"] for name, probe in probes.items()}
        assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
        assert all(probe["timeoutSeconds"] >= 5 for probe in probes.values()), "Kubernetes' own second is too short"


def test_a_pod_monitor_can_have_the_labels_that_an_operator_picks_by() -> None:
    given = {"podMonitor": True, "labels": {"release": "kube-prometheus-stack"}}
    (monitor,) = (part for part in rendered({**GIVEN, "monitoring": given}) if part["kind"] == "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert monitor["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"


def test_scraped_pods_have_the_names_of_jobs_that_the_alerts_go_by() -> None:
    """The operator's own name for the job, `namespace/monitor`, is none of them: no alert said that a pod was away."""
    parts = rendered({**GIVEN, "monitoring": {"podMonitor": True}})
    (monitor,) = (part for part in parts if part["kind"] == "PodMonitor")
    ports = {port["name"] for container in containers(parts) for port in container["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == ports
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        (rule,) = endpoint["relabelings"]
        assert (rule["sourceLabels"], rule["targetLabel"]) == (["__meta_kubernetes_pod_container_name"], "job")
        assert rule["replacement"] == "hustings-$1"
    known = re.findall(r"job_name: (\S+)", (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert {f"hustings-{container['name']}" for container in containers(parts)} == set(known)


def kafka_variables(values: dict[str, Any]) -> dict[str, str]:
    """What every process of the chart gets to reach Kafka."""
    found = [
        {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("HUSTINGS_KAFKA")}
        for container in containers(rendered({**GIVEN, **values}))
    ]
    assert len(found) == 3
    assert found[0] == found[1] == found[2]
    return found[0]


def test_the_chart_reaches_kafka_over_tls_with_what_secrets_hold() -> None:
    assert kafka_variables({}) == {"HUSTINGS_KAFKA": "kafka:9092"}
    login = {"mechanism": "SCRAM-SHA-512", "username": "hustings", "secretName": "login", "secretKey": "pass"}
    security = {"protocol": "SASL_SSL", "tls": {"secretName": "tls", "client": True}, "sasl": login}
    given = {"kafkaSecurity": security}
    told = load(None, (), environment=kafka_variables(given)).feedback.kafka_security
    assert told == KafkaSecurity(
        protocol="SASL_SSL",
        ssl_cafile=Path("/etc/hustings/kafka-tls/ca.crt"),
        ssl_certfile=Path("/etc/hustings/kafka-tls/tls.crt"),
        ssl_keyfile=Path("/etc/hustings/kafka-tls/tls.key"),
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="hustings",
        sasl_password_file=Path("/etc/hustings/kafka-sasl/pass"),
    )
    for part in rendered({**GIVEN, **given}):
        if part["kind"] == "Deployment":
            pod = part["spec"]["template"]["spec"]
            secrets = {one["name"]: one["secret"] for one in pod["volumes"] if "secret" in one}
            assert {name: one["secretName"] for name, one in secrets.items()} == {
                "kafka-tls": "tls",
                "kafka-sasl": "login",
            }
            assert {one["defaultMode"] for one in secrets.values()} == {0o440}
            mounted = {one["name"]: one for one in pod["containers"][0]["volumeMounts"]}
            assert {name: mounted[name]["mountPath"] for name in secrets} == {
                "kafka-tls": "/etc/hustings/kafka-tls",
                "kafka-sasl": "/etc/hustings/kafka-sasl",
            }
            assert all(mounted[name]["readOnly"] for name in secrets)
    with pytest.raises(Exception, match=r"kafkaSecurity\.tls\.secretName"):
        rendered({**GIVEN, "kafkaSecurity": {"protocol": "SSL", "tls": {"client": True}}})


@pytest.mark.parametrize("missing", ["kafka", "ledger"])
def test_the_chart_says_what_is_missing(missing: str) -> None:
    with pytest.raises(Exception, match=missing):
        rendered({key: value for key, value in GIVEN.items() if key != missing})
