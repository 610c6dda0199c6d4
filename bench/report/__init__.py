"""Write every table and picture of README and docs from bench/results/.

    python -m bench report            # after a measurement
    python -m bench report --check    # exit with 1 if a page or a picture is not what was measured

A table stands between two comments of its page, which name it; a picture holds the digest of the rows it shows. The
study of what each term does resamples for minutes and writes its own tables: python -m bench.quality.report.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..command import command_parser
from ..records import RESULTS, SUITES, read_rows
from .behind import where_we_lose
from .scaling import exponents
from .summary import readme_table
from .tables import inserted, markdown

ROOT = Path(__file__).parents[2]
README, BENCHMARKS, QUALITY = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "quality.md"
Rows = Sequence[Mapping[str, Any]]


def of(suite: str, rows: Rows, *, swept: bool = False) -> list[Mapping[str, Any]]:
    """Return the rows of a suite: those at named sizes, or those of its sweeps."""
    return [row for row in rows if row["suite"] == suite and ("=" in row["size"]) == swept]


TABLES: dict[tuple[Path, str], Callable[[Rows], str]] = {
    (README, "summary"): lambda rows: readme_table(of("kernels", rows)),
    (BENCHMARKS, "behind"): lambda rows: where_we_lose([row for row in rows if "=" not in row["size"]]),
    (BENCHMARKS, "scaling"): lambda rows: exponents(of("kernels", rows, swept=True)),
    (BENCHMARKS, "training"): lambda rows: markdown(of("training", rows)),
    (BENCHMARKS, "scoring"): lambda rows: markdown(of("scoring", rows)),
    (BENCHMARKS, "kernels"): lambda rows: markdown(of("kernels", rows)),
}
"""(page, name of its table): what is written there."""


def marks(name: str) -> tuple[str, str]:
    """Return the comments that begin and end a table."""
    return f"<!-- bench report writes {name} from here -->", "<!-- to here -->"


def all_rows(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of all suites."""
    return [row for suite in SUITES for row in read_rows(folder / f"{suite}.json")]


def pages(rows: Rows) -> dict[Path, str]:
    """Return every page that has a table of timings, as it should be."""
    out: dict[Path, str] = {}
    for (page, name), make in TABLES.items():
        out[page] = inserted(out.get(page) or page.read_text(encoding="utf-8"), marks(name), make(rows))
    return out


def write_quality(page: Path) -> None:
    """Write the tables of the scores and of the loop into a page."""
    from ..quality import loop_report
    from ..quality.detection_report import write_page

    loop_report.write(RESULTS / "loop.json", page)
    write_page(_detection(), page)


def _detection() -> dict[str, Any]:
    return json.loads((RESULTS / "detection.json").read_text(encoding="utf-8"))


def outdated_timings(rows: Rows) -> list[str]:
    """Return the pages and pictures of timings that differ from what the rows say."""
    from .pictures import PICTURES, is_current

    found = [str(page.relative_to(ROOT)) for page, text in pages(rows).items() if page.read_text("utf-8") != text]
    return found + [f"bench/results/{name}" for name in PICTURES if not is_current(name, rows, RESULTS / name)]


def outdated(rows: Rows) -> list[str]:
    """Return the pages and pictures that differ from what the results say."""
    found = outdated_timings(rows)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(QUALITY, folder))
        write_quality(copy)
        if copy.read_text("utf-8") != QUALITY.read_text("utf-8"):
            found.append(str(QUALITY.relative_to(ROOT)))
    return found


def main(words: list[str] | None = None) -> int:
    from ..quality.detection_report import plot
    from .pictures import PICTURES, draw

    parser = command_parser("report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something is outdated")
    chosen = parser.parse_args(words)
    rows = all_rows()
    if chosen.check:
        found = outdated(rows)
        if found:
            print(f"outdated: {', '.join(found)}; run python -m bench report", file=sys.stderr)
        return 1 if found else 0
    for page, text in pages(rows).items():
        page.write_text(text, encoding="utf-8")
    for name in PICTURES:
        draw(name, rows, RESULTS / name)
    write_quality(QUALITY)
    plot(_detection(), RESULTS / "detection.png")
    return 0
