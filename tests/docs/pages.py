"""The Markdown pages, and their links, headings and code blocks."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    """Return the path of a page within the repository."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE):
        text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()))
    return found


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks in the given languages; "" is a block without one."""
    return [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def recipes(text: str) -> list[tuple[str, list[str], list[str]]]:
    """Return title, diffs and python blocks of each section that has a diff."""
    found = []
    for section in re.split(r"^##+ (?=\w)", text, flags=re.MULTILINE)[1:]:
        code = FENCE.findall(section)
        diffs = [body for language, body in code if language == "diff"]
        checks = [body for language, body in code if language == "python"]
        if diffs:
            found.append((section.partition("\n")[0], diffs, checks))
    return found
