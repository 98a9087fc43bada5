"""What a split is: where its crops lie, which arrays they have, what can be made of them. Pure, quick to import.

The splits are data: `prismcache.catalog` reads them from files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prismcache.numbers import EXPANSION

if TYPE_CHECKING:
    from prismcache.schema import JobRequest

Vector = tuple[float, float, float]

PRODUCTS = ("unlabelled", "avg_barcodes", "fgbg", "border_mask", "facts")
"""What can be derived from a crop with labels; ``fgbg`` and ``border_mask`` need classes."""
OF_CLASSES = frozenset({"fgbg", "border_mask"})

_NOT_IN_FILES = frozenset({"title", "products", "same_tissue"})


@dataclass(frozen=True)
class SplitEntry:
    """One split of a catalog.

    Attributes
    ----------
    name
        The split's name.
    title
        A few words for people.
    folder
        Where the crops, ``crop_0.zarr``, ``crop_1.zarr``, …, lie below the prefix; default: the split's name.
    raw
        The array of raw in a crop's folder, (C, Z, Y, X) uint8.
    labels
        The array of labels, (Z, Y, X) integers; empty for a split without labels, whose raw is kept as a whole.
    arrays
        Further arrays, (Z, Y, X) of any number type, that ride along: the file has each under the last part of its
        name, with its own dtype and offset.
    classes
        Whether labels are classes, which mean the same in every crop.
    products
        The products that can be made from the crops.
    expansion
        How many times larger the imaged tissue is than in the brain.
    resolution, offset
        Voxel size and place, nm (Z, Y, X), for arrays whose attributes have none.
    same_tissue
        Pairs of a crop of this split and the crop, such as ``instance/2``, that shows the same tissue.
    bucket, prefix, endpoint_url, region, anonymous
        Where the split lies, if not where the settings ``PRISMCACHE_S3_…`` say.
    is_own
        Whether a lab's own catalog has the split, rather than E11 Bio's.
    """

    name: str
    title: str = ""
    folder: str = ""
    raw: str = "raw"
    labels: str = "labels"
    arrays: tuple[str, ...] = ()
    classes: bool = False
    products: tuple[str, ...] = ()
    expansion: float = EXPANSION
    resolution: Vector | None = None
    offset: Vector | None = None
    same_tissue: tuple[tuple[int, str], ...] = ()
    bucket: str | None = None
    prefix: str | None = None
    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool | None = None
    is_own: bool = False

    def crop_folder(self, crop: int) -> str:
        """Return a crop's folder below the prefix."""
        return f"{self.folder}/crop_{crop}.zarr".lstrip("/")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of `arrays` in a crop's file."""
        return tuple(name.rpartition("/")[2] for name in self.arrays)

    @property
    def place(self) -> dict[str, Any]:
        """The settings of S3 that this split has of its own, by the setting's name; empty for the published splits.

        In a bucket of its own, the prefix is empty unless one is given.
        """
        own = {
            "s3_bucket": self.bucket,
            "s3_prefix": "" if self.bucket is not None and self.prefix is None else self.prefix,
            "s3_endpoint_url": self.endpoint_url,
            "s3_region": self.region,
            "s3_anonymous": self.anonymous,
        }
        return {name: value for name, value in own.items() if value is not None}

    @cached_property
    def definition(self) -> str:
        """A digest of what the files of this split are made from; empty for the published splits.

        Catalogs that give one name to different things differ here; title, products and tissues do not count.
        """
        if not self.is_own:
            return ""
        return _digest({key: value for key, value in asdict(self).items() if key not in _NOT_IN_FILES})

    def to_json(self) -> str:
        """Return the entry as JSON, as the files of a lab's own splits carry it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SplitEntry:
        """Return the entry that `to_json` wrote; keys of a later version are ignored.

        Raises
        ------
        ValueError
            If the text is no entry.
        """
        try:
            known = {field.name for field in fields(cls)}
            return cls(**{key: _as_tuple(value) for key, value in json.loads(text).items() if key in known})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no entry of a catalog: {error}") from error

    def check_product(self, product: str) -> None:
        """Raise `RequestError` if crops of this split have no such product; the remedy names what they have."""
        from prismcache.errors import RequestError  # here, since it needs pydantic

        if product == "crop" or product in self.products:
            return
        problem = f"split {self.name!r} has no product {str(product)!r}"
        if product in OF_CLASSES and not self.classes:
            problem = f"product {str(product)!r} exists for semantic crops only, whose labels are classes"
        remedy = f"Ask for product {' or '.join(('crop', *self.products))}."
        if self.arrays:
            remedy += f" A crop's file has the arrays {', '.join(self.datasets)}."
        if self.is_own:
            remedy += " The split's key `products` in the catalog can allow more."
        raise RequestError(problem, remedy=remedy)


def _digest(value: object) -> str:
    import hashlib  # here, since few programs need it

    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _as_tuple(value: object) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


class Splits(Mapping[str, SplitEntry]):
    """The splits of a catalog, by name, in the catalog's order; of two entries of one name, the later one counts."""

    def __init__(self, entries: Iterable[SplitEntry]) -> None:
        self._entries: dict[str, SplitEntry] = {}
        self._tissues: dict[str, list[str]] = {}
        for entry in entries:
            self._entries[entry.name] = entry
            for crop, other in entry.same_tissue:
                pair = f"{entry.name}/{crop}", other
                group = sorted({*pair, *(name for each in pair for name in self._tissues.get(each, ()))})
                self._tissues |= dict.fromkeys(group, group)

    def __getitem__(self, name: str) -> SplitEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> SplitEntry:
        """Return a split.

        Raises
        ------
        UnknownSplitError
            If the catalog has no such split; the message names those that it has.
        """
        if name not in self._entries:
            raise self.unknown(str(name))
        return self._entries[name]

    def unknown(self, name: object) -> Exception:
        """Return the `UnknownSplitError` for a name; its message names the splits that there are."""
        from prismcache.errors import UnknownSplitError  # here, since it needs pydantic

        return UnknownSplitError(f"{name!r} is not a split; the splits are {', '.join(map(repr, self._entries))}")

    def same_tissue(self, name: str, crop: int) -> tuple[str, ...]:
        """Return the other crops, such as ``instance/2``, that show the tissue of a crop."""
        own = f"{name}/{crop}"
        return tuple(other for other in self._tissues.get(own, ()) if other != own)

    def about(self, name: str, crop: int) -> dict[str, Any]:
        """Return what the catalog says of a crop, as fields of `CropInfo`."""
        from prismcache.schema import Product  # here, since it needs pydantic

        entry = self._entries[name]
        return {
            "has_labels": bool(entry.labels),
            "classes": entry.classes,
            "products": tuple(map(Product, entry.products)),
            "expansion": entry.expansion,
            "same_tissue": self.same_tissue(name, crop),
        }

    def checked(self, request: JobRequest) -> JobRequest:
        """Return a request that the catalog allows; without context if crops have no labels: files have all of raw.

        Raises
        ------
        UnknownSplitError, RequestError
            If the catalog has no such split, or the split no such product.
        """
        from prismcache.schema import NO_CONTEXT

        entry = self.entry(request.split)
        entry.check_product(request.product)
        return request if entry.labels else request.model_copy(update={"context": NO_CONTEXT})

    @property
    def digest(self) -> str:
        """A text that is equal for equal catalogs."""
        return _digest([asdict(entry) for entry in self._entries.values()])
