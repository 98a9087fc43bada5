"""Capability links: with a link, one crop can be read without a token, until the link expires or is revoked.

A capability is ``prism_``, a public id of 64 bits and a secret of 256 bits. The store keeps the SHA-256 of the whole:
the secret is random, so a plain hash is enough. The prefix makes the log hide a capability wherever it turns up.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from datetime import UTC, datetime, timedelta

from prismcache.errors import ServiceBusyError, UnknownLinkError
from prismcache.links import LinkRequest
from prismcache_service.store import JobStore, LinkRecord

MAX_LINKS = 1000  # valid ones of one owner
_FORM = re.compile(r"prism_([0-9a-f]{16})[A-Za-z0-9_-]{43}", re.ASCII)
_RECHECK_S = 1.0  # how long a link is served without a look at the store, which another service may have changed
_NO_DIGEST = "0" * 64
_MAX_KNOWN = 10_000


class LinkService:
    """Makes, lists, checks and revokes links."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._known: dict[str, tuple[LinkRecord, float]] = {}  # by id, with the monotonic time of the last look

    async def make(self, request: LinkRequest, owner: str) -> tuple[LinkRecord, str]:
        """Return a new link and its capability, which is not stored.

        Raises
        ------
        ServiceBusyError
            If the owner has `MAX_LINKS` links already.
        """
        if len(await self.links(owner)) >= MAX_LINKS:
            raise ServiceBusyError(
                f"{MAX_LINKS} links of this owner are valid", remedy="Revoke some: `prismcache links revoke ID`."
            )
        link_id, now = secrets.token_hex(8), datetime.now(UTC)
        capability = f"prism_{link_id}{secrets.token_urlsafe(32)}"
        made = LinkRecord(
            id=link_id,
            sha256=_digest(capability),
            owner=owner,
            split=request.split,
            crop=request.crop,
            note=request.note,
            created_at=now,
            expires_at=now + timedelta(hours=request.hours),
        )
        await self._store.put_link(made)
        return made, capability

    async def links(self, owner: str | None) -> list[LinkRecord]:
        """Return the valid links of one owner, or of all (None), newest first."""
        found = [link for link in await self._store.links(datetime.now(UTC)) if owner in {None, link.owner}]
        return sorted(found, key=lambda link: (link.created_at, link.id), reverse=True)

    async def revoke(self, link_id: str, owner: str | None) -> LinkRecord:
        """Delete a link of one owner, or of any owner (None), and return it. The link is refused from then on.

        Raise `UnknownLinkError` if this owner has no such link.
        """
        link = await self._store.link(link_id)
        if link is None or owner not in {None, link.owner} or not await self._store.drop_link(link_id):
            raise UnknownLinkError(f"there is no link {link_id!r}")
        self._known.pop(link_id, None)
        return link

    async def resolve(self, capability: str) -> LinkRecord:
        """Return the link of a capability. The digests are compared in constant time.

        Raises
        ------
        UnknownLinkError
            If there is no such link, or it has expired; the message does not say which.
        """
        form = _FORM.fullmatch(capability)
        link = await self._look_up(form[1]) if form else None
        is_right = hmac.compare_digest(_digest(capability), _NO_DIGEST if link is None else link.sha256)
        if link is None or not is_right or link.expires_at <= datetime.now(UTC):
            raise UnknownLinkError("there is no such link, or it has expired or was revoked")
        return link

    async def _look_up(self, link_id: str) -> LinkRecord | None:
        known, checked = self._known.get(link_id, (None, 0.0))
        if known is not None and time.monotonic() - checked < _RECHECK_S:
            return known
        self._known.pop(link_id, None)
        began = time.monotonic()
        link = await self._store.link(link_id)
        if link is not None:
            self._known[link_id] = link, began
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return link


def _digest(capability: str) -> str:
    return hashlib.sha256(capability.encode("utf-8", "surrogateescape")).hexdigest()
