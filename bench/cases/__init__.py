"""Every op of main_kernels beside its floors and its peers, one file a family."""

from ..peers import Absent
from . import consistency, contrastive, information, likelihood, pooling
from .case import DTYPES, SIZES, Case, Claim, Contender, Row

CASES: dict[str, Case] = {
    case.name: case for family in (likelihood, contrastive, information, consistency, pooling) for case in family.CASES
}

__all__ = ["CASES", "DTYPES", "SIZES", "Absent", "Case", "Claim", "Contender", "Row"]
