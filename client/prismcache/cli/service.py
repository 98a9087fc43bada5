"""Commands that ask the lab's service: its jobs, which crops it must keep, and how it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from prismcache.cli.errors import Command
from prismcache.cli.options import (
    SERVICE_OPTIONS,
    SETTINGS_OPTIONS,
    SPLITS,
    CropsArgument,
    JsonOption,
    SplitArgument,
    examples,
    read_crops,
    with_options,
)

if TYPE_CHECKING:
    from prismcache.config import Settings
    from prismcache.remote.api import ServiceApi
    from prismcache.schema import CropInfo, Job, Split

T = TypeVar("T")
PANEL = "Commands for the lab's service (PRISMCACHE_URL)"
_PAGE = 100

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of the job, or its first characters", show_default=False)
]
LatestJobArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB", help="Id of the job, or its first characters (default: the latest job)", show_default=False
    ),
]
with_service = with_options(SERVICE_OPTIONS)
with_service_or_root = with_options({name: SETTINGS_OPTIONS[name] for name in ("root", "url")})


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command, *shown in (
        (jobs, "jobs", "jobs --state running --mine"),
        (watch, "watch", "watch 67bcd8"),
        (cancel, "cancel 67bcd8"),
        (pin, "pin instance 0 5"),
        (unpin, "unpin instance all"),
        (evict, "evict semantic 3-5"),
        (clear_quarantine, "clear-quarantine", "clear-quarantine --root /lab/prism"),
        (status, "status", "status --root /lab/prism --json"),
    ):
        app.command(cls=Command, rich_help_panel=PANEL, epilog=examples(*shown))(command)


@with_service
def jobs(
    settings: dict[str, Any],
    *,
    state: Annotated[str | None, typer.Option(help="queued, running, done, failed or cancelled (default: all)")] = None,
    split: Annotated[str | None, typer.Option(help=f"{SPLITS} (default: all)")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only jobs of your token")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Number of jobs")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the service's jobs, newest first."""
    from prismcache.arguments import as_split
    from prismcache.cli.output import print_jobs, print_json
    from prismcache.schema import State

    if state is not None and state not in list(State):
        raise typer.BadParameter(f"{state!r} is not one of {', '.join(State)}", param_hint="--state")
    filters: dict[str, Any] = {"state": state and State(state), "split": split and as_split(split), "mine": mine}

    async def newest(api: ServiceApi) -> list[Job]:
        page = await api.jobs(limit=min(limit, _PAGE), **filters)
        found = list(page.jobs)
        while len(found) < limit and page.next_cursor is not None:
            page = await api.jobs(limit=min(limit - len(found), _PAGE), cursor=page.next_cursor, **filters)
            found += page.jobs
        return found[:limit]

    found = ask(settings, newest)
    if as_json:
        print_json({"jobs": found})
    else:
        print_jobs(found)


@with_service
def watch(settings: dict[str, Any], job: LatestJobArgument = None, *, as_json: JsonOption = False) -> None:
    """Show a job's progress until it ends; exit with 1 if it fails. With --json, print a line for each event."""
    from prismcache.cli.output import end_of_job, show_event
    from prismcache.errors import UnknownJobError
    from prismcache.progress.reporter import make_reporter

    reporter = make_reporter(False if as_json else None)
    show = show_event(reporter, as_json=as_json)

    async def follow(api: ServiceApi) -> Job:
        job_id = job or next((latest.id for latest in (await api.jobs(limit=1)).jobs), None)
        if job_id is None:
            raise UnknownJobError("the service has no jobs", remedy="`prismcache ensure` submits one.")
        async for message in api.events(job_id):
            show(message)
        return await api.job(job_id)

    try:
        last = ask(settings, follow)
    finally:
        reporter.close()
    if not end_of_job(last):
        raise typer.Exit(1)


@with_service
def cancel(settings: dict[str, Any], job: JobArgument, *, as_json: JsonOption = False) -> None:
    """Cancel a job for everybody; crops that another job wants are still made."""
    ended = ask(settings, lambda api: api.cancel(job))
    if as_json:
        from prismcache.cli.output import print_json

        print_json(ended)
    else:
        typer.echo(f"{ended.id}: {ended.state.value}", err=True)


@with_service
def pin(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Tell the service never to evict crops."""
    _print_pins(_each(settings, split, crops, lambda api, of, crop: api.pin(of, crop)), as_json=as_json)


@with_service
def unpin(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Allow the service to evict crops again."""
    _print_pins(_each(settings, split, crops, lambda api, of, crop: api.unpin(of, crop)), as_json=as_json)


@with_service
def evict(settings: dict[str, Any], split: SplitArgument, crops: CropsArgument, *, as_json: JsonOption = False) -> None:
    """Delete crops from the service's cache; print the paths of the deleted files."""
    deleted = _each(settings, split, crops, lambda api, of, crop: api.evict(of, crop))
    removed = [file for files in deleted for file in files]
    if as_json:
        from prismcache.cli.output import print_json

        print_json({"removed": removed})
    else:
        for file in removed:
            typer.echo(file.path)


@with_service_or_root
def clear_quarantine(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """Delete corrupt files that were set aside, of the service or, without a service, of --root."""
    cleared = _ask_either(settings, lambda service: service.clear_quarantine())
    if as_json:
        from prismcache.cli.output import print_json

        print_json(cleared)
    else:
        from prismcache.numbers import format_bytes

        typer.echo(f"deleted {cleared.files} files, {format_bytes(cleared.bytes)}", err=True)


@with_service_or_root
def status(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """Show jobs, disk and quota of the service or, without a service, of --root."""
    from prismcache.cli.output import print_json, print_status

    found = _ask_either(settings, lambda service: service.status())
    if as_json:
        print_json(found)
    else:
        print_status(found)


def ask(settings: dict[str, Any], question: Callable[[ServiceApi], Awaitable[T]]) -> T:
    """Return the service's response to one question.

    Raises
    ------
    ConfigError
        If no service is set.
    """
    import asyncio

    from prismcache.config import Settings
    from prismcache.errors import ConfigError

    loaded = Settings.load(**settings)
    if loaded.url is None:
        raise ConfigError("no service is set", remedy="Set PRISMCACHE_URL to your lab's prismcache service, or --url.")
    return asyncio.run(_ask_service(loaded, question))


def _ask_either(settings: dict[str, Any], question: Callable[[Any], Awaitable[T]]) -> T:
    """Return the response of the service or, where none is set, of this machine's cache folder."""
    import asyncio

    from prismcache.config import Settings

    loaded = Settings.load(**settings)

    return asyncio.run(_ask_service(loaded, question) if loaded.url else ask_cache_folder(loaded, question))


async def ask_cache_folder(settings: Settings, question: Callable[[Any], Awaitable[T]]) -> T:
    """Return the response of this machine's cache folder."""
    from prismcache.backend import service_part

    backend = service_part("prismcache_service.embedded", "create_backend", "embedded backend")(settings)
    try:
        return await question(backend)
    finally:
        await backend.aclose()


async def _ask_service(settings: Settings, question: Callable[[ServiceApi], Awaitable[T]]) -> T:
    from prismcache.remote.api import ServiceApi

    async with ServiceApi(settings) as api:
        return await question(api)


def _each(
    settings: dict[str, Any],
    split: str,
    words: Sequence[str],
    action: Callable[[ServiceApi, Split, int], Awaitable[T]],
) -> list[T]:
    """Apply `action` to each crop that `words` name; ``all`` are the catalog's crops that are cached."""
    from prismcache.arguments import as_split

    named, of = read_crops(words), as_split(split)

    async def run(api: ServiceApi) -> list[T]:
        crops = named
        if crops is None:
            crops = [info.crop for info in await api.catalog(of) if info.files]
        return [await action(api, of, crop) for crop in dict.fromkeys(crops)]

    return ask(settings, run)


def _print_pins(infos: list[CropInfo], *, as_json: bool) -> None:
    if as_json:
        from prismcache.cli.output import print_json

        print_json({"crops": infos})
        return
    for info in infos:
        typer.echo(f"{info.split.value}/{info.crop}: {'pinned' if info.pinned else 'not pinned'}")
