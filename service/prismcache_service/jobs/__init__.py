"""Accepted requests, and one task for each file, and what was counted over time. Other rooms import from here."""

from __future__ import annotations

from prismcache_service.jobs.history import KEEP_DAYS, History
from prismcache_service.jobs.observer import Observer
from prismcache_service.jobs.service import JobLimits, JobService

__all__ = ["KEEP_DAYS", "History", "JobLimits", "JobService", "Observer"]
