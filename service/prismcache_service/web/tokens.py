"""Who may do what: bearer tokens in a JSON file that holds their SHA-256 only.

A token is 256 bits from the system's generator, so a plain hash is enough: there is nothing to guess from a dictionary.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from prismcache.errors import ConfigError
from prismcache_service.config import ServiceConfig

TOKEN_PREFIX = "prism_"  # noqa: S105 - lets scanners for leaked secrets know one
_TOKEN_BYTES = 32
_MAX_TOKEN = 256
_RESERVED = "me"  # ?owner=me

_log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What a token allows; each role includes those before it."""

    READER = "reader"
    REQUESTER = "requester"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role allows what `other` allows."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Caller:
    """Who sent a request. Without tokens the name is empty; a role of None allows public paths only."""

    name: str
    role: Role | None

    def may(self, role: Role) -> bool:
        """Whether the caller has at least this role."""
        return self.role is not None and self.role.includes(role)


class TokenRecord(BaseModel):
    """A token as the file knows it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: AwareDatetime


class _TokenFile(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tokens: tuple[TokenRecord, ...] = ()


def tokens_path(config: ServiceConfig) -> Path:
    """Where a service's tokens are."""
    return config.tokens_file or config.state_folder / "tokens.json"


def create_token(path: Path, name: str, role: Role | str) -> str:
    """Add a token and answer it, the only time that it is ever shown.

    Parameters
    ----------
    path
        The tokens' file; made if there is none.
    name
        Letters, digits and ``._-``; jobs and leases carry it as their owner.
    role
        One of `Role`.

    Raises
    ------
    ConfigError
        If the name is taken or unusable, or the file is.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    try:
        record = TokenRecord(name=name, role=Role(role), sha256=_digest(token), created_at=datetime.now(UTC))
    except ValueError:
        raise ConfigError(
            f"no token can be named {name!r} with role {str(role)!r}",
            remedy=f"Use letters, digits and ._- in the name, and one of the roles {', '.join(Role)}.",
        ) from None
    with _locked(path):
        known = list_tokens(path)
        if name == _RESERVED or any(other.name == name for other in known):
            raise ConfigError(f"the name {name!r} is taken", remedy="Choose another, or revoke that token first.")
        _write(path, (*known, record))
    return token


def revoke_token(path: Path, name: str) -> None:
    """Remove a token; a running service stops accepting it on SIGHUP.

    Raises
    ------
    ConfigError
        If there is none of that name, or the file is unusable.
    """
    with _locked(path):
        known = list_tokens(path)
        kept = tuple(record for record in known if record.name != name)
        if len(kept) == len(known):
            raise ConfigError(
                f"there is no token named {name!r} in {path}", remedy="`prismcache token list` shows them."
            )
        _write(path, kept)


def list_tokens(path: Path) -> tuple[TokenRecord, ...]:
    """What the file holds; nothing if there is no file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or others may write it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ConfigError(f"{path} can be written by everybody", remedy=f"chmod 600 {path}")
            return _TokenFile.model_validate_json(file.read()).tokens
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no file of tokens"
        raise ConfigError(f"{path} cannot be used: {reason}") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two commands from overwriting each other's change. The file lies on a local disk, where locks work."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, tokens: tuple[TokenRecord, ...]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_TokenFile(tokens=tokens).model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


class TokenBook:
    """The tokens that a running service accepts.

    Parameters
    ----------
    path
        The tokens' file.

    Attributes
    ----------
    enforced
        Whether a token is asked for. Once true it stays so: a file that vanishes must not open the service.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = list_tokens(path)
        self.enforced = bool(self._records)

    def reload(self) -> None:
        """Read the file again; one that cannot be used leaves everything as it was."""
        try:
            self._records = list_tokens(self.path)
        except ConfigError as error:
            _log.error("tokens not read again", error=str(error))
            return
        self.enforced = self.enforced or bool(self._records)
        _log.info("tokens read again", tokens=len(self._records))

    def authenticate(self, token: str) -> Caller | None:
        """Whose token this is, or None. Compares with every hash, so that the time taken tells nothing."""
        if len(token) > _MAX_TOKEN:
            return None
        digest = _digest(token).encode()
        found = None
        for record in self._records:
            if hmac.compare_digest(digest, record.sha256.encode()):
                found = Caller(record.name, record.role)
        return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address of this name."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def require_safe_address(config: ServiceConfig, tokens: TokenBook) -> None:
    """Refuse to be open to other machines without tokens.

    Raises
    ------
    ConfigError
        If the address is not a loopback one, there are no tokens, and `insecure` was not asked for.
    """
    if not (tokens.enforced or config.insecure or is_loopback(config.host)):
        raise ConfigError(
            f"{config.host!r} can be reached from other machines, and {tokens.path} holds no token",
            remedy="`prismcache token create NAME` makes one; or bind 127.0.0.1; or, on a trusted network, --insecure.",
        )
