"""Commands of the machine that keeps the service: ``serve`` and ``token``. They need the extra ``service``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from prismcache.cli.errors import Command, CommandGroup
from prismcache.cli.options import SERVE_OPTIONS, TOKEN_OPTIONS, JsonOption, examples, read_duration, with_options

NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the person or program that will use the token", show_default=False),
]
RoleOption = Annotated[
    str,
    typer.Option("--role", help="reader (list, download), requester (also request crops) or admin (also evict, pin)"),
]
ExpiresOption = Annotated[
    str | None, typer.Option("--expires", help="Time until the token expires: 12h, 90d or 52w (default: never)")
]

_WHEN = "a running service notices this within 2 s"

tokens = typer.Typer(
    name="token", cls=CommandGroup, help="Create, revoke and list the tokens of this machine's service.",
    epilog=examples("token create ada --role requester", "token list"), no_args_is_help=True,
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    panel = "Commands for the machine that runs the service"
    shown = examples(
        "serve --root /lab/prism",
        "serve --root /lab/prism --host 0.0.0.0 --max-bytes 500GB",
        "serve --root /lab/prism --host 0.0.0.0 --tls-cert lab.pem --tls-key lab-key.pem",
    )
    app.command(cls=Command, rich_help_panel=panel, epilog=shown)(serve)
    app.add_typer(tokens, rich_help_panel=panel)


@with_options(SERVE_OPTIONS)
def serve(settings: dict[str, Any]) -> None:
    """Run the service for the lab on this machine, until Ctrl-C."""
    _load("serve")(_config(settings))


@tokens.command(
    "create", cls=Command, epilog=examples("token create ada", "token create guest --role reader --expires 90d")
)
@with_options(TOKEN_OPTIONS)
def create_token(
    settings: dict[str, Any],
    name: NameArgument,
    *,
    role: RoleOption = "requester",
    expires: ExpiresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a token and print it; it is not shown again."""
    until = None if expires is None else datetime.now(UTC) + read_duration(expires)
    auth = _load("token")
    config = _config(settings)
    token = auth.create_token(auth.tokens_path(config), name, role, expires=until)
    if as_json:
        made = {"name": name, "role": role, "token": token, "expires_at": until and until.isoformat()}
        _print_json(made | ({"url": config.public_url} if config.public_url else {}))
        return
    typer.echo(token)
    end = "" if until is None else f"; it expires {until.astimezone():%Y-%m-%d %H:%M}"
    url = f", and PRISMCACHE_URL to {config.public_url}" if config.public_url else ""
    typer.echo(f"a token for {name}: set PRISMCACHE_TOKEN to it{url}; it is not shown again{end}", err=True)
    typer.echo(_WHEN, err=True)


@tokens.command("revoke", cls=Command, epilog=examples("token revoke ada"))
@with_options(TOKEN_OPTIONS)
def revoke_token(settings: dict[str, Any], name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Revoke a token; the service then refuses it."""
    auth = _load("token")
    auth.revoke_token(auth.tokens_path(_config(settings)), name)
    if as_json:
        _print_json({"revoked": name})
    else:
        typer.echo(f"revoked the token of {name}", err=True)
        typer.echo(_WHEN, err=True)


@tokens.command("list", cls=Command, epilog=examples("token list", "token list --json"))
@with_options(TOKEN_OPTIONS)
def list_tokens(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """List names, roles, expiry and last use; the tokens themselves are not kept."""
    auth = _load("token")
    records = auth.list_tokens(auth.tokens_path(_config(settings)))
    if as_json:
        _print_json({"tokens": [record.model_dump(mode="json", exclude={"sha256"}) for record in records]})
        return
    if not records:
        typer.echo("there are no tokens; `prismcache token create NAME` creates one", err=True)
        return
    from prismcache.cli.output import print_table

    rows = []
    for each in records:
        created, expires, used = (
            when.astimezone().strftime("%Y-%m-%d %H:%M") if when else "never"
            for when in (each.created_at, each.expires_at, each.last_used_at)
        )
        rows.append((each.name, each.role.value, created, expires, used))
    print_table(("name", "role", "created", "expires", "last used"), rows)


def _config(settings: dict[str, Any]) -> Any:
    return _load("config").load(**settings)


def _load(name: str) -> Any:
    from prismcache.backend import service_part

    module, part = _PARTS[name]
    return service_part(f"prismcache_service.{module}", part, f"{name} command")


_PARTS = {"config": ("config", "ServiceConfig"), "serve": ("web.server", "serve"), "token": ("web.tokens", None)}


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2))
