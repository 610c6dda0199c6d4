"""The role markers of a chat template: what it writes before and after each turn.

They are read off the template by rendering a conversation of sentinel words and looking at the
text between them. A template is a program; no list of known ones is kept.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, takewhile

from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SEPARATOR = "\n\n"  # between the two segments where there is no template
_WORDS = ("Qxasenta", "Qxbsentb", "Qxcsentc", "Qxdsentd")  # user, assistant, user, assistant
_SYSTEM = "Qxssents"


@dataclass(frozen=True)
class Markers:
    """The texts round a turn. `joint` stands before the header of every turn but the first."""

    x_header: str = ""
    y_header: str = ""
    x_end: str = ""
    y_end: str = ""
    joint: str = SEPARATOR
    system: tuple[str, str] | None = None  # before and after a system turn; None: not supported


def read_markers(tokenizer: PreTrainedTokenizerBase) -> Markers:
    """The role markers of the chat template; without a template (or a usable one) a separator.

    They are read between the turns of a longer conversation, so neither a default system prompt
    nor a date that a template puts in front of the first turn becomes part of a header.
    """
    if not tokenizer.chat_template:
        return Markers(system=("", SEPARATOR))
    gaps = _gaps(tokenizer, _WORDS)
    if gaps is None:
        log.warning(
            "the chat template cannot render user, assistant, user, assistant as given; scoring without role markers"
        )
        return Markers(system=("", SEPARATOR))
    _, to_y, to_x, _, last = gaps
    special = special_tokens(tokenizer)
    y_end = _leading(last, special)
    if not to_x.lstrip(" ").startswith(y_end):
        y_end = ""
    x_end = _shared_start(y_end, to_y.lstrip(" "))
    if x_end != _leading(x_end, special):  # half a token is none
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
    """The texts before, between and after the `words`, rendered as alternating turns."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": word} for place, word in enumerate(words)]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
        words = (system, *words)
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # a template is a program of its own and raises what it likes
        log.debug("chat template: %s", error)
        return None
    if not all(text.count(word) == 1 for word in words):
        return None
    gaps = re.split("|".join(map(re.escape, words)), text)
    in_order = "".join(chain.from_iterable(zip(gaps, [*words, ""], strict=True))) == text
    return gaps if in_order else None


def _system_markers(tokenizer: PreTrainedTokenizerBase, markers: Markers) -> tuple[str, str] | None:
    """What stands before and after a system turn, the first user turn's own header left out."""
    gaps = _gaps(tokenizer, _WORDS[:2], _SYSTEM)
    if gaps is None:
        return None
    before, after = gaps[0].removeprefix(tokenizer.bos_token or "").lstrip(" "), gaps[1]
    if tokenizer.bos_token and markers.x_header.startswith(tokenizer.bos_token):
        before = gaps[0]  # here the BOS is the role marker itself
    opening = markers.x_header.replace("user", "system")
    if opening != markers.x_header and before.startswith(opening):
        before = opening  # drops what templates add by themselves, today's date for one
    elif markers.x_header and before.startswith(markers.x_header):
        before = before.removeprefix(markers.x_header).lstrip(" ")  # inside the first user turn
    after = after.rstrip(" ")
    if markers.x_header and after.endswith(markers.x_header):
        after = after.removesuffix(markers.x_header)
    return before, after


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every special token's text, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    named = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    return sorted(named, key=len, reverse=True)


def _leading(text: str, special: Sequence[str]) -> str:
    """The special tokens that `text` begins with, spaces before them left out."""
    text, found = text.lstrip(" "), ""
    while token := next((s for s in special if s and text.startswith(s, len(found))), None):
        found += token
    return found


def _shared_start(a: str, b: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return "".join(letter for letter, _ in same)


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
