"""Tables for notebooks: plain HTML in the notebook's own colours, light or dark; every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already, so that `table` does not escape it."""

    __slots__ = ()


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table.

    Parameters
    ----------
    caption
        A line above the table.
    head
        The columns' names; empty for a table without a head.
    rows
        One value for each column; None is an empty cell.

    Examples
    --------
    >>> table("crops", ["crop", "state"], [(0, "cached")])
    '<table><caption>crops</caption><tr><th>crop</th><th>state</th></tr><tr><td>0</td><td>cached</td></tr></table>'
    """
    lines = [_row("th", head)] if head else []
    lines += [_row("td", row) for row in rows]
    return f"<table><caption>{escape(caption)}</caption>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[object]) -> str:
    texts = (cell if isinstance(cell, Html) else escape("" if cell is None else str(cell)) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"
