"""How many crops an hour a cluster makes: a discrete-event model of what its parts share.

A crop needs work from several resources at once (its worker's core, the link, the storage, the scheduler), because the
pipeline overlaps them, and a fixed time besides, in which it waits for responses and disks. Each resource is shared
evenly by the crops that still need it, no crop getting more than its own most. An event is the end of a crop's need for
one resource; between events all rates are constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Resource:
    """What a crop needs: `work` in any unit, at most `alone` units a second for one crop, `total` for all."""

    work: float
    alone: float = float("inf")
    total: float = float("inf")


@dataclass
class _Crop:
    """One in the making: what it still needs, and the seconds of fixed time that are left."""

    needs: dict[str, float]
    fixed: float


@dataclass(frozen=True)
class Outcome:
    """Crops a second, and the busy share of each resource that is bounded for all."""

    throughput: float
    load: Mapping[str, float] = field(default_factory=dict)

    @property
    def bottleneck(self) -> str:
        """The busiest shared resource where it is nearly full; else the workers are."""
        name = max(self.load, key=self.load.__getitem__, default="")
        return name if name and self.load[name] > 0.95 else "workers"


def simulate(workers: int, resources: Mapping[str, Resource], fixed: float, crops_each: int = 20) -> Outcome:
    """Crops one after the other on each of `workers`, begun evenly spread over the first crop's fixed time."""
    need = {name: resource.work for name, resource in resources.items() if resource.work > 0}
    making = [_Crop(dict(need), fixed * (1 + n / workers)) for n in range(workers)]
    begun, done, now = workers, 0, 0.0
    first = last = 0.0
    while making:
        rates = _rates(making, resources)
        step = min(
            [crop.fixed for crop in making if crop.fixed > 0]
            + [crop.needs[name] / rates[name] for crop in making if not crop.fixed for name in crop.needs]
        )
        now += step
        for crop in list(making):
            _advance(crop, rates, step)
            if crop.fixed or crop.needs:
                continue
            making.remove(crop)
            done, last = done + 1, now
            first = now if done == workers else first  # the run-in does not count
            if begun < workers * crops_each:
                begun += 1
                making.append(_Crop(dict(need), fixed))
            elif begun == workers * crops_each:
                break
        if begun == workers * crops_each:
            break
    throughput = (done - workers) / (last - first)
    bounded = {name: resource for name, resource in resources.items() if resource.total < float("inf")}
    return Outcome(throughput, {name: throughput * item.work / item.total for name, item in bounded.items()})


def _rates(making: list[_Crop], resources: Mapping[str, Resource]) -> dict[str, float]:
    wanting = {name: sum(not crop.fixed and name in crop.needs for crop in making) for name in resources}
    return {name: min(item.alone, item.total / max(1, wanting[name])) for name, item in resources.items()}


def _advance(crop: _Crop, rates: Mapping[str, float], step: float) -> None:
    if crop.fixed:
        crop.fixed = max(0.0, crop.fixed - step)
        crop.fixed = 0.0 if crop.fixed < 1e-9 else crop.fixed
        return
    for name in list(crop.needs):
        crop.needs[name] -= rates[name] * step
        if crop.needs[name] < 1e-9 * max(1.0, rates[name]):
            del crop.needs[name]
