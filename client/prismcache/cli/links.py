"""``link``, ``view`` and ``links``: URLs of one crop for napari, zarr and Neuroglancer, which cannot send a token."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prismcache.cli.errors import Command, CommandGroup
from prismcache.cli.options import CropArgument, JsonOption, SplitArgument, examples, read_duration
from prismcache.cli.service import PANEL, ask, with_service

if TYPE_CHECKING:
    from prismcache.links import MadeLink
    from prismcache.remote.api import ServiceApi

ExpiresOption = Annotated[str, typer.Option("--expires", help="Time until the link expires: 12h, 7d or 52w")]
NoteOption = Annotated[str, typer.Option("--note", help="Text to remember the link by, in the list of links")]

links = typer.Typer(
    name="links", cls=CommandGroup, help="List, make and revoke links to crops, which need no token.",
    epilog=examples("links", "links make instance 0 --expires 12h", "links revoke 1f0c2a77d3e4b590"),
    invoke_without_command=True,
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    shown = examples("link instance 0", "link instance 0 --expires 12h --note 'for Ada'")
    app.command(cls=Command, rich_help_panel=PANEL, epilog=shown)(link)
    links.command("make", cls=Command, epilog=examples("links make instance 0 --expires 12h"))(link)
    app.command(cls=Command, rich_help_panel=PANEL, epilog=examples("view instance 0"))(view)
    app.add_typer(links, rich_help_panel=PANEL)


@with_service
def link(
    settings: dict[str, Any],
    split: SplitArgument,
    crop: CropArgument,
    *,
    expires: ExpiresOption = "7d",
    note: NoteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a link to a cached crop, which needs no token; print its URLs, which are not shown again."""
    made = _make(settings, split, crop, read_duration(expires), note)
    if as_json:
        from prismcache.cli.output import print_json

        print_json(made)
        return
    typer.echo(f"zarr          {made.url}")
    typer.echo(f"napari        napari --plugin napari-ome-zarr {made.url}")
    if made.neuroglancer_url:
        typer.echo(f"neuroglancer  {made.neuroglancer_url}")
    end = f"{made.expires_at.astimezone():%Y-%m-%d %H:%M}"
    typer.echo(f"{split}/{crop}: everybody who has a URL can read the crop until {end}", err=True)
    typer.echo(f"`prismcache links revoke {made.id}` revokes the link", err=True)


@with_service
def view(settings: dict[str, Any], split: SplitArgument, crop: CropArgument) -> None:
    """Open a cached crop in the browser: in Neuroglancer if the service has it, else in the service's viewer."""
    import webbrowser

    from prismcache.config import Settings

    made = _make(settings, split, crop, timedelta(hours=12), "prismcache view")
    url = made.neuroglancer_url or f"{Settings.load(**settings).url}/view?split={split}&crop={crop}"
    if not webbrowser.open(url):
        typer.echo("no browser could be opened; open this address yourself:", err=True)
    typer.echo(url)


@links.callback()
@with_service
def list_by_default(settings: dict[str, Any], ctx: typer.Context) -> None:
    """List the links unless a command is named."""
    if ctx.invoked_subcommand is None:
        _print_links(settings, as_json=False)


@links.command("list", cls=Command, epilog=examples("links list", "links list --json"))
@with_service
def list_links(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """List the valid links of your token, or all links for an admin. Their URLs are not kept."""
    _print_links(settings, as_json=as_json)


@links.command("revoke", cls=Command, epilog=examples("links revoke 1f0c2a77d3e4b590"))
@with_service
def revoke(
    settings: dict[str, Any],
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Id of the link, as `links` prints it", show_default=False)
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Revoke links; the service then refuses their URLs."""

    async def revoke_all(api: ServiceApi) -> None:
        for link_id in ids:
            await api.revoke_link(link_id)
            if not as_json:
                typer.echo(f"revoked {link_id}", err=True)

    ask(settings, revoke_all)
    if as_json:
        import json

        typer.echo(json.dumps({"revoked": ids}, indent=2))


def _make(settings: dict[str, Any], split: str, crop: int, life: timedelta, note: str) -> MadeLink:
    from prismcache.arguments import as_split
    from prismcache.links import MAX_HOURS, LinkRequest

    hours = life.total_seconds() / 3600
    if hours > MAX_HOURS:
        raise typer.BadParameter("a link can be valid for a year (52w) at most", param_hint="--expires")
    try:
        request = LinkRequest(split=as_split(split), crop=crop, hours=hours, note=note)
    except ValueError:
        raise typer.BadParameter("a note is one line of at most 200 characters", param_hint="--note") from None
    return ask(settings, lambda api: api.make_link(request))


def _print_links(settings: dict[str, Any], *, as_json: bool) -> None:
    from prismcache.cli.output import print_json, print_table

    found = ask(settings, lambda api: api.links())
    if as_json:
        print_json({"links": found})
        return
    rows = []
    for each in found:
        until = f"{each.expires_at.astimezone():%Y-%m-%d %H:%M}"
        rows.append((each.id, f"{each.split.value}/{each.crop}", until, each.owner, each.note))
    print_table(("id", "crop", "until", "owner", "note"), rows)
