"""Metrics for Prometheus: one `Metrics` for each app, which is a `jobs.Observer`."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator

from prismcache.errors import error_classes
from prismcache.schema import ServiceStatus
from prismcache_service.jobs import Observer
from prismcache_service.web import logs

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAMESPACE = "prismcache"
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60)
_TASK_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


class Metrics(Observer):
    """Counters that the services increase, and gauges that are set when Prometheus reads them.

    Names begin with ``prismcache_``; bytes and seconds are base units, as Prometheus wants them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self._hits = self._counter("crop_hits", "Crops that were cached when a job requested them")
        self._misses = self._counter("crop_misses", "Crops that had to be made")
        self._fetched = self._counter("fetched_bytes", "Bytes read from the bucket")
        self._evicted = self._counter("evictions", "Files deleted to make room")
        self._evicted_bytes = self._counter("evicted_bytes", "Bytes deleted to make room")
        self._failures = self._counter("errors", "Crops that could not be made, by error code", "code")
        self._problems = self._counter("http_problems", "Responses that were a problem, by error code", "code")
        self._tasks = Histogram(
            "task_duration_seconds", "From a crop's start to its file or its failure", ["outcome"],
            namespace=_NAMESPACE, registry=self.registry, buckets=_TASK_BUCKETS,
        )  # fmt: skip
        self._jobs = self._gauge("jobs", "Unfinished jobs, by state", "state")
        self._crops = self._gauge("crops", "Crops of unfinished jobs, by state", "state")
        self._bytes = self._gauge(
            "cache_bytes", "Bytes of published files (used), promised ones (reserved), wrong ones (quarantine)", "kind"
        )
        self._files = self._gauge("cache_files", "Published files")
        self._limit = self._gauge("cache_max_bytes", "The quota; infinite without a quota")
        self._disk = self._gauge("disk_bytes", "The cache's file system", "kind")
        # From the start, so that Prometheus sees the first failure rise from 0 to 1.
        for code in error_classes():
            self._failures.labels(code)
            self._problems.labels(code)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Count the crops of an accepted job that are cached (`hits`) and that are not (`misses`)."""
        super().crops_found(hits=hits, misses=misses)
        self._hits.inc(hits)
        self._misses.inc(misses)

    def bytes_fetched(self, count: int) -> None:
        """Count bytes that came from the bucket."""
        super().bytes_fetched(count)
        self._fetched.inc(count)

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Count a crop that was made, or failed with an error `code` (``cancelled`` is not counted as an error)."""
        cancelled = code == "cancelled"
        self._tasks.labels("done" if code is None else "cancelled" if cancelled else "failed").observe(seconds)
        if code is not None and not cancelled:
            self._failures.labels(code).inc()

    def evicted(self, files: int, size: int) -> None:
        """Count files, `size` bytes together, that were deleted to make room."""
        self._evicted.inc(files)
        self._evicted_bytes.inc(size)

    def bound(self, **values: str) -> AbstractContextManager[None]:
        """Return a context manager that adds the values to every log line within the block."""
        return logs.bound(**values)

    def request_failed(self, code: str) -> None:
        """Count a response that is a problem."""
        self._problems.labels(code).inc()

    def expose(self, status: ServiceStatus) -> bytes:
        """Return all metrics as text, with the gauges taken from `status`."""
        self._jobs.labels("queued").set(status.jobs_queued)
        self._jobs.labels("running").set(status.jobs_running)
        self._crops.labels("queued").set(status.crops_queued)
        self._crops.labels("running").set(status.crops_running)
        usage = status.usage
        self._bytes.labels("used").set(usage.used_bytes)
        self._bytes.labels("reserved").set(usage.reserved_bytes)
        self._bytes.labels("quarantine").set(usage.quarantine_bytes)
        self._files.set(usage.files)
        self._limit.set(float("inf") if usage.max_bytes is None else usage.max_bytes)
        self._disk.labels("free").set(usage.free_bytes)
        self._disk.labels("total").set(usage.total_bytes)
        return generate_latest(self.registry)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Count and time every request, by route and not by path."""
    instrumentator = Instrumentator(
        should_group_status_codes=False, should_exclude_streaming_duration=True, registry=metrics.registry
    )
    instrumentator.instrument(
        app, metric_namespace=_NAMESPACE, latency_highr_buckets=_REQUEST_BUCKETS, latency_lowr_buckets=_REQUEST_BUCKETS
    )
