"""What the service counts, for Prometheus.

With several processes each writes into files of one folder (PROMETHEUS_MULTIPROC_DIR, set before
this is imported), and whichever of them is scraped answers for all: counters and histograms are
sums, gauges sums over the processes that live.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LOAD_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RELEASE_LABELS = ("collection", "model", "version", "fingerprint")


class Metrics:
    """All of them, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "coembed_requests_total", "Requests answered.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "coembed_request_seconds", "From a request's first byte to its answer's last.",
            ("route",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.stage_seconds = Histogram(
            "coembed_search_stage_seconds",
            "Of POST /search: encode (waiting for the tower and the tower), search (the index), "
            "other (all else).",
            ("stage",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.cache = Counter(
            "coembed_cache_total", "Looked up in a cache (embedding, result): hit or miss.",
            ("cache", "outcome"), registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "coembed_batch_size", "Queries that went through a tower together.", ("modality",),
            buckets=_SIZES, registry=registry,
        )  # fmt: skip
        self.queue = self._gauge(
            "coembed_queue_depth", "Queries that wait for a tower.", "modality"
        )
        self.in_work = self._gauge("coembed_requests_in_work", "Requests that are being answered.")
        self.releases = self._gauge(
            "coembed_release_serving", "Processes that answer with this release.",
            *_RELEASE_LABELS,
        )  # fmt: skip
        self.failing = self._gauge(
            "coembed_release_failing", "Processes that cannot load the release they should serve."
        )
        self.swaps = Counter(
            "coembed_release_swaps_total", "Changes of release, by whether it was loaded already.",
            ("kind",), registry=registry,
        )  # fmt: skip
        self.swap_seconds = Histogram(
            "coembed_release_swap_seconds",
            "From seeing that the alias had moved to answering with the new release.",
            ("kind",), buckets=_LOAD_SECONDS, registry=registry,
        )  # fmt: skip

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")

    def serving(self, release: Mapping[str, Any], *, is_served: bool) -> None:
        """Say whether this process answers with a release (a `ReleaseNamed`)."""
        labels = [str(release[name]) for name in _RELEASE_LABELS]
        self.releases.labels(*labels).set(1 if is_served else 0)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        collector: Any = multiprocess.MultiProcessCollector
        collector(registry)
        return generate_latest(registry)
