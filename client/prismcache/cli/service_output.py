"""Text of the commands that ask the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import typer

from prismcache.cli.errors import show_error
from prismcache.cli.output import print_table
from prismcache.errors import error_from_problem
from prismcache.layout import format_channels
from prismcache.progress.reporter import Reporter
from prismcache.schema import Job, JobEvent, ServiceStatus, State
from prismcache.units import format_bytes


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print a row for each job; ids are cut to what tells these jobs apart, which `watch` and `cancel` take."""
    length = next(size for size in range(6, 64) if len({job.id[:size] for job in jobs}) == len(jobs))
    rows = (_job_row(job, length) for job in jobs)
    print_table(("job", "state", "split", "crops", "channels", "owner", "since"), rows)


def show_event(reporter: Reporter, *, as_json: bool) -> Callable[[Job | JobEvent], None]:
    """Return the function that shows each message of a job, as a line of JSON or as progress."""

    def as_line(message: Job | JobEvent) -> None:
        name = "job" if isinstance(message, Job) else message.kind
        typer.echo(json.dumps({"event": name, "data": message.model_dump(mode="json")}))

    def as_progress(message: Job | JobEvent) -> None:
        if isinstance(message, Job):
            reporter.update(message)

    return as_line if as_json else as_progress


def end_of_job(job: Job) -> bool:
    """Print on stderr how a job ended; return whether all its crops are ready."""
    typer.echo(f"{job.id}: {job.state.value}, {_crops_done(job)} crops", err=True)
    for crop in job.crops:
        if crop.problem is not None:
            show_error(error_from_problem(crop.problem))
    return job.state is State.DONE


def print_status(status: ServiceStatus) -> None:
    """Print everything that is known of the service."""
    usage = status.usage
    bound = "no bound" if usage.max_bytes is None else f"of {format_bytes(usage.max_bytes)}"
    lines = {
        "version": status.version,
        "engine": f"{status.engine}, {status.workers} workers",
        "jobs": f"{status.jobs_running} running, {status.jobs_queued} queued",
        "crops": f"{status.crops_running} running, {status.crops_queued} queued",
        "cache": f"{usage.files} files, {format_bytes(usage.used_bytes)}, {bound}",
        "reserved": format_bytes(usage.reserved_bytes),
        "quarantine": f"{usage.quarantine_files} files, {format_bytes(usage.quarantine_bytes)}",
        "disk": f"{format_bytes(usage.free_bytes)} free of {format_bytes(usage.total_bytes)}, "
        f"of which {format_bytes(usage.min_free_bytes)} stay free",
    }
    for name, value in lines.items():
        typer.echo(f"{name:<12}{value}")


def _job_row(job: Job, length: int) -> tuple[str, ...]:
    since = "" if job.created_at is None else job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    channels = "all" if job.channels is None else format_channels(job.channels).replace("_", ",")
    return job.id[:length], job.state.value, job.split.value, _crops_done(job), channels, job.owner or "-", since


def _crops_done(job: Job) -> str:
    return f"{sum(1 for crop in job.crops if crop.state is State.DONE)} of {len(job.crops)}"
