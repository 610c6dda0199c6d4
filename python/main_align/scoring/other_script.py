"""is_other_script: a response in a script that its instruction neither uses nor asks for."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_LATIN = ("LATIN", "FULLWIDTH", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "OHM", "KELVIN", "ANGSTROM")
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "IDEOGRAPHIC")  # Japanese mixes them
_REQUEST = re.compile(
    r"translat|\blanguages?\b|\balphabets?\b|\b(amharic|arabic|armenian|belarusian|bengali|bulgarian|burmese|cantonese"
    r"|chinese|cyrillic|farsi|georgian|greek|gujarati|hebrew|hindi|japanese|kana|kanji|kannada|kazakh|khmer|korean|lao"
    r"|macedonian|malayalam|mandarin|marathi|mongolian|nepali|persian|punjabi|russian|sanskrit|serbian|sinhala|tamil"
    r"|telugu|thai|tibetan|ukrainian|urdu|yiddish)\b",
    re.IGNORECASE,
)


def is_other_script(instruction: str, response: str) -> bool:
    """Return True if most letters of y are of one script other than Latin that x has no letter of, nor asks for.

    x asks for it if it has a word such as "translate" or "Chinese". A response in Latin letters may be code or a name,
    so it is never found.

    Args:
        instruction: the text of x.
        response: the text of y.
    """
    if response.isascii():
        return False
    scripts = _scripts(response)
    script, letters = scripts.most_common(1)[0] if scripts else ("", 0)
    is_other = bool(script) and 2 * letters > scripts.total() and script not in _scripts(instruction)
    return is_other and _REQUEST.search(instruction) is None


def _scripts(text: str) -> Counter[str]:
    """Return the number of letters of each script; the script of Latin letters is the empty text."""
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[_script(character)] += count
    return scripts


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").split("-")[0].split(" ")[0]
    return "" if name in _LATIN else "CJK" if name in _EAST_ASIAN else name
