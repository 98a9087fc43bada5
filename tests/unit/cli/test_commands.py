"""Each command: what goes to stdout and stderr, and the exit code."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import prismcache
from prismcache.cli.app import app
from prismcache.config import Settings
from prismcache.errors import (
    MissingExtraError,
    NoSpaceError,
    PrismError,
    RequestError,
    SourceDeniedError,
    UnknownChannelError,
)
from prismcache.schema import CropFile, CropInfo, Product, Split, Verdict, VerifyResult
from tests.support.fake_backend import FakeBackend, broken, crop_file, job, ready, running

ROOT = ("--root", "/lab/prism")
CROP_0, CROP_1, CROP_5 = (f"/lab/prism/instance/crop_{crop}.h5" for crop in (0, 1, 5))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """The backend of every command in the test."""
    fake = FakeBackend()

    def load(settings: Settings) -> FakeBackend:
        fake.root = settings.root.as_posix()
        return fake

    monkeypatch.setattr("prismcache.client.aio.load_backend", load)
    return fake


@pytest.fixture
def run(backend: FakeBackend) -> Callable[..., Any]:
    """Run a command line over `backend`."""
    return lambda *words, **options: CliRunner().invoke(app, [str(word) for word in words], **options)


def test_ensure_prints_paths_in_the_order_asked(run, backend):
    result = run("ensure", "instance", "5", "0-1", "5", *ROOT)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [CROP_5, CROP_0, CROP_1, CROP_5]
    assert backend.closed


def test_ensure_hands_on_what_is_asked(run, backend):
    run("ensure", "semantic", "all", "--channels", "2,0-1", "--strict", *ROOT)
    request = backend.requests[0]
    assert (request.split, request.crops, request.channels, request.strict) == (Split.SEMANTIC, None, (0, 1, 2), True)


def test_ensure_takes_settings(run, monkeypatch):
    seen = []
    monkeypatch.setattr("prismcache.client.aio.load_backend", lambda settings: seen.append(settings) or FakeBackend())
    monkeypatch.setenv("PRISMCACHE_WORKERS", "5")
    options = {
        "s3-endpoint-url": "http://127.0.0.1:9",
        "s3-bucket": "b",
        "s3-prefix": "p",
        "s3-concurrency": 7,
        "memory-limit": "1GB",
    }
    run("ensure", "instance", 0, *ROOT, *(word for name, value in options.items() for word in (f"--{name}", value)))
    settings = seen[0]
    assert {name: str(getattr(settings, name.replace("-", "_"))) for name in options} == {
        **{name: str(value) for name, value in options.items()},
        "memory-limit": "1000000000",
    }
    assert settings.workers == 5


def test_ensure_reports_progress_on_stderr(run, backend):
    backend.script = [job(running(0)), job(ready(0))]
    result = run("ensure", "instance", "0", *ROOT)
    assert result.stdout.splitlines() == [CROP_0]
    assert result.stderr.splitlines()[0] == "instance/0: started"
    backend.script = [job(running(0)), job(ready(0))]
    assert run("ensure", "instance", "0", "--no-progress", *ROOT).stderr == ""
    backend.script = [job(running(0)), job(ready(0))]
    assert "ready in" in run("ensure", "instance", "0", "--progress", *ROOT).stderr


def test_absent_chunks_are_a_line_each_time(run, backend):
    for _ in range(2):
        backend.script = [job(ready(0, crop_file(0, missing_chunks=4)))]
        result = run("ensure", "instance", "0", *ROOT)
        lines = result.stderr.splitlines()
        assert lines == ["warning: crop instance/0: 4 chunks are absent from the bucket and hold the fill value"]
        assert result.exit_code == 0


def test_other_warnings_stay_as_they_are(run, backend):
    async def submit(_: object) -> None:
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
        raise NoSpaceError("full")

    backend.submit = submit
    with pytest.warns(RuntimeWarning, match="something else"):
        run("ensure", "instance", "0", *ROOT)


def test_a_failure_is_two_lines_and_no_path(run, backend):
    backend.script = [job(broken(0, SourceDeniedError("403 for crop_0", remedy="Ask.")), ready(5))]
    result = run("ensure", "instance", "0", "5", "--no-progress", *ROOT)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error[source_denied]: 403 for crop_0\n  remedy: Ask.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("no"), 2),
        (UnknownChannelError("no channel 17"), 1),
        (MissingExtraError("no zarr"), 1),
        (PrismError("odd"), 1),
    ],
)
def test_exit_codes_of_errors(run, backend, error, code):
    backend.script = [error]
    result = run("ensure", "instance", "0", *ROOT)
    assert result.exit_code == code
    assert result.stderr.startswith(f"error[{error.code}]: {error}\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ensure", "Train", "0"], "the splits are 'instance', 'semantic', 'synapses'"),
        (["ensure", "instance"], "Missing argument"),
        (["ensure", "instance", "x"], "names no crops"),
        (["ensure", "instance", "0", "all"], "names every crop"),
        (["ensure", "instance", "0", "--channels", "x"], "names no channels"),
        (["ensure", "instance", "0", "--timeout", "-1"], "timeout must be 0 or more"),
        (["ensure", "instance", "0", "--workers", "0"], "setting 'workers' is unusable"),
        (["ensure", "instance", "0", "--memory-limit", "lots"], "it is not a size; write 400MB or 1GiB"),
        (["ensure", "instance", "0", "--nonsense"], "No such option"),
        (["ls", "Train"], "the splits are"),
        (["info", "instance", "x"], "Invalid value"),
        (
            ["verify", "instance", "4-0"],
            "write 0-4\n  remedy: `prismcache verify --help` shows the arguments and examples.\n",
        ),
        (["ensure", "instance/0"], "write split and crop as two words: instance 0"),
        (["ensure", "0"], "0 is not a split; write the split before the crops"),
        (["ensure", "instance", "-1"], "there is no crop -1; crops are numbered from 0"),
        (["info", "instance", "-12"], "there is no crop -12"),
        (["nonsense"], "No such command"),
        (["--nonsense"], "No such option"),
    ],
)
def test_usage_errors_exit_2(run, backend, words, says):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(r"error\[[a-z_]+\]: ", result.stderr)
    assert says in result.stderr
    assert backend.requests == []


def test_a_timeout_exits_1(run, backend):
    backend.script = [job(running(0))]
    result = run("ensure", "instance", "0", "--timeout", "0.01", "--no-progress", *ROOT)
    assert result.exit_code == 1
    assert "error[timeout]: 0 of 1 crops were ready within 0.01 s; not yet: instance/0" in result.stderr


def test_a_bug_is_not_dressed_up(run, backend):
    backend.script = [ZeroDivisionError("bug")]
    assert isinstance(run("ensure", "instance", "0", *ROOT).exception, ZeroDivisionError)


def test_ls_is_a_table_that_a_pipe_does_not_cut(run):
    lines = run("ls", "instance", *ROOT).stdout.splitlines()
    assert len(lines) == 4
    assert lines[1] == "instance/0  3x300x650x650   200x500x500   400x168x168  1.6 GB  all 3.0 MB"
    assert lines[2].rstrip().endswith("ch 00-02 3.0 MB")
    assert lines[3].rstrip().endswith("-")


def test_ls_and_info_say_which_file_has_context_or_is_a_product(run, backend):
    file = crop_file(0)
    files = [
        file,
        file.model_copy(update={"context": (16, 46, 46)}),
        file.model_copy(update={"context": "all"}),
        file.model_copy(update={"product": Product.FACTS}),
    ]
    info = CropInfo(split=Split.INSTANCE, crop=0, raw_shape=(3, 300, 650, 650), files=files)

    async def catalog(*_: object, **__: object) -> list[CropInfo]:
        return [info]

    async def describe(*_: object, **__: object) -> CropInfo:
        return info

    backend.catalog, backend.describe = catalog, describe
    shown = "all 3.0 MB, all with context 16,46,46 3.0 MB, all with all context 3.0 MB, facts 3.0 MB"
    assert run("ls", *ROOT).stdout.splitlines()[1].endswith(shown)
    assert "all channels with context 16,46,46, 3.0 MB" in run("info", "instance", "0", *ROOT).stdout


def test_ls_shows_problems_and_unknowns(run, backend):
    problem = NoSpaceError("broken").to_problem()

    async def catalog(*_: object, **__: object) -> list[CropInfo]:
        return [CropInfo(split=Split.INSTANCE, crop=3, problem=problem), CropInfo(split=Split.INSTANCE, crop=4)]

    backend.catalog = catalog
    lines = run("ls", *ROOT).stdout.splitlines()
    assert "error[no_space]" in lines[1]
    assert lines[2].split() == ["instance/4", "-"]


def test_info(run):
    result = run("info", "instance", "0", *ROOT)
    assert result.stdout.splitlines() == [
        "crop            instance/0",
        "raw (C,Z,Y,X)   (3, 300, 650, 650)",
        "labels (Z,Y,X)  (200, 500, 500)",
        "voxel size      400 × 168 × 168 nm expanded, ≈ 80 × 34 × 34 nm in tissue",
        "offset, nm      (20000, 12600, 12600)",
        "in the bucket   1.6 GB, 1024 objects",
        f"cached          all channels, 3.0 MB, {CROP_0}",
    ]
    document = json.loads(run("info", "instance", "0", "--json", *ROOT).stdout)
    assert CropInfo.model_validate(document).crop == 0
    unknown = run("info", "instance", "7", *ROOT)
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("error[unknown_crop]: there is no crop instance/7\n")


def test_verify(run, backend):
    result = run("verify", *ROOT)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 4)
    assert result.stdout.startswith(f"ok        {CROP_0}\n")
    assert result.stderr == "4 files checked: 4 ok\n"
    document = json.loads(run("verify", "instance", "0", "--json", *ROOT).stdout)
    assert [VerifyResult.model_validate(each).verdict for each in document["results"]] == [Verdict.OK]
    backend.verdict = Verdict.REPAIRED
    assert run("verify", "--repair", *ROOT).exit_code == 0
    assert run("verify", "instance", "9", *ROOT).stderr == "0 files checked\n"


def test_verify_exits_1_if_a_file_stays_corrupt(run, backend):
    async def verify(*_: object, **__: object) -> list[VerifyResult]:
        reason = "sha256 differs"
        return [
            VerifyResult(
                split=Split.INSTANCE, crop=0, channels=(0,), path=CROP_0, verdict=Verdict.CORRUPT, reason=reason
            )
        ]

    backend.verify = verify
    result = run("verify", "instance", *ROOT)
    assert (result.exit_code, result.stdout) == (1, f"corrupt   {CROP_0}  (sha256 differs)\n")
    assert result.stderr == "1 file checked: 1 corrupt\n"
    assert run("verify", "--json", *ROOT).exit_code == 1


@pytest.fixture
def at_a_terminal(monkeypatch):
    monkeypatch.setattr("prismcache.cli.app._is_interactive", lambda: True)


def test_rm_off_a_terminal_deletes_what_is_named(run, backend):
    result = run("rm", "instance", "0", *ROOT)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{CROP_0}\n", "1 file deleted\n")
    assert backend.removals == [(Split.INSTANCE, (0,))]


def test_rm_all_off_a_terminal_needs_yes(run, backend):
    refused = run("rm", "instance", "all", *ROOT)
    assert (refused.exit_code, backend.removals) == (2, [])
    assert "--yes" in refused.stderr
    assert run("rm", "instance", "all", "--yes", *ROOT).exit_code == 0
    assert backend.removals == [(Split.INSTANCE, None)]


@pytest.mark.usefixtures("at_a_terminal")
def test_rm_at_a_terminal_asks_before_more_than_one_file(run, backend):
    declined = run("rm", "instance", "all", *ROOT, input="n\n")
    assert (declined.exit_code, backend.removals, declined.stdout) == (1, [], "")
    assert "Delete 2 files (6.0 MB) of instance from /lab/prism? [y/N]" in declined.stderr
    assert run("rm", "instance", "0-1", *ROOT, input="y\n").exit_code == 0
    assert run("rm", "instance", "0", *ROOT).exit_code == 0
    assert backend.removals == [(Split.INSTANCE, (0, 1)), (Split.INSTANCE, (0,))]


@pytest.mark.parametrize(
    ("words", "key", "model", "crops"),
    [
        (["ensure", "instance", "0", "0"], "files", CropFile, [0, 0]),
        (["ls", "instance", "--refresh"], "crops", CropInfo, [0, 1, 5]),
        (["rm", "instance", "0"], "removed", CropFile, [0]),
        (["rm", "instance", "9"], "removed", CropFile, []),
    ],
)
def test_with_json_stdout_is_one_document(run, words, key, model, crops):
    document = json.loads(run(*words, "--json", *ROOT).stdout)
    assert list(document) == [key]
    assert [model.model_validate(each).crop for each in document[key]] == crops


def test_further_failures_are_between_error_and_remedy(run, backend):
    script = [job(broken(0, NoSpaceError("full")), broken(5, SourceDeniedError("403")))]
    words, note = (
        ("ensure", "instance", "0", "5", "--no-progress", *ROOT),
        "also failed: crop instance/5: error[source_denied]: 403",
    )
    backend.script = [*script]
    lines = run(*words).stderr.splitlines()
    assert lines[:2] == ["error[no_space]: full", f"  {note}"]
    assert lines[2].startswith("  remedy: Free space")
    backend.script = [*script]
    assert json.loads(run(*words, "--json").stdout)["error"]["notes"] == [note]


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["info", "instance", "99", "--json"], "unknown_crop", 1),
        (["ensure", "instance", "--json"], "invalid_request", 2),
        (["--nonsense", "ls", "--json"], "invalid_request", 2),
        (["ls", "Train", "--json"], "unknown_split", 2),
    ],
)
def test_with_json_an_error_is_one_json_document_on_stdout(run, words, code, exit_code):
    result = run(*words)
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, result.stderr, error["code"]) == (exit_code, "", code)
    assert error["detail"]
    assert error["remedy"]


def commands(group: Any, *words: str) -> list[tuple[str, ...]]:
    """Every command below `group`, as words."""
    below = getattr(group, "commands", {})
    return [words, *(found for name, command in below.items() for found in commands(command, *words, name))]


@pytest.mark.parametrize("words", commands(get_command(app)), ids=" ".join)
def test_every_help_screen_has_examples_that_parse_and_flags_without_a_type(run, words):
    shown = run(*words, "--help", env={"COLUMNS": "200"})
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "<bool>" not in shown.stdout
    lines = shown.stdout.split("Examples:")[1].strip().splitlines()
    assert lines
    for line in lines:
        name, *example = line.split()
        assert name == "prismcache"
        assert tuple(example[: len(words)]) == words
        assert run(*(word for word in example if word != "--help"), "--help").exit_code == 0


def test_version_and_help(run):
    assert run("--version").stdout == run("-V").stdout == f"prismcache {prismcache.__version__}\n"
    assert run("-h").stdout == run("--help").stdout
    assert "PRISMCACHE_S3_BUCKET" in run("ensure", "--help", env={"COLUMNS": "200"}).stdout
    assert run().exit_code == run("token").exit_code == 2
    assert "Usage: prismcache" in run().stderr + run().stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prismcache ensure ", ["instance", "semantic", "synapses"]),
        ("prismcache ensure s", ["semantic", "synapses"]),
        ("prismcache ensure instance ", ["0", "1", "12", "all"]),
        ("prismcache ensure instance 0 1", ["1", "12"]),
        ("prismcache info semantic ", ["7", "all"]),
    ],
)
def test_completion_knows_splits_and_the_crops_of_the_known_catalog(tmp_path, line, words):
    crops = [{"split": "instance", "crop": crop} for crop in (0, 1, 12)] + [{"split": "semantic", "crop": 7}]
    (tmp_path / ".prismcache").mkdir()
    (tmp_path / ".prismcache/catalog.json").write_text(json.dumps({"crops": crops}))
    variables = {
        "PRISMCACHE_ROOT": str(tmp_path),
        "_PRISMCACHE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    shown = CliRunner().invoke(app, [], env=variables, prog_name="prismcache").stdout
    assert shown.split() == words
