"""Commands for whoever keeps the service: ``serve`` and ``token``. What they run comes with the extra ``service``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prismcache.cli.options import SERVE_OPTIONS, TOKEN_OPTIONS, JsonOption, with_options

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is", show_default=False)]
RoleOption = Annotated[str, typer.Option("--role", help="reader, requester or admin")]

tokens = typer.Typer(name="token", help="Make, revoke and list the tokens of this machine's service.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    panel = "Commands of the machine that keeps the service"
    app.command(rich_help_panel=panel)(serve)
    app.add_typer(tokens, rich_help_panel=panel)


@with_options(SERVE_OPTIONS)
def serve(settings: dict[str, Any]) -> None:
    """Serve the cache folder of this machine to the lab, until it is told to stop."""
    _load("serve")(_config(settings))


@tokens.command("create")
@with_options(TOKEN_OPTIONS)
def create_token(
    settings: dict[str, Any], name: NameArgument, *, role: RoleOption = "requester", as_json: JsonOption = False
) -> None:
    """Make a token and print it, the only time that it is shown."""
    auth = _load("token")
    token = auth.create_token(auth.tokens_path(_config(settings)), name, role)
    if as_json:
        _print_json({"name": name, "role": role, "token": token})
    else:
        typer.echo(token)
        typer.echo(f"a token for {name}: set PRISMCACHE_TOKEN to it; it is not shown again", err=True)


@tokens.command("revoke")
@with_options(TOKEN_OPTIONS)
def revoke_token(settings: dict[str, Any], name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Take a token back; a running service is told by SIGHUP."""
    auth = _load("token")
    auth.revoke_token(auth.tokens_path(_config(settings)), name)
    if as_json:
        _print_json({"revoked": name})
    else:
        typer.echo(f"revoked the token of {name}; a running service forgets it on SIGHUP", err=True)


@tokens.command("list")
@with_options(TOKEN_OPTIONS)
def list_tokens(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """List names and roles; tokens themselves are not kept."""
    auth = _load("token")
    records = [
        {"name": record.name, "role": str(record.role), "created_at": record.created_at.isoformat()}
        for record in auth.list_tokens(auth.tokens_path(_config(settings)))
    ]
    if as_json:
        _print_json({"tokens": records})
        return
    for record in records:
        typer.echo(f"{record['name']:<24} {record['role']:<10} {record['created_at']}")


def _config(settings: dict[str, Any]) -> Any:
    return _load("config").load(**settings)


def _load(name: str) -> Any:
    from prismcache.loading import service_part

    module, part = _PARTS[name]
    return service_part(f"prismcache_service.{module}", part, f"{name} command")


_PARTS = {"config": ("config", "ServiceConfig"), "serve": ("web.server", "serve"), "token": ("web", "tokens")}


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=2))
