"""``prismcache doctor`` checks what prismcache needs, and says what to do if a check fails."""

from __future__ import annotations

from typing import Any

import typer

from prismcache.cli.errors import Command
from prismcache.cli.options import SETTINGS_OPTIONS, JsonOption, examples, with_options


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(cls=Command, epilog=examples("doctor", "doctor --root /lab/prism", "doctor --json"))(doctor)


@with_options({name: SETTINGS_OPTIONS[name] for name in ("root", "url", "s3_endpoint_url", "s3_bucket", "s3_prefix")})
def doctor(settings: dict[str, Any], *, as_json: JsonOption = False) -> None:
    """Check cache folder, clock, bucket, service, token, mount and versions; exit with 1 if a check fails."""
    import asyncio

    from prismcache.cli.checks import Finding, Verdict, findings
    from prismcache.config import Settings
    from prismcache.progress.reporter import signs_of_life

    loaded = Settings.load(**settings)

    async def run() -> list[Finding]:
        found = []
        async for finding in findings(loaded):
            found.append(finding)
            if not as_json:
                typer.echo(f"{finding.verdict.value:<9}{finding.check:<10}{finding.detail}")
                if finding.remedy:
                    typer.echo(f"{'':<19}remedy: {finding.remedy}")
        return found

    with signs_of_life("checking"):
        found = asyncio.run(run())
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"checks": [asdict(finding) for finding in found]}, indent=2))
    if any(finding.verdict is Verdict.FAILED for finding in found):
        raise typer.Exit(1)
