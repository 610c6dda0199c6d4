"""main_kernels: fused contrastive, mutual-information and likelihood ops with exact gradients."""

from ._version import __version__
from .backends import backend_report
from .consistency import (
    cyclic_consistency,
    relational_scores,
)
from .contrastive import (
    PairScores,
    info_nce,
    pair_scores,
    row_logsumexp,
    sigmoid_loss,
)
from .distillation import (
    linear_kl,
)
from .information import mutual_information, mutual_information_bounds
from .likelihood import TokenStats, linear_cross_entropy, sequence_logprobs, token_logprobs
from .pooling import segment_pool

__all__ = [
    "PairScores",
    "TokenStats",
    "__version__",
    "backend_report",
    "cyclic_consistency",
    "info_nce",
    "linear_cross_entropy",
    "linear_kl",
    "mutual_information",
    "mutual_information_bounds",
    "pair_scores",
    "relational_scores",
    "row_logsumexp",
    "segment_pool",
    "sequence_logprobs",
    "sigmoid_loss",
    "token_logprobs",
]
