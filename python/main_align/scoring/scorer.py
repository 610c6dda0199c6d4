"""The scorer: two packed passes a pair give all four likelihoods and both embeddings.

<x><y> gives log p(x) and log p(y|x), <y><x> gives log p(y) and log p(x|y). Attention is causal,
so the states over a sequence's first segment have never seen the second: their means are the
embeddings. Logits are never stored; the head sees only the states that predict a scored token.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, overload

import numpy as np
import torch

from ..data.fields import NO_FIELDS, Fields
from ..data.in_memory import count_pairs, is_dict_of_lists, iter_pairs
from ..data.pairs import Pair
from ..errors import UserError
from ..models.context_length import changes_rope, context_length
from ..models.devices import pick_device, pick_dtype
from ..models.encoding import EncodedSequence, PairEncoder
from ..models.forward import Forward, is_out_of_memory
from ..models.load import LoadedModel, load, vocabulary
from ..models.projection_heads import AlignmentHead
from ..models.smollm2 import SMOLLM2
from ..progress import OnProgress, tqdm_bar
from .bank import Bank, BankScores
from .batching import BATCH_TOKENS, SORT_WINDOW, MicroBatch, SortWindow, prepare_window
from .columns import COLUMNS, TOKEN_SCORES, score_rows
from .results import MicroBatchResult, empty_result, join_results


class Scorer:
    """Scores instruction-response pairs with one model; see `scores.COLUMNS` for what comes out.

    Args:
        model: `smollm2`, a local folder or a hub id; LLaMA and Mistral families are tested. Or what `models.load`
            returned, which brings its own revision, dtype and device.
        revision: of a hub id.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where the device has instructions for it, else float32.
        device: "auto" (CUDA where there is one), or a torch device.
        batch_tokens: tokens of one forward pass, both directions of its pairs together.
        max_length: longest sequence in tokens; default the longest that the model takes, and where its RoPE depends on
            the longest sequence of a batch (longrope, dynamic) the longest at which it does not.
        truncate: cut longer pairs (status `truncated`) instead of refusing them (`too_long`).
        bank: pairs in the reference bank of `semantic` and `structural`.
        seed: of the bank's sample.
        temperature: tau of the semantic score.
        heads: trained projection heads through which `semantic` and `structural` compare the pairs, uncentred, as they
            were trained: the folder or hub id of a model trained with mutual alignment, or an AlignmentHead.
        trust_remote_code: run code that comes with the model.

    Raises UserError for a model that cannot be loaded or cannot be scored with.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = SMOLLM2,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        max_length: int | None = None,
        truncate: bool = False,
        bank: int = 16384,
        seed: int = 0,
        temperature: float = 0.07,
        heads: str | os.PathLike[str] | AlignmentHead | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        for name, value in (("batch_tokens", batch_tokens), ("bank", bank)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not temperature > 0:
            raise UserError(f"temperature must be above 0, got {temperature}")
        if isinstance(model, LoadedModel):
            loaded = model
        else:
            place = pick_device(device)
            loaded = load(
                model,
                revision=revision,
                dtype=pick_dtype(dtype, place),
                device=place,
                trust_remote_code=trust_remote_code,
            )
        self.encoder = PairEncoder(loaded.tokenizer, vocabulary=vocabulary(loaded.model))
        if heads is not None and not isinstance(heads, AlignmentHead):
            heads = AlignmentHead.from_pretrained(heads)
        self.forward = Forward(loaded.model, heads)
        self.max_length = _longest(loaded.model.config, max_length)
        self.truncate, self.batch_tokens = truncate, batch_tokens
        self.bank, self.seed, self.temperature = bank, seed, temperature
        markers = asdict(self.encoder.markers)
        self.fingerprint: dict[str, Any] = {
            "model": loaded.name,
            "revision": loaded.revision,
            "digest": loaded.digest,
            "markers": {k: list(v) if isinstance(v, tuple) else v for k, v in markers.items()},
            "bos": self.encoder.bos,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.model.device.type,
            "attention": self.forward.attention,
            "batch_tokens": batch_tokens,
            "max_length": self.max_length,
            "truncate": truncate,
            "bank": bank,
            "seed": seed,
            "temperature": temperature,
        }
        if heads is not None:
            self.fingerprint["heads"] = heads.digest()

    def prepare(self, pairs: Sequence[Pair]) -> SortWindow:
        """Tokenise one window, refuse what cannot be scored, and fill its packs."""
        return prepare_window(
            pairs,
            self.encoder,
            max_length=self.max_length,
            truncate=self.truncate,
            batch_tokens=self.batch_tokens,
        )

    def run(self, window: SortWindow, pack: MicroBatch) -> MicroBatchResult:
        """Both directions of every pair of the pack in one forward pass.

        Where memory runs out the pack is halved and tried again; a single pair that does not fit
        gets the status out_of_memory, one with NaN or infinity non_finite.
        """
        try:
            return self._run(window, pack.rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # out here the exception is gone, and with it the tensors of the pass that failed
        if self.forward.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(pack.rows) > 1:
            middle = len(pack.rows) // 2
            halves = (self._pack(window, rows) for rows in (pack.rows[:middle], pack.rows[middle:]))
            return join_results([self.run(window, half) for half in halves])
        result = empty_result(pack.rows, self.forward.width)
        where = window.pairs[pack.rows[0]].where
        why = f"{where}: its {pack.tokens} tokens did not fit into memory even alone"
        result.fail(0, "out_of_memory", why)
        return result

    @overload
    def score(
        self, pairs: Mapping[str, list[Any]], *, fields: Fields = NO_FIELDS, progress: bool | OnProgress | None = None
    ) -> dict[str, list[Any]]: ...

    @overload
    def score(
        self, pairs: Iterable[Any], *, fields: Fields = NO_FIELDS, progress: bool | OnProgress | None = None
    ) -> list[dict[str, Any]]: ...

    def score(
        self,
        pairs: Iterable[Any],
        *,
        fields: Fields = NO_FIELDS,
        progress: bool | OnProgress | None = None,
    ) -> list[dict[str, Any]] | dict[str, list[Any]]:
        """Score pairs in memory: one row each, in order, with exactly the columns of COLUMNS.

        Args:
            pairs: an iterable of records, a pandas, polars or pyarrow table, or a `datasets.Dataset`. A record is a
                mapping in any form that a file may have, an (instruction, response) tuple, a list of messages or a
                Pair; one mapping alone is one record. A dict of lists, one list a field, comes back as one, so
                `ds.map(scorer.score, batched=True)` works; `semantic` and `structural` then compare within a batch.
            fields: field names that override the recognised forms.
            progress: True for a bar in the terminal or notebook, or a function that is called after each pack with
                its pairs and its tokens.

        Raises UserError for what holds no records; a record that cannot be scored is a row with a status.
        """
        columns, total = is_dict_of_lists(pairs, fields), count_pairs(pairs, fields)
        with tqdm_bar(total) if progress is True else nullcontext(progress or None) as tell:
            rows = self._score(iter_pairs(pairs, fields), tell)
        if columns:
            return {name: [row[name] for row in rows] for name in COLUMNS}
        return rows

    def _score(self, read: Iterator[Pair], tell: OnProgress | None) -> list[dict[str, Any]]:
        windows: list[SortWindow] = []
        results: list[MicroBatchResult] = []
        before = 0
        while chunk := list(itertools.islice(read, SORT_WINDOW)):
            window = self.prepare(chunk)
            for pack in window.micro_batches:
                results.append(self.run(window, pack).shifted(before))
                if tell:
                    tell(len(pack.rows), pack.tokens)
            windows.append(window)
            before += len(chunk)
        return self._rows(windows, results)

    def _run(self, window: SortWindow, rows: tuple[int, ...]) -> MicroBatchResult:
        pairs = [self._sequences(window, row) for row in rows]
        first, second, pooled = self.forward([sequence for pair in pairs for sequence in pair])
        # even sequences are <x><y>, odd ones <y><x>
        logp = np.stack([second[0::2], first[1::2], second[1::2], first[0::2]], axis=1)
        result = MicroBatchResult(np.array(rows, np.int64), logp, pooled[0::2], pooled[1::2])
        finite = np.isfinite(logp).all(1) & np.isfinite(pooled).all(1).reshape(-1, 2).all(1)
        for place in np.flatnonzero(~finite).tolist():
            where = window.pairs[rows[place]].where
            result.fail(place, "non_finite", f"{where}: the model returned NaN or infinity")
        return result

    def _sequences(self, window: SortWindow, row: int) -> tuple[EncodedSequence, EncodedSequence]:
        encoded = window.encoded[row]
        if encoded is None:
            raise ValueError(f"row {row} of the window has the status {window.status[row]!r}")
        return self.encoder.sequences(encoded)

    def _pack(self, window: SortWindow, rows: tuple[int, ...]) -> MicroBatch:
        tokens = sum(len(sequence.ids) for row in rows for sequence in self._sequences(window, row))
        return MicroBatch(rows, tokens)

    def _rows(self, windows: list[SortWindow], results: list[MicroBatchResult]) -> list[dict[str, Any]]:
        """Put the results in order, run the bank, and make the rows."""
        pairs = [pair for window in windows for pair in window.pairs]
        status = [value for window in windows for value in window.status]
        reason = [value for window in windows for value in window.reason]
        n = len(pairs)
        whole = empty_result(range(n), self.forward.width)
        for result in results:
            whole.logp[result.rows] = result.logp
            whole.embed_x[result.rows] = result.embed_x
            whole.embed_y[result.rows] = result.embed_y
            for row in result.status:
                status[row], reason[row] = result.status[row], result.reason[row]
        scores = {
            name: np.concatenate([w.token_scores[name] for w in windows] or [np.zeros(0)]) for name in TOKEN_SCORES
        }
        scores |= {name: np.full(n, np.nan) for name in BankScores._fields}
        scored = np.flatnonzero(np.isfinite(whole.logp).all(1))
        if len(scored):
            chosen = Bank.choose(len(scored), self.bank, self.seed)
            member = np.full(len(scored), -1, np.int64)
            member[chosen] = np.arange(len(chosen))
            x, y = whole.embed_x[scored], whole.embed_y[scored]
            bank = Bank(
                x[chosen], y[chosen], self.temperature, self.forward.device, centred="heads" not in self.fingerprint
            )
            for name, values in bank.score(x, y, member)._asdict().items():
                scores[name][scored] = values
        return score_rows(
            ids=[pair.id for pair in pairs],
            status=status,
            reason=reason,
            tokens_x=np.concatenate([window.tokens_x for window in windows] or [np.zeros(0, int)]),
            tokens_y=np.concatenate([window.tokens_y for window in windows] or [np.zeros(0, int)]),
            logp=whole.logp,
            scores=scores,
        )


def _longest(config: Any, wanted: int | None) -> int:
    """The longest sequence to score: the length `wanted`, else the model's own limit."""
    limit = context_length(config)
    if not (wanted or limit):
        raise UserError("the model's config has no max_position_embeddings: give --max-length")
    if wanted and limit and wanted > limit and changes_rope(config):
        raise UserError(
            f"max_length {wanted}: beyond {limit} tokens this model's RoPE depends on the longest sequence of a batch, "
            f"and so would the scores. Give at most {limit}"
        )
    return wanted or int(limit or 0)
