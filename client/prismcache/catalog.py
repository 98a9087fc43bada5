"""Reads catalog files (TOML), which say what each split is. Pure, and quick to import: only the standard library.

``splits.toml`` beside this module has the published splits. A lab's own catalog file, named by ``PRISMCACHE_CATALOG``,
adds further ones; docs/catalogs.md describes its keys, which are attributes of `prismcache.splits.SplitEntry`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from prismcache.numbers import SPLIT_NAME
from prismcache.splits import OF_CLASSES, PRODUCTS, SplitEntry, Splits, Vector

_PUBLISHED = Path(__file__).with_name("splits.toml")
_MAX_FILE_BYTES = 1 << 20
_MAX_SHOWN = 60  # characters of a value in a message
# Names that a crop's file, or its face as a zarr hierarchy, has already.
_RESERVED = {"raw", "labels", "labels_ids", "0", "all_channels", "original_ids", "slices", *PRODUCTS}
_ARRAY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_CROP = re.compile(r"0|[1-9]\d{0,5}", re.ASCII)
_TISSUE = re.compile(rf"(?P<split>{SPLIT_NAME.pattern})/(?:{_CROP.pattern})", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", re.ASCII)
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}", re.ASCII)


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
    """What is wrong with a value, what to write, and which key has it, if that is not the one being read."""

    def __init__(self, value: object, problem: str, remedy: str, key: str | None = None) -> None:
        try:
            text = repr(value)
        except ValueError:  # an integer of more digits than Python writes
            text = "this number"
        super().__init__(f"{text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + '…'} {problem}")
        self.remedy, self.key = remedy, key


def _entries(path: Path, taken: Collection[str] = ()) -> list[SplitEntry]:
    """Return the entries of a catalog file; `taken` are names that it may not use."""
    text, document = _read(path)
    split: str | None = None
    key: str | None = None
    found = []
    try:
        if unknown := sorted(document.keys() - {"splits"}):
            remedy = "Write splits as tables, [splits.NAME]."
            raise _UnusableError(unknown[0], "is not a key of a catalog", remedy, unknown[0])
        tables = document.get("splits")
        if not isinstance(tables, dict) or not tables:
            raise _UnusableError("splits", "has no table", "Write at least one table [splits.NAME].", "splits")
        for split, table in tables.items():
            key = None
            _check_name(split, table, taken)
            values = {}
            for key, value in table.items():
                if key not in _KEYS:
                    raise _UnusableError(key, "is not a key of a split", f"The keys are {', '.join(sorted(_KEYS))}.")
                values[key] = _KEYS[key](value)
            key = None
            entry = SplitEntry(name=split, is_own=path != _PUBLISHED, **({"folder": split} | values))
            _check(entry, {*taken, *tables})
            found.append(entry)
    except _UnusableError as error:
        of_split = "" if split is None else f"split {split!r}: "
        place = f"catalog {path}:{_line_of(text, split, error.key or key)}"
        raise _config_error(f"{place}: {of_split}{error}", error.remedy) from None
    return found


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a catalog file's text, and the document that it is."""
    import tomllib  # here, as urllib: most programs that import this module read no catalog

    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise OSError(f"it has more than {_MAX_FILE_BYTES} bytes")
    except OSError as error:
        reason = error.strerror or error
        raise _config_error(f"catalog {path} cannot be read: {reason}", "Correct PRISMCACHE_CATALOG.") from None
    try:
        text = data.decode("utf-8-sig")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line, remedy = data.count(b"\n", 0, error.start) + 1, "Save the file as UTF-8."
        raise _config_error(f"catalog {path}:{line}: this line is not UTF-8", remedy) from None
    except (ValueError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        place, remedy = f"{path}:{found[1] if found else 1}", "Correct this line; https://toml.io explains TOML."
        raise _config_error(f"catalog {place}: this is not TOML: {error}", remedy) from None


def _config_error(message: str, remedy: str) -> Exception:
    from prismcache.errors import ConfigError  # here, since it needs pydantic

    return ConfigError(message, remedy=remedy)


def _check_name(name: str, table: object, taken: Collection[str]) -> None:
    if not isinstance(table, dict):
        raise _UnusableError(name, "is not a table", f"Write [splits.{name}] and the keys below.")
    if not SPLIT_NAME.fullmatch(name):
        raise _UnusableError(
            name, "is not a name for a split", "Take small letters, digits and _, at most 40, with a letter first."
        )
    if name in taken:
        raise _UnusableError(name, "is the name of a published split", "Choose another name: files must not be mixed.")


def _check(entry: SplitEntry, splits: Collection[str]) -> None:
    """Check that the values of an entry agree with each other, and with the names of all splits."""
    if not entry.labels and (entry.products or entry.classes):
        key = "products" if entry.products else "classes"
        raise _UnusableError(key, "needs labels", "Name `labels`, or leave this out.", key)
    if not entry.classes and (wrong := sorted(OF_CLASSES & set(entry.products))):
        remedy = "Add `classes = true`, or leave it out."
        raise _UnusableError(wrong[0], "needs labels that are classes", remedy, "products")
    roles = [entry.raw, *filter(None, [entry.labels]), *entry.arrays]
    if twice := sorted({name for name in roles if roles.count(name) > 1}):
        raise _UnusableError(twice[0], "has two roles", "Name each array once, in `raw`, `labels` or `arrays`.")
    names = entry.datasets
    if wrong := sorted({name for name in names if name in _RESERVED or names.count(name) > 1}):
        remedy = "The last parts of `arrays` must differ from each other, and from the file's own names."
        raise _UnusableError(wrong[0], "would name two datasets of a file", remedy, "arrays")
    for crop, other in entry.same_tissue:
        if (split := other.partition("/")[0]) not in splits:
            remedy = f"The splits are {', '.join(sorted(splits))}."
            raise _UnusableError(
                split, f"is not a split, but said to be the tissue of crop {crop}", remedy, "same_tissue"
            )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise _UnusableError(value, "is not text", "Write text in quotes, on one line.")
    return value


def _folder(value: object) -> str:
    text = _text(value).strip("/")
    if text and not _ARRAY.fullmatch(text):
        raise _UnusableError(value, "is not a folder", "Write names with / between them, such as training/mito.")
    return text


def _array(value: object) -> str:
    text = _folder(value)
    if not text:
        raise _UnusableError(value, "is not an array", 'Write its path in a crop\'s folder, such as "volumes/raw".')
    return text


def _arrays(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _UnusableError(value, "is not a list", 'Write for example ["volumes/mask"].')
    return tuple(map(_array, value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _UnusableError(value, "is neither true nor false", "Write true or false, without quotes.")
    return value


def _products(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(item in PRODUCTS for item in value):
        raise _UnusableError(value, "is not a list of products", f"Write a list of {', '.join(PRODUCTS)}.")
    return tuple(dict.fromkeys(value))


def _number(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _UnusableError(value, f"is not a number from {low:g} to {high:g}", "Write a number such as 5 or 4.8.")
        return float(value)

    return parse


def _vector(of: Callable[[object], float]) -> Callable[[object], Vector]:
    def parse(value: object) -> Vector:
        if not isinstance(value, list) or len(value) != 3:
            remedy = "Write nm along Z, Y and X, such as [400, 168, 168]."
            raise _UnusableError(value, "is not a list of three numbers", remedy)
        z, y, x = map(of, value)
        return z, y, x

    return parse


def _tissues(value: object) -> tuple[tuple[int, str], ...]:
    remedy = 'Write for example { 0 = "instance/2" }: crop 0 of this split is the tissue of instance crop 2.'
    if not isinstance(value, dict):
        raise _UnusableError(value, "is not a table", remedy)
    for crop, other in value.items():
        if not _CROP.fullmatch(crop) or not isinstance(other, str) or not _TISSUE.fullmatch(other):
            raise _UnusableError({crop: other}, "does not name two crops", remedy)
    return tuple((int(crop), other) for crop, other in value.items())


def _bucket(value: object) -> str:
    if not _BUCKET.fullmatch(_text(value)):
        raise _UnusableError(value, "is not a bucket", "Write the bucket's name alone, without s3:// or a path.")
    return str(value)


def _region(value: object) -> str:
    if not _REGION.fullmatch(_text(value)):
        raise _UnusableError(value, "is not a region", "Write for example us-east-1.")
    return str(value)


def _url(value: object) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(_text(value))
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        is_url = False
    if not is_url:
        raise _UnusableError(value, "is not a URL", "Write for example https://s3.lab.example:9000.")
    return str(value).rstrip("/")


_NM = 1e12  # a kilometre
_KEYS: dict[str, Callable[[object], Any]] = {
    "title": _text,
    "folder": _folder,
    "raw": _array,
    "labels": _folder,
    "arrays": _arrays,
    "classes": _flag,
    "products": _products,
    "expansion": _number(0.01, 1000),
    "resolution": _vector(_number(0.5, _NM)),  # files hold whole nm
    "offset": _vector(_number(-_NM, _NM)),
    "same_tissue": _tissues,
    "bucket": _bucket,
    "prefix": _folder,
    "endpoint_url": _url,
    "region": _region,
    "anonymous": _flag,
}


def _line_of(text: str, split: str | None, key: str | None) -> int:
    """Return the line of a key of a split's table, else of the table, else 1; tomllib does not say where values lie."""
    lines = [line if not line.lstrip().startswith("#") else "" for line in text.split("\n")]

    def find(pattern: str, first: int) -> int:
        return next((number for number, line in enumerate(lines) if number >= first and re.match(pattern, line)), first)

    table = 0 if split is None else find(rf"\s*\[?\s*(splits\s*\.\s*)?[\"']?{re.escape(split)}[\"']?\s*[].=]", 0)
    return 1 + (table if key is None else find(rf"(.*[.{{,\s]|\s*\[?)[\"']?{re.escape(key)}[\"']?\s*[].=]", table))
