"""Accepted requests, and one task for each file. Other rooms import from here."""

from __future__ import annotations

from prismcache_service.jobs.observer import NoObserver, Observer
from prismcache_service.jobs.service import JobLimits, JobService

__all__ = ["JobLimits", "JobService", "NoObserver", "Observer"]
