"""Evaluation: held-out alignment scores during training, and answers to AlpacaEval and MT-Bench (answer.py)."""

from .evaluator import AlignmentCallback, AlignmentEvaluator

__all__ = ["AlignmentCallback", "AlignmentEvaluator"]
