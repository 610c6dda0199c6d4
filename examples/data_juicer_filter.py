"""A data-juicer operator that keeps the pairs whose score is in a range.

    main-align score pairs.jsonl -o scored/                     # leaves a bank in scored/bank.safetensors
    dj-process --config examples/data_juicer.yaml --dataset_path pairs.jsonl --export_path kept.jsonl

All scores of a sample go to its stats. With `accelerator: cuda` each process has a GPU of its own.
"""

from functools import cache

import torch
from data_juicer.ops.base_op import OPERATORS, Filter
from data_juicer.utils.constant import Fields
from main_align import Bank, Scorer


@cache  # one model in every process, and none in the operator's state
def load(model: str, bank: str, device: str) -> tuple[Scorer, Bank]:
    return Scorer(model, device=device), Bank.load(bank, device)


@OPERATORS.register_module("main_align_filter")
class MainAlignFilter(Filter):
    """Keep the samples with min_score <= score <= max_score; those without this score are removed.

    Args:
        bank: path of a bank of the model.
        model: as for `main_align.Scorer`. Default "smollm2".
        score: name of the score. Default "mutual".
        min_score: lowest score to keep. Default: no limit.
        max_score: highest score to keep. Default: no limit.
        kwargs: parameters of every data-juicer operator.
    """

    _batched_op = True

    def __init__(
        self,
        bank: str,
        model: str = "smollm2",
        score: str = "mutual",
        min_score: float = float("-inf"),
        max_score: float = float("inf"),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.bank, self.model = bank, model
        self.score, self.min_score, self.max_score = score, min_score, max_score

    def compute_stats_batched(self, samples, rank=None):
        device = "cpu" if rank is None else f"cuda:{rank % torch.cuda.device_count()}"
        scorer, bank = load(self.model, self.bank, device)
        pairs = {name: values for name, values in samples.items() if name != Fields.stats}
        scores = scorer.score(pairs, bank=bank)
        del scores["id"]
        for stats, values in zip(samples[Fields.stats], zip(*scores.values(), strict=True), strict=True):
            stats.update(zip(scores, values, strict=True))
        return samples

    def process_batched(self, samples):
        scores = [stats[self.score] for stats in samples[Fields.stats]]
        return [score is not None and self.get_keep_boolean(score, self.min_score, self.max_score) for score in scores]
