"""Markers, read_markers: the texts that a chat template writes before and after each turn.

A template is a program, so the markers are found by rendering a conversation of sentinel words and reading the texts
between them. No list of known templates is kept.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEPARATOR = "\n\n"  # between the two segments if there is no template
_WORDS = ("Qxasenta", "Qxbsentb", "Qxcsentc", "Qxdsentd")  # user, assistant, user, assistant
_SYSTEM = "Qxssents"


@dataclass(frozen=True)
class Markers:
    """Texts around a turn.

    Args:
        x_header: before the content of a user turn.
        y_header: before the content of an assistant turn.
        x_end: end-of-turn tokens after a user turn.
        y_end: end-of-turn tokens after an assistant turn.
        joint: before the header of every turn except the first.
        system: before and after a system turn; None if the template does not support one.
    """

    x_header: str = ""
    y_header: str = ""
    x_end: str = ""
    y_end: str = ""
    joint: str = SEPARATOR
    system: tuple[str, str] | None = None


def read_markers(tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Return the role markers of the tokenizer's chat template, or only a separator if there is no usable template.

    The markers are read between the turns of a longer conversation, so a default system prompt or a date before the
    first turn does not become part of a header.
    """
    if not tokenizer.chat_template:
        return Markers(system=("", SEPARATOR))
    gaps = _gaps(tokenizer, _WORDS)
    if gaps is None:
        log.warning(
            "the chat template does not render user, assistant, user, assistant in order; scoring without role markers"
        )
        return Markers(system=("", SEPARATOR))
    _, to_y, to_x, _, last = gaps
    special = special_tokens(tokenizer)
    y_end = _leading(last, special)
    if not to_x.lstrip(" ").startswith(y_end):
        y_end = ""
    x_end = _shared_start(y_end, to_y.lstrip(" "))
    if x_end != _leading(x_end, special):  # part of a special token is no end of turn
        x_end = ""
    to_y, to_x = (gap.lstrip(" ").removeprefix(end) if end else gap for gap, end in ((to_y, x_end), (to_x, y_end)))
    joint = _leading_space(_shared_start(to_y, to_x))
    to_y, to_x = (gap.removeprefix(joint).strip(" ") for gap in (to_y, to_x))
    bos = tokenizer.bos_token
    if bos and to_x.startswith(bos) and not to_y.startswith(bos):
        to_x = to_x.removeprefix(bos).lstrip(" ")  # Llama-2 opens every exchange with a BOS
    markers = Markers(to_x, to_y, x_end, y_end, joint.strip(" "))
    return Markers(**(asdict(markers) | {"system": _system_markers(tokenizer, markers)}))


def _gaps(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], system: str | None = None) -> list[str] | None:
    """Return the texts before, between and after `words` as alternating turns, or None if not in order."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": word} for index, word in enumerate(words)]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
        words = (system, *words)
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # a template is a program and may raise anything
        log.debug("chat template: %s", error)
        return None
    if not all(text.count(word) == 1 for word in words):
        return None
    gaps = re.split("|".join(map(re.escape, words)), text)
    in_order = "".join(chain.from_iterable(zip(gaps, [*words, ""], strict=True))) == text
    return gaps if in_order else None


def _system_markers(tokenizer: PreTrainedTokenizerBase, markers: Markers) -> tuple[str, str] | None:
    """Return the texts before and after a system turn, without the first user turn's header."""
    gaps = _gaps(tokenizer, _WORDS[:2], _SYSTEM)
    if gaps is None:
        return None
    before, after = gaps[0].removeprefix(tokenizer.bos_token or "").lstrip(" "), gaps[1]
    if tokenizer.bos_token and markers.x_header.startswith(tokenizer.bos_token):
        before = gaps[0]  # here the BOS is the role marker itself
    opening = markers.x_header.replace("user", "system")
    if opening != markers.x_header and before.startswith(opening):
        before = opening  # drops texts that templates add, such as today's date
    elif markers.x_header and before.startswith(markers.x_header):
        before = before.removeprefix(markers.x_header).lstrip(" ")  # inside the first user turn
    after = after.rstrip(" ")
    if markers.x_header and after.endswith(markers.x_header):
        after = after.removesuffix(markers.x_header)
    return before, after


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of all special tokens, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    named = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return sorted(named, key=len, reverse=True)


def _leading(text: str, special: Sequence[str]) -> str:
    """Return the special tokens at the start of `text`, without leading spaces."""
    text, found = text.lstrip(" "), ""
    while token := next((s for s in special if s and text.startswith(s, len(found))), None):
        found += token
    return found


def _shared_start(a: str, b: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return "".join(letter for letter, _ in same)


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
