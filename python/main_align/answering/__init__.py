"""Answers of a model to the questions of AlpacaEval and MT-Bench, in the files that their judges read."""

from .answer import AnswerSettings, answer_file
from .formats import FORMATS, AnswerFormat

__all__ = ["FORMATS", "AnswerFormat", "AnswerSettings", "answer_file"]
