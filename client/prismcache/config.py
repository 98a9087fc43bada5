"""Settings: arguments first, then ``PRISMCACHE_*`` in the environment, then defaults.

Plain pydantic rather than pydantic-settings, whose import alone takes longer than the rest of the client's.
"""

import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr, ValidationError, field_validator

from prismcache.errors import ConfigError

if TYPE_CHECKING:
    from prismcache.splits import Splits

ENV_PREFIX = "PRISMCACHE_"


class Settings(BaseModel):
    """All settings of client and embedded pipeline, immutable.

    Attributes
    ----------
    url, token
        The lab's service and this user's token; without a URL the pipeline runs in this process (embedded).
    root
        The cache folder; with a service, this machine's mount of the service's root. Without it, files of a service are
        downloaded. Default: the user's cache folder.
    downloads
        The folder for files of a service that the mount does not show, and for notes on files that were found right.
    decoded
        The folder for decoded voxels that `prismcache.torch` maps into memory (``cache="mmap"``); on a local disk.
    catalog
        A lab's own catalog file (TOML), which adds splits to the published ones; see docs/catalogs.md.
    s3_endpoint_url, s3_bucket, s3_prefix, s3_region
        The place of the published crops; without an endpoint, AWS itself.
    s3_anonymous
        Send unsigned requests; false takes credentials from the usual AWS chain.
    s3_etag_is_md5
        Whether ETags of 32 hex digits are the objects' MD5: "yes", "no" (some gateways; only lengths are checked then)
        or "auto" ("yes" unless the server says that it encrypts with KMS).
    s3_concurrency
        Objects in flight for one crop.
    s3_object_timeout
        Seconds that one object may take, retries included, before the source counts as unreachable.
    s3_bandwidth_limit
        Bytes a second that all crops together may fetch ("50MB"); None for no limit.
    memory_limit
        Peak resident memory of the process that makes a crop, in bytes ("400MB", "1GiB").
    workers
        Crops made at the same time, each in a process of its own.
    keep_quarantine_days
        Days that damaged files are kept in the quarantine; with a quota they are deleted earlier when room is needed.
    decode_threads
        Threads that decode and encode, for one crop; 0 takes one per core.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, defer_build=True
    )

    url: str | None = None
    token: SecretStr | None = None
    root: Annotated[Path, Field(default_factory=lambda: users_folder(user_cache_path))]
    downloads: Annotated[Path, Field(default_factory=lambda given: _below_cache("downloads", given))]
    decoded: Annotated[Path, Field(default_factory=lambda given: _below_cache("decoded", given))]
    catalog: Path | None = None
    s3_endpoint_url: str | None = None
    s3_bucket: str = "e11bio-prism"
    s3_prefix: str = "ls/models/training_data"
    s3_region: str = "us-east-1"
    s3_anonymous: bool = True
    s3_etag_is_md5: Literal["auto", "yes", "no"] = "auto"
    s3_concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    s3_object_timeout: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    s3_bandwidth_limit: Annotated[ByteSize, Field(ge=100_000)] | None = None
    memory_limit: Annotated[ByteSize, Field(ge=200_000_000)] = ByteSize(400_000_000)
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    keep_quarantine_days: Annotated[float, Field(ge=0, le=36_500)] = 7.0
    decode_threads: Annotated[int, Field(ge=0, le=256)] = 0

    @property
    def mount(self) -> Path | None:
        """This machine's mount of the service's root: `root` if it was given, else None."""
        return self.root if "root" in self.model_fields_set else None

    @cached_property
    def splits(self) -> "Splits":
        """The splits of the catalog, read at the first use.

        Raises
        ------
        ConfigError
            If `catalog` cannot be read or used; see `prismcache.catalog.load_splits`.
        """
        from prismcache.catalog import load_splits  # here, since the client of a service needs no catalog

        return load_splits(self.catalog)

    @field_validator("root", "downloads", "decoded", "catalog", mode="after")
    @classmethod
    def _absolute_folder(cls, folder: Path | None) -> Path | None:
        return folder and absolute_folder(folder)

    @field_validator("s3_prefix", mode="after")
    @classmethod
    def _bare_prefix(cls, prefix: str) -> str:
        return prefix.strip("/")

    @field_validator("url", "s3_endpoint_url", mode="after")
    @classmethod
    def _http_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://lab")
        if parts.scheme not in {"http", "https"}:
            raise ValueError("must start with http:// or https://")
        # Reading the port raises ValueError for one that is none.
        if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment or parts.port == 0:
            raise ValueError("write scheme, host, port and path alone, as in https://lab.example:8765")
        return url.rstrip("/") if url else None

    @field_validator("token", mode="after")
    @classmethod
    def _text_of_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        text = token.get_secret_value().strip() if token else ""  # a file's last line ends with a newline
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("a token is one word of ASCII letters and signs")
        return SecretStr(text) if text else None

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:
        """Return settings. Each comes from `arguments`; where that is None, from the environment; or is the default.

        Raises
        ------
        ConfigError
            If a value cannot be used; the message names the setting and the reason.
        """
        values: dict[str, Any] = {}
        for key, value in (os.environ if environ is None else environ).items():
            name = key.removeprefix(ENV_PREFIX).lower()
            bare = re.sub(r"""^(["'])(.*)\1$""", r"\2", value.strip())  # docker's env files keep quotes
            # What nearly is a setting is passed on, and refused as an argument of this name is.
            if key.startswith(ENV_PREFIX) and bare and get_close_matches(name, cls.model_fields, 1, 0.8):
                values[name] = bare
        values |= {name: value for name, value in arguments.items() if value is not None}
        try:
            return cls(**values)
        except ValidationError as error:
            raise _config_error(error) from None


def absolute_folder(folder: Path) -> Path:
    """Return a folder's absolute path, with the user's home folder for ``~``. Links stay as they are.

    Raises
    ------
    ValueError
        If the path is not UTF-8, or begins at the home folder or the working folder and that folder does not exist.
    """
    try:
        str(folder).encode()  # paths travel in JSON
    except UnicodeEncodeError:
        raise ValueError(f"the path {str(folder)!r} is not UTF-8") from None
    try:
        return Path(os.path.abspath(folder.expanduser()))  # not resolve(): a lab's mount point may be a link on purpose
    except RuntimeError:
        raise ValueError(f"{folder} lies in your home folder, but HOME is not set and this user has none") from None
    except FileNotFoundError:
        raise ValueError(f"{folder} is relative, but the working folder was deleted") from None


def users_folder(find: Callable[..., Path]) -> Path:
    """Return the user's folder that a function of platformdirs finds; one below ``~`` if there is no home folder."""
    try:
        return find("prismcache", appauthor=False)
    except RuntimeError:
        return Path("~/prismcache")


def _below_cache(name: str, given: Mapping[str, Any]) -> Path:
    """Return a folder below the user's cache folder or, for a user without a home folder, below the root."""
    folder = users_folder(user_cache_path)
    return (folder if folder.is_absolute() else given["root"]) / name


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if not first["loc"]:
        return ConfigError(f"the settings do not go together: {reason}")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, Settings.model_fields, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return ConfigError(
            f"there is no setting {name!r}{meant}", remedy="`prismcache.Settings` describes all settings."
        )
    if first["type"].startswith("byte_size"):  # pydantic's words: "could not parse value and unit from byte string"
        reason = "it is not a size; write 400MB or 1GiB"
    elif name in {"memory_limit", "s3_bandwidth_limit"}:  # pydantic gives the bound in bytes
        reason = f"write {first['ctx']['ge'] / 1e6:g}MB or more"
    return ConfigError(
        f"setting {name!r} is unusable: {reason}",
        remedy=f"Change {ENV_PREFIX}{name.upper()}, or the option or argument {name!r}.",
    )
