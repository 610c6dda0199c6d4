"""From a data set of any form that SFTTrainer takes to token ids of pairs: what the trainer reads.

x_ids, y_ids      tokens of the two sides, without markers
context_ids       tokens of the turns before the pair, markers included
y_mask            1 where a token of y is scored (pre-tokenised rows may leave some out)
synthetic         whether the pair was written by a model (weighed by alpha)
group             equal for pairs that share an instruction or a response: no negatives of each other
length            tokens of the longer of its two sequences, which sampling by length goes by
row               the row's number in the data set, from 0; in a stream its place, and among the shards of its worker
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as ListOf
from torch.utils.data import get_worker_info

from ...data.fields import Fields
from ...data.formats.conversion import can_hold_pairs, pair_from_record
from ...data.formats.dialects import DIALECTS
from ...data.pairs import check_text
from ...errors import UserError
from ...models.encoding import (
    EncodedPair,
    PairEncoder,
    shortened,
)
from .row_checks import refusal, unused_texts
from .tokenised import MASKS, Unusable, split_tokenised

log = logging.getLogger(__name__)

COLUMNS = ("x_ids", "y_ids", "context_ids", "y_mask", "synthetic", "group", "length", "row")
OverLength = Literal["error", "drop", "truncate"]
SHOWN = 5  # bad rows named in an error
LOOKED_AT = 64  # rows in which text that is dropped is looked for
OVER_LENGTH = "over_length"  # the problem of a row that is left out because the user asked for it

_TOKENISED = Features(
    {name: ListOf(Value("int64")) for name in ("x_ids", "y_ids", "context_ids", "y_mask")}
    | {name: Value("bool") for name in ("synthetic", "cut")}
    | {name: Value("int64") for name in ("row", "length", "x_hash", "y_hash")}
    | {"problem": Value("string")}
)


@dataclass(frozen=True)
class PairReader:
    """Reads rows for one tokenizer.

    `max_length` is the longest sequence in tokens; a pair that makes a longer one is an error, left out, or cut at the
    ends of both its sides, as `over_length` says.
    """

    encoder: PairEncoder
    max_length: int
    over_length: OverLength = "error"

    def prepare(self, dataset: Dataset | IterableDataset, name: str, workers: int | None = None) -> Any:
        """The data set with exactly COLUMNS; one that has them already is returned as it is.

        UserError where no row can be read, and for rows that cannot be trained on, which it names; an IterableDataset
        raises when it comes to the row.
        """
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise UserError(
                f"the {name} data set is of type {type(dataset).__name__}: give a datasets.Dataset "
                "(Dataset.from_list makes one of a list of dicts) or a datasets.IterableDataset"
            )
        names = dataset.column_names
        if names is not None and set(COLUMNS) <= set(names):
            return dataset
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            raise UserError(
                f"the {name} data set has a transform (with_transform), which would be frozen when the pairs are "
                "tokenised: apply it with dataset.map, or give a stream (dataset.to_iterable_dataset().map)"
            )
        dataset = dataset.with_format(None)
        if names is not None:
            _check_columns(names, name)
        if isinstance(dataset, Dataset) and not len(dataset):
            raise UserError(f"the {name} data set has no rows")
        if "input_ids" not in (names or ()):
            _report_unused(dataset, name)
        if isinstance(dataset, IterableDataset):
            return self._stream(dataset, name)
        table = dataset.map(
            self._rows,
            batched=True,
            with_indices=True,
            remove_columns=names,
            features=_TOKENISED,
            num_proc=workers,
            desc=f"Tokenising the pairs of the {name} data set",
        )
        problems = list(table["problem"])
        self._check(problems, list(table["row"]), name)
        kept = [place for place, problem in enumerate(problems) if not problem]
        if len(kept) < len(table):
            log.warning("%s data set: %d pairs over %d tokens left out", name, len(table) - len(kept), self.max_length)
            if not kept:
                raise UserError(
                    f"the {name} data set has no pair of at most {self.max_length} tokens: raise max_length"
                )
            table = table.select(kept)
        if cut := sum(table["cut"]):
            log.warning("%s data set: %d pairs cut to %d tokens at the ends of both sides", name, cut, self.max_length)
        return table.remove_columns(["problem", "cut", "x_hash", "y_hash"]).add_column(
            "group", connected(list(table["x_hash"]), list(table["y_hash"]))
        )

    def _rows(self, batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        records = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        rows = [self._row(record, number) for record, number in zip(records, indices, strict=True)]
        return {key: [row[key] for row in rows] for key in rows[0]}

    def _stream(self, dataset: IterableDataset, name: str) -> IterableDataset:
        """Maps the stream rather than wrapping it, so that its shards are still dealt out to workers and processes and
        its shuffling still follows the epoch."""

        def read(record: Mapping[str, Any], number: int) -> dict[str, Any]:
            row = self._row(record, number)
            self._check([row["problem"]], [number], name)
            return row | {"group": row["y_hash"]}  # duplicates of a stream are known by their response alone

        features = Features({**_TOKENISED, "group": Value("int64")})
        rows = dataset.map(read, with_indices=True, features=features)
        return rows.filter(lambda row: not row["problem"]).select_columns(list(COLUMNS))

    def _row(self, record: Mapping[str, Any], number: int) -> dict[str, Any]:
        pair, mask, problem, cut = EncodedPair([], [], []), None, "", False
        try:
            pair, mask = self._encode(record, number)
            if not pair.x or not pair.y:
                raise Unusable(f"the {'instruction' if not pair.x else 'response'} has no text")
            if unknown := self.encoder.unknown_token(pair.context, pair.x, pair.y):
                raise Unusable(f"it holds {unknown}")
            fitted = self._fit(pair)
            cut = fitted is not None and fitted is not pair
            problem = "" if fitted is not None else OVER_LENGTH
            pair = fitted or EncodedPair([], [], [])
        except Unusable as error:
            problem = str(error)
        return {
            "x_ids": pair.x,
            "y_ids": pair.y,
            "context_ids": pair.context,
            "y_mask": (mask or [1] * len(pair.y))[: len(pair.y)],
            "synthetic": bool(record.get("synthetic") or False),
            "row": number,
            "length": self.encoder.length(pair),
            "x_hash": _hash(pair.context + pair.x),
            "y_hash": _hash(pair.y),
            "problem": problem,
            "cut": cut,
        }

    def _encode(self, record: Mapping[str, Any], number: int) -> tuple[EncodedPair, list[int] | None]:
        if refused := refusal(record):
            raise Unusable(refused)
        if record.get("input_ids") is not None:
            return split_tokenised(record, self.encoder)
        pair = pair_from_record({k: v for k, v in record.items() if k != "id"}, number, Fields(), unit="row")
        pair = check_text(pair)
        if pair.status != "ok":
            raise Unusable(pair.reason.partition(": ")[2])
        if problem := self.encoder.context_problem(pair.context):
            raise Unusable(problem)
        return self.encoder.encode([(pair.instruction, pair.response)], [pair.context])[0], None

    def _fit(self, pair: EncodedPair) -> EncodedPair | None:
        length = self.encoder.length(pair)
        if length <= self.max_length:
            return pair
        if self.over_length == "drop":
            return None
        fitted = shortened(pair, self.encoder, self.max_length) if self.over_length == "truncate" else None
        if fitted is None:
            raise Unusable(f"{length} tokens ({len(pair.x)} + {len(pair.y)} and markers), over {self.max_length}")
        return fitted

    def _check(self, problems: Sequence[str], rows: Sequence[int], name: str) -> None:
        bad = [(row, why) for row, why in zip(rows, problems, strict=True) if why and why != OVER_LENGTH]
        if not bad:
            return
        worker = get_worker_info()  # of a stream that several of them read: each counts the rows of its own shards
        where = "" if worker is None or worker.num_workers == 1 else f" of worker {worker.id}"
        listed = "; ".join(f"row {row}{where}: {why}" for row, why in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        remedy = "mend or remove these rows"
        if any(f"over {self.max_length}" in why for _, why in bad):
            remedy = "raise max_length as far as the model goes, or say over_length='drop' or over_length='truncate'"
        raise UserError(
            f"{len(bad)} rows of the {name} data set cannot be trained on: {listed}{more}. Remedy: {remedy}."
        )


def _check_columns(names: Sequence[str], name: str) -> None:
    if not can_hold_pairs(names) and "input_ids" not in names:
        wanted = "; ".join([*(dialect.description for dialect in DIALECTS), "input_ids"])
        raise UserError(
            f"the {name} data set has the columns {', '.join(map(repr, names))}, and no pair can be read from them: "
            f"want one of {wanted}. Rename them (dataset.rename_columns); plain text has no two sides to align."
        )
    if {"input_ids"} <= set(names) and not {"labels", *MASKS} & set(names):
        raise UserError(
            f"the {name} data set is tokenised (input_ids) but does not say where the response begins: add a "
            "completion_mask (1 on the response) or labels (-100 before it), or give the pairs as text"
        )


def _report_unused(dataset: Dataset | IterableDataset, name: str) -> None:
    """Says once which text of the first rows is dropped."""
    if unused := unused_texts(dataset.take(LOOKED_AT if isinstance(dataset, Dataset) else 1)):
        log.warning(
            "%s data set: text that is no part of the pairs is dropped: columns %s. If one belongs to the instruction, "
            "join it to it with dataset.map",
            name,
            ", ".join(map(repr, unused)),
        )


def connected(*keys: Sequence[int]) -> list[int]:
    """One number for each row, equal for rows joined by an equal key in any of the `keys` columns, over any number of
    steps."""
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for column in keys:
        first: dict[int, int] = {}
        for row, key in enumerate(column):
            parent[root(row)] = root(first.setdefault(key, row))
    return [root(row) for row in range(len(parent))]


def _hash(ids: Sequence[int]) -> int:
    digest = hashlib.blake2b(b",".join(b"%d" % i for i in ids), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
