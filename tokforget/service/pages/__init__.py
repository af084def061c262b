"""
The two HTML pages. Each is self-contained, with a Content-Security-Policy that forbids the browser to load anything
else.
"""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import jinja2

from tokforget.compression.heatmap import STOPS


_FOLDER = Path(__file__).parent


def front_page(has_token: bool) -> tuple[str, str]:
    """The page at `/`, and its Content-Security-Policy."""
    page = _template("front.html").render(has_token=has_token, stops=STOPS)
    return page, _policy(page)


def docs_page(schema: dict, has_token: bool) -> tuple[str, str]:
    """The reference at `/docs` from an OpenAPI schema, and its Content-Security-Policy."""
    routes = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            needed = set(body.get("required", ()))
            fields = [
                {"name": name, "kind": _kind(field), "required": name in needed, "description": field.get("description", ""),
                 "default": json.dumps(field["default"], ensure_ascii=False) if "default" in field else ""}
                for name, field in body.get("properties", {}).items()
            ]  # fmt: skip
            fields.sort(key=lambda field: not field["required"])
            routes.append({"path": path, "method": method.upper(), "summary": route.get("summary", ""), "fields": fields,
                           "answers": [(status, answer["description"]) for status, answer in route["responses"].items()],
                           "example": _EXAMPLES.get(path)})  # fmt: skip
    page = _template("docs.html").render(info=schema["info"], routes=routes, has_token=has_token)
    return page, _policy(page)


_EXAMPLES = {
    "/v1/compress": '{"texts": "The bridge over the Arve was built in 1874.", "rate": 0.5}',
    "/v1/compress_messages": '{"messages": [{"role": "user", "content": "How many cars use the bridge?"}], "rate": 0.5}',
    "/v1/explain": '{"text": "The bridge over the Arve was built in 1874.", "rate": 0.5}',
    "/v1/restore": '{"compressed": {"text": "…", "kept_ids": ["…"]}}',
}


def _kind(field: dict) -> str:
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_kind(one) for one in field["anyOf"]))
    if field.get("type") == "array":
        return f"[{_kind(field['items'])}]" if field.get("items") else "array"
    return field.get("type", "any")


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_FOLDER / name).read_text(encoding="utf-8"))


def _policy(page: str) -> str:
    """
    A Content-Security-Policy that allows only the page's own script and style (by their hashes) and this service.
    """
    script, style = (_hashes(tag, page) for tag in ("script", "style"))
    return (f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'")  # fmt: skip


def _hashes(tag: str, page: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return (
        " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found)
        or "'none'"
    )
