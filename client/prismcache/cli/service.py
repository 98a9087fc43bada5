"""Commands that ask the lab's service: jobs, what the cache must keep, and how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from prismcache.cli.options import (
    SERVICE_OPTIONS,
    CropsArgument,
    JsonOption,
    SplitArgument,
    read_crops,
    with_options,
)

if TYPE_CHECKING:
    from prismcache.remote.api import ServiceApi
    from prismcache.schema import CropFile, CropInfo, Job, Split

T = TypeVar("T")
PANEL = "Commands for the lab's service (PRISMCACHE_URL)"

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id", show_default=False)]
with_service = with_options(SERVICE_OPTIONS)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (jobs, watch, cancel, pin, unpin, evict, clear_quarantine, status):
        app.command(rich_help_panel=PANEL)(command)


@with_service
def jobs(
    settings: dict[str, Any],
    *,
    state: Annotated[str | None, typer.Option(help="queued, running, done, failed or cancelled")] = None,
    split: Annotated[str | None, typer.Option(help="instance or semantic")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only those of your token")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the service's jobs."""
    from prismcache.arguments import as_split
    from prismcache.cli.output import print_json
    from prismcache.cli.service_output import print_jobs
    from prismcache.schema import State

    if state is not None and state not in list(State):
        raise typer.BadParameter(f"{state!r} is none of {', '.join(State)}", param_hint="--state")
    chosen = None if state is None else State(state)
    of = None if split is None else as_split(split)
    found = _ask(settings, lambda api: _newest(api, limit, state=chosen, split=of, mine=mine))
    if as_json:
        print_json({"jobs": found})
    else:
        print_jobs(found)


@with_service
def watch(settings: dict[str, Any], job: JobArgument, *, as_json: JsonOption = False) -> None:
    """Show a job's progress until it ends; exit 1 if it fails. With --json, one line for each event."""
    from prismcache.cli.service_output import end_of_job, show_event
    from prismcache.progress.reporter import make_reporter

    reporter = make_reporter(False if as_json else None)
    try:
        last = _ask(settings, lambda api: _follow(api, job, show_event(reporter, as_json=as_json)))
    finally:
        reporter.close()
    if not end_of_job(last):
        raise typer.Exit(1)


@with_service
def cancel(settings: dict[str, Any], job: JobArgument, *, as_json: JsonOption = False) -> None:
    """Cancel a job; crops that another job wants are made all the same."""
    ended = _ask(settings, lambda api: api.cancel(job))
    if as_json:
        from prismcache.cli.output import print_json

        print_json(ended)
    else:
        typer.echo(f"{ended.id}: {ended.state.value}", err=True)


@with_service
def pin(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Have the service never evict these crops."""
    _print_pins(_each(settings, split, crops, lambda api, of, crop: api.pin(of, crop)), as_json=as_json)


@with_service
def unpin(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Let the service evict these crops again."""
    _print_pins(_each(settings, split, crops, lambda api, of, crop: api.unpin(of, crop)), as_json=as_json)


@with_service
def evict(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Delete these crops from the service's cache; print the service's paths of what was deleted."""
    removed: list[CropFile] = [
        file for files in _each(settings, split, crops, lambda api, of, crop: api.evict(of, crop)) for file in files
    ]
    if as_json:
        from prismcache.cli.output import print_json

        print_json({"removed": removed})
    else:
        for file in removed:
            typer.echo(file.path)


@with_service
def clear_quarantine(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """Delete what the service has found wrong and set aside, before its time."""
    cleared = _ask(settings, lambda api: api.clear_quarantine())
    if as_json:
        from prismcache.cli.output import print_json

        print_json(cleared)
    else:
        from prismcache.units import format_bytes

        typer.echo(f"deleted {cleared.files} files, {format_bytes(cleared.bytes)}", err=True)


@with_service
def status(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """Show how the service is: queue, disk, quota."""
    from prismcache.cli.output import print_json
    from prismcache.cli.service_output import print_status

    found = _ask(settings, lambda api: api.status())
    if as_json:
        print_json(found)
    else:
        print_status(found)


def _ask(settings: dict[str, Any], question: Callable[[ServiceApi], Awaitable[T]]) -> T:
    """Ask the service one thing.

    Raises
    ------
    ConfigError
        If none is set.
    """
    import asyncio

    from prismcache.config import Settings
    from prismcache.errors import ConfigError

    loaded = Settings.load(**settings)
    if loaded.url is None:
        raise ConfigError("no service is set", remedy="Set PRISMCACHE_URL to your lab's prismcache service, or --url.")

    async def run() -> T:
        from prismcache.remote.api import ServiceApi

        async with ServiceApi(loaded) as api:
            return await question(api)

    return asyncio.run(run())


async def _newest(api: ServiceApi, limit: int, **filters: Any) -> list[Job]:
    page = await api.jobs(limit=min(limit, 100), **filters)
    found = list(page.jobs)
    while len(found) < limit and page.next_cursor is not None:
        page = await api.jobs(limit=min(limit - len(found), 100), cursor=page.next_cursor, **filters)
        found += page.jobs
    return found[:limit]


async def _follow(api: ServiceApi, job_id: str, show: Callable[[Any], None]) -> Job:
    async for message in api.events(job_id):
        show(message)
    return await api.job(job_id)


def _each(
    settings: dict[str, Any],
    split: str,
    words: Sequence[str],
    action: Callable[[ServiceApi, Split, int], Awaitable[T]],
) -> list[T]:
    """Do something to each crop named; ``all`` are those of the catalog that are cached."""
    from prismcache.arguments import as_split

    named, of = read_crops(words), as_split(split)

    async def run(api: ServiceApi) -> list[T]:
        crops = named
        if crops is None:
            crops = [info.crop for info in await api.catalog(of) if info.files]
        return [await action(api, of, crop) for crop in dict.fromkeys(crops)]

    return _ask(settings, run)


def _print_pins(infos: list[CropInfo], *, as_json: bool) -> None:
    from prismcache.cli.output import print_json

    if as_json:
        print_json({"crops": infos})
        return
    for info in infos:
        typer.echo(f"{info.split.value}/{info.crop}: {'pinned' if info.pinned else 'not pinned'}")
