"""Hooks of mkdocs.yml: pages and pictures that live outside docs/, and the links to them.

README.md is the start page. CONTRIBUTING.md and CHANGELOG.md become pages, the pictures of bench/results/ are copied. A
link to any other file outside docs/ (an example, a script) becomes its plain text, because the site has no source code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages and pictures from outside docs/.

    Args:
        files: the files of docs/.
        config: the site's configuration.

    Returns:
        All files of the site.
    """
    sources = {site: ROOT / path for path, site in PAGES.items()}
    sources |= {f"bench/results/{path.name}": path for path in (ROOT / "bench" / "results").glob("*.png")}
    for site, path in sources.items():
        files.append(File.generated(config, site, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links at the site's pages.

    Args:
        markdown: the text of a page.
        page: the page.
        config: the site's configuration.
        files: the files of the site.

    Returns:
        The text with its links changed.
    """
    here = page.file.src_uri
    source = {site: path for path, site in PAGES.items()}.get(here, f"docs/{here}")

    def replace(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        site = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(site) is None:
            return link["text"].strip("[]") if (ROOT / path).exists() else link[0]
        relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
        return f"{link['text']}({relative}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(replace, markdown)
