"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations


class Metrics:
    """Counters of requests, questions and what was refused.

    Raises:
        ImportError: prometheus-client is not there.
    """

    def __init__(self):
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise ImportError("the server needs prometheus-client: pip install 'unimed[serve]'") from error
        self.registry = CollectorRegistry()
        known = {"registry": self.registry}
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
        self.requests = Counter("unimed_requests", "Requests", ["method", "route", "status"], **known)
        self.seconds = Histogram("unimed_request_seconds", "Duration of requests", ["route"], buckets=seconds, **known)
        self.in_flight = Gauge("unimed_requests_in_flight", "Requests at work or waiting", **known)
        self.refused = Counter("unimed_refused", "Requests refused before work began", ["reason"], **known)
        self.waiting = Gauge("unimed_questions_waiting", "Questions waiting for a model", ["model"], **known)
        self.batches = Histogram(
            "unimed_batch_questions", "Questions answered together", ["model"], buckets=(1, 2, 4, 8, 16, 32), **known
        )
        self.answers = Counter("unimed_answers", "Questions by what became of them", ["model", "outcome"], **known)
        self.first_token = Histogram(
            "unimed_first_token_seconds", "From question to first token", ["model"], buckets=seconds, **known
        )
        self.cache = Counter("unimed_cache", "Look-ups in caches", ["cache", "result"], **known)
        self.restarts = Counter("unimed_worker_restarts", "Workers started anew after they died", ["model"], **known)
        self.images = Gauge("unimed_stored_images", "Uploads kept", **known)
        self.image_bytes = Gauge("unimed_stored_bytes", "Bytes of the uploads kept", **known)
        self.jobs = Gauge("unimed_jobs", "Jobs by state", ["state"], **known)

    def text(self) -> tuple[bytes, str]:
        """What `/metrics` answers, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
