"""What commands print on stdout: tables and text for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer
from pydantic import BaseModel

from prismcache._units import format_bytes
from prismcache.layout import format_channels
from prismcache.schema import CropFile, CropInfo, Verdict, VerifyResult

PIPE_WIDTH = 240
"""Columns of a table that no terminal limits."""


def print_json(document: BaseModel | dict[str, Sequence[BaseModel]]) -> None:
    """Print one JSON document: a model, or lists of models by name."""
    if isinstance(document, BaseModel):
        value: object = document.model_dump(mode="json")
    else:
        value = {name: [model.model_dump(mode="json") for model in models] for name, models in document.items()}
    typer.echo(json.dumps(value, indent=2))


def print_catalog(infos: Iterable[CropInfo]) -> None:
    """Print a row for each crop: what is published, and what is cached."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("crop", "raw (C,Z,Y,X)", "labels (Z,Y,X)", "voxel nm", "in the bucket", "cached"):
        table.add_column(title, no_wrap=True)
    for info in infos:
        table.add_row(*_catalog_row(info))
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False).print(table)


def print_crop(info: CropInfo) -> None:
    """Print all that is known of one crop."""
    lines = {
        "crop": f"{info.split.value}/{info.crop}",
        "raw (C,Z,Y,X)": _shape(info.raw_shape),
        "labels (Z,Y,X)": _shape(info.labels_shape),
        "voxel size, nm": _shape(info.voxel_size),
        "offset, nm": _shape(info.offset),
        "in the bucket": _source(info),
        "problem": info.problem.detail if info.problem else "",
    }
    for name, value in lines.items():
        if value:
            typer.echo(f"{name:<16}{value}")
    for file in info.files:
        typer.echo(f"{'cached':<16}{_channels(info, file)}, {format_bytes(file.size)}, {file.path}")


def print_verdicts(results: Sequence[VerifyResult]) -> None:
    """Print a line for each file, and a summary on stderr."""
    for result in results:
        reason = f"  ({result.reason})" if result.reason else ""
        typer.echo(f"{result.verdict.value:<9} {result.path}{reason}")
    counts = {verdict: sum(1 for result in results if result.verdict is verdict) for verdict in Verdict}
    summary = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    typer.echo(f"{files_text(len(results))} checked{': ' if summary else ''}{summary}", err=True)


def files_text(count: int) -> str:
    """Count files: 1 file, 2 files."""
    return f"{count} file" if count == 1 else f"{count} files"


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something is being waited for, if stderr is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _catalog_row(info: CropInfo) -> tuple[str, ...]:
    cached = ", ".join(f"{_channels(info, file)} {format_bytes(file.size)}" for file in info.files)
    return (
        f"{info.split.value}/{info.crop}",
        _shape(info.raw_shape),
        _shape(info.labels_shape),
        _shape(info.voxel_size),
        f"error[{info.problem.code}]" if info.problem else _source(info),
        cached or "-",
    )


def _source(info: CropInfo) -> str:
    if info.source_bytes is None:
        return ""
    objects = "" if info.source_objects is None else f", {info.source_objects} objects"
    return format_bytes(info.source_bytes) + objects


def _shape(numbers: tuple[int, ...] | None) -> str:
    return "" if numbers is None else "(" + ", ".join(str(number) for number in numbers) + ")"


def _channels(info: CropInfo, file: CropFile) -> str:
    if info.raw_shape is not None and len(file.channels) == info.raw_shape[0]:
        return "all channels"
    return f"ch {format_channels(file.channels).replace('_', ',')}"
