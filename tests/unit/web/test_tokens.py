"""Tokens: how they are made, kept and compared; and that a service is not open by accident."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prismcache import ConfigError
from prismcache_service.config import ServiceConfig
from prismcache_service.web.tokens import (
    Caller,
    Role,
    TokenBook,
    create_token,
    is_loopback,
    list_tokens,
    require_safe_address,
    revoke_token,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


def _config(tmp_path: Path, **changes: object) -> ServiceConfig:
    return ServiceConfig.load({}, root=tmp_path / "root", state_folder=tmp_path / "state", **changes)


def test_a_token_is_shown_once_and_kept_as_a_hash_that_only_the_owner_can_read(path: Path) -> None:
    token = create_token(path, "ada", Role.ADMIN)

    assert len(token.removeprefix("prism_")) * 6 >= 256
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(record.name, record.role) for record in list_tokens(path)] == [("ada", Role.ADMIN)]


def test_a_revoked_token_is_refused_and_the_others_stay(path: Path) -> None:
    tokens = {name: create_token(path, name, "reader") for name in ("ada", "bob")}
    book = TokenBook(path)
    assert book.authenticate(tokens["bob"]) == Caller("bob", Role.READER)

    revoke_token(path, "bob")
    assert book.authenticate(tokens["bob"]) is not None  # until the file is read again
    book.refresh()

    assert book.authenticate(tokens["bob"]) is None
    assert book.authenticate(tokens["ada"]) == Caller("ada", Role.READER)


@pytest.mark.parametrize("token", ["", "prism_", "prism_" + "A" * 43, "x" * 100_000, "\udcff", "é"])
def test_what_is_no_token_is_nobodys(path: Path, token: str) -> None:
    create_token(path, "ada", "admin")

    assert TokenBook(path).authenticate(token) is None


@pytest.mark.parametrize(
    ("name", "role"), [("ada", "reader"), ("me", "reader"), ("", "reader"), ("a b", "reader"), ("new", "root")]
)
def test_names_and_roles_that_cannot_be_used_are_refused(path: Path, name: str, role: str) -> None:
    create_token(path, "ada", "reader")

    with pytest.raises(ConfigError):
        create_token(path, name, role)


def test_a_token_is_refused_once_it_has_expired(path: Path) -> None:
    now = datetime.now(UTC)
    token = create_token(path, "guest", "reader", expires=now + timedelta(days=90))
    book = TokenBook(path)
    assert book.authenticate(token) == Caller("guest", Role.READER)

    content = json.loads(path.read_text())
    content["tokens"][0]["expires_at"] = now.isoformat()
    path.write_text(json.dumps(content))
    book.refresh()

    assert book.authenticate(token) is None
    assert book.enforced
    with pytest.raises(ConfigError, match="could never be used"):
        create_token(path, "late", "reader", expires=now)


def test_the_last_use_of_a_token_is_shown_and_survives_a_restart(path: Path) -> None:
    tokens = {name: create_token(path, name, "reader") for name in ("ada", "bob", "eve")}
    for name in ("ada", "bob"):
        book = TokenBook(path)
        book.authenticate(tokens[name])
        book.store_uses()

    used = {record.name: record.last_used_at for record in list_tokens(path)}
    assert used["ada"]
    assert used["bob"]
    assert used["eve"] is None
    revoke_token(path, "ada")
    create_token(path, "ada", "reader")
    assert list_tokens(path)[-1].last_used_at is None  # another token of the same name


def test_revoking_who_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match="bob"):
        revoke_token(path, "bob")


def test_commands_at_the_same_time_lose_no_token(path: Path) -> None:
    threads = [threading.Thread(target=create_token, args=(path, f"user{n}", "reader")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(list_tokens(path)) == 20
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(".tmp")] == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tokens": [{"name": "ada"}]}', '{"version": 2, "tokens": []}'])
def test_a_file_that_is_none_of_tokens_is_refused_without_its_content(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)

    with pytest.raises(ConfigError, match=r"(?m)tokens\.json cannot be used: it is not a file of tokens$"):
        TokenBook(path)


def test_a_file_that_everybody_may_write_is_refused(path: Path) -> None:
    create_token(path, "ada", "admin")
    path.chmod(0o602)

    with pytest.raises(ConfigError, match="everybody"):
        list_tokens(path)


def test_a_file_that_breaks_while_the_service_runs_changes_nothing(path: Path) -> None:
    token = create_token(path, "ada", "admin")
    book = TokenBook(path)

    path.write_text("{")
    book.reload()

    assert book.authenticate(token) is not None


def test_a_file_that_vanishes_closes_the_service_rather_than_opening_it(path: Path) -> None:
    token = create_token(path, "ada", "admin")
    book = TokenBook(path)

    path.unlink()
    book.reload()

    assert book.enforced
    assert book.authenticate(token) is None


def test_the_first_token_closes_a_service_that_ran_without(path: Path) -> None:
    book = TokenBook(path)
    assert not book.enforced

    create_token(path, "ada", "admin")
    book.reload()

    assert book.enforced


def test_each_role_includes_those_before_it() -> None:
    assert [[role.includes(other) for other in Role] for role in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not Caller("", None).may(Role.READER)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST.", "::1", "[::1]", "prism.localhost"]
)
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "prism.lab", "localhost.evil.com", "127.0.0.1.evil.com"]
)
def test_addresses_that_others_can_reach_need_tokens_or_insecure(tmp_path: Path, host: str) -> None:
    config = _config(tmp_path, host=host)
    path = tmp_path / "state" / "tokens.json"

    with pytest.raises(ConfigError, match="no token"):
        require_safe_address(config, TokenBook(path))
    require_safe_address(_config(tmp_path, host=host, insecure=True), TokenBook(path))
    create_token(path, "ada", "reader")
    require_safe_address(config, TokenBook(path))


def test_the_file_is_json_that_says_its_version(path: Path) -> None:
    create_token(path, "ada", "reader")

    assert json.loads(path.read_text())["version"] == 1
