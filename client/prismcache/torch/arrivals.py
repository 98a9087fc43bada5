"""Crops that a client still fetches while training runs. They join in every worker process when they are ready.

A thread of the main process follows the client. It posts the path of each crop, or the error, on a `Board`, where
workers see it that were forked or spawned before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from prismcache.client import PrismClient
from prismcache.errors import PrismError, error_from_problem
from prismcache.layout import parse_file_name
from prismcache.torch.crops import ClientCrops
from prismcache.torch.shared_state import Arrival, Board


class Follower:
    """Fetches crops in a thread and posts them.

    Parameters
    ----------
    client
        The client that fetches; its owner closes it.
    plan
        What to ask the client for.
    slots
        The place of each awaited crop on the board, by the crop's number.
    board
        The board that processes share.
    prepare
        Called with the slot and path of each crop, before the crop is posted.
    """

    def __init__(
        self,
        client: PrismClient,
        plan: ClientCrops,
        slots: Mapping[int, int],
        board: Board,
        prepare: Callable[[int, Path], None],
    ) -> None:
        self._client, self._plan = client, plan
        self._slots, self._board, self._prepare = dict(slots), board, prepare
        self._posted: set[int] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="prismcache-arrivals", daemon=True)
        self._thread.start()

    def wait_for_one(self) -> None:
        """Wait until the first crop is there.

        Raises
        ------
        PrismError
            If fetching fails before.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._posted))
            arrival = self._board.look(next(iter(self._posted)))
        if arrival is not None and arrival.problem is not None:
            raise error_from_problem(arrival.problem)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all crops are posted; return False if `timeout`, in seconds, passes first."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            plan = self._plan
            asked = self._client.iter_ensure(
                plan.split, list(self._slots), channels=plan.ask, context=plan.context, progress=False
            )
            with closing(asked) as paths:
                for path in paths:
                    name = parse_file_name(Path(path).name)
                    if name is not None and name.crop in self._slots:
                        for product in plan.products:
                            self._client.ensure(plan.split, name.crop, product=product, progress=False)
                        self._prepare(self._slots[name.crop], Path(path))
                        self._post(self._slots[name.crop], Arrival(path))
        except PrismError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - training must see any error rather than wait for ever
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
