"""Options that several commands share, written once."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from prismcache.catalog import load_splits, published
from prismcache.numbers import parse_channels, parse_crops

P = ParamSpec("P")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
SPLITS = f"{', '.join(published())}, or a split of your lab's catalog"
SETTINGS = "Settings (also as environment variables)"
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong command line or setting, 130 interrupted\n\n"


def _setting(flag: str, text: str) -> Any:
    variable = f"PRISMCACHE_{flag.removeprefix('--').replace('-', '_').upper()}"
    return typer.Option(flag, help=f"{text} [{variable}]", rich_help_panel=SETTINGS, show_default=False)


def _split_names() -> list[str]:
    catalog = os.environ.get("PRISMCACHE_CATALOG")
    with suppress(Exception):  # a catalog that cannot be used; the command itself says why
        return list(load_splits(Path(catalog).expanduser() if catalog else None))
    return list(published())


def _crop_numbers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the split's crops as the cache folder's catalog knows them; nothing is asked of a network."""
    root = ctx.params.get("root") or os.environ.get("PRISMCACHE_ROOT")
    try:
        from platformdirs import user_cache_path

        root = root or user_cache_path("prismcache", appauthor=False)
        crops = json.loads((Path(root) / ".prismcache" / "catalog.json").read_bytes())["crops"]
        numbers = [str(crop["crop"]) for crop in crops if crop["split"] == ctx.params.get("split")]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return []
    return [word for word in (*numbers, "all") if word.startswith(incomplete)]


def _is_no_number(split: str | None) -> str | None:
    """Refuse ``ensure 0`` and ``ensure instance/0``, as `ls` prints crops."""
    if split is not None and split[:1].isdigit():
        raise typer.BadParameter(f"{split} is not a split; write the split before the crops: {', '.join(published())}")
    if split is not None and "/" in split:
        raise typer.BadParameter(f"write split and crop as two words: {split.replace('/', ' ', 1)}")
    return split


def _split_argument(text: str) -> Any:
    return typer.Argument(
        metavar="SPLIT", help=text, autocompletion=_split_names, callback=_is_no_number, show_default=False
    )


def _crops_argument(text: str) -> Any:
    return typer.Argument(metavar="CROPS", help=text, autocompletion=_crop_numbers, show_default=False)


SplitArgument = Annotated[str, _split_argument(SPLITS)]
AnySplitArgument = Annotated[str | None, _split_argument(f"{SPLITS} (default: all)")]
CropArgument = Annotated[
    int,
    typer.Argument(
        metavar="CROP", help="Number of the crop, such as 0", autocompletion=_crop_numbers, show_default=False
    ),
]
CropsArgument = Annotated[list[str], _crops_argument("Numbers of crops: 0 5, 0-4, 0,3 or all")]
AnyCropsArgument = Annotated[list[str] | None, _crops_argument("Numbers of crops: 0 5, 0-4, 0,3 or all (default: all)")]
ChannelsOption = Annotated[str | None, typer.Option(help="Channels to keep: 0,3 or 0-2 (default: all)")]
ContextOption = Annotated[
    str | None,
    typer.Option(help="Voxels of raw to keep around the labels: 16, or Z,Y,X such as 16,46,46, or all (default: 0)"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print results and errors as JSON")]

SETTINGS_OPTIONS: dict[str, Any] = {
    "root": Annotated[Path | None, _setting("--root", "Cache folder (default: the user's cache folder)")],
    "url": Annotated[
        str | None, _setting("--url", "Address of the lab's service (default: none; this machine does the work)")
    ],
    "catalog": Annotated[Path | None, _setting("--catalog", "Catalog file with your lab's own splits (default: none)")],
    "s3_endpoint_url": Annotated[str | None, _setting("--s3-endpoint-url", "Address of the S3 server (default: AWS)")],
    "s3_bucket": Annotated[str | None, _setting("--s3-bucket", "Bucket (default: e11bio-prism)")],
    "s3_prefix": Annotated[
        str | None, _setting("--s3-prefix", "Folder in the bucket (default: ls/models/training_data)")
    ],
    "s3_concurrency": Annotated[
        int | None, _setting("--s3-concurrency", "Objects fetched at the same time (default: 32)")
    ],
    "memory_limit": Annotated[
        str | None, _setting("--memory-limit", "Peak memory for one crop, such as 1GiB (default: 400MB)")
    ],
    "workers": Annotated[int | None, _setting("--workers", "Crops made at the same time (default: 2)")],
}


SERVICE_OPTIONS: dict[str, Any] = {"url": Annotated[str | None, _setting("--url", "Address of the lab's service")]}

TOKEN_OPTIONS: dict[str, Any] = {
    "tokens_file": Annotated[
        Path | None, _setting("--tokens-file", "File with hashed tokens (default: tokens.json in --state-folder)")
    ],
    "state_folder": Annotated[
        Path | None,
        _setting("--state-folder", "Local folder for database and tokens (default: the user's state folder)"),
    ],
}

SERVE_OPTIONS: dict[str, Any] = {
    "host": Annotated[str | None, _setting("--host", "Address to listen on (default: 127.0.0.1, this machine only)")],
    "port": Annotated[int | None, _setting("--port", "Port to listen on; 0 takes a free one (default: 8765)")],
    "public_url": Annotated[
        str | None, _setting("--public-url", "Address that users type, if a proxy stands in front")
    ],
    "tls_cert": Annotated[
        Path | None, _setting("--tls-cert", "PEM file of the certificate, for https (default: http)")
    ],
    "tls_key": Annotated[Path | None, _setting("--tls-key", "PEM file of the private key (default: in --tls-cert)")],
    "trusted_proxies": Annotated[
        str | None, _setting("--trusted-proxies", "Addresses of proxies in front, such as '127.0.0.1 10.0.0.0/8'")
    ],
    **{name: option for name, option in SETTINGS_OPTIONS.items() if name != "url"},
    "engine": Annotated[str | None, _setting("--engine", "Where crops are made: local or dask (default: local)")],
    "dask_scheduler": Annotated[
        str | None, _setting("--dask-scheduler", "Dask scheduler: tcp://host:8786, or a scheduler file")
    ],
    "advertised_root": Annotated[
        Path | None, _setting("--advertised-root", "Path of the cache folder on other machines (default: --root)")
    ],
    "max_bytes": Annotated[
        str | None, _setting("--max-bytes", "Quota for the cache folder, such as 500GB (default: none)")
    ],
    "min_free_bytes": Annotated[
        str | None, _setting("--min-free-bytes", "Bytes that stay free on the disk (default: 1GB)")
    ],
    "s3_bandwidth_limit": Annotated[
        str | None, _setting("--s3-bandwidth-limit", "Bytes per second from the bucket, such as 100MB (default: none)")
    ],
    "database_url": Annotated[
        str | None, _setting("--database-url", "Database for jobs (default: SQLite in --state-folder)")
    ],
    **TOKEN_OPTIONS,
    "log_format": Annotated[str | None, _setting("--log-format", "console or json (default: console)")],
    "insecure": Annotated[
        bool | None,
        typer.Option(
            "--insecure", help="Let other machines connect although there are no tokens", rich_help_panel=SETTINGS
        ),
    ],
}


def examples(*commands: str) -> str:
    """Return the text below a help screen that shows `commands`, written without ``prismcache``."""
    return "\n".join(["Examples:", *(f"  prismcache {command}" for command in commands)])


def with_settings(command: Callable[Concatenate[dict[str, Any], P], None]) -> Callable[..., None]:
    """Add the options of a client to `command`; see `with_options`."""
    return with_options(SETTINGS_OPTIONS)(command)


def with_options(
    options: dict[str, Any],
) -> Callable[[Callable[Concatenate[dict[str, Any], P], None]], Callable[..., None]]:
    """Add `options` to a command, which gets them as its first argument, a dictionary by name.

    Typer reads a command's options from its signature, so `options` are added to the signature.
    """

    def decorate(command: Callable[Concatenate[dict[str, Any], P], None]) -> Callable[..., None]:
        @wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            given = {name: kwargs.pop(name) for name in options}
            command(given, *args, **kwargs)

        signature = inspect.signature(command)
        first, *own = signature.parameters.values()
        hints = get_type_hints(command, include_extras=True)
        parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it; a Callable has none
        run.__annotations__ = {name: hint for name, hint in hints.items() if name != first.name} | options
        return run

    return decorate


def read_duration(text: str) -> timedelta:
    """Return how long ``12h``, ``90d`` or ``52w`` is."""
    match = re.fullmatch(r"([1-9]\d{0,4})([hdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write 12h, 90d or 52w", param_hint="--expires")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def read_crops(words: Sequence[str]) -> list[int] | None:
    """Return the crops that `words` name; None for all."""
    try:
        return parse_crops(words)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="CROPS") from None


def read_channels(text: str | None) -> list[int] | None:
    """Return the channels that `text` names; None for all."""
    try:
        return None if text is None else parse_channels(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--channels") from None
