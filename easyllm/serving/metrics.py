"""What ``/metrics`` tells, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Buckets of durations."""


class Metrics:
    """Counters of one server, in a registry of its own: the engine may fill the global one."""

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

    def text(self) -> bytes:
        """The metrics as they are now."""
        return generate_latest(self.registry)
