"""Capability links: what is kept of one, whom one admits, and who may end one."""

from __future__ import annotations

import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from prismcache.errors import ServiceBusyError, UnknownLinkError
from prismcache.links import LinkRequest
from prismcache.schema import Split
from prismcache_service.crops import links as module
from prismcache_service.crops.links import LinkService
from prismcache_service.store import MemoryJobStore

REQUEST = LinkRequest(split=Split.INSTANCE, crop=3, hours=1, note="for Ada")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store() -> MemoryJobStore:
    return MemoryJobStore()


async def test_a_capability_names_its_link_and_is_not_kept(store: MemoryJobStore) -> None:
    made, capability = await LinkService(store).make(REQUEST, "ann")
    assert (made.split, made.crop, made.note, made.owner) == (Split.INSTANCE, 3, "for Ada", "ann")
    assert made.expires_at - made.created_at == timedelta(hours=1)
    assert capability not in repr(await store.link(made.id))
    assert await LinkService(store).resolve(capability) == made


async def test_what_is_altered_anywhere_is_unknown(store: MemoryJobStore) -> None:
    service = LinkService(store)
    _, capability = await service.make(REQUEST, "ann")
    altered = [f"{capability[:i]}{'0' if c != '0' else '1'}{capability[i + 1 :]}" for i, c in enumerate(capability)]
    for wrong in [*altered, capability[:-1], f"{capability}A", capability.upper(), "", "prism_", f"{capability}\n"]:
        with pytest.raises(UnknownLinkError):
            await service.resolve(wrong)


async def test_digests_are_compared_in_constant_time_also_for_unknown_links(
    store: MemoryJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    compare_digest = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    service = LinkService(store)
    _, capability = await service.make(REQUEST, "ann")
    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    await service.resolve(capability)
    for wrong in (capability[:-1] + "-", "prism_" + "0" * 16 + "A" * 43, "x"):
        with pytest.raises(UnknownLinkError):
            await service.resolve(wrong)
    assert len(compared) == 4
    assert {len(digest) for pair in compared for digest in pair} == {64}


async def test_a_link_ends_when_it_expires_and_when_it_is_revoked(store: MemoryJobStore) -> None:
    service = LinkService(store)
    made, capability = await service.make(REQUEST, "ann")
    with pytest.raises(UnknownLinkError):
        await service.revoke(made.id, "bob")
    assert await service.resolve(capability) == made
    await service.revoke(made.id, "ann")
    for end in (lambda: service.resolve(capability), lambda: service.revoke(made.id, None)):
        with pytest.raises(UnknownLinkError):
            await end()

    made, capability = await service.make(REQUEST, "ann")
    await store.put_link(replace(made, expires_at=datetime.now(UTC)))
    with pytest.raises(UnknownLinkError):
        await LinkService(store).resolve(capability)


async def test_a_link_that_another_service_revoked_ends_within_a_second(
    store: MemoryJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = LinkService(store), LinkService(store)
    made, capability = await one.make(REQUEST, "ann")
    assert await other.resolve(capability) == made
    await one.revoke(made.id, "ann")
    assert await other.resolve(capability) == made  # one look a second serves hundreds of chunks
    monkeypatch.setattr(module, "_RECHECK_S", 0.0)
    with pytest.raises(UnknownLinkError):
        await other.resolve(capability)


async def test_an_owner_sees_own_links_newest_first_and_has_a_bounded_number(
    store: MemoryJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LINKS", 2)
    service = LinkService(store)
    made = [(await service.make(REQUEST, owner))[0] for owner in ("ann", "bob", "ann")]
    assert await service.links("ann") == [made[2], made[0]]
    assert await service.links(None) == made[::-1]
    with pytest.raises(ServiceBusyError, match="2 links"):
        await service.make(REQUEST, "ann")
