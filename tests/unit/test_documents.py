"""What README and docs/ name exists: links, settings, commands with their options, and Python that compiles."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from prismcache.cli.app import app
from prismcache_service.config import ServiceConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(document: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            path = (ROOT / document).parent / name if name else ROOT / document
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_python_example_compiles(document: str) -> None:
    for code in blocks(document, "python"):
        compile(code, document, "exec")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_its_options_exist(document: str) -> None:
    prismcache = typer.main.get_command(app)
    for line in "".join(blocks(document, "console")).splitlines():
        _, *words = shlex.split(line, comments=True) or [""]
        if words[:1] == ["prismcache"] and words[1] != "adopt":  # whose file has to exist
            name, command, rest = prismcache.resolve_command(
                prismcache.make_context("prismcache", words[1:]), words[1:]
            )
            while hasattr(command, "resolve_command") and rest:
                name, command, rest = command.resolve_command(command.make_context(name, list(rest)), rest)
            command.make_context(name, list(rest))  # raises UsageError for an unknown option


def test_docs_settings_has_every_setting() -> None:
    named = set(re.findall(r"`PRISMCACHE_(\w+)`", (ROOT / "docs" / "settings.md").read_text()))
    assert named == {name.upper() for name in ServiceConfig.model_fields}
