"""Crops that a client still fetches while training runs: they join when they are ready, in every worker process.

The main process follows the client in a thread and posts each crop's path, or why it cannot be had, on a `Board`,
where workers that were forked or spawned before see it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from prismcache.client import PrismClient
from prismcache.errors import PrismError, error_from_problem
from prismcache.layout import parse_crop_file_name
from prismcache.schema import Split
from prismcache.torch.shared_state import Arrival, Board


class Follower:
    """Fetches crops in a thread and posts them.

    Parameters
    ----------
    client
        Whose crops; remains its owner's.
    split, channels
        As `PrismClient.ensure` takes them.
    slots
        Place on the board of each crop.
    board
        Where they are posted.
    prepare
        Called with the slot and path of each, before it is posted.
    """

    def __init__(
        self,
        client: PrismClient,
        split: Split,
        channels: tuple[int, ...] | None,
        slots: Mapping[int, int],
        board: Board,
        prepare: Callable[[int, Path], None],
    ) -> None:
        self._client, self._split, self._channels = client, split, channels
        self._slots, self._board, self._prepare = dict(slots), board, prepare
        self._posted: set[int] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="prismcache-arrivals", daemon=True)
        self._thread.start()

    def wait_for_one(self) -> None:
        """Wait until a crop is there, or none can come any more.

        Raises
        ------
        PrismError
            If the first that happens is a failure.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._posted))
            arrival = self._board.look(next(iter(self._posted)))
        if arrival is not None and arrival.problem is not None:
            raise error_from_problem(arrival.problem)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all have been posted; False if the time, in seconds, runs out first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            asked = self._client.iter_ensure(self._split, list(self._slots), channels=self._channels, progress=False)
            with closing(asked) as paths:
                for path in paths:
                    crop, _ = parse_crop_file_name(Path(path).name) or (None, None)
                    if crop in self._slots:
                        self._prepare(self._slots[crop], Path(path))
                        self._post(self._slots[crop], Arrival(path))
        except PrismError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, training must learn of it, not wait for ever
            remedy = "Keep the client open until every crop is there: PrismDataset.wait(), or start='all'."
            self._fail(PrismError(f"crops were awaited, but fetching them ended: {error!r}", remedy=remedy))

    def _fail(self, error: PrismError) -> None:
        for slot in self._slots.values():
            if slot not in self._posted:
                self._post(slot, Arrival(problem=error.to_problem()))

    def _post(self, slot: int, arrival: Arrival) -> None:
        self._board.post(slot, arrival)
        with self._changed:
            self._posted.add(slot)
            self._changed.notify_all()
