"""Bearer tokens, and what each of them allows. A JSON file holds the tokens' SHA-256, never the tokens.

A token is 256 random bits from the operating system, so a plain hash is enough: no dictionary helps to guess it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import itertools
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
from urllib.parse import urlsplit

import structlog
from filelock import FileLock
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from prismcache.errors import ConfigError
from prismcache_service.config import ServiceConfig

WATCH_SECONDS = 2.0
"""Seconds within which a running service notices a change of the tokens file."""
TOKEN_PREFIX = "prism_"  # noqa: S105 - scanners for leaked secrets recognise it
_TOKEN_BYTES = 32
_MAX_TOKEN = 256
_RESERVED = "me"  # ?owner=me
_STORE_TURNS = 15  # last uses are stored every 15 * WATCH_SECONDS = 30 s

_log = structlog.get_logger(__name__)


class Role(StrEnum):
    """What a token allows; each role includes those before it."""

    READER = "reader"
    REQUESTER = "requester"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Return True if this role allows what `other` allows."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Caller:
    """The sender of a request. `name` is empty where there are no tokens; role None allows public paths only."""

    name: str
    role: Role | None

    def may(self, role: Role) -> bool:
        """Return True if the caller has at least this role."""
        return self.role is not None and self.role.includes(role)


class TokenRecord(BaseModel):
    """One token: everything about it but the token itself.

    Attributes
    ----------
    name, role
        The token's user, and what the token allows.
    sha256
        Hash of the token, 64 hexadecimal digits.
    created_at, expires_at
        When the token was made, and from when on it is refused (None: never).
    last_used_at
        When a running service last accepted it, within a minute; None if never. Kept in a file beside the tokens.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    role: Role
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    last_used_at: AwareDatetime | None = None


class _TokenFile(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    tokens: tuple[TokenRecord, ...] = ()

    def as_json(self) -> str:
        """Return the file's content. Older versions read it too as long as no token expires."""
        return self.model_dump_json(indent=1, exclude_none=True, exclude={"tokens": {"__all__": {"last_used_at"}}})


_Uses = TypeAdapter(dict[str, AwareDatetime])


def tokens_path(config: ServiceConfig) -> Path:
    """Return the path of a service's tokens file."""
    return config.tokens_file or config.state_folder / "tokens.json"


def create_token(path: Path, name: str, role: Role | str, *, expires: datetime | None = None) -> str:
    """Add a token and return it. It cannot be shown again: the file holds its hash.

    Parameters
    ----------
    path
        The tokens file; made if it does not exist.
    name
        Letters, digits and ``._-``; jobs and retention leases carry the name as their owner.
    role
        One of `Role`.
    expires
        From when on the token is refused, with a time zone; None for a token without an end.

    Raises
    ------
    ConfigError
        If the name is taken or has other characters, the role is unknown, `expires` is over, or the file cannot be
        read or written.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    now = datetime.now(UTC)
    if expires is not None and expires <= now:
        raise ConfigError(f"a token that expires at {expires:%Y-%m-%d %H:%M} UTC could never be used")
    try:
        record = TokenRecord(name=name, role=Role(role), sha256=_digest(token), created_at=now, expires_at=expires)
    except ValueError:
        raise ConfigError(
            f"no token can be named {name!r} with role {str(role)!r}",
            remedy=f"Use letters, digits and ._- in the name, and one of the roles {', '.join(Role)}.",
        ) from None
    with _locked(path):
        known = list_tokens(path)
        if name == _RESERVED or any(other.name == name for other in known):
            raise ConfigError(f"the name {name!r} is taken", remedy="Choose another, or revoke that token first.")
        _write(path, _TokenFile(tokens=(*known, record)).as_json())
    return token


def revoke_token(path: Path, name: str) -> None:
    """Remove a token; a running service refuses it within `WATCH_SECONDS` s.

    Raise `ConfigError` if there is no token of that name, or the file cannot be read or written.
    """
    with _locked(path):
        known = list_tokens(path)
        kept = tuple(record for record in known if record.name != name)
        if len(kept) == len(known):
            raise ConfigError(
                f"there is no token named {name!r} in {path}", remedy="`prismcache token list` shows them."
            )
        _write(path, _TokenFile(tokens=kept).as_json())


def list_tokens(path: Path) -> tuple[TokenRecord, ...]:
    """Return the tokens of a file with their last use; empty if the file does not exist.

    Raise `ConfigError` if the file cannot be read, is not a tokens file, or can be written by everybody.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ConfigError(f"{path} can be written by everybody", remedy=f"chmod 600 {path}")
            tokens = _TokenFile.model_validate_json(file.read()).tokens
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a file of tokens"
        raise ConfigError(f"{path} cannot be used: {reason}") from None
    uses: dict[str, datetime] = {}
    with contextlib.suppress(OSError, ValidationError):  # only shown to people; no reason to refuse a token
        uses = _Uses.validate_json(_uses_path(path).read_bytes())
    return tuple(
        record.model_copy(update={"last_used_at": used})
        # A use from before the token was made belongs to a revoked token of the same name.
        if (used := uses.get(record.name)) and used >= record.created_at
        else record
        for record in tokens
    )


def _uses_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.used.json")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two commands from overwriting each other's change. The file lies on a local disk, where locks work."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
        lock.acquire()
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, text: str) -> None:
    """Replace a file of the state folder by `text`; readers see the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


class TokenBook:
    """The tokens that a running service accepts.

    Attributes
    ----------
    enforced
        True if requests need a token. Once true, `enforced` stays true: deleting the file must not open the service.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._look()
        self._records = list_tokens(path)
        self._uses: dict[str, datetime] = {}
        self.enforced = bool(self._records)

    def reload(self) -> None:
        """Read the file again; a file that cannot be used changes nothing and is logged."""
        stamp = self._look()
        try:
            records = list_tokens(self.path)
        except ConfigError as error:
            _log.error("tokens not read again", error=str(error))
            return
        finally:
            self._stamp = stamp
        before, after = ({record.name for record in known} for known in (self._records, records))
        self._records = records
        self.enforced = self.enforced or bool(records)
        _log.info("audit", action="tokens read again", added=sorted(after - before), removed=sorted(before - after))

    def refresh(self) -> None:
        """Read the file again if it has changed since it was read last."""
        if self._look() != self._stamp:
            self.reload()

    async def watch(self) -> None:
        """Until cancelled, read a changed file within `WATCH_SECONDS` s, and store the tokens' last uses."""
        try:
            for turn in itertools.count(1):
                await asyncio.sleep(WATCH_SECONDS)
                await asyncio.to_thread(self.refresh)
                if turn % _STORE_TURNS == 0:
                    await asyncio.to_thread(self.store_uses)
        finally:
            self.store_uses()

    def store_uses(self) -> None:
        """Write when each token was last used to a file beside the tokens; failing to do so is logged."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            stored = {record.name: record.last_used_at for record in list_tokens(self.path) if record.last_used_at}
            _write(_uses_path(self.path), _Uses.dump_json(stored | uses).decode())
        except ConfigError as error:
            _log.warning("the last uses of tokens are not stored", error=str(error))

    def authenticate(self, token: str) -> Caller | None:
        """Return the caller of a token, or None. Every hash is compared, so that the time taken reveals nothing."""
        if len(token) > _MAX_TOKEN:
            return None
        digest = _digest(token).encode()
        found = None
        for record in self._records:
            if hmac.compare_digest(digest, record.sha256.encode()):
                found = record
        now = datetime.now(UTC)
        if found is None or (found.expires_at is not None and found.expires_at <= now):
            return None
        self._uses[found.name] = now
        return Caller(found.name, found.role)

    def knows(self, name: str) -> bool:
        """Return whether a token of this name is valid; always True where tokens are not needed."""
        now = datetime.now(UTC)
        return not self.enforced or any(
            record.name == name and (record.expires_at is None or record.expires_at > now) for record in self._records
        )

    def _look(self) -> tuple[int, int, int] | None:
        """Return what changes with the file, or None if the file cannot be looked at."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def is_loopback(host: str) -> bool:
    """Return True if only this machine can reach a host of this name or address."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def require_safe_address(config: ServiceConfig, tokens: TokenBook) -> None:
    """Raise if other machines could use the service without a token.

    Raise `ConfigError` if the address or the public URL is not of this machine alone, there is no token, and `insecure`
    is not set.
    """
    hosts = [config.host, *([urlsplit(config.public_url).hostname or ""] if config.public_url else [])]
    open_to = next((host for host in hosts if not is_loopback(host)), None)
    if open_to is not None and not (tokens.enforced or config.insecure):
        raise ConfigError(
            f"{open_to!r} can be reached from other machines, and {tokens.path} holds no token",
            remedy="`prismcache token create NAME` creates one. In a trusted network, --insecure does without.",
        )
