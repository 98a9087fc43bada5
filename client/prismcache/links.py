"""Messages about capability links, between client and service (pydantic, JSON); see `prismcache.schema`.

A person who has the URL of a link can read one crop, without a token, until the link expires or is revoked.
"""

from typing import Annotated, ClassVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from prismcache.schema import CropId, Split

MAX_HOURS = 24 * 366


class LinkRequest(BaseModel):
    """Ask for a link to one crop that ends after `hours`; `note` is one line that says what the link is for."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    split: Split
    crop: CropId
    hours: Annotated[float, Field(gt=0, le=MAX_HOURS, allow_inf_nan=False)] = 24 * 7
    # Without control characters: people read notes in terminals.
    note: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")] = ""


class Link(BaseModel):
    """A link without its secret, which is not kept. `owner` is the name of the token that made the link."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    id: str
    split: Split
    crop: int
    note: str
    owner: str
    created_at: AwareDatetime
    expires_at: AwareDatetime


class MadeLink(Link):
    """A new link. Its secret is in `path` and in the URLs, and is never shown again.

    `path` begins the link's paths, relative to the service's own address; `url` is that of the zarr hierarchy
    (OME-NGFF 0.4), and `neuroglancer_url` opens the crop in the service's Neuroglancer (None: not installed there).
    """

    path: str
    url: str
    neuroglancer_url: str | None = None


class LinkPage(BaseModel):
    """The links that are valid, newest first."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    links: tuple[Link, ...]
