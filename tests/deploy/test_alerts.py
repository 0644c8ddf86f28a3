"""The alert rules, played by promtool: each fires when it is to, and not where it isn't."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.routes import health
from train.metrics import TrainMetrics

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is missing: deploy/setup/debian-packages.sh test installs it (package prometheus)"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", ["deploy/prometheus/prometheus.yml"])
def test_promtool_accepts_configuration_and_rules(file: str) -> None:
    checked = promtool("check", "config", str(ROOT / file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def run_scenario(tmp_path: Path, *tests: dict[str, Any]) -> None:
    """Let promtool play a scenario against the rules."""
    scenario = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": list(tests)}
    file = tmp_path / "scenario.yml"
    file.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    checked = promtool("test", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_alert_fires_when_nobody_stores_what_was_sent_and_not_where_somebody_does(tmp_path: Path) -> None:
    unconfirmed = {"series": "hustings_outbox_unconfirmed", "values": "7x60"}
    fires = {
        "exp_labels": {"severity": "warning"},
        "exp_annotations": {
            "summary": "7 events are in the event log and no curator stores them",
            "action": "Nothing is lost. Does a curator run, with partitions of its own? See its log.",
        },
    }
    alert = {"alertname": "HustingsReceiptsMissing"}
    run_scenario(
        tmp_path,
        {
            "interval": "1m",
            "input_series": [unconfirmed, {"series": "hustings_outbox_confirmed_total", "values": "5x60"}],
            "alert_rule_test": [alert | {"eval_time": "5m"}, alert | {"eval_time": "45m", "exp_alerts": [fires]}],
        },
        {
            "interval": "1m",
            "input_series": [unconfirmed, {"series": "hustings_outbox_confirmed_total", "values": "0+1x60"}],
            "alert_rule_test": [alert | {"eval_time": "45m"}],
        },
    )


def test_an_alert_fires_when_votes_wait_and_not_before(tmp_path: Path) -> None:
    fires = {
        "exp_labels": {"severity": "warning"},
        "exp_annotations": {
            "summary": "Votes wait 11m 0s for the event log",
            "action": "Nothing is lost. Is Kafka up, and reachable from serving?",
        },
    }
    alert = {"alertname": "HustingsOutboxOld"}
    run_scenario(
        tmp_path,
        {
            "interval": "1m",
            "input_series": [{"series": "hustings_outbox_oldest_pending_seconds", "values": "0+60x20"}],
            "alert_rule_test": [alert | {"eval_time": "5m"}, alert | {"eval_time": "11m", "exp_alerts": [fires]}],
        },
    )


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


def requests(route: str, status: int, values: str, instance: str = "a") -> dict[str, str]:
    labels = f'instance="{instance}",job="hustings-serve",route="{route}",status="{status}"'
    return series(f"hustings_http_requests_total{{{labels}}}", values)


def moments(tmp_path: Path, alert: str, given: list[dict[str, str]], until_min: int, step: int = 5) -> set[int]:
    """The minutes at which the alert fires, each asked by itself; the scrapes lie 40 s apart, off the minutes."""
    fires = set()
    for minute in range(0, until_min + 1, step):
        scenario = {
            "rule_files": [str(RULES)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "40s",
                    "input_series": given,
                    "alert_rule_test": [{"alertname": alert, "eval_time": f"{minute}m10s", "exp_alerts": []}],
                }
            ],
        }
        file = tmp_path / "scenario.yml"
        file.write_text(json.dumps(scenario), encoding="utf-8")
        checked = promtool("test", "rules", str(file))
        assert checked.returncode == 0 or "exp:[" in checked.stdout + checked.stderr, checked.stderr
        if checked.returncode:
            fires.add(minute)
    return fires


def test_a_start_is_no_trouble_of_peoples_requests(tmp_path: Path) -> None:
    """`/readyz` is 503 while the model is loaded, four times a second beside `up`: minutes of it were critical."""
    start = [
        requests("/readyz", 503, "0+160x6 960x30"),
        requests("/v1/pairs", 200, "0+2x31"),
    ]
    assert moments(tmp_path, "HustingsErrors", start, 15, step=1) == set()
    # One request in four fails, and probes and scrapes go well all the while: 1 in 99 of all.
    trouble = [
        requests("/v1/pairs", 503, "0+1x60"),
        requests("/v1/pairs", 200, "0+3x60"),
        requests("/readyz", 200, "0+95x60"),
    ]
    assert moments(tmp_path, "HustingsErrors", trouble, 15) == {10, 15}


def test_a_serving_that_never_gets_ready_is_told_of(tmp_path: Path) -> None:
    never = [requests("/readyz", 503, "0+8x90"), requests("/readyz", 200, "0+8x90", "b")]
    assert moments(tmp_path, "HustingsNotReady", never, 30) == {25, 30}
    in_the_end = [requests("/readyz", 503, "0+8x24 192x60"), requests("/readyz", 200, "0x24 0+8x60")]
    assert moments(tmp_path, "HustingsNotReady", in_the_end, 40) == set()
    assert {"/healthz", "/readyz", "/metrics"} == {route.path for route in health.router.routes}  # type: ignore[attr-defined]


def test_one_failed_cycle_is_not_more_than_one(tmp_path: Path) -> None:
    """`increase` reckons up to the ends of the window: of one failure it makes 1.0009."""
    failed = 'hustings_train_cycles_total{outcome="failed"}'
    assert moments(tmp_path, "HustingsTrainingFails", [series(failed, "0x20 1x200")], 60) == set()
    assert moments(tmp_path, "HustingsTrainingFails", [series(failed, "0x20 1x20 2x200")], 60) == set(range(30, 61, 5))


def test_a_serving_beside_one_that_records_the_confirmations_is_no_trouble(tmp_path: Path) -> None:
    given = []
    for instance, confirmed in (("a", "0+5x90"), ("b", "0x90")):
        labels = f'{{instance="{instance}",job="hustings-serve"}}'
        given += [series(f"hustings_outbox_unconfirmed{labels}", "9x90")]
        given += [series(f"hustings_outbox_confirmed_total{labels}", confirmed)]
    assert moments(tmp_path, "HustingsReceiptsMissing", given, 50) == set()
    given[1]["values"] = "0+5x15 75x75"  # the curators are gone after 10 minutes
    assert moments(tmp_path, "HustingsReceiptsMissing", given, 50) == {40, 45, 50}


@pytest.mark.parametrize(("away", "fires"), [("serve", True), ("curate", True), ("train", False)])
def test_a_process_that_prometheus_does_not_find_is_down(tmp_path: Path, away: str, fires: bool) -> None:
    """In Kubernetes a pod that can't be placed is no target. The trainer may be switched off."""
    there = [name for name in ("serve", "curate", "train") if name != away]
    given = [series(f'up{{job="hustings-{name}"}}', "1x30") for name in there]
    assert moments(tmp_path, "HustingsProcessDown", given, 10) == ({5, 10} if fires else set())


def test_a_trainer_that_is_killed_again_and_again_is_told_of(tmp_path: Path) -> None:
    """It was away too shortly to be down, and its counters of failures began anew."""
    exported = [metric.name for metric in TrainMetrics().registry.collect()]
    assert "process_start_time_seconds" in exported
    started = 'process_start_time_seconds{job="hustings-train"}'
    killed = series(started, "1x10 2x10 3x10 4x10 5x60")  # the fourth after 29 minutes
    assert moments(tmp_path, "HustingsRestarts", [killed], 60) == set(range(30, 61, 5))
    assert moments(tmp_path, "HustingsRestarts", [series(started, "1x10 2x10 3x10 4x80")], 60) == set()
