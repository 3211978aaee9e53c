"""Figures for Prometheus: counted since the start, or found out when they are asked for. Nothing here is a secret."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from forwarder.health import Vitals

PREFIX: Final = "callfire_mail_"
_TEXTS: Final = ("received", "duplicate", "ignored", "quarantined")
_DELIVERIES: Final = ("sent", "retried", "dead")


def exposition(vitals: Vitals, counts: Mapping[str, int], answers: Mapping[int, int]) -> bytes:
    """The figures in Prometheus' text format; `counts` by what happened, `answers` by HTTP status."""
    registry = CollectorRegistry()
    registry.register(_Figures(vitals, counts, answers))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, vitals: Vitals, counts: Mapping[str, int], answers: Mapping[int, int]) -> None:
        self._vitals = vitals
        self._counts = counts
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield _counter("events", "What postbacks held.", "outcome", {kind: self._counts[kind] for kind in _TEXTS})
        attempts = {kind: self._counts[kind] for kind in _DELIVERIES}
        yield _counter("attempts", "How attempts at deliveries ended.", "outcome", attempts)
        answers = {str(status): count for status, count in sorted(self._answers.items())}
        yield _counter("answers", "Requests to the public port, by status.", "status", answers)
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        vitals, totals = self._vitals, self._vitals.totals
        yield _gauge("database_writable", "1 if postbacks can be stored.", float(vitals.database is None))
        yield _gauge("mail_server_available", "1 unless the last attempt to reach it failed.", _no(vitals.mail_server))
        yield _gauge("last_smtp_contact_timestamp_seconds", "When the mail server last took us.", vitals.last_contact)
        if totals:
            states = {"queued": totals.queued, "sending": totals.sending, "dead": totals.dead}
            yield _gauges("deliveries", "Deliveries that are not sent.", "state", states)
            yield _gauge("quarantined", "Postbacks that nobody could read.", totals.quarantined)
            yield _gauge("deferred_deliveries", "Of those queued: refused for now, not due yet.", totals.deferred)
            yield _gauge("oldest_delivery_age_seconds", "How long the oldest one is due.", vitals.oldest_age or 0.0)
        used = {str(place): at for place, at in enumerate(vitals.tokens, start=1) if at is not None}
        yield _gauges("token_last_used_timestamp_seconds", "By its place in FORWARDER_TOKENS.", "place", used)


def _no(trouble: str | None) -> float:
    return float(trouble is None)


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label])
    for value, figure in values.items():
        family.add_metric([value], figure)
    return family


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text)
    if value is not None:
        family.add_metric([], value)
    return family
