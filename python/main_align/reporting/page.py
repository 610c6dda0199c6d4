"""render: the page as one self-contained HTML file under MAX_BYTES."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ..data.write import to_json
from .contents import Contents
from .shown import ShownRow, clipped

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "echarts/echarts.common.min.js",
    "rule.js",
    "joint.js",
    "conditions.js",
    "charts.js",
    "rows.js",
    "quadrant.js",
    "page.js",
)
MAX_BYTES = 2_400_000
CLIPS = (2000, 1000, 500, 250, 120, 60, 30)  # characters of a text; the longest that fits the page is used
ID = 60  # characters of an id


def render(contents: Contents) -> bytes:
    """Return the page. Texts are clipped so that it has at most MAX_BYTES."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    template = environment.get_template("page.html")
    scripts, style = [_read(name) for name in SCRIPTS], _read("page.css")
    fixed = contents.values | {
        "policy": _policy(scripts, style),
        "scripts": [Markup(script) for script in scripts],
        "style": Markup(style),
    }
    page = b""
    for clip in CLIPS:
        is_clipped = any(max(len(r.instruction), len(r.response)) > clip for r in contents.rows)
        data = Markup(script_json(contents.data | {"pairs": _texts(contents.rows, clip)}))
        page = template.render(fixed, clip=clip if is_clipped else 0, data=data).encode("utf-8", "replace")
        if len(page) <= MAX_BYTES:
            break
    return page


def script_json(value: Any) -> str:
    """Return JSON that no HTML parser takes for the end of its script element or for a comment."""
    return to_json(value).replace("<", "\\u003c")


def _read(name: str) -> str:
    text = (ASSETS / name).read_text(encoding="utf-8")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError(f"{name} cannot stand inside a script element")
    return text


def _policy(scripts: list[str], style: str) -> str:
    """Return a Content-Security-Policy that allows these scripts and this style, and nothing else."""
    hashes = " ".join(map(_hash, scripts))
    return f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _texts(rows: list[ShownRow], clip: int) -> dict[str, list[str]]:
    return {
        "label": [row.label for row in rows],
        "id": [clipped(row.id, min(clip, ID)) for row in rows],
        "status": [row.status for row in rows],
        "flags": [row.flags for row in rows],
        "instruction": [clipped(row.instruction, clip) for row in rows],
        "response": [clipped(row.response, clip) for row in rows],
    }


def _number(value: Any) -> str:
    """Return a number for a table: integers with commas, others with four digits."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
