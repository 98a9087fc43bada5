"""Decide which crop is made next, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prismcache_service.cache import CropName


@dataclass(frozen=True)
class Wish:
    """One job's wish for one crop that is not being made yet.

    `open_crops` is the number of crops that the job still lacks; `order` is larger for later wishes.
    """

    name: CropName
    strict: bool
    priority: int
    owner: str
    open_crops: int
    order: int


def choose(wishes: Iterable[Wish], being_made: Mapping[str, int]) -> Wish | None:
    """Return the wish to fulfil next, or None if there is none.

    A higher priority goes first; then the owner with the fewest crops being made, so that a request for all crops does
    not block other owners; then the job that lacks the fewest crops, so that small requests pass large ones; then the
    oldest.

    Parameters
    ----------
    wishes
        The wishes for crops that wait.
    being_made
        How many crops are being made for each owner.
    """

    def rank(wish: Wish) -> tuple[int, int, int, int]:
        return -wish.priority, being_made.get(wish.owner, 0), wish.open_crops, wish.order

    return min(wishes, key=rank, default=None)
