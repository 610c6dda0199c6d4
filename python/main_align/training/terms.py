"""Which terms of mutual alignment a training run has, and how much each weighs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UserError

EMBEDDING_TERMS = ("semantic", "intentional", "structural")
LIKELIHOOD_TERMS = ("forward", "reverse", "duality_gap")
ESTIMATORS = ("infonce", "nwj", "dv", "js", "smile")


@dataclass
class AlignmentTerms:
    """Weights of the terms (0 leaves one out, and what only it needs is not computed), and how they are measured.

    The total is ``sum_t weight_t * term_t``; every term is in nats except the structural one, which has no unit.
    """

    forward_weight: float = field(
        default=1.0, metadata={"help": "Weight of -log p(y|x), nats per token: supervised loss."}
    )
    reverse_weight: float = field(default=1.0, metadata={"help": "Weight of -log p(x|y), nats per token."})
    semantic_weight: float = field(
        default=0.1, metadata={"help": "Weight of symmetric InfoNCE between the pooled states of x and y, nats."}
    )
    intentional_weight: float = field(
        default=0.01, metadata={"help": "Weight of minus a bound on the mutual information of x and y, nats."}
    )
    duality_gap_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of |log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token; "
            "needs both directions, and the head reads about twice the tokens."
        },
    )
    structural_weight: float = field(
        default=0.1,
        metadata={"help": "Weight of cyclic consistency: mean squared difference of the similarity matrices."},
    )
    mi_estimator: str = field(
        default="js",
        metadata={
            "help": "Bound of the intentional term: infonce, nwj, dv, js or smile (main_kernels.mutual_information).",
            "choices": list(ESTIMATORS),
        },
    )
    contrastive_temperature: float = field(
        default=0.07, metadata={"help": "Cosines are divided by it in all embedding terms."}
    )

    def weight(self, term: str) -> float:
        """The weight of one term, by name."""
        return float(getattr(self, f"{term}_weight"))

    def active(self, names: tuple[str, ...]) -> list[str]:
        """Those of the named terms that count."""
        return [name for name in names if self.weight(name) > 0]

    def check_terms(self) -> None:
        """UserError for a weight or option that makes no sense, naming it."""
        for name in (*EMBEDDING_TERMS, *LIKELIHOOD_TERMS):
            if not 0 <= self.weight(name) < float("inf"):
                raise UserError(f"{name}_weight must be finite and not negative, got {self.weight(name)}")
        if not self.active((*EMBEDDING_TERMS, *LIKELIHOOD_TERMS)):
            raise UserError("all terms have weight 0, so there is nothing to train: give at least one a weight")
        if not self.contrastive_temperature > 0:
            raise UserError(f"contrastive_temperature must be above 0, got {self.contrastive_temperature}")
        if self.mi_estimator not in ESTIMATORS:
            raise UserError(f"mi_estimator must be one of {', '.join(ESTIMATORS)}, got {self.mi_estimator!r}")
