"""Serving's metrics. One instance an app; labels carry route templates and rule names, never ids or user text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from feedback.contracts import Choice, ReleaseState
from serve.engines.base import EngineLoad

log = structlog.get_logger(__name__)
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """All series of the serving process, registered with one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.http_requests = Counter(
            "hustings_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self.http_seconds = Histogram(
            "hustings_http_request_seconds",
            "Seconds from the first byte read to the last byte sent",
            ["method", "route"],
            buckets=_LATENCY,
            registry=registry,
        )
        # Kept, as looking a series up by its labels costs several times what counting does.
        self.http_requests_of = cache(self.http_requests.labels)
        self.http_seconds_of = cache(self.http_seconds.labels)
        self.http_in_flight = Gauge("hustings_http_in_flight", "HTTP requests being answered", registry=registry)
        self.stalled_clients = Counter(
            "hustings_http_stalled_clients", "Clients hung up on, for they didn't take their stream", registry=registry
        )
        self.pairs = Counter(
            "hustings_pairs", "Pairs by the contenders' rule and how they ended", ["rule", "outcome"], registry=registry
        )
        self.pairs_leaking = Counter(
            "hustings_pairs_leaking", "Pairs in which an answer gave away who it is", registry=registry
        )
        self.left_share = Gauge(
            "hustings_votes_left_share",
            "Share of decisive votes for the left, with bounds",
            ["bound"],
            registry=registry,
        )
        self.voters = Gauge("hustings_voters", "Voters by how far they count", ["trust"], registry=registry)
        self.answers = Counter(
            "hustings_answers", "Single answers of chat mode, by how they ended", ["outcome"], registry=registry
        )
        self.thumbs = Counter(
            "hustings_thumbs", "Thumbs given to single answers", ["thumb", "outcome"], registry=registry
        )
        self.votes = Counter(
            "hustings_votes", "Votes by choice, repeated or not", ["choice", "outcome"], registry=registry
        )
        self.votes_of = cache(self.votes.labels)
        for choice in get_args(Choice):  # there from the start: Prometheus sees no rise in a series that begins at 1
            self.votes_of(choice, "created")
        self.votes_refused = Counter(
            "hustings_votes_refused", "Votes refused, by reason", ["reason"], registry=registry
        )
        self.redacted = Counter(
            "hustings_personal_data_redacted",
            "Personal data taken out before anything was stored",
            ["field", "kind"],
            registry=registry,
        )
        self.first_token = Histogram(
            "hustings_time_to_first_token_seconds",
            "Seconds from the request to the first token of an answer",
            ["kind"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.tokens = Counter("hustings_engine_tokens", "Tokens by direction", ["kind", "direction"], registry=registry)
        self.release_changes = Counter(
            "hustings_release_changes", "Releases that came into a state", ["state"], registry=registry
        )
        for state in ReleaseState:  # likewise
            self.release_changes.labels(state.value)
        self.release_unreadable = Counter(
            "hustings_release_unreadable", "Records of the adapters topic that could not be read", registry=registry
        )
        self.manifests_unreadable = Gauge(
            "hustings_manifests_unreadable", "Adapters' manifests that could not be read", registry=registry
        )
        self.release_seconds = Histogram(
            "hustings_release_switch_seconds",
            "Seconds from hearing of an adapter to its being in office",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self.office_number = Gauge(
            "hustings_release_office_number", "Number of the adapter in office; 0 is the base", registry=registry
        )
        self.release_vetoes = Counter(
            "hustings_release_vetoes", "Candidates that a guard kept out of office", ["guard"], registry=registry
        )
        self.release_alarms = Counter(
            "hustings_release_alarms", "Office-holders put back because voters preferred another", registry=registry
        )
        self.release_put_off = Counter(
            "hustings_release_put_off",
            "Looks at the releases, or adapters on their way in, put off by trouble",
            ["reason"],
            registry=registry,
        )
        for reason in ("unavailable", "defect"):  # likewise
            self.release_put_off.labels(reason)
        self.release_conflicts = Counter(
            "hustings_release_conflicts", "Changes given up: another serving had made one first", registry=registry
        )
        self.release_paused = Gauge("hustings_release_paused", "1 while releases are paused", registry=registry)
        self.release_behind = Gauge(
            "hustings_release_behind", "1 while another is in office than the ledger says", registry=registry
        )
        self.canary_votes = Gauge("hustings_canary_votes", "Votes on the canary so far", registry=registry)
        self.canary_ballots = Gauge("hustings_canary_ballots", "Ballots on the canary that count", registry=registry)
        self.canary_win_rate = Gauge(
            "hustings_canary_win_rate", "The canary's win rate and its bounds", ["bound"], registry=registry
        )
        self.outbox_pending = Gauge("hustings_outbox_pending", "Outbox rows not yet sent", registry=registry)
        self.outbox_unconfirmed = Gauge(
            "hustings_outbox_unconfirmed", "Outbox rows sent but not confirmed by the curator", registry=registry
        )
        self.outbox_age = Gauge(
            "hustings_outbox_oldest_pending_seconds", "Age of the oldest outbox row not yet sent", registry=registry
        )
        self.outbox_parked = Gauge(
            "hustings_outbox_parked", "Outbox rows that the broker refuses for good", registry=registry
        )

    def watch_manifests(self, faults: Mapping[str, str]) -> None:
        """Count the manifests that can't be read, and say which they are."""
        self.manifests_unreadable.set(len(faults))
        for name, why in sorted(faults.items()):
            log.warning("manifest unreadable", adapter=name, reason=why)

    def watch_engine(self, load: Callable[[], EngineLoad], adapters: Callable[[], frozenset[str]]) -> None:
        """Export the engine's load at each scrape."""
        self.registry.register(_EngineCollector(load, adapters))


class _EngineCollector(Collector):
    def __init__(self, load: Callable[[], EngineLoad], adapters: Callable[[], frozenset[str]]) -> None:
        self._load = load
        self._adapters = adapters

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        yield GaugeMetricFamily("hustings_engine_running", "Requests that the engine is running", load.running)
        yield GaugeMetricFamily("hustings_engine_waiting", "Requests that wait in the engine", load.waiting)
        yield GaugeMetricFamily("hustings_engine_kv_cache_usage", "Share of the KV cache in use", load.kv_cache_usage)
        yield GaugeMetricFamily("hustings_engine_adapters", "Adapters loaded", len(self._adapters()))
