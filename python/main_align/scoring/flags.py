"""FLAGS: names for what is wrong with a row, each with its rule; docs/quality.md has their precision and recall.

A flag is for people who read rows. It repeats no score: `flags` is a text column with the names of the flags that are
set, separated by commas. To add a flag, add one `Flag` and measure it with bench.quality.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ECHO = 0.9
"""lowest `echo` that is flagged"""
NLL_END = 10.0
"""`nll_end` above which a response is flagged as cut off, nats"""

_OPENING = 160  # characters of a response in which a refusal is looked for
_REFUSAL = re.compile(
    r"\bas an? (ai|artificial intelligence|(large )?language model|text-based)\b"
    r"|\b(i'm|i am) (sorry|afraid|unable|not able|not sure what you|not comfortable)\b"
    r"|\b(sorry|unfortunately),? (but )?(i|this is beyond)\b"
    r"|\bi apologi[sz]e\b"
    r"|\bi (can't|cannot|can not|won't|will not|am unable to|am not able to) "
    r"(help|assist|answer|provide|fulfil+|complete|comply|discuss|do that)\b"
    r"|\bi (don't|do not) have (access|enough information|personal|the ability)\b"
    r"|\bcould you (please )?(rephrase|clarify)\b",
    re.IGNORECASE,
)


def is_refusal(response: str) -> bool:
    """Return True if a response opens with the wording of a refusal.

    Args:
        response: the text of y.
    """
    return _REFUSAL.search(response[:_OPENING].replace("\u2019", "'")) is not None


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Args:
        name: the name in the column `flags`.
        rule: the rule in one line.
        is_set: returns True if the flag is set, given the row's columns.
    """

    name: str
    rule: str
    is_set: Callable[[Mapping[str, Any]], bool]


FLAGS = (
    Flag("echo", f"echo >= {ECHO:g}: y repeats x", lambda row: row["echo"] is not None and row["echo"] >= ECHO),
    Flag(
        "cut_off",
        f"nll_end > {NLL_END:g}: y stops where the model expects more",
        lambda row: row["nll_end"] is not None and row["nll_end"] > NLL_END,
    ),
    Flag(
        "refusal",
        f"the first {_OPENING} characters of y have the wording of a refusal",
        lambda row: row["refusal"] == 1,
    ),
    Flag(
        "other_script",
        "most letters of y are of one script other than Latin that x neither uses nor asks for",
        lambda row: row["other_script"] == 1,
    ),
)


def flags_of(row: Mapping[str, Any]) -> str:
    """Return the names of the flags that are set, separated by commas.

    Args:
        row: the columns of a scored row.
    """
    return ",".join(flag.name for flag in FLAGS if flag.is_set(row))
