"""The tables of docs/data.md, made from the lists that the readers use.

python -m main_align.reference docs/data.md    # writes them anew between their marks
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from .formats.dialects import DIALECTS
from .read import FILE_KINDS
from .sources.streams import COMPRESSED

END = "<!-- end -->"


def dialect_table() -> str:
    """One row a dialect, in the order in which they are tried."""
    rows = ((d.form, d.seen_in, f"`{json.dumps(d.example, ensure_ascii=False)}`") for d in DIALECTS)
    return _table(("fields", "seen in", "example"), rows)


def file_table() -> str:
    """One row a kind of file."""
    packed = ", ".join(f"`{ending}`" for ending in COMPRESSED)
    rows = ((", ".join(f"`{e}`" for e in k.endings), k.holds, packed if k.text else "-") for k in FILE_KINDS)
    return _table(("endings", "holds", "also as"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_tables(page: str) -> str:
    """The page with its tables made anew between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in (("dialects", dialect_table()), ("files", file_table())):
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        page = before + mark + table + "\n" + rest[rest.index(END) :]
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
