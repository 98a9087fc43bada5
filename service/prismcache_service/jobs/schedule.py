"""Whose crop is made next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prismcache_service.cache.cache import CropName


@dataclass(frozen=True)
class Wish:
    """One job's wish for one crop that is not being made yet.

    `open_crops` is how many crops the job still lacks; `order` grows with each wish that was ever made.
    """

    name: CropName
    strict: bool
    priority: int
    owner: str
    open_crops: int
    order: int


def choose(wishes: Iterable[Wish], being_made: Mapping[str, int]) -> Wish | None:
    """The wish to fulfil next, None if there is none.

    Higher priority first; then the owner with the fewest crops in the making, so that nobody's ``all`` keeps others
    waiting; then the job that lacks least, so that small requests pass large ones; then the oldest.

    Parameters
    ----------
    wishes
        All that wait.
    being_made
        Crops in the making, by owner.
    """

    def rank(wish: Wish) -> tuple[int, int, int, int]:
        return -wish.priority, being_made.get(wish.owner, 0), wish.open_crops, wish.order

    return min(wishes, key=rank, default=None)
