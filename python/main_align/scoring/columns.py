"""COLUMNS: every column of a score file with its definition, its better direction and its formula.

To add a score, add one `Column` with its formula to the list below. The file types, the filter's directions, the
summaries, the plots, the journal and docs/scoring.md are derived from this list. All numbers are float64; logarithms
are natural, so likelihoods are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .flags import FLAGS
from .ngrams import COPIED, NGRAM, SHORTEST, copy_overlap, echo

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GROUPS = ("mutual", "intentional", "semantic", "structural", "diagnostic", "likelihood")
"""the groups of scores, in the order in which summaries and plots show them"""


@dataclass(frozen=True, slots=True)
class PairLikelihoods:
    """Summed log-probabilities of n pairs, in nats.

    Args:
        y_given_x: float64[n], log p(y|x).
        y: float64[n], log p(y).
        x_given_y: float64[n], log p(x|y).
        x: float64[n], log p(x).
        tokens_x: int64[n], |x|.
        tokens_y: int64[n], |y|.
        novel_y: float64[n], log p(y|x) - log p(y), in which tokens copied from x count less (`ngrams.novel_sums`).
        novel_x: float64[n], log p(x|y) - log p(x), likewise.
        y_end: float64[n], log-probability of y's end-of-turn token given x and y; NaN where the template has none.
    """

    y_given_x: Floats
    y: Floats
    x_given_y: Floats
    x: Floats
    tokens_x: Integers
    tokens_y: Integers
    novel_y: Floats
    novel_x: Floats
    y_end: Floats

    @property
    def tokens(self) -> Floats:
        """|x| + |y|, float64[n]."""
        return (self.tokens_x + self.tokens_y).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a score file.

    Args:
        name: the column's name in files.
        definition: formula and unit in one line. Changing it stops older jobs from being resumed.
        kind: "score" (float64), "count" (int64) or "text".
        better: the end of a score's range that is better. Required for a score.
        group: one of GROUPS. Required for a score.
        alias: second name that `main-align filter --by` accepts.
        panel: axis label in plots; a score without one is plotted only if the filter uses it.
        from_likelihoods: formula over PairLikelihoods, returning float64[n].
        from_tokens: formula over the token ids of x and of y, without role markers, returning a float.
            A score with neither formula is a field of `bank.BankScores`.

    Raises:
        ValueError: a score without a direction or with an unknown group.
    """

    name: str
    definition: str
    kind: Literal["score", "count", "text"] = "score"
    better: Literal["lower", "higher"] | None = None
    group: str | None = None
    alias: str | None = None
    panel: str | None = None
    from_likelihoods: Callable[[PairLikelihoods], Floats] | None = None
    from_tokens: Callable[[Sequence[int], Sequence[int]], float] | None = None

    def __post_init__(self) -> None:
        if self.kind == "score" and (self.better not in ("lower", "higher") or self.group not in GROUPS):
            raise ValueError(f"{self.name}: a score needs better='lower' or 'higher' and a group of {GROUPS}")


def mutual(log_ratio_y: Floats, log_ratio_x: Floats, pairs: PairLikelihoods) -> Floats:
    """Return the mean of both log-ratios, each divided by the root of its tokens, the scale on which its noise grows.

    Args:
        log_ratio_y: float64[n], log p(y|x) - log p(y) in nats.
        log_ratio_x: float64[n], log p(x|y) - log p(x).
        pairs: the n pairs.
    """
    return (log_ratio_y / np.sqrt(pairs.tokens_y) + log_ratio_x / np.sqrt(pairs.tokens_x)) / 2


_COLUMNS = (
    Column("id", "the row's own id, or its line number if it has none", kind="text"),
    Column(
        "nll_y_given_x",
        "-log p(y|x) / |y|, nats per token",
        better="lower",
        group="likelihood",
        alias="forward_nll",
        from_likelihoods=lambda p: -p.y_given_x / p.tokens_y,
    ),
    Column(
        "nll_y",
        "-log p(y) / |y|, nats per token",
        better="lower",
        group="likelihood",
        from_likelihoods=lambda p: -p.y / p.tokens_y,
    ),
    Column(
        "nll_x_given_y",
        "-log p(x|y) / |x|, nats per token",
        better="lower",
        group="likelihood",
        alias="reverse_nll",
        from_likelihoods=lambda p: -p.x_given_y / p.tokens_x,
    ),
    Column(
        "nll_x",
        "-log p(x) / |x|, nats per token",
        better="lower",
        group="likelihood",
        from_likelihoods=lambda p: -p.x / p.tokens_x,
    ),
    Column("tokens_x", "|x|, scored tokens of the instruction, including its end-of-turn token", kind="count"),
    Column("tokens_y", "|y|, scored tokens of the response, including its end-of-turn token", kind="count"),
    Column(
        "pmi_forward",
        "nll_y - nll_y_given_x, nats per token",
        better="higher",
        group="intentional",
        panel="nats per token of the response",
        from_likelihoods=lambda p: (p.y_given_x - p.y) / p.tokens_y,
    ),
    Column(
        "pmi_reverse",
        "nll_x - nll_x_given_y, nats per token",
        better="higher",
        group="intentional",
        panel="nats per token of the instruction",
        from_likelihoods=lambda p: (p.x_given_y - p.x) / p.tokens_x,
    ),
    Column(
        "mutual",
        "(sqrt|y| pmi_forward + sqrt|x| pmi_reverse) / 2, nats per sqrt(token)",
        better="higher",
        group="mutual",
        panel="nats per √token, both directions",
        from_likelihoods=lambda p: mutual(p.y_given_x - p.y, p.x_given_y - p.x, p),
    ),
    Column(
        "mutual_novel",
        "as mutual, but the log-ratio of a token in an n-gram of `echo` that both sides have counts min(1, 2 - 2 echo)",
        better="higher",
        group="mutual",
        panel="nats per √token, without copied tokens",
        from_likelihoods=lambda p: mutual(p.novel_y, p.novel_x, p),
    ),
    Column(
        "ifd",
        "nll_y_given_x / nll_y, a ratio of mean losses (not of perplexities)",
        better="lower",
        group="diagnostic",
        panel="ratio of mean losses",
        from_likelihoods=lambda p: p.y_given_x / p.y,
    ),
    Column(
        "r_ifd",
        "nll_x_given_y / nll_x, a ratio of mean losses (not of perplexities)",
        better="lower",
        group="diagnostic",
        from_likelihoods=lambda p: p.x_given_y / p.x,
    ),
    Column(
        "duality_gap",
        "|log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token",
        better="lower",
        group="diagnostic",
        from_likelihoods=lambda p: np.abs((p.x + p.y_given_x) - (p.y + p.x_given_y)) / p.tokens,
    ),
    Column(
        "nll_end",
        "-log p(end of turn|x, y), nats; high if the response is cut off, null if the chat template has no end of turn",
        better="lower",
        group="diagnostic",
        panel="nats",
        from_likelihoods=lambda p: -p.y_end,
    ),
    Column(
        "copy_overlap",
        f"fraction of y's token {NGRAM}-grams that occur in x; null if y has fewer than {NGRAM} tokens",
        better="lower",
        group="diagnostic",
        from_tokens=copy_overlap,
    ),
    Column(
        "echo",
        f"fraction of x's tokens in an n-gram that occurs in y; n is {COPIED}, or {SHORTEST} if x is shorter",
        better="lower",
        group="diagnostic",
        from_tokens=echo,
    ),
    Column(
        "semantic",
        "log N + S_ii - (row LSE + column LSE) / 2 over i and the N - 1 bank pairs that share no text with it, nats",
        better="higher",
        group="semantic",
        panel="nats",
    ),
    Column(
        "structural",
        "correlation over j of q_i.q_j with k_i.k_j, j over the bank pairs that share no text with i, -1 to 1",
        better="higher",
        group="structural",
        panel="correlation",
    ),
    Column("refusal", "1 if y opens with the wording of a refusal, else 0", kind="count"),
    Column(
        "other_script",
        "1 if most letters of y are of one script other than Latin that x neither uses nor asks for, else 0",
        kind="count",
    ),
    Column(
        "flags", f"those of {', '.join(flag.name for flag in FLAGS)} that are set, separated by commas", kind="text"
    ),
    Column("status", "ok or truncated if the row was scored, else why it was not", kind="text"),
    Column("reason", "one sentence on the status that names the line; empty for ok", kind="text"),
)

COLUMNS: Mapping[str, Column] = {column.name: column for column in _COLUMNS}
"""the columns of a score file by name, in their order in the file"""

NUMERIC = tuple(column.name for column in _COLUMNS if column.kind != "text")
"""columns that hold numbers, in file order"""

COUNTS = tuple(column.name for column in _COLUMNS if column.kind == "count")
"""columns that hold integers, in file order"""

SCORES = tuple(column.name for group in GROUPS for column in _COLUMNS if column.group == group)
"""the scores, in the order in which summaries show them"""

PANELS = {name: panel for name in SCORES if (panel := COLUMNS[name].panel)}
"""the scores that are plotted, with their axis labels"""

ALIASES = {column.alias: column.name for column in _COLUMNS if column.alias}
"""second names of columns, for `main-align filter --by`"""


def definitions() -> dict[str, str]:
    """Return the definition of each column by its name."""
    return {column.name: column.definition for column in _COLUMNS}


def lower_is_better(name: str) -> bool:
    """Return True if the best rows of a score are its lowest.

    Args:
        name: a column of COLUMNS.

    Raises:
        UserError: `name` is no score, so its direction is not known.
    """
    column = COLUMNS.get(name)
    if column is None or column.better is None:
        raise UserError(f"the better direction of {name!r} is not known: give --lower-is-better or --higher-is-better")
    return column.better == "lower"


def likelihood_scores(
    logp: Floats,
    tokens_x: Integers,
    tokens_y: Integers,
    novel: Floats | None = None,
    y_end: Floats | None = None,
) -> dict[str, Floats]:
    """Compute the scores that follow from the likelihoods of n pairs.

    Args:
        logp: float64[n, 4], summed log-probabilities in nats: log p(y|x), log p(y), log p(x|y), log p(x).
            A row of NaN gives NaN in every score.
        tokens_x: int64[n], |x|.
        tokens_y: int64[n], |y|.
        novel: float64[n, 2], novel_y and novel_x of PairLikelihoods. Default: NaN.
        y_end: float64[n], log-probability of y's end-of-turn token. Default: NaN.

    Returns:
        float64[n] for each column with `from_likelihoods`.
    """
    y_given_x, y, x_given_y, x = np.asarray(logp, np.float64).reshape(-1, 4).T
    novel_y, novel_x = np.full((2, len(y)), np.nan) if novel is None else novel.T
    end = np.full(len(y), np.nan) if y_end is None else y_end
    pairs = PairLikelihoods(y_given_x, y, x_given_y, x, tokens_x, tokens_y, novel_y, novel_x, end)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {c.name: c.from_likelihoods(pairs) for c in _COLUMNS if c.from_likelihoods}


def token_scores(x: Sequence[int], y: Sequence[int]) -> dict[str, float]:
    """Compute the scores of one pair that follow from its token ids.

    Args:
        x: token ids of the instruction, without role markers.
        y: token ids of the response, without role markers.

    Returns:
        A float for each column with `from_tokens`; NaN if it has no value.
    """
    return {c.name: c.from_tokens(x, y) for c in _COLUMNS if c.from_tokens}


TOKEN_SCORES = tuple(column.name for column in _COLUMNS if column.from_tokens)
"""the scores that follow from the token ids alone"""
