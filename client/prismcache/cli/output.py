"""What commands print on stdout: tables and text for people, JSON for programs."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from pydantic import BaseModel

from prismcache.cli.errors import show_error
from prismcache.errors import error_from_problem
from prismcache.layout import format_channels
from prismcache.numbers import format_bytes, format_voxel_size
from prismcache.progress.reporter import Reporter
from prismcache.schema import (
    NO_CONTEXT,
    CropFile,
    CropInfo,
    Job,
    JobEvent,
    Product,
    ServiceStatus,
    State,
    Verdict,
    VerifyResult,
)

if TYPE_CHECKING:
    from prismcache.crop import Facts


def print_json(document: BaseModel | dict[str, Sequence[BaseModel]]) -> None:
    """Print one JSON document: a model, or lists of models by name."""
    if isinstance(document, BaseModel):
        value: object = document.model_dump(mode="json")
    else:
        value = {name: [model.model_dump(mode="json") for model in models] for name, models in document.items()}
    typer.echo(json.dumps(value, indent=2))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest cell: a terminal may wrap lines, but nothing is cut."""
    lines = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def print_catalog(infos: Iterable[CropInfo]) -> None:
    """Print a row for each crop: shapes, size in the bucket, cached files. Rows of published crops fit 80 columns."""
    rows, groups = [], set()
    for info in infos:
        name = f"{info.split.value}/{info.crop}"
        cached = ", ".join(f"{_content(_channels(info, file), file)} {format_bytes(file.size)}" for file in info.files)
        shapes = ("x".join(map(str, shape or ())) for shape in (info.raw_shape, info.labels_shape, info.voxel_size))
        size = "" if info.source_bytes is None else format_bytes(info.source_bytes)
        rows.append((name, *shapes, f"error[{info.problem.code}]" if info.problem else size, cached or "-"))
        if info.same_tissue:
            groups.add((name, *info.same_tissue))
    print_table(("crop", "raw CxZxYxX", "labels ZxYxX", "voxel nm", "bucket", "cached"), rows)
    for first, *others in sorted({tuple(sorted(group)) for group in groups}):
        typer.echo(f"{first} and {', '.join(others)} show the same tissue: do not train on one and validate on another")


def print_crop(info: CropInfo) -> None:
    """Print everything that is known of one crop."""
    lines = {
        "crop": f"{info.split.value}/{info.crop}",
        "raw (C,Z,Y,X)": _shape(info.raw_shape),
        "labels (Z,Y,X)": _shape(info.labels_shape),
        "arrays": ", ".join(f"{array.name} {_shape(array.shape)} {array.dtype}" for array in info.arrays),
        "products": ", ".join(info.products),
        "voxel size": format_voxel_size(info.voxel_size, info.expansion) if info.voxel_size else "",
        "offset, nm": _shape(info.offset),
        "same tissue": ", ".join(info.same_tissue),
        "in the bucket": _source(info),
        "problem": info.problem.detail if info.problem else "",
    }
    for name, value in lines.items():
        if value:
            typer.echo(f"{name:<16}{value}")
    for file in info.files:
        content = _content(_channels(info, file).replace("all", "all channels"), file)
        typer.echo(f"{'cached':<16}{content}, {format_bytes(file.size)}, {file.path}")


def print_facts(found: Sequence[Facts]) -> None:
    """Print a row for each crop and, of one crop alone, a row for each channel and class."""
    rows = [
        (
            f"{facts.split.value}/{facts.crop_id}",
            str(facts.labels),
            f"{facts.foreground:.1%}",
            " ".join(str(voxels) for voxels in facts.label_voxels.values()),
            str(len(facts.channels)),
        )
        for facts in found
    ]
    print_table(("crop", "labels", "foreground", "label size, percentiles 1 25 50 75 99", "channels"), rows)
    if len(found) != 1:
        return
    typer.echo()
    values = []
    for each in found[0].channels:
        moments = f"{each.mean:.1f}", f"{each.std:.1f}"
        values.append((str(each.channel), *moments, str(each.min), *map(str, each.percentiles.values()), str(each.max)))
    print_table(("channel", "mean", "std", "min", "1 %", "50 %", "99 %", "99.9 %", "max"), values)
    if found[0].classes:
        typer.echo()
        print_table(("class", "voxels"), [(str(label), str(voxels)) for label, voxels in found[0].classes.items()])


def print_neurons(found: Sequence[Facts]) -> None:
    """Print the neurons of all crops as CSV; a channel that a crop does not have is an empty cell."""
    tables = [(facts, facts.columns()) for facts in found]
    names = dict.fromkeys(name for _, table in tables for name in table)
    writer = csv.DictWriter(sys.stdout, ["split", "crop", *names], lineterminator="\n")
    writer.writeheader()
    for facts, table in tables:
        for row in zip(*(column.tolist() for column in table.values()), strict=True):
            writer.writerow({"split": facts.split.value, "crop": facts.crop_id} | dict(zip(table, row, strict=True)))


def print_verdicts(results: Sequence[VerifyResult]) -> None:
    """Print a line for each file, and a summary on stderr."""
    for result in results:
        reason = f"  ({result.reason})" if result.reason else ""
        typer.echo(f"{result.verdict.value:<9} {result.path}{reason}")
    counts = {verdict: sum(1 for result in results if result.verdict is verdict) for verdict in Verdict}
    summary = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    typer.echo(f"{files_text(len(results))} checked{': ' if summary else ''}{summary}", err=True)


def print_jobs(jobs: Sequence[Job]) -> None:
    """Print a row for each job; ids are cut to what tells these jobs apart, which `watch` and `cancel` take."""
    length = next(size for size in range(6, 64) if len({job.id[:size] for job in jobs}) == len(jobs))
    rows = []
    for job in jobs:
        since = "" if job.created_at is None else job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        channels = "all" if job.channels is None else format_channels(job.channels).replace("_", ",")
        what, done = _content(channels, job), _crops_done(job)
        rows.append((job.id[:length], job.state.value, job.split.value, done, what, job.owner or "-", since))
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
    quota = "no quota" if usage.max_bytes is None else f"quota {format_bytes(usage.max_bytes)}"
    lines = {
        "version": status.version,
        "engine": f"{status.engine}, {status.workers} workers",
        "jobs": f"{status.jobs_running} running, {status.jobs_queued} queued",
        "crops": f"{status.crops_running} running, {status.crops_queued} queued",
        "cache": f"{files_text(usage.files)}, {format_bytes(usage.used_bytes)}, {quota}",
        "reserved": format_bytes(usage.reserved_bytes),
        "quarantine": f"{files_text(usage.quarantine_files)}, {format_bytes(usage.quarantine_bytes)}",
        "disk": f"{format_bytes(usage.free_bytes)} free of {format_bytes(usage.total_bytes)}; "
        f"{format_bytes(usage.min_free_bytes)} are kept free",
    }
    for name, value in [*lines.items(), *(("waiting", line) for line in status.waiting)]:
        typer.echo(f"{name:<12}{value}")


def files_text(count: int) -> str:
    """Count files: 1 file, 2 files."""
    return f"{count} file" if count == 1 else f"{count} files"


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show a spinner with `text` and the seconds on stderr, if that is a terminal; elsewhere signs of life must do."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    description = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    columns = SpinnerColumn("line"), description, TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        progress.add_task(text, total=None)
        yield


def _source(info: CropInfo) -> str:
    if info.source_bytes is None:
        return ""
    objects = "" if info.source_objects is None else f", {info.source_objects} objects"
    return format_bytes(info.source_bytes) + objects


def _shape(numbers: tuple[int, ...] | None) -> str:
    return "" if numbers is None else "(" + ", ".join(str(number) for number in numbers) + ")"


def _channels(info: CropInfo, file: CropFile) -> str:
    if info.raw_shape is not None and len(file.channels) == info.raw_shape[0]:
        return "all"
    return f"ch {format_channels(file.channels).replace('_', ',')}"


def _content(channels: str, of: CropFile | Job) -> str:
    """Return what a file or job holds: its channels, with context if there is any, or a product."""
    if of.product is not Product.CROP:
        return of.product.value
    if of.context == NO_CONTEXT:
        return channels
    reach = "all context" if of.context == "all" else f"context {','.join(map(str, of.context))}"
    return f"{channels} with {reach}"


def _crops_done(job: Job) -> str:
    return f"{sum(1 for crop in job.crops if crop.state is State.DONE)} of {len(job.crops)}"
