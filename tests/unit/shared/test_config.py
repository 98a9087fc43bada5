"""Arguments before the environment before defaults; what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from platformdirs import user_cache_path
from pydantic import ValidationError

from prismcache.config import ENV_PREFIX, Settings
from prismcache.errors import ConfigError

# name, what the environment says, what it means, an argument, what that means
SETTINGS = [
    ("url", "http://lab:8000", "http://lab:8000", "https://other", "https://other"),
    ("root", "/data/prism", Path("/data/prism"), Path("/mnt/x"), Path("/mnt/x")),
    ("downloads", "/data/files", Path("/data/files"), Path("/mnt/y"), Path("/mnt/y")),
    ("decoded", "/data/decoded", Path("/data/decoded"), Path("/mnt/z"), Path("/mnt/z")),
    ("catalog", "/lab/splits.toml", Path("/lab/splits.toml"), Path("/mnt/lab.toml"), Path("/mnt/lab.toml")),
    ("s3_endpoint_url", "http://127.0.0.1:9000", "http://127.0.0.1:9000", "https://s3", "https://s3"),
    ("s3_bucket", "mirror", "mirror", "other", "other"),
    ("s3_prefix", "a/b", "a/b", "c", "c"),
    ("s3_region", "eu-central-1", "eu-central-1", "us-west-2", "us-west-2"),
    ("s3_anonymous", "false", False, True, True),
    ("s3_etag_is_md5", "no", "no", "yes", "yes"),
    ("s3_concurrency", "8", 8, 64, 64),
    ("s3_object_timeout", "2.5", 2.5, 10, 10.0),
    ("s3_bandwidth_limit", "50MB", 50_000_000, "1GB", 1_000_000_000),
    ("memory_limit", "1GiB", 2**30, 250_000_000, 250_000_000),
    ("workers", "7", 7, 1, 1),
    ("decode_threads", "3", 3, 0, 0),
    ("keep_quarantine_days", "0.5", 0.5, 30, 30.0),
]


def test_every_setting_is_covered_here() -> None:
    assert {case[0] for case in SETTINGS} | {"token"} == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "text", "meant", "argument", "argued"), SETTINGS, ids=[case[0] for case in SETTINGS])
def test_an_argument_wins_over_the_environment_which_wins_over_the_default(name, text, meant, argument, argued) -> None:
    environ = {f"{ENV_PREFIX}{name.upper()}": text}
    assert getattr(Settings.load({}), name) not in {meant, argued} or name in {"s3_anonymous", "decode_threads"}
    assert getattr(Settings.load(environ), name) == meant
    assert getattr(Settings.load(environ, **{name: argument}), name) == argued
    assert getattr(Settings.load(environ, **{name: None}), name) == meant


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMCACHE_WORKERS", "5")
    assert Settings.load().workers == 5
    assert Settings.load({}).workers == 2


def test_defaults_point_at_the_published_bucket_and_the_users_cache() -> None:
    found = Settings.load({})
    assert (found.url, found.token, found.s3_endpoint_url) == (None, None, None)
    assert (found.s3_bucket, found.s3_prefix) == ("e11bio-prism", "ls/models/training_data")
    assert found.s3_anonymous
    assert found.root == user_cache_path("prismcache", appauthor=False)
    assert found.memory_limit == 400_000_000


def test_an_empty_variable_counts_as_unset_and_a_strange_one_is_left_alone() -> None:
    environ = {"PRISMCACHE_WORKERS": "", "PRISMCACHE_URL": "", "PRISMCACHE_NO_SUCH_THING": "1", "WORKERS": "9"}
    assert Settings.load(environ) == Settings.load({})


@pytest.mark.parametrize(
    ("text", "size"),
    [("200000000", 200_000_000), ("400MB", 400_000_000), ("1GiB", 2**30), ("0.5 GB", 500_000_000), ("1tb", 10**12)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert Settings.load({"PRISMCACHE_MEMORY_LIMIT": text}).memory_limit == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_limit", "199MB"),
        ("memory_limit", "plenty"),
        ("memory_limit", "-1"),
        ("s3_bandwidth_limit", "1kB"),
        ("workers", "0"),
        ("workers", "two"),
        ("workers", "257"),
        ("decode_threads", "-1"),
        ("s3_concurrency", "0"),
        ("s3_concurrency", "1025"),
        ("s3_object_timeout", "0"),
        ("s3_object_timeout", "nan"),
        ("s3_object_timeout", "inf"),
        ("s3_anonymous", "perhaps"),
        ("s3_etag_is_md5", "perhaps"),
        ("url", "lab:8000"),
        ("url", "ftp://lab"),
        ("url", "http://lab:99999"),
        ("url", "http://ada:secret@lab"),
        ("url", "http://lab?x=1"),
        ("s3_endpoint_url", "localhost"),
        ("s3_endpoint_url", "http://[::1"),
        ("root", "/data/\udcff"),
        ("token", "one\r\nX-Two: b"),
        ("token", "tökén"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_to_change(name: str, value: str) -> None:
    for load in (
        lambda: Settings.load({f"PRISMCACHE_{name.upper()}": value}),
        lambda: Settings.load({}, **{name: value}),
    ):
        with pytest.raises(ConfigError, match=f"setting '{name}' is unusable: .+") as caught:
            load()
        assert f"PRISMCACHE_{name.upper()}" in caught.value.remedy


def test_a_bad_value_is_not_repeated_where_it_could_be_a_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, token=["hunter2"])
    assert "hunter2" not in f"{caught.value}{caught.value.remedy}{caught.value.__cause__}"
    assert "hunter2" not in repr(Settings.load({"PRISMCACHE_TOKEN": "hunter2"}))


def test_a_misspelt_setting_is_refused() -> None:
    for environ, arguments in (({}, {"wrokers": 3}), ({"PRISMCACHE_WROKERS": "3"}, {})):
        with pytest.raises(ConfigError, match="there is no setting 'wrokers'; did you mean 'workers'"):
            Settings.load(environ, **arguments)


def test_spaces_and_quotes_around_a_variable_do_not_count() -> None:
    """Files of variables that docker reads keep quotes; a token's file ends with a newline."""
    found = Settings.load({"PRISMCACHE_ROOT": ' "/data/x" ', "PRISMCACHE_S3_BUCKET": "'b'", "PRISMCACHE_WORKERS": " 3"})
    assert (found.root, found.s3_bucket, found.workers) == (Path("/data/x"), "b", 3)
    assert Settings.load({}, token="abc\n").token == Settings.load({}, token="abc").token


@pytest.mark.parametrize(("given", "meant"), [("~/prism", "prism"), ("$HOME", None), ("a/../b", None)])
def test_the_root_is_absolute_and_a_tilde_is_the_home(given: str, meant: str | None) -> None:
    root = Settings.load({"PRISMCACHE_ROOT": given}).root
    assert root.is_absolute()
    assert ".." not in root.parts
    if meant is not None:
        assert root == Path.home() / meant


def test_a_root_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "mount").symlink_to(tmp_path / "disk")
    assert Settings.load({}, root=tmp_path / "mount").root == tmp_path / "mount"


def test_slashes_around_urls_and_prefix_do_not_matter() -> None:
    found = Settings.load({}, url="http://lab/", s3_endpoint_url="http://s3//", s3_prefix="/a/b/")
    assert (found.url, found.s3_endpoint_url, found.s3_prefix) == ("http://lab", "http://s3", "a/b")


def test_settings_cannot_be_changed_and_survive_json() -> None:
    found = Settings.load({}, memory_limit="1GB", root="/data", s3_endpoint_url="http://s3")
    with pytest.raises(ValidationError):
        found.workers = 3
    assert Settings.model_validate_json(found.model_dump_json(exclude={"token", "url"})) == found
