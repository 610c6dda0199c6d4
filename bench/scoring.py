"""Time scoring against its own matrix products and against the other ways to the same log-likelihoods.

    python -m bench scoring -o bench/results/scoring.json
    python -m bench scoring my_pairs.jsonl --pairs 48 --size mixed 256 --dtype bfloat16

A row is some pairs in one dtype: pairs of a file as they are ("mixed"), or pairs of one length, cut or joined from its
texts. The runs take turns, round after round, and read the same token ids:

    products     every matrix product and the attention of the packed passes, head included, and nothing else
    backbone     the packed passes of Hugging Face's model with prepared inputs, without its head
    ours         `Scorer.score`: everything from text to rows, with tokenisation, embeddings and their bank
    four_pass    what published tools do: p(y|x), p(y), p(x|y) and p(x), one sequence at a time with full logits
    padded       padded batches of Hugging Face's model, sorted by length, with full logits: <x><y> and <y><x> only, as
                 in ours, because p(x) and p(y) are in them
    lm_eval      the log-likelihoods of lm-evaluation-harness, the same four per pair, in its batches of 8
    data_juicer  data-juicer's instruction_following_difficulty_filter, which computes p(y|x) / p(y) alone: about half
                 of the work, no reverse direction, no embeddings
    vllm         prompt log-probabilities; not measured on a CPU

Equality first: the log-likelihoods of every pair must be those of four_pass, and data-juicer's ratio must be that of
eager torch on its sequences. A run that differs is listed; if one of ours differs or fails, the exit status is 1. The
files' format is in bench/records.py.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from main_align.data.pairs import Pair
from main_align.models.devices import DTYPES, has_bfloat16, pick_device
from main_align.models.encoding import EncodedSequence, PairEncoder
from main_align.models.load import LoadedModel, load
from main_align.models.packed_attention import packed_forward, segment_arguments, use_packed_attention
from main_align.models.packing import Packing, pack
from main_align.scoring.batching import BATCH_TOKENS
from main_align.scoring.scorer import Scorer
from numpy.typing import NDArray

from . import peers, scoring_peers, session, texts
from .cases import Target
from .command import command_parser
from .measure import interleaved, machine
from .products import Pack, fastest_products
from .records import Row, rounded
from .report.tables import plain

PEERS = ("lm-eval", "py-data-juicer")
LENGTHS = {"64": 13, "128": 7, "256": 3, "512": 1, "1024": 1}
"""Size of a row, the tokens of a pair, both sides together: its number of pairs, as many as fit into one pass."""
SIZES = ("mixed", *LENGTHS)
AGREEMENT = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}  # of a sum over tokens, relative
ROLES = {"products": "floor", "backbone": "floor", "ours": "ours", "ours_again": "again"}  # all others: peers
TARGETS = (
    Target("ours", "products", {"float32": 1.10, "bfloat16": 1.12, "float16": 1.12}, 1.05),
    Target("ours", "backbone"),
)
SCORES = {"nll_y_given_x": "tokens_y", "nll_y": "tokens_y", "nll_x_given_y": "tokens_x", "nll_x": "tokens_x"}
"""Columns of the scores, nats per token, in the order of the results, and their numbers of tokens."""
Results = NDArray[np.float64]
"""[pairs, 4]: log p(y|x), log p(y), log p(x|y), log p(x) in nats; or [pairs, 1], the IFD."""


class Measurement(NamedTuple):
    """One row to measure. `tokens` is the length of each pair, None if they are of any length."""

    size: str
    pairs: Sequence[Pair]
    tokens: int | None = None


class Models:
    """The model twice: in the scorer, and as Hugging Face's own for the peers."""

    def __init__(self, name: str, dtype: str) -> None:
        device = pick_device("auto")
        self.dtype = dtype
        self.scorer = Scorer(load(name, dtype=DTYPES[dtype], device=device))
        self.backbone: Any = load(name, dtype=DTYPES[dtype], device=device).model
        use_packed_attention(self.backbone)
        self.plain: LoadedModel = load(name, dtype=DTYPES[dtype], device=device)

    @functools.cached_property
    def lm_eval(self) -> Callable[..., Any]:
        return scoring_peers.lm_eval(self.plain)

    @functools.cached_property
    def data_juicer(self) -> Callable[..., Any]:
        return scoring_peers.data_juicer(self.plain)


class Contest:
    """All ways of scoring the same pairs. Each returns its results, the floors None."""

    def __init__(self, pairs: Sequence[Pair], models: Models) -> None:
        self.pairs, self.models = list(pairs), models
        self.model: Any = models.plain.model
        scorer = models.scorer
        window = scorer.prepare(self.pairs)
        encoded = [pair for pair in window.encoded if pair is not None]
        if len(encoded) < len(self.pairs):
            raise SystemExit(f"of {len(self.pairs)} pairs, the model can score {len(encoded)}: choose others")
        self.sequences = [scorer.encoder.sequences(pair) for pair in encoded]  # (<x><y>, <y><x>) of each pair
        packs = [[s for row in batch.rows for s in self.sequences[row]] for batch in window.micro_batches]
        packings = [pack([s.ids for s in own], share=scorer.forward.shares_prefixes) for own in packs]
        shapes = [_shape(packing, own) for packing, own in zip(packings, packs, strict=True)]
        self.tokens, self.packs = sum(batch.tokens for batch in window.micro_batches), len(packs)
        self.products = fastest_products(self.model, shapes, self.model.dtype)
        device = self.model.device
        self.inputs = [
            {
                "input_ids": torch.from_numpy(packing.ids)[None].to(device),
                **segment_arguments(packing.segments, device),
            }
            for packing in packings
        ]

    def ways(self) -> dict[str, Callable[[], Results | None]]:
        """Return the runs by name."""
        ways = {name: getattr(self, name) for name in ("products", "backbone", "ours")} | {"ours_again": self.ours}
        return ways | {name: getattr(self, name) for name in ("four_pass", "padded", "lm_eval", "data_juicer", "vllm")}

    @torch.inference_mode()
    def backbone(self) -> None:
        with packed_forward():
            for inputs in self.inputs:
                self.models.backbone.base_model(**inputs)

    def ours(self) -> Results:
        rows = self.models.scorer.score(self.pairs)
        return np.array([[-row[name] * row[count] for name, count in SCORES.items()] for row in rows])

    @torch.inference_mode()
    def four_pass(self) -> Results:
        out = []
        for forward, reverse in self.sequences:
            for sequence in (forward, reverse):
                out.append(self._alone(sequence.ids, sequence.second_span))
                other = reverse if sequence is forward else forward  # p(y) is the beginning of <y><x>
                stop = other.first_span[1]
                out.append(self._alone(other.ids[:stop], other.first_span))
        return np.reshape(out, (-1, 4))

    def _alone(self, ids: list[int], span: tuple[int, int]) -> float:
        row = torch.tensor([ids], device=self.model.device)
        return _sum_logp(self.model(row, use_cache=False).logits[0], ids, span)

    @torch.inference_mode()
    def padded(self) -> Results:
        out = np.empty((len(self.sequences), 2, 2))  # pair, direction, segment
        places = [(row, side) for row in range(len(self.sequences)) for side in (0, 1)]
        for batch in _padded_batches(places, lambda place: len(self.sequences[place[0]][place[1]].ids)):
            sequences = [self.sequences[row][side] for row, side in batch]
            longest = max(len(sequence.ids) for sequence in sequences)
            ids = torch.tensor([s.ids + [0] * (longest - len(s.ids)) for s in sequences], device=self.model.device)
            mask = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
            logits = self.model(ids, attention_mask=mask.to(ids.device), use_cache=False).logits
            for place, sequence, own in zip(batch, sequences, logits, strict=True):
                out[place] = [_sum_logp(own, sequence.ids, s) for s in (sequence.first_span, sequence.second_span)]
        (x, y_given_x), (y, x_given_y) = out[:, 0].T, out[:, 1].T
        return np.stack([y_given_x, y, x_given_y, x], 1)

    def lm_eval(self) -> Results:
        requests = []
        for forward, reverse in self.sequences:
            for sequence, (start, stop) in (
                (forward, forward.second_span),
                (reverse, reverse.first_span),
                (reverse, reverse.second_span),
                (forward, forward.first_span),
            ):
                requests.append((sequence.ids[:start], sequence.ids[start:stop]))
        return np.reshape(self.models.lm_eval(requests), (-1, 4))

    def data_juicer(self) -> Results:
        pieces = [(s.ids[: s.second_span[0]], s.ids[slice(*s.second_span)]) for s, _ in self.sequences]
        return np.array(self.models.data_juicer(pieces))[:, None]

    def vllm(self) -> Results:
        return scoring_peers.vllm()

    @torch.inference_mode()
    def ifd(self) -> Results:
        """Return the ratio of data-juicer: mean losses of y after <x> and of y alone, without headers."""
        out = []
        for sequence, _ in self.sequences:
            start, stop = sequence.second_span
            y = sequence.ids[start:stop]
            alone = self._alone(y, (1, len(y))) / max(1, len(y) - 1)
            out.append(self._alone(sequence.ids, (start, stop)) / len(y) / alone if alone else np.nan)
        return np.array(out)[:, None]


def _shape(packing: Packing, sequences: Sequence[EncodedSequence]) -> Pack:
    """Return the shape of a pass, in which tokens that sequences share count once."""
    spans = [
        rows[slice(*span)]
        for rows, sequence in zip(packing.rows, sequences, strict=True)
        for span in (sequence.first_span, sequence.second_span)
    ]
    lengths, keys = ([segment.length for segment in packing.segments], [len(s.path) for s in packing.segments])
    return Pack(lengths, len(np.unique(np.concatenate(spans))), keys)


def _sum_logp(logits: torch.Tensor, ids: list[int], span: tuple[int, int]) -> float:
    """Return the log-probability of a span of ids, given logits [T, V] from the beginning on."""
    start, stop = span
    targets = torch.tensor(ids[start:stop], device=logits.device)
    return -float(F.cross_entropy(logits[start - 1 : stop - 1].float(), targets, reduction="sum"))


def _padded_batches(
    places: list[tuple[int, int]], length: Callable[[tuple[int, int]], int]
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of similar length with at most BATCH_TOKENS tokens, padding included."""
    batch: list[tuple[int, int]] = []
    for place in sorted(places, key=length):
        if batch and (len(batch) + 1) * length(place) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    yield batch


def measure(what: Measurement, models: Models, inputs: str, rounds: int) -> Row:
    """Measure one row.

    Args:
        what: the row.
        models: the model in the dtype of the row.
        inputs: name of the file that the texts come from.
        rounds: number of rounds.

    Returns:
        A row of bench/records.py.
    """
    contest = Contest(what.pairs, models)
    missing = {  # one pair warms everything up
        name: why for name, way in Contest(what.pairs[:1], models).ways().items() if (why := session.attempt(way)[1])
    }
    results: dict[str, Results] = {}

    def timed(name: str, way: Callable[[], Results | None]) -> None:
        found = way()
        if found is not None:
            results[name] = found
        elif torch.cuda.is_available():  # results are on the host already, what a floor computes is not
            torch.cuda.synchronize()

    running = {name: way for name, way in contest.ways().items() if name not in missing}
    samples = interleaved({name: functools.partial(timed, name, way) for name, way in running.items()}, rounds)
    expected = {"data_juicer": contest.ifd()} if "data_juicer" in results else {}
    return {
        "suite": "scoring",
        "case": "score",
        "family": "scoring",
        "size": what.size,
        "shape": {"pairs": len(what.pairs), **({"tokens": what.tokens} if what.tokens else {})},
        "dtype": models.dtype,
        "inputs": inputs,
        "machine": {**machine(), "peers": peers.versions(PEERS)},
        "runs": {name: _run(name, samples, missing) for name in contest.ways()},
        "targets": [target.in_row(models.dtype) for target in TARGETS],
        "differing": [
            name
            for name, found in results.items()
            if not _agree(found, expected.get(name, results["four_pass"]), AGREEMENT[models.dtype])
        ],
        "facts": {
            "tokens": contest.tokens,
            "packs": contest.packs,
            **({"tokens_per_pair": what.tokens} if what.tokens else {}),
        },
    }


def _run(name: str, samples: Mapping[str, Sequence[float]], missing: Mapping[str, str]) -> dict[str, Any]:
    role = ROLES.get(name, "peer")
    run: dict[str, Any] = {"role": role, "phase": "floor" if role == "floor" else "forward"}
    if name in missing:
        return {**run, "missing": missing[name]}
    return {**run, "samples_s": rounded(samples[name])}


def _agree(found: Results, wanted: Results, tolerance: float) -> bool:
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=tolerance, atol=tolerance))


def chosen_rows(source: str | Path, encoder: PairEncoder, sizes: Sequence[str], pairs: int) -> Iterator[Measurement]:
    """Yield the rows of the named sizes.

    Args:
        source: the input.
        encoder: the model's encoder.
        sizes: some of SIZES.
        pairs: number of pairs of "mixed".
    """
    for size in sizes:
        if size == "mixed":
            yield Measurement(size, texts.read(source, pairs))
        else:
            made = texts.of_length(texts.read(source), encoder, int(size), LENGTHS[size])
            yield Measurement(size, made, int(size))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = command_parser("scoring", __doc__)
    texts.add_options(parser, pairs=14)  # one pass of the scorer
    session.add_options(parser, rounds=3)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=SIZES, help=f"only these of {', '.join(SIZES)}")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16"),
        help="only these (default: float32; bfloat16 at mixed only, on a device with instructions for it)",
    )
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    chosen = arguments(words)
    dtypes = chosen.dtype or ["float32", *(["bfloat16"] if has_bfloat16(pick_device("auto")) else [])]
    models = functools.lru_cache(maxsize=1)(functools.partial(Models, chosen.model))  # rows are sorted by dtype
    encoder = models(dtypes[0]).scorer.encoder
    todo = []
    for dtype in dtypes:
        sizes = [size for size in chosen.size if chosen.dtype or dtype == "float32" or size == "mixed"]
        todo += [(dtype, what) for what in chosen_rows(chosen.input, encoder, sizes, chosen.pairs)]
    inputs = Path(chosen.input).name
    done = session.measure_rows(
        todo, lambda row: measure(row[1], models(row[0]), inputs, chosen.rounds), chosen.out, chosen.minutes
    )
    print(plain(done))
    return 1 if any(session.wrong(row) for row in done) else 0
