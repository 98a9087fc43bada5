"""Jobs: accepted requests, one task for each file, and figures over time. Other rooms import from here."""

from __future__ import annotations

from prismcache_service.jobs.history import KEEP_DAYS, History, Observer
from prismcache_service.jobs.service import JobLimits, JobService

__all__ = ["KEEP_DAYS", "History", "JobLimits", "JobService", "Observer"]
