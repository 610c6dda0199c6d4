"""CASES: every op of main_kernels with its floors and peers, one file per family."""

from ..peers import Absent
from . import consistency, contrastive, information, likelihood, pooling
from .case import DEFAULT_SIZES, DTYPES, SIZES, Case, Contender, Row, Target

CASES: dict[str, Case] = {
    case.name: case for family in (likelihood, contrastive, information, consistency, pooling) for case in family.CASES
}

__all__ = ["CASES", "DEFAULT_SIZES", "DTYPES", "SIZES", "Absent", "Case", "Contender", "Row", "Target"]
