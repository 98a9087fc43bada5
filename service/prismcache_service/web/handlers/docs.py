"""``/docs``: the OpenAPI document for people, one page without scripts, because a lab may have no internet access."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1b1f24; background: #fff }
pre { background: #f3f4f6; padding: .75rem; overflow: auto; font-size: .85rem }
section { border-top: 1px solid #d0d7de; margin-top: 2rem }
dt { font-weight: 600 }
dd { margin: 0 0 .25rem 1.5rem }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117 }
  pre { background: #161b22 }
  a { color: #79c0ff }
}
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Return a page with every operation, its parameters, responses and examples."""
    return HTMLResponse(render(request.app.openapi()), headers=_HEADERS)


def render(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML."""
    info = {name: html.escape(text) for name, text in document["info"].items()}
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    models = [
        f"<details id='{html.escape(name)}'><summary>{html.escape(name)}</summary>{_code(schema)}</details>"
        for name, schema in document["components"]["schemas"].items()
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{info['title']}</title><style>{_STYLE}</style><h1>{info['title']} {info['version']}</h1>"
        f"<p>{info['description']}</p><p>The same for programs: <a href='openapi.json'>openapi.json</a></p>"
        f"{''.join(operations)}<section><h2>Models</h2>{''.join(models)}</section></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = operation.get("parameters", [])
    terms = [(f"{item['name']} ({item['in']})", item.get("description", "")) for item in parameters]
    terms += [(status, response["description"]) for status, response in operation["responses"].items()]
    listed = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    named = [item for media in bodies for item in media.get("examples", {}).items()]
    examples = "".join(f"<p>{html.escape(name)}:</p>{_code(example['value'])}" for name, example in named)
    return (
        f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
        f"<p><b>{html.escape(operation['summary'])}.</b> {html.escape(operation.get('description', ''))}</p>"
        f"<dl>{listed}</dl>{examples}</section>"
    )


def _code(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"
