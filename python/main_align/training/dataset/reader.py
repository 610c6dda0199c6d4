"""PairReader: data sets of any form that SFTTrainer reads, as token ids of pairs with these columns:

x_ids             tokens of the instruction, without markers
y_ids             tokens of the response, without markers
context_ids       tokens of the turns before the pair, markers included
y_mask            1 for each token of y that is scored (tokenised rows may leave some out)
synthetic         true if a model wrote one side of the pair (weighted by synthetic_weight)
group             equal for pairs that share an instruction or a response, which are not negatives of each other
length            tokens of the longer of its two sequences, for sampling by length
row               index of the row in the data set, from 0; in a stream, among the shards of its worker
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from datasets import Dataset, Features, IterableDataset, Value
from datasets import Sequence as ListOf
from torch.utils.data import get_worker_info

from ...data.components import connected
from ...data.fields import Fields
from ...data.formats.conversion import can_hold_pairs, pair_from_record
from ...data.formats.record_formats import RECORD_FORMATS
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
SHOWN = 5  # most bad rows named in an error
LOOKED_AT = 64  # rows searched for text that is dropped
OVER_LENGTH = "over_length"  # problem of a row that over_length="drop" leaves out

_TOKENISED = Features(
    {name: ListOf(Value("int64")) for name in ("x_ids", "y_ids", "context_ids", "y_mask")}
    | {name: Value("bool") for name in ("synthetic", "cut")}
    | {name: Value("int64") for name in ("row", "length", "x_hash", "y_hash")}
    | {"problem": Value("string")}
)


@dataclass(frozen=True)
class PairReader:
    """Reads rows for one tokenizer.

    Attributes:
        encoder: turns pairs into token sequences.
        max_length: length of the longest sequence in tokens.
        over_length: treatment of longer pairs: an error, left out, or cut at the ends of both sides.
    """

    encoder: PairEncoder
    max_length: int
    over_length: OverLength = "error"

    def prepare(self, dataset: Dataset | IterableDataset, name: str, workers: int | None = None) -> Any:
        """Return the data set with exactly COLUMNS. A data set that has them already is returned unchanged.

        Raises:
            UserError: naming the rows, if rows cannot be read or trained. An IterableDataset raises when it reaches
                the row.
        """
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise UserError(
                f"the {name} data set is of type {type(dataset).__name__}: pass a datasets.Dataset "
                "(Dataset.from_list converts a list of dicts) or a datasets.IterableDataset"
            )
        names = dataset.column_names
        if names is not None and set(COLUMNS) <= set(names):
            return dataset
        if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
            raise UserError(
                f"the {name} data set has a transform (with_transform), which tokenising would apply once: "
                "apply it with dataset.map, or pass a stream (dataset.to_iterable_dataset().map)"
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
        """Map the stream, not wrap it: workers still split its shards, and it shuffles by epoch."""

        def read(record: Mapping[str, Any], number: int) -> dict[str, Any]:
            row = self._row(record, number)
            self._check([row["problem"]], [number], name)
            return row | {"group": row["y_hash"]}  # in a stream, only equal responses are recognised

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
        worker = get_worker_info()  # each worker of a stream counts the rows of its own shards
        where = "" if worker is None or worker.num_workers == 1 else f" of worker {worker.id}"
        listed = "; ".join(f"row {row}{where}: {why}" for row, why in bad[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        remedy = "correct or remove these rows"
        if any(f"over {self.max_length}" in why for _, why in bad):
            remedy = "raise max_length up to the model's limit, or set over_length='drop' or over_length='truncate'"
        raise UserError(f"{len(bad)} rows of the {name} data set cannot be trained: {listed}{more}. Remedy: {remedy}.")


def _check_columns(names: Sequence[str], name: str) -> None:
    if not can_hold_pairs(names) and "input_ids" not in names:
        wanted = "; ".join([*(record_format.description for record_format in RECORD_FORMATS), "input_ids"])
        raise UserError(
            f"the {name} data set has the columns {', '.join(map(repr, names))}, and no pair can be read from them: "
            f"expected one of {wanted}. Rename them (dataset.rename_columns). Plain text has no two sides to align."
        )
    if {"input_ids"} <= set(names) and not {"labels", *MASKS} & set(names):
        raise UserError(
            f"the {name} data set is tokenised (input_ids) but has no mask of the response: add a completion_mask "
            "(1 on the response) or labels (-100 before it), or pass the pairs as text"
        )


def _report_unused(dataset: Dataset | IterableDataset, name: str) -> None:
    """Warn once about text of the first rows that is not part of the pairs."""
    if unused := unused_texts(islice(dataset, LOOKED_AT if isinstance(dataset, Dataset) else 1)):
        log.warning(
            "%s data set: text that is not part of the pairs is dropped: columns %s. If a column belongs to the "
            "instruction, join them with dataset.map",
            name,
            ", ".join(map(repr, unused)),
        )


def _hash(ids: Sequence[int]) -> int:
    digest = hashlib.blake2b(b",".join(b"%d" % i for i in ids), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
