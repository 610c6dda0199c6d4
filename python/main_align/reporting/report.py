"""write_report: the page that a curator looks at before filtering."""

from __future__ import annotations

from pathlib import Path

from ..data.atomic import atomic_write
from ..data.sources.source import Source
from ..data.write import check_place
from ..errors import UserError
from .contents import contents
from .files import open_scores
from .page import render


def write_report(
    scores: str | Path,
    out: str | Path,
    *,
    input: str | Path | Source | None = None,
    group_by: str | None = None,
    text: bool = True,
) -> None:
    """Write one self-contained HTML page about a score file, or about all score files of a folder.

    Args:
        scores: the score file, as written by `score_file`, or a folder of score files.
        out: the .html file to write.
        input: the scored data set. Default: the path in the manifest of each score file.
        group_by: a field of the data, or a dotted path, whose values are compared. Default: none.
        text: show ids, reasons and texts. Without it, the data is optional unless `group_by` is set. Default: True.

    Raises:
        UserError: a file is missing or damaged, no row has a score, or no row has the field `group_by`.
    """
    out = Path(out)
    check_report(out)
    files = open_scores(Path(scores), input, needs_input=text or group_by is not None)
    source = None if input is None or isinstance(input, Source) else str(input)
    page = render(contents(files, group_by, source, text=text))
    with atomic_write(out) as temporary:
        temporary.write_bytes(page)


def check_report(out: Path) -> None:
    """Raise UserError unless a page can be written to `out`."""
    if out.suffix.lower() != ".html":
        raise UserError(f"{out}: the report is a page; use the ending .html")
    check_place(out)
