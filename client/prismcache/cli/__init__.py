"""The command line. `main` is the command ``prismcache``; nothing else is imported until it runs."""

from __future__ import annotations


def main() -> None:
    """Run the command ``prismcache``."""
    from prismcache.cli import app

    app.main()
