"""The content of ``/metrics``, in Prometheus' text format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Buckets of durations."""


@dataclass
class Counts:
    """The metrics of one route's answers, kept: a lookup by label takes as long as a count."""

    first_token_seconds: Histogram
    between_tokens_seconds: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    aborted: Counter


class Metrics:
    """Counters of one server, in its own registry: the engine may fill the global one."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]):
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, ["route"], buckets=SECONDS, registry=self.registry)

        self.requests = Counter(
            "easyllm_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = histogram("easyllm_request_seconds", "Time of a whole request.")
        self.first_token_seconds = histogram(
            "easyllm_time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.between_tokens_seconds = histogram(
            "easyllm_inter_token_latency_seconds", "Between an answer's tokens."
        )
        self.prompt_tokens = Counter(
            "easyllm_prompt_tokens", "Tokens of prompts.", ["route"], registry=self.registry
        )
        self.completion_tokens = Counter(
            "easyllm_completion_tokens", "Tokens generated.", ["route"], registry=self.registry
        )
        self.aborted = Counter(
            "easyllm_aborted_answers", "Answers ended early, most by clients that left.",
            ["route"], registry=self.registry,
        )  # fmt: skip
        for name, text, value in (
            ("easyllm_queue_size", "Answers that wait for their first token.", waiting),
            ("easyllm_running_answers", "Answers that are being generated.", running),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

        self._counts: dict[str, Counts] = {}

    def counts(self, route: str) -> Counts:
        if route not in self._counts:
            fields = dataclasses.fields(Counts)
            metrics = {field.name: getattr(self, field.name).labels(route) for field in fields}
            self._counts[route] = Counts(**metrics)
        return self._counts[route]

    def text(self) -> bytes:
        """The metrics as they are now."""
        return generate_latest(self.registry)
