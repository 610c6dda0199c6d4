"""Fields, Notes: field names chosen by the user, and observations made while records are read."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from ..checks import check_types
from ..errors import UserError


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields to read. A nested field has a dotted name: `data.question`.

    Args:
        instruction: field of the instruction; requires `response`. Default: recognised by record format.
        response: field of the response; requires `instruction`. Default: recognised by record format.
        id: field of the row's id. Default: `id`.
        input: field whose text is appended to the instruction. Default: `input` and `context`.
        system: field of the system prompt. Default: `system`, `system_prompt` and similar names.
        preference: response of a preference pair to read, "chosen" or "rejected". Default: "chosen".
    """

    instruction: str | None = None
    response: str | None = None
    id: str | None = None
    input: str | None = None
    system: str | None = None
    preference: str = "chosen"

    def __post_init__(self) -> None:
        check_types(Fields, {name: getattr(self, name) for name in self.__slots__})

    def check(self) -> None:
        """Raise UserError if only one of instruction and response is named."""
        if bool(self.instruction) != bool(self.response):
            raise UserError("name both sides: --instruction-field and --response-field go together")


NO_FIELDS = Fields()


@dataclass
class Notes:
    """Observations made while records are read.

    Args:
        unused: for each text field that is not part of the pair, the number of rows that have it.
        repeated_ids: rows with the id of an earlier row.
    """

    unused: Counter[str] = field(default_factory=Counter)
    repeated_ids: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def add_id(self, label: str) -> None:
        """Count an id. Digests of 16 bytes are kept instead of the ids, which may be long."""
        digest = hashlib.blake2b(label.encode(), digest_size=16).digest()
        self.repeated_ids += digest in self._seen
        self._seen.add(digest)

    def warning(self) -> str:
        """Return one sentence about unused text fields, or "" if there are none."""
        if not self.unused:
            return ""
        names = ", ".join(map(repr, self.unused))
        return (
            f"text fields that are not scored: {names}. If one belongs to the prompt, name it with "
            "--input-field or --system-field."
        )
