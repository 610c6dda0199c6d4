"""The flags of a row, by their rules."""

from __future__ import annotations

import pytest
from main_align.scoring.flags import FLAGS, flags_of, is_refusal
from main_align.scoring.other_script import is_other_script

PLAIN = {"echo": 0.1, "nll_end": 2.0, "refusal": 0, "other_script": 0}


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({}, ""),
        ({"echo": 0.9}, "echo"),
        ({"nll_end": 10.1}, "cut_off"),
        ({"nll_end": None}, ""),
        ({"refusal": 1, "echo": 1.0}, "echo,refusal"),
    ],
)
def test_a_row_has_the_flags_whose_rules_hold(change, flags):
    assert flags_of(PLAIN | change) == flags


def test_every_flag_can_be_set():
    bad = flags_of({"echo": 1.0, "nll_end": 20.0, "refusal": 1, "other_script": 1})
    assert bad == ",".join(flag.name for flag in FLAGS)


@pytest.mark.parametrize(
    ("response", "refused"),
    [
        ("I\u2019m sorry, but I cannot help with that request.", True),
        ("As an AI language model, I do not eat.", True),
        ("Sorry, I am unable to complete this task.", True),
        ("The Beatles wrote I'm Down. I am not a crook was said by Nixon.", False),
        ("The capital of France is Paris.", False),
        ("word " * 40 + "I'm sorry, but I cannot help with that.", False),
    ],
)
def test_a_refusal_is_found_in_the_opening(response, refused):
    assert is_refusal(response) == refused


RUSSIAN = "Москва — столица России."


@pytest.mark.parametrize(
    ("instruction", "response", "other"),
    [
        ("Name a capital.", RUSSIAN, True),
        ("Name a capital.", "Выполните команду pip install.", True),
        ("How do I sleep well?", "毎日同じ時間に起きて、スマートフォンを見ない。", True),
        ("Name a capital.", "Moscow (Москва) is a capital.", False),
        ("Name a capital.", "Der Müller aß die Größe: façade, Łódź.", False),
        ("Translate to Russian: Moscow is the capital.", RUSSIAN, False),
        ("Name a capital in Russian letters.", RUSSIAN, False),
        ("Назови столицу.", RUSSIAN, False),
        ("日本の首都は？", "東京です。", False),
        ("Что это?", "print('hello')", False),  # code is Latin in every language
        ("What is 2 + 2?", "４ — „四“?", True),
        ("What is 2 + 2?", "✓ 4 €", False),
    ],
)
def test_another_script_is_found_unless_it_is_asked_for(instruction, response, other):
    assert is_other_script(instruction, response) == other
