"""Scorer: score instruction-response pairs with one causal language model.

Two packed sequences per pair give all four likelihoods and both embeddings: <x><y> gives log p(x) and log p(y|x),
<y><x> gives log p(y) and log p(x|y). Attention is causal, so the states over a sequence's first segment do not depend
on the second segment; their means are the embeddings. Logits are never stored: the language-model head is applied only
to the states that predict a scored token. Sequences of one pass that begin alike share the states of their beginning.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, cast, overload

import numpy as np
import torch

from ..checks import check_counts, check_divisor, check_types
from ..data.fields import NO_FIELDS, Fields
from ..data.in_memory import count_pairs, is_dict_of_lists, iter_pairs
from ..data.pairs import Pair, with_system
from ..errors import UserError
from ..models.context_length import changes_rope, context_length
from ..models.devices import pick_device, pick_dtype
from ..models.encoding import EncodedPair, LogpColumn, PairEncoder
from ..models.forward import Forward, Submitted, is_out_of_memory
from ..models.load import LoadedModel, check_quantisation, load, vocabulary
from ..models.projection_heads import AlignmentHead
from ..models.smollm2 import SMOLLM2
from ..progress import OnProgress, tqdm_bar
from .bank import Bank
from .batching import SORT_WINDOW, MicroBatch, SortWindow, default_batch_tokens, prepare_window
from .measured import Measured, measure_windows
from .ngrams import novel_sums
from .prefetch import Prefetch
from .results import MicroBatchResult, empty_result, join_results
from .score_file import column_titles

QUEUED = 2
"""micro-batches that a GPU has to run while the host reads the result of an earlier one"""
WITHIN_A_BATCH = (
    "semantic and structural compare the pairs of this batch with each other, so they depend on the batch size. "
    "Give a bank for the whole data set: Scorer.score(batch, bank=Bank.of(scorer.measure(pairs)))"
)


class Scorer:
    """Score instruction-response pairs with one model; COLUMNS defines the scores.

    Args:
        model: `smollm2`, a local folder, a hub id, or the result of `models.load.load`, whose revision, dtype and
            device then apply. LLaMA and Mistral are tested; other families are checked when they are loaded.
        revision: branch, tag or commit of a hub id.
        dtype: "float32", "bfloat16", "float16" or "auto": bfloat16 if the device has instructions for it, else
            float32. Default "float32".
        device: a torch device, or "auto": CUDA if available, else the CPU. Default "auto".
        batch_tokens: tokens of one forward pass, both directions of its pairs together; those of a prefix that several
            sequences share count once. Default: 2048, or 16384 on a CUDA device.
        max_length: longest sequence, in tokens. Default: the model's limit. If its RoPE depends on the longest
            sequence of a batch (longrope, dynamic), the limit is the length up to which it does not.
        truncate: cut longer pairs (status `truncated`) instead of refusing them (`too_long`). Default False.
        score_system: score the system prompt and the instruction together as x, so that a wrong prompt costs. Default
            False: the system prompt is context of both terms of every difference, and is not scored.
        bank: number of reference pairs for `semantic` and `structural`. Default 16384.
        seed: random seed for sampling the bank. Default 0.
        temperature: temperature tau of the semantic score. Default 0.07.
        heads: trained projection heads that embed the pairs for `semantic` and `structural`: the folder or hub id of a
            model trained with mutual alignment, or an AlignmentHead. Projected embeddings are not standardised, as in
            training. Default: the mean states themselves, standardised.
        compile: compile the model's layers with torch.compile, which takes a minute or so at the beginning. The scores
            differ by rounding. Default False.
        trust_remote_code: run code that comes with the model. Default False.

    Raises:
        UserError: the model cannot be loaded or cannot score, or a value is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = SMOLLM2,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_tokens: int | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        score_system: bool = False,
        bank: int = 16384,
        seed: int = 0,
        temperature: float = 0.07,
        heads: str | os.PathLike[str] | AlignmentHead | None = None,
        compile: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_types(Scorer.__init__, locals())
        check_counts(batch_tokens=batch_tokens, bank=bank, max_length=max_length)
        check_divisor(temperature=temperature)
        if isinstance(model, LoadedModel):
            if revision is not None:
                raise UserError(f"revision {revision!r} has no effect on a loaded model: give it to models.load.load")
            if model.model.training:
                raise UserError("the model is in training mode, and dropout would change the scores: call model.eval()")
            loaded = model
        else:
            torch_device = pick_device(device)
            loaded = load(
                model,
                revision=revision,
                dtype=pick_dtype(dtype, torch_device),
                device=torch_device,
                trust_remote_code=trust_remote_code,
            )
        check_quantisation(loaded.model)
        self.encoder = PairEncoder(loaded.tokenizer, vocabulary=vocabulary(loaded.model))
        if heads is not None and not isinstance(heads, AlignmentHead):
            heads = AlignmentHead.from_pretrained(heads)
        self.forward = Forward(loaded.model, heads, compile=compile)
        self.max_length = _longest(self.forward, max_length)
        self.truncate, self.score_system = truncate, score_system
        self.batch_tokens = batch_tokens or default_batch_tokens(self.device)
        self.bank, self.seed, self.temperature = bank, seed, temperature
        self.fingerprint = _fingerprint(self, loaded) | ({"compile": True} if compile else {})
        self._logged_fields: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what was logged: `datasets` finds a cached `map` by the state of its function."""
        return {**self.__dict__, "_logged_fields": set()}

    @property
    def device(self) -> torch.device:
        """Return the device of the model, and of the products with the bank."""
        return self.forward.device

    @property
    def width(self) -> int:
        """Return D, the width of an embedding."""
        return self.forward.width

    def prepare(self, pairs: Sequence[Pair], skip: Collection[int] = ()) -> SortWindow:
        """Tokenise a window of pairs, refuse those that cannot be scored, and fill micro-batches with the others.

        Args:
            pairs: the pairs of the window in input order.
            skip: positions of pairs that need no forward pass. Default: none.
        """
        return Prefetch(self.prepare_in_steps(pairs, skip)).result()

    def prepare_in_steps(self, pairs: Sequence[Pair], skip: Collection[int] = ()) -> Generator[None, None, SortWindow]:
        """Prepare a window in steps of a few milliseconds, which `run` can do while a GPU works.

        Args:
            pairs: as for `prepare`.
            skip: as for `prepare`.
        """
        return prepare_window(
            [with_system(pair) for pair in pairs] if self.score_system else pairs,
            self.encoder,
            max_length=self.max_length,
            truncate=self.truncate,
            batch_tokens=self.batch_tokens,
            share=self.forward.shares_prefixes,
            skip=skip,
        )

    def run(
        self, window: SortWindow, batches: Iterable[MicroBatch], meanwhile: Callable[[], bool] = lambda: False
    ) -> Iterator[MicroBatchResult]:
        """Run both directions of every pair of each micro-batch in one forward pass, and yield the results in order.

        A GPU has the next QUEUED micro-batches to run while the host reads a result. If memory runs out, the two halves
        of a micro-batch run separately. A single pair that does not fit gets the status out_of_memory; one whose
        results are NaN or infinite gets non_finite.

        Args:
            window: a window that `prepare` returned.
            batches: some of its micro-batches.
            meanwhile: called while the host waits for a GPU, until it returns False. Default: nothing else to do.
        """
        queue: deque[tuple[MicroBatch, Sequence[Submitted]]] = deque()
        for batch in batches:
            queue.append((batch, self._submit(window, batch)))
            if len(queue) > (QUEUED if self.device.type == "cuda" else 0):
                yield self._result(window, *queue.popleft(), meanwhile)
        while queue:
            yield self._result(window, *queue.popleft(), meanwhile)

    def measure(
        self, pairs: Iterable[Any], *, fields: Fields = NO_FIELDS, progress: bool | OnProgress | None = None
    ) -> Measured:
        """Compute what does not depend on the other pairs: statuses, likelihoods and embeddings.

        Args:
            pairs: as for `score`.
            fields: field names that override the recognised record formats. Default: none.
            progress: as for `score`. Default: no progress.

        Returns:
            The likelihoods and embeddings. `Bank.of` makes a bank of them, and `Measured.rows` the rows of scores.

        Raises:
            UserError: `pairs` does not hold records.
        """
        total = count_pairs(pairs, fields)
        with tqdm_bar(total) if progress is True else nullcontext(progress or None) as on_progress:
            return measure_windows(self, iter_pairs(pairs, fields, self._logged_fields), SORT_WINDOW, on_progress)

    @overload
    def score(
        self,
        pairs: Mapping[str, list[Any]],
        *,
        bank: Bank | None = None,
        fields: Fields = NO_FIELDS,
        progress: bool | OnProgress | None = None,
    ) -> dict[str, list[Any]]: ...

    @overload
    def score(
        self,
        pairs: Iterable[Any],
        *,
        bank: Bank | None = None,
        fields: Fields = NO_FIELDS,
        progress: bool | OnProgress | None = None,
    ) -> list[dict[str, Any]]: ...

    def score(
        self,
        pairs: Iterable[Any],
        *,
        bank: Bank | None = None,
        fields: Fields = NO_FIELDS,
        progress: bool | OnProgress | None = None,
    ) -> list[dict[str, Any]] | dict[str, list[Any]]:
        """Score pairs in memory.

        `semantic` and `structural` compare each pair with a bank of reference pairs. Without `bank`, it is taken from
        the pairs of this call: these two scores then depend on how a data set is divided among calls. The other
        columns never do.

        Args:
            pairs: an iterable of records, a table of pandas, polars, pyarrow or DuckDB, or a `datasets.Dataset`. A
                record is a mapping in any format that a file may have, an (instruction, response) tuple, a list of
                messages, or a Pair. A single mapping is one record. A dict of lists, one list per field, makes
                `ds.map(scorer.score, batched=True, fn_kwargs={"bank": bank})` work.
            bank: reference pairs, from `Bank.of` or `Bank.load`. Default: a sample of these pairs, with a warning if
                they are a dict of lists, which is one batch of many.
            fields: field names that override the recognised record formats. Default: none.
            progress: True draws a progress bar; a function is called after each forward pass with the number of its
                pairs and of its tokens. Default: no progress.

        Returns:
            One dict per record in order, with exactly the columns of COLUMNS. A record that cannot be scored has a
            status, a reason and None in every score. For a dict of lists, a dict of lists: a column NAME is called
            main_NAME if the dict has a key NAME, and `id` is left out if it has ids, so that `ds.map` keeps both.

        Raises:
            UserError: `pairs` does not hold records, or another scorer made the bank.
        """
        check_types(Scorer.score, {"fields": fields, "bank": bank})
        as_columns = is_dict_of_lists(pairs, fields)
        if bank is not None:
            bank.check(self.fingerprint)  # before the model runs
        elif as_columns:
            warnings.warn(WITHIN_A_BATCH, stacklevel=2)
        measured = self.measure(pairs, fields=fields, progress=progress)
        if bank is None and measured.is_scored.any():
            bank = Bank.of(measured, self.device)
        rows = measured.rows(bank)
        if not as_columns:
            return rows
        titles = column_titles(cast("Mapping[str, Any]", pairs), fields)
        return {title: [row[name] for row in rows] for name, title in titles.items()}

    def _submit(self, window: SortWindow, batch: MicroBatch) -> Sequence[Submitted]:
        """Run a micro-batch, or queue it on a GPU. No pass is returned if memory ran out."""
        pairs = [self._encoded(window, row) for row in batch.rows]
        try:
            return [self.forward.submit([sequence for pair in pairs for sequence in self.encoder.sequences(pair)])]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return []

    def _result(
        self, window: SortWindow, batch: MicroBatch, passes: Sequence[Submitted], meanwhile: Callable[[], bool]
    ) -> MicroBatchResult:
        if passes:
            while not passes[-1].is_done() and meanwhile():
                pass
            return self._read(window, batch.rows, *passes)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch.rows) > 1:
            middle = len(batch.rows) // 2
            halves = (batch.rows[:middle], batch.rows[middle:])
            return join_results(list(self.run(window, [self._micro_batch(window, rows) for rows in halves])))
        result = empty_result(batch.rows, self.width)
        where = window.pairs[batch.rows[0]].where
        result.fail(0, "out_of_memory", f"{where}: its {batch.tokens} tokens did not fit into memory even alone")
        return result

    def _read(self, window: SortWindow, rows: tuple[int, ...], *passes: Submitted) -> MicroBatchResult:
        pairs = [self._encoded(window, row) for row in rows]
        (submitted,) = passes  # a scorer with two models has two
        logps, pooled = submitted.result()
        result = empty_result(rows, self.width)
        result.embed_x, result.embed_y = pooled[0::2], pooled[1::2]  # <x><y> and <y><x> of each pair
        for index, (pair, forward, reverse) in enumerate(zip(pairs, logps[0::2], logps[1::2], strict=True)):
            logp = result.logp[index]
            logp[LogpColumn.Y_GIVEN_X], logp[LogpColumn.X] = forward.second.sum(), forward.first.sum()
            logp[LogpColumn.X_GIVEN_Y], logp[LogpColumn.Y] = reverse.second.sum(), reverse.first.sum()
            ratio_y, ratio_x = forward.second - reverse.first, reverse.second - forward.first
            result.novel[index] = novel_sums(ratio_y, ratio_x, pair.y, pair.x)
            if len(end := forward.second[len(pair.y) :]):
                result.y_end[index] = end.sum()
        finite = np.isfinite(result.logp).all(1) & np.isfinite(pooled).all(1).reshape(-1, 2).all(1)
        for index in np.flatnonzero(~finite).tolist():
            where = window.pairs[rows[index]].where
            result.fail(index, "non_finite", f"{where}: the model returned NaN or infinity")
        return result

    @staticmethod
    def _encoded(window: SortWindow, row: int) -> EncodedPair:
        encoded = window.encoded[row]
        if encoded is None:
            raise ValueError(f"row {row} of the window has the status {window.status[row]!r}")
        return encoded

    def _micro_batch(self, window: SortWindow, rows: tuple[int, ...]) -> MicroBatch:
        encoded = [self._encoded(window, row) for row in rows]
        sequences = [sequence.ids for pair in encoded for sequence in self.encoder.sequences(pair)]
        return MicroBatch.of(rows, sequences, share=self.forward.shares_prefixes)


def _fingerprint(scorer: Scorer, loaded: LoadedModel) -> dict[str, Any]:
    """Return everything besides the input that the scores depend on: a job with another fingerprint does not resume."""
    markers = asdict(scorer.encoder.markers)
    projection = scorer.forward.projection
    return {
        "model": loaded.name,
        "revision": loaded.revision,
        "digest": loaded.digest,
        "markers": {name: list(text) if isinstance(text, tuple) else text for name, text in markers.items()},
        "bos": scorer.encoder.bos,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "attention": scorer.forward.attention,
        "batch_tokens": scorer.batch_tokens,
        "max_length": scorer.max_length,
        "truncate": scorer.truncate,
        "score_system": scorer.score_system,
        "bank": scorer.bank,
        "seed": scorer.seed,
        "temperature": scorer.temperature,
    } | ({} if projection is None else {"heads": projection.digest()})


def _longest(forward: Forward, wanted: int | None) -> int:
    """Return the longest sequence to score: `wanted`, else the model's own limit."""
    config = forward.model.config
    limit = context_length(config)
    if not (wanted or limit):
        raise UserError("the model's config has no max_position_embeddings: give --max-length")
    if wanted and limit and wanted > limit:
        if changes_rope(config):
            raise UserError(
                f"max_length {wanted}: beyond {limit} tokens this model's RoPE depends on the longest sequence of a "
                f"batch, and so would the scores. Give at most {limit}"
            )
        forward.check_positions(wanted)
    return wanted or int(limit or 0)
