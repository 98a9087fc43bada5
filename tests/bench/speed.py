"""`make bench`: what a crop costs, against torch_em, s5cmd, the wire, and its parts each alone.

The full-size stand-in is (18, 300, 650, 650) raw and (200, 500, 500) labels in the published layout: 1,024 objects.
Every run is a whole process with an empty folder; the seconds are those of the call, imports left out. Our worker
process runs already, as in a service, but where its start is said to be counted. Programs run in turn, so that
whatever else the machine does meets all of them; medians are printed.
http and https are served by nginx, https with a certificate that ``AWS_CA_BUNDLE`` makes known to every program.
Results go to ``build/bench/speed.md`` and ``build/bench/stages.png``.

    make bench                      everything, about half an hour
    make bench ARGS=--quick         one run of ours and s5cmd (http, https, link), the steps, the service: two minutes
    make bench-crop                 one crop from a local S3 server, no more
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path

from tests.bench import growth, service, stages
from tests.bench.limits import Limits, measure_limits, read_plan
from tests.bench.link import Link, lacking
from tests.bench.programs import BENCH_DIR, BUCKET_DIR, Run, add_tiny_crop, ours, run, s5cmd, torch_em, warm
from tests.bench.warm import measure_warm
from tests.support.crops import crop_folder, full_size_spec, write_crop
from tests.support.s3 import S3Server

_MBIT = 1000
_DELAY_S = 0.03
_LINK = f"{_MBIT // 1000} Gbit/s, {1000 * _DELAY_S:.0f} ms"
_MANY = 4
_OURS, _ONE_CHANNEL, _S5CMD = "prismcache", "prismcache, channels=[0]", "s5cmd, all 1,024 objects"
_QUICK = (_OURS, _ONE_CHANNEL, _S5CMD)
_COLD = "with the start of its worker"


class Report:
    """Lines of Markdown, printed as they come and kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, *head: str) -> None:
        self.say()
        self.row(*head)
        self.row(*["---"] * len(head))

    def row(self, *cells: object) -> None:
        self.say(f"| {' | '.join(map(str, cells))} |")


class Runs(dict[str, list[Run]]):
    """Runs by program."""

    def median(self, name: str, of: Callable[[Run], float] = lambda run: run.seconds) -> float:
        return statistics.median(map(of, self[name]))

    def spread(self, name: str) -> str:
        found = sorted(run.seconds for run in self[name])
        return f"{statistics.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f})"


def main() -> None:
    """Run everything and write the report."""
    arguments = _parser().parse_args()
    report = Report()
    spec = full_size_spec()
    if not crop_folder(BUCKET_DIR, spec).exists():
        print("writing the full-size stand-in (2 GB) …", file=sys.stderr)
        write_crop(BUCKET_DIR, spec)
    add_tiny_crop(BUCKET_DIR)
    for folder in ("client", "service"):  # as what is installed is
        compileall.compile_dir(folder, quiet=1)
    report.say(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}"
    )
    runs = 1 if arguments.quick else arguments.runs
    if arguments.crop:
        _loopback(report, _rclone, runs, "http, rclone", quick=arguments.quick)
        return
    missing = lacking()
    over_tls = partial(Link, tls=True)
    serve: growth.Serve = _rclone if missing else Link
    servers: dict[str, growth.Serve] = {"http, rclone": _rclone} if missing else {"http": Link, "https": over_tls}
    loopback = [_loopback(report, each, runs, name, quick=arguments.quick) for name, each in servers.items()]
    if missing:
        report.say(f"\nNo https and no link: this machine lacks {missing}.")
    else:
        _over_link(report, runs, quick=arguments.quick)
    with serve(BUCKET_DIR) as server:
        warm(server.endpoint)
        _limits(report, server.endpoint, loopback[0][_OURS][0].bytes_made, runs)
        samples = {"loopback": stages.record(server.endpoint)}
    if not missing and not arguments.quick:
        with Link(BUCKET_DIR, mbit_per_s=_MBIT, delay=_DELAY_S, tls=True) as link:
            warm(link.endpoint)
            samples[_LINK] = stages.record(link.endpoint)
    stages.plot(samples, BENCH_DIR / "stages.png")
    _service(report, seconds=2 if arguments.quick else 10, warm_runs=5 if arguments.quick else 50)
    if not arguments.quick:
        _warm(report)
        _growth(report, serve)
    (BENCH_DIR / "speed.md").write_text("\n".join(report.lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs of each program")
    parser.add_argument("--crop", action="store_true", help="only one crop, from a local S3 server")
    parser.add_argument(
        "--quick", action="store_true", help="one run of ours and of s5cmd, the steps, the service, the plot"
    )
    return parser


@contextmanager
def _rclone(folder: Path) -> Iterator[S3Server]:
    with S3Server(folder, dir_cache_seconds=86_400) as server:
        yield server


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _in_turn(programs: dict[str, list[str] | None], runs: int) -> Runs:
    found = Runs({name: [] for name, command in programs.items() if command})
    for _ in range(runs):
        for name, command in programs.items():
            if command:
                found[name].append(run(command))
    return found


def _loopback(report: Report, serve: growth.Serve, runs: int, scheme: str, *, quick: bool) -> Runs:
    with serve(BUCKET_DIR) as server:
        warm(server.endpoint)
        programs = {
            _OURS: ours(server.endpoint),
            f"{_OURS}, {_COLD}": ours(server.endpoint, has_worker=False),
            f"{_OURS}, memory_limit=250MB": ours(server.endpoint, memory_limit="250MB"),
            _ONE_CHANNEL: ours(server.endpoint, channels=[0]),
            f"{_ONE_CHANNEL}, {_COLD}": ours(server.endpoint, channels=[0], has_worker=False),
            "torch_em": torch_em(server.endpoint),
            _S5CMD: s5cmd(server.endpoint),
        }
        found = _in_turn({name: programs[name] for name in programs if not quick or name in _QUICK}, runs)
    report.say(f"\n**One crop, loopback, {scheme}**")
    report.table("program", "s", "CPU s", "peak MB, largest process", "peak MB, all", "file MB", "torch_em took")
    for name in found:
        ratio = f"{found.median('torch_em') / found.median(name):.1f} ×" if "torch_em" in found else "not run"
        peaks = [found.median(name, of) / 1e6 for of in (_peak, _peak_of_all, _made)]
        cpu = found.median(name, lambda each: each.cpu)
        report.row(name, found.spread(name), f"{cpu:.1f}", *(f"{peak:.0f}" for peak in peaks), ratio)
    return found


def _peak(each: Run) -> float:
    return each.usage.peak_process


def _peak_of_all(each: Run) -> float:
    return each.usage.peak_sum


def _made(each: Run) -> float:
    return each.bytes_made


def _over_link(report: Report, runs: int, *, quick: bool) -> None:
    needed = sum(item.size for item in read_plan(full_size_spec())[1].fetched())
    wire = 8 * needed / (_MBIT * 1e6)
    found = Runs()
    for scheme in ("https",) if quick else ("https", "http"):
        with Link(BUCKET_DIR, mbit_per_s=_MBIT, delay=_DELAY_S, tls=scheme == "https") as link:
            warm(link.endpoint)
            programs = {
                f"{_OURS}, {scheme}": ours(link.endpoint),
                f"{_OURS}, {scheme}, {_COLD}": ours(link.endpoint, has_worker=False),
                f"{_S5CMD}, {scheme}": s5cmd(link.endpoint),
            }
            found |= _in_turn({name: each for name, each in programs.items() if not quick or _COLD not in name}, runs)
    if not quick:
        found |= _many_over_link(runs)
    report.say(f"\n**{_LINK}: {needed / 1e6:.0f} MB of a crop take {wire:.2f} s on the wire**")
    report.table("program", "s", "wire's time ×", "CPU s")
    for name in found:
        ideal = wire * (_MANY if "crops" in name else 1)
        ratio = "" if name.startswith("s5cmd") else f"{found.median(name) / ideal:.3f}"
        report.row(name, found.spread(name), ratio, f"{found.median(name, lambda each: each.cpu):.1f}")


def _many_over_link(runs: int) -> Runs:
    folder = BENCH_DIR / "many"
    growth.copies(folder, full_size_spec(), _MANY)
    try:
        with Link(folder, mbit_per_s=_MBIT, delay=_DELAY_S, tls=True) as link:
            warm(link.endpoint)
            many = f"{_OURS}, {_MANY} crops, https"
            programs = {
                many: ours(link.endpoint, range(_MANY)),
                f"{many}, {_COLD}": ours(link.endpoint, range(_MANY), has_worker=False),
            }
            return _in_turn(programs, runs)
    finally:
        shutil.rmtree(folder)


def _limits(report: Report, endpoint: str, written: int, runs: int) -> None:
    """The steps, and right after them the whole, so that both meet the same machine."""
    limits: list[Limits] = []
    whole: list[float] = []
    for _ in range(runs):
        limits.append(measure_limits(endpoint, full_size_spec(), written))
        whole.append(run(ours(endpoint)).cpu)
    medians = [statistics.median(each.seconds[step] for each in limits) for step in limits[0].seconds]
    total = statistics.median(each.total for each in limits)
    report.say("\n**CPU seconds of a crop, each step alone on one core**")
    report.table(*limits[0].seconds, "sum", _OURS)
    report.row(*(f"{each:.2f}" for each in medians), f"{total:.2f}", f"{statistics.median(whole):.2f}")
    ratio, ratio_to_bare = (
        statistics.median(cpu / alone for cpu, alone in zip(whole, sums, strict=True))
        for sums in ([each.total for each in limits], [each.bare for each in limits])
    )
    report.say(f"\nprismcache takes {ratio:.2f} × the sum, {ratio_to_bare:.2f} × decode + deflate + copy.")


def _service(report: Report, *, seconds: float, warm_runs: int) -> None:
    rows = service.measure(seconds, warm_runs)
    report.say("\n**The service while two crops are made**")
    report.table(*service.HEAD)
    for row in rows:
        report.say(str(row))


def _warm(report: Report) -> None:
    report.say("\n**Nothing to fetch**")
    report.table("what", "ms")
    for name, value in measure_warm().items():
        report.row(name, f"{value:.1f}")


def _growth(report: Report, serve: growth.Serve) -> None:
    rows = [
        (f"{size} of the voxels", float(Fraction(size)), each) for size, each in growth.sizes(serve, list(growth.SIZES))
    ]
    rows += [(f"{number} crops", float(number), each) for number, each in growth.counts(serve, (1, 2, 4, 8))]
    report.say("\n**As work grows**")
    report.table("work", "s", "s for one of full size", "CPU s", "peak MB, largest process")
    for name, size, each in rows:
        memory = f"{each.usage.peak_process / 1e6:.0f}"
        report.row(name, f"{each.seconds:.2f}", f"{each.seconds / size:.2f}", f"{each.cpu:.1f}", memory)


if __name__ == "__main__":
    main()
