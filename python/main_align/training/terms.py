"""AlignmentTerms: weights and options of the terms of mutual alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import check_divisor, check_types
from ..errors import UserError

EMBEDDING_TERMS = ("semantic", "intentional", "structural")
LIKELIHOOD_TERMS = ("forward", "reverse", "duality_gap")
ESTIMATORS = ("infonce", "nwj", "dv", "js", "smile")


@dataclass
class AlignmentTerms:
    """Weights of the terms, and how they are measured.

    The loss is `sum_t <t>_weight * t` over the terms t. A term of weight 0 is left out, and what only that term needs
    is not computed. All terms are in nats except `structural`, which has no unit.
    """

    forward_weight: float = field(
        default=1.0, metadata={"help": "Weight of -log p(y|x), nats per token: the loss of supervised fine-tuning."}
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
            "help": "Weight of |log p(x) + log p(y|x) - log p(y) - log p(x|y)| / (|x|+|y|), nats per token. "
            "Needs directions=both, and about doubles the tokens that the language-model head reads."
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
        default=0.07, metadata={"help": "Divisor of the cosine similarities in the semantic and intentional terms."}
    )

    def weight(self, term: str) -> float:
        """Return the weight of one term.

        Args:
            term: one of EMBEDDING_TERMS or LIKELIHOOD_TERMS.
        """
        return float(getattr(self, f"{term}_weight"))

    def active(self, names: tuple[str, ...]) -> list[str]:
        """Return the terms whose weight is above 0.

        Args:
            names: terms to choose from.
        """
        return [name for name in names if self.weight(name) > 0]

    def check_terms(self) -> None:
        """Raise UserError, naming the setting, if a weight or option is out of range."""
        check_types(AlignmentTerms, vars(self))
        for name in (*EMBEDDING_TERMS, *LIKELIHOOD_TERMS):
            if not 0 <= self.weight(name) < float("inf"):
                raise UserError(f"{name}_weight must be finite and not negative, got {self.weight(name)}")
        if not self.active((*EMBEDDING_TERMS, *LIKELIHOOD_TERMS)):
            raise UserError("all terms have weight 0, so there is nothing to train: set at least one above 0")
        check_divisor(contrastive_temperature=self.contrastive_temperature)
        if self.mi_estimator not in ESTIMATORS:
            raise UserError(f"mi_estimator must be one of {', '.join(ESTIMATORS)}, got {self.mi_estimator!r}")
