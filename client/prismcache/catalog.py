"""Reads catalog files (TOML), which say what each split is. Pure, and quick to import: only the standard library.

``splits.toml`` beside this module has the published splits. A lab's own catalog file, named by ``PRISMCACHE_CATALOG``,
adds further ones; docs/catalogs.md describes its keys, which are attributes of `prismcache.splits.SplitEntry`.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from prismcache.numbers import MAX_CROP, SPLIT_NAME
from prismcache.splits import OF_CLASSES, PRODUCTS, SplitEntry, Splits, Vector

_PUBLISHED = Path(__file__).with_name("splits.toml")
_MAX_FILE_BYTES = 1 << 20
_RESERVED = {"raw", "labels", "labels_ids", *PRODUCTS}  # names that a crop's file has already
_ARRAY = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*", re.ASCII)
_TISSUE = re.compile(r"([a-z][a-z0-9_]{0,39})/(0|[1-9]\d{0,5})", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)


@lru_cache(maxsize=1)
def published() -> Splits:
    """Return the splits that E11 Bio publishes."""
    return Splits(_entries(_PUBLISHED))


def load_splits(path: Path | None) -> Splits:
    """Return the published splits, and those of a lab's catalog file.

    Parameters
    ----------
    path
        The file; None for the published splits alone.

    Raises
    ------
    ConfigError
        If the file cannot be read or used; the message names file, line and value, the remedy says what to write.
    """
    if path is None:
        return published()
    own = _entries(path, taken=published())
    return Splits([*published().values(), *own])


class _UnusableError(ValueError):
    """What is wrong with a value, and what to write."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


def _entries(path: Path, taken: Iterable[str] = ()) -> list[SplitEntry]:
    """Return the entries of a catalog file; `taken` are names that it may not use."""
    try:
        data = path.read_bytes()
        if len(data) > _MAX_FILE_BYTES:
            raise OSError(f"it has {len(data)} bytes, more than {_MAX_FILE_BYTES}")
        text = data.decode()
        document = tomllib.loads(text)
    except OSError as error:
        reason = error.strerror or error
        raise _config_error(f"catalog {path} cannot be read: {reason}", "Correct PRISMCACHE_CATALOG.") from None
    except ValueError as error:  # also UnicodeDecodeError
        line = re.search(r"at line (\d+)", str(error))
        place = f"{path}:{line[1]}" if line else str(path)
        remedy = "Correct this line; https://toml.io explains TOML."
        raise _config_error(f"catalog {place} is not TOML: {error}", remedy) from None
    if unknown := sorted(document.keys() - {"splits"}):
        remedy = "Write splits as tables, [splits.NAME]."
        raise _config_error(f"catalog {path}:{_line_of(text, None, unknown[0])}: unknown key {unknown[0]!r}", remedy)
    tables = document.get("splits")
    if not isinstance(tables, dict) or not tables:
        raise _config_error(f"catalog {path}:1: it has no split", "Write at least one table [splits.NAME].")
    taken, found = set(taken), []
    for name, table in tables.items():
        key: str | None = None
        try:
            _check_name(name, table, taken)
            values = {}
            for key, value in table.items():
                if key not in _KEYS:
                    raise _UnusableError(f"unknown key {key!r}", f"The keys are {', '.join(sorted(_KEYS))}.")
                values[key] = _KEYS[key](value)
            key = None
            found.append(_checked(SplitEntry(name=name, is_own=path != _PUBLISHED, **({"folder": name} | values))))
        except _UnusableError as error:
            line_number = _line_of(text, name, key)
            raise _config_error(f"catalog {path}:{line_number}: split {name!r}: {error}", error.remedy) from None
    return found


def _config_error(message: str, remedy: str) -> Exception:
    from prismcache.errors import ConfigError  # here, since it needs pydantic

    return ConfigError(message, remedy=remedy)


def _check_name(name: str, table: object, taken: Iterable[str]) -> None:
    if not isinstance(table, dict):
        raise _UnusableError("it is not a table", f"Write [splits.{name}] and the keys below.")
    if not SPLIT_NAME.fullmatch(name):
        raise _UnusableError(
            "this name cannot be used for a split", "Take small letters, digits and _, at most 40, with a letter first."
        )
    if name in taken:
        raise _UnusableError("this name is that of a published split", "Choose another name: files must not be mixed.")


def _checked(entry: SplitEntry) -> SplitEntry:
    """Return an entry whose values agree with each other."""
    if not entry.labels and (entry.products or entry.classes):
        raise _UnusableError(
            "without labels there are neither classes nor products", "Name `labels`, or leave these out."
        )
    if not entry.classes and (wrong := sorted(OF_CLASSES & set(entry.products))):
        raise _UnusableError(
            f"product {wrong[0]!r} needs labels that are classes", "Add `classes = true`, or leave it out."
        )
    if entry.raw in {entry.labels, *entry.arrays} or entry.labels in entry.arrays:
        raise _UnusableError("one array has two roles", "Name each array once, in `raw`, `labels` or `arrays`.")
    names = entry.datasets
    if wrong := sorted({name for name in names if name in _RESERVED or names.count(name) > 1}):
        raise _UnusableError(
            f"two datasets of a file would be called {wrong[0]!r}", "The last parts of `arrays` must differ."
        )
    return entry


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _UnusableError(f"{value!r} is not text", "Write text in quotes, on one line.")
    return value


def _folder(value: object) -> str:
    text = _text(value).strip("/")
    if (text and not _ARRAY.fullmatch(text)) or ".." in text.split("/"):
        raise _UnusableError(f"{value!r} is not a folder", "Write names with / between them, such as training/mito.")
    return text


def _array(value: object) -> str:
    text = _folder(value)
    if not text:
        raise _UnusableError(f"{value!r} is not an array", 'Write its path in a crop\'s folder, such as "volumes/raw".')
    return text


def _arrays(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _UnusableError(f"{value!r} is not a list", 'Write for example ["volumes/mask"].')
    return tuple(map(_array, value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnusableError(f"{value!r} is neither true nor false", "Write true or false, without quotes.")
    return value


def _products(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(item in PRODUCTS for item in value):
        raise _UnusableError(f"{value!r} are no products", f"Write a list of {', '.join(PRODUCTS)}.")
    return tuple(dict.fromkeys(value))


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) >= 2**53:  # type: ignore[arg-type]
        raise _UnusableError(f"{value!r} is not a number", "Write a number such as 5 or 4.8.")
    return float(value)  # type: ignore[arg-type]


def _positive(value: object) -> float:
    if (number := _number(value)) <= 0:
        raise _UnusableError(f"{value!r} is not above 0", "Write a number such as 5 or 4.8.")
    return number


def _vector(of: Callable[[object], float]) -> Callable[[object], Vector]:
    def parse(value: object) -> Vector:
        if not isinstance(value, list) or len(value) != 3:
            raise _UnusableError(
                f"{value!r} are not three numbers", "Write nm along Z, Y and X, such as [400, 168, 168]."
            )
        z, y, x = map(of, value)
        return z, y, x

    return parse


def _tissues(value: object) -> tuple[tuple[int, str], ...]:
    remedy = 'Write for example { 0 = "instance/2" }: crop 0 of this split is the tissue of instance crop 2.'
    if not isinstance(value, dict):
        raise _UnusableError(f"{value!r} is not a table", remedy)
    for crop, other in value.items():
        is_crop = crop.isascii() and crop.isdigit() and str(int(crop)) == crop and int(crop) <= MAX_CROP
        if not is_crop or not isinstance(other, str) or not _TISSUE.fullmatch(other):
            raise _UnusableError(f"{crop} = {other!r} does not name two crops", remedy)
    return tuple((int(crop), other) for crop, other in value.items())


def _bucket(value: object) -> str:
    if not _BUCKET.fullmatch(_text(value)):
        raise _UnusableError(
            f"{value!r} is not a bucket name", "Write the bucket's name alone, without s3:// or a path."
        )
    return str(value)


def _url(value: object) -> str:
    if not _text(value).startswith(("http://", "https://")):
        raise _UnusableError(f"{value!r} is not a URL", "Begin with http:// or https://.")
    return str(value).rstrip("/")


_KEYS: dict[str, Callable[[object], Any]] = {
    "title": _text,
    "folder": _folder,
    "raw": _array,
    "labels": _folder,
    "arrays": _arrays,
    "classes": _flag,
    "products": _products,
    "expansion": _positive,
    "resolution": _vector(_positive),
    "offset": _vector(_number),
    "same_tissue": _tissues,
    "bucket": _bucket,
    "prefix": _folder,
    "endpoint_url": _url,
    "region": _text,
    "anonymous": _flag,
}


def _line_of(text: str, split: str | None, key: str | None) -> int:
    """Return the line of a key of a split's table, else of the table, else 1; tomllib does not say where values lie."""
    lines = text.splitlines()
    first = 0
    if split is not None:
        header = re.compile(
            rf"\s*\[\s*splits\s*\.\s*[\"']?{re.escape(split)}[\"']?\s*[\].]|\s*[\"']?{re.escape(split)}\b"
        )
        first = next((number for number, line in enumerate(lines) if header.match(line)), 0)
    if key is None:
        return first + 1
    named = re.compile(rf"\s*\[?[\"']?{re.escape(key)}[\"']?\s*[=.\]]|.*\.\s*{re.escape(key)}\s*[=\].]")
    for number, line in enumerate(lines[first:], first):
        if named.match(line):
            return number + 1
        if number > first and split is not None and line.lstrip().startswith("[") and f".{split}" not in line:
            break
    return first + 1
