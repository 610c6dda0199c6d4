"""Preparation: data sets of any supported form to the input of the data loaders."""

from __future__ import annotations

from typing import Any

from datasets import IterableDataset
from transformers import PreTrainedModel

from ...errors import UserError
from ...models.encoding import EncodedPair, PairEncoder
from ...models.load import vocabulary
from ..config import AlignmentArguments
from .collator import PairCollator
from .packing import PackedPairs, best_fit
from .reader import PairReader


class Preparation:
    """Read, shuffle and pack data sets for one tokenizer, and collate their pairs.

    Args:
        model: the causal language model; its vocabulary may be smaller than the tokenizer's.
        tokenizer: the tokenizer that is saved with the model, or a processor with one.
        args: the trainer's settings.
        alignment: settings of mutual alignment.
        max_length: length of the longest sequence in tokens.

    Raises:
        UserError: if no response ends with the `eos_token` of the settings.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, args: Any, alignment: AlignmentArguments, max_length: int
    ) -> None:
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        encoder = PairEncoder(tokenizer, close=True, vocabulary=vocabulary(model))
        _check_ending(encoder, getattr(args, "eos_token", None))
        self.reader = PairReader(encoder, max_length, alignment.over_length)  # type: ignore[arg-type]
        self.collator = PairCollator(
            encoder,
            alignment.directions,  # type: ignore[arg-type]
            pooled=alignment.uses_embeddings,
            all_likelihoods=alignment.duality_gap_weight > 0,
        )

    def prepare(self, dataset: Any, args: Any, *, packing: bool, name: str) -> Any:
        """Return the data set as pairs (reader.COLUMNS), or lists of pairs with `packing`.

        Prepared data sets are returned unchanged.
        """
        if dataset is None or isinstance(dataset, PackedPairs):
            return dataset
        pairs = self.reader.prepare(dataset, name, getattr(args, "dataset_num_proc", None))
        if getattr(args, "shuffle_dataset", False) and pairs is not dataset:
            pairs = pairs.shuffle(seed=args.seed)
        if not packing:
            return pairs
        if isinstance(pairs, IterableDataset):
            raise UserError(f"packing needs the whole {name} data set, not a stream: set packing=False")
        lengths = [self.collator.tokens_of(pair) for pair in pairs]
        sequences = 1 + (self.collator.directions == "both" or self.collator.pooled)
        return PackedPairs(pairs, best_fit(lengths, sequences * self.reader.max_length))


def packs_evaluation(args: Any) -> bool:
    """Tell whether evaluation rows are packed: `eval_packing`, or `packing` if that is None."""
    evaluation = getattr(args, "eval_packing", None)
    return bool(getattr(args, "packing", False) if evaluation is None else evaluation)


def _check_ending(encoder: PairEncoder, eos_token: str | None) -> None:
    """Raise UserError if no response ends with `eos_token`: the model would not learn to stop at it."""
    forward, _ = encoder.sequences(EncodedPair([], [], []))
    ending = forward.ids[slice(*forward.second_span)]
    if eos_token is not None and encoder.tokenizer.eos_token_id not in ending:
        written = str(encoder.tokenizer.decode(ending))
        raise UserError(
            f"eos_token {eos_token!r} is not what the chat template ends a response with ({written!r}), so the model "
            f"would not learn to stop there: use eos_token={written!r}, or another template (chat_template_path)"
        )
