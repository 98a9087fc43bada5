"""The command ``prismcache``. Results go to stdout, everything else to stderr.

Commands import what they need when they run, so that ``--help`` and completion are quick.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from prismcache.cli import doctor as doctor_command
from prismcache.cli import links as link_commands
from prismcache.cli import serve as serve_commands
from prismcache.cli import service as service_commands
from prismcache.cli.errors import Command, CommandGroup, warnings_as_lines
from prismcache.cli.options import (
    EXIT_CODES,
    AnyCropsArgument,
    AnySplitArgument,
    ChannelsOption,
    ContextOption,
    CropArgument,
    CropsArgument,
    JsonOption,
    SplitArgument,
    examples,
    read_channels,
    read_crops,
    with_settings,
)

if TYPE_CHECKING:
    from prismcache.client import PrismClient
    from prismcache.schema import CropFile

app = typer.Typer(
    name="prismcache",
    cls=CommandGroup,
    help="Fetch E11bio's PRISM training crops from S3, check them, and cache them as HDF5 files.",
    epilog=EXIT_CODES + examples("ls", "ensure instance 0 5", "ensure semantic all --channels 0-2", "ensure --help"),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    codecs.register_error("prismcache", _encoded_anyhow)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="prismcache")
    app(prog_name="prismcache")


def _encoded_anyhow(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what a stream without UTF-8 gets: for ``×`` an escape, for a path's undecodable bytes these bytes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        import prismcache

        typer.echo(f"prismcache {prismcache.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(
    cls=Command,
    epilog=examples(
        "ensure instance 0 5",
        "ensure instance 0-4 --root /lab/prism --context 16,46,46",
        "ensure instance 2 --product avg_barcodes",
        "ensure semantic all --channels 0,3 --json",
    ),
)
@with_settings
def ensure(  # noqa: PLR0913 - each is an option that people type
    settings: dict[str, Any],
    split: SplitArgument,
    crops: CropsArgument,
    *,
    channels: ChannelsOption = None,
    context: ContextOption = None,
    product: Annotated[
        str | None,
        typer.Option(
            help="What to make from the crop: unlabelled, avg_barcodes, fgbg, border_mask or facts (default: the crop)",
            autocompletion=lambda: ["unlabelled", "avg_barcodes", "fgbg", "border_mask", "facts"],
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if chunks are absent from the bucket")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait (default: no limit)")] = None,
    progress: Annotated[
        bool | None, typer.Option(help="Always show bars, or show nothing (default: bars in a terminal, else lines)")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch crops that are not cached yet; print the paths of their files."""
    wanted = read_crops(crops)
    only = read_channels(channels)
    with _client(settings) as client, warnings_as_lines():
        files = client.ensure_files(
            split,
            wanted,
            channels=only,
            context=context or 0,
            product=product or "crop",
            strict=strict,
            timeout=timeout,
            progress=progress,
        )
    _print_files("files", files, as_json=as_json)


@app.command("ls", cls=Command, epilog=examples("ls", "ls semantic", "ls instance --refresh --json"))
@with_settings
def list_crops(
    settings: dict[str, Any],
    split: AnySplitArgument = None,
    *,
    refresh: Annotated[bool, typer.Option("--refresh", help="Read the bucket's listing again")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the published crops and their cached files."""
    from prismcache.cli.output import print_catalog, print_json, working

    with _client(settings) as client, working("reading the catalog"):
        infos = client.catalog(split, refresh=refresh)
    if as_json:
        print_json({"crops": infos})
    else:
        print_catalog(infos)


@app.command(cls=Command, epilog=examples("info instance 0", "info semantic 3 --json"))
@with_settings
def info(settings: dict[str, Any], split: SplitArgument, crop: CropArgument, *, as_json: JsonOption = False) -> None:
    """Show one crop: shapes, voxel size, offset, sizes, cached files."""
    from prismcache.cli.output import print_crop, print_json, working

    with _client(settings) as client, working("reading the crop's metadata"):
        found = client.describe(split, crop)
    if as_json:
        print_json(found)
    else:
        print_crop(found)


@app.command(cls=Command, epilog=examples("facts instance 0", "facts instance all", "facts instance 0 5 --csv"))
@with_settings
def facts(
    settings: dict[str, Any],
    split: SplitArgument,
    crops: CropsArgument,
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Print a row for each label: box, centroid, barcode")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show labels, foreground and brightness of crops; fetch the crops first if they are not cached."""
    from prismcache.backend import service_part
    from prismcache.cli.output import print_facts, print_json, print_neurons

    facts_type = service_part("prismcache.crop", "Facts", "facts command")
    wanted = read_crops(crops)
    with _client(settings) as client, warnings_as_lines():
        files = client.ensure_files(split, wanted, product="facts")
    found = [facts_type.model_validate_json(Path(file.path).read_bytes()) for file in files]
    if as_json:
        print_json({"facts": found})
    elif csv:
        print_neurons(found)
    else:
        print_facts(found)


@app.command(cls=Command, epilog=examples("verify", "verify instance 0-4 --repair"))
@with_settings
def verify(
    settings: dict[str, Any],
    split: AnySplitArgument = None,
    crops: AnyCropsArgument = None,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move corrupt files to the quarantine and fetch them again")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read cached files again and compare their checksums; exit with 1 if a file stays corrupt."""
    from prismcache.cli.output import print_json, print_verdicts, working
    from prismcache.schema import Verdict

    wanted = read_crops(crops) if crops else None
    with _client(settings) as client, working("reading the cached files"):
        results = client.verify(split, wanted, repair=repair)
    if as_json:
        print_json({"results": results})
    else:
        print_verdicts(results)
    if any(result.verdict is Verdict.CORRUPT for result in results):
        raise typer.Exit(1)


@app.command("rm", cls=Command, epilog=examples("rm instance 5", "rm semantic all --yes"))
@with_settings
def remove(
    settings: dict[str, Any],
    split: SplitArgument,
    crops: CropsArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without a question")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete all cached files of crops; print the paths of the deleted files."""
    from prismcache.cli.output import files_text

    wanted = read_crops(crops)
    with _client(settings) as client:
        if not yes:
            _confirm_removal(client, split, wanted)
        removed = client.remove(split, wanted)
    _print_files("removed", removed, as_json=as_json)
    typer.echo(f"{files_text(len(removed))} deleted", err=True)


@app.command(
    cls=Command,
    epilog=examples(
        "export instance 0 crop_0.zarr",
        "export semantic 3 classes.zarr --label-values original",
        "export instance 2 crop_2.zarr --layout e11 --arrays raw,labels,unlabelled,avg_barcodes --context all",
        "export synapses 0 synapses.zarr --layout e11",
    ),
)
@with_settings
def export(  # noqa: PLR0913 - each is an option that people type
    settings: dict[str, Any],
    split: SplitArgument,
    crop: CropArgument,
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to make, such as crop_0.zarr")],
    *,
    channels: ChannelsOption = None,
    label_values: Annotated[
        str | None, typer.Option(help="consecutive or original (default: original in semantic crops)")
    ] = None,
    label_dtype: Annotated[
        str | None, typer.Option(help="Such as uint16 (default: uint32, or uint64 for original)")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="ngff (OME-Zarr) or e11 (raw, labels and unlabelled in one group)")
    ] = "ngff",
    arrays: Annotated[
        str | None,
        typer.Option(help="Such as raw,labels,avg_barcodes (default: raw, labels, further arrays; for e11 unlabelled)"),
    ] = None,
    context: ContextOption = None,
) -> None:
    """Write a crop as zarr; fetch the crop first if it is not cached; print the folder's path."""
    from prismcache.adapters.zarr import PRODUCTS, to_zarr
    from prismcache.cli.output import working

    only = read_channels(channels)
    chosen = None if arrays is None else [name.strip() for name in arrays.split(",")]
    with _client(settings) as client, warnings_as_lines():
        path = client.ensure(split, crop, channels=only, context=context or 0)[0]
        for product in PRODUCTS:
            if product in (chosen or ()):
                client.ensure(split, crop, product=product)
        with working("writing the export"):
            written = to_zarr(
                path,
                destination,
                layout=cast("Any", layout),
                arrays=chosen,
                channels=only,
                label_values=cast("Any", label_values),
                label_dtype=label_dtype,
            )
    typer.echo(written)


@app.command(
    cls=Command, epilog=examples("adopt ~/downloads/crop_0.h5", "adopt /scratch/ada/instance/*.h5 --root /lab/prism")
)
@with_settings
def adopt(
    settings: dict[str, Any],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Files that prismcache made elsewhere"),
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Check files of another cache against their checksums and the bucket; copy them into this cache."""
    import asyncio

    from prismcache.cli.output import working
    from prismcache.config import Settings
    from prismcache.progress.reporter import signs_of_life

    loaded = Settings.load(**settings).model_copy(update={"url": None})
    with working("reading the files"), signs_of_life("reading the files"):
        adopted = asyncio.run(service_commands.ask_cache_folder(loaded, lambda backend: backend.adopt(files)))
    _print_files("files", adopted, as_json=as_json)


service_commands.register(app)
link_commands.register(app)
serve_commands.register(app)
doctor_command.register(app)


def _client(settings: dict[str, Any]) -> PrismClient:
    from prismcache.client import PrismClient

    return PrismClient(**settings)


def _print_files(name: str, files: Sequence[CropFile], *, as_json: bool) -> None:
    if as_json:
        from prismcache.cli.output import print_json

        print_json({name: files})
    else:
        for file in files:
            typer.echo(file.path)


def _confirm_removal(client: PrismClient, split: str, crops: Sequence[int] | None) -> None:
    """Ask before more than one file is deleted; without a terminal, only ``all`` needs --yes."""
    if not _is_interactive():
        if crops is None:
            raise typer.BadParameter("deleting all crops needs --yes where there is no terminal", param_hint="CROPS")
        return
    files = [file for crop in client.catalog(split) for file in crop.files if crops is None or file.crop in crops]
    if len(files) > 1:
        from prismcache.cli.output import files_text
        from prismcache.numbers import format_bytes

        size = format_bytes(sum(file.size for file in files))
        where = client.settings.url or client.settings.root
        # On stderr alone: typer's own question puts a blank on stdout, where paths are expected.
        typer.echo(f"Delete {files_text(len(files))} ({size}) of {split} from {where}? [y/N] ", err=True, nl=False)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise typer.Abort


def _is_interactive() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
