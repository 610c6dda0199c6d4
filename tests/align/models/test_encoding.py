"""Role markers of real chat templates, and the two sequences of a pair."""

from __future__ import annotations

import pytest
from main_align.data.pairs import Turn
from main_align.models.chat_template import Markers, read_markers
from main_align.models.encoding import PairEncoder

from tests.align.tiny_models import byte_tokenizer

SMOLLM2 = (  # inserts a default system prompt
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA32 = (  # writes today's date into the system turn
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
)  # fmt: skip
SENTENCE_TOKENS = ("<unk>", "<s>", "</s>")
LLAMA3_MARKERS = Markers(
    x_header="<|start_header_id|>user<|end_header_id|>\n\n",
    y_header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    x_end="<|eot_id|>",
    y_end="<|eot_id|>",
    joint="",
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
)
CASES = {
    "smollm2": (
        (SMOLLM2, CHATML_TOKENS, "<|im_start|>", "<|im_end|>"),
        Markers(
            x_header="<|im_start|>user\n",
            y_header="<|im_start|>assistant\n",
            x_end="<|im_end|>",
            y_end="<|im_end|>",
            joint="\n",
            system=("<|im_start|>system\n", "<|im_end|>\n"),
        ),
    ),
    "llama2": (
        (LLAMA2, SENTENCE_TOKENS, "<s>", "</s>"),
        Markers("[INST]", "[/INST]", "", "</s>", "", ("<<SYS>>\n", "\n<</SYS>>\n\n")),
    ),
    "llama3": ((LLAMA3, LLAMA3_TOKENS, "<|begin_of_text|>", "<|end_of_text|>"), LLAMA3_MARKERS),
    "llama3.2": ((LLAMA32, LLAMA3_TOKENS, "<|begin_of_text|>", "<|end_of_text|>"), LLAMA3_MARKERS),
    "mistral": (
        (MISTRAL, ("<s>", "</s>"), "<s>", "</s>"),
        Markers("[INST]", "[/INST]", "", "</s>", "", None),
    ),
    "mistral with special role tokens": (
        (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"),
        Markers("[INST]", "[/INST]", "", "</s>", "", None),
    ),
    "zephyr": (
        (ZEPHYR, SENTENCE_TOKENS, "<s>", "</s>"),
        Markers("<|user|>\n", "<|assistant|>\n", "</s>", "</s>", "\n", ("<|system|>\n", "</s>\n")),
    ),
    "none": ((None, ("<s>", "</s>"), "<s>", "</s>"), Markers(system=("", "\n\n"))),
}


def encoder(name):
    template, special, bos, eos = CASES[name][0]
    return PairEncoder(byte_tokenizer(template=template, special=special, bos=bos, eos=eos))


def texts(d, x, y, context=()):
    """Both sequences of a pair as text."""
    (pair,) = d.encode([(x, y)], [tuple(context)])
    return [d.tokenizer.decode(sequence.ids) for sequence in d.sequences(pair)]


@pytest.mark.parametrize("name", CASES)
def test_markers_match_real_templates(name):
    template, special, bos, eos = CASES[name][0]
    tokenizer = byte_tokenizer(template=template, special=special, bos=bos, eos=eos)
    assert read_markers(tokenizer) == CASES[name][1]


@pytest.mark.parametrize(
    ("name", "forward", "reverse"),
    [
        ("llama2", "<s>[INST]A[/INST]B</s>", "<s>[/INST]B</s>[INST]A"),
        (
            "zephyr",
            "<s><|user|>\nA</s>\n<|assistant|>\nB</s>",
            "<s><|assistant|>\nB</s>\n<|user|>\nA</s>",
        ),
        ("none", "<s>A\n\nB", "<s>B\n\nA"),
    ],
)  # fmt: skip
def test_both_directions_decode_to_the_expected_text(name, forward, reverse):
    assert texts(encoder(name), "A", "B") == [forward, reverse]


@pytest.mark.parametrize("name", CASES)
def test_spans_hold_exactly_the_segments(name):
    d = encoder(name)
    (pair,) = d.encode([("what?", "that!")], [(Turn("user", "u"), Turn("assistant", "a"))])
    x, y = (d.tokenizer(t + end, add_special_tokens=False).input_ids
            for t, end in (("what?", d.markers.x_end), ("that!", d.markers.y_end)))  # fmt: skip
    forward, reverse = d.sequences(pair)
    for sequence, first, second in ((forward, x, y), (reverse, y, x)):
        assert sequence.ids[slice(*sequence.first_span)] == first
        assert sequence.ids[slice(*sequence.second_span)] == second
        assert sequence.ids[: len(d.bos)] == d.bos
        assert sequence.first_span[0] >= 1  # something predicts the first content token
    assert d.tokens(pair) == (len(x), len(y))
    assert d.length(pair) == max(len(forward.ids), len(reverse.ids))


def test_context_stands_before_both_directions_and_is_not_scored():
    context = [Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "R")]
    before = "<|endoftext|><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
    before += "<|im_start|>assistant\nR<|im_end|>\n"
    d = PairEncoder(byte_tokenizer(template=SMOLLM2))
    forward, reverse = texts(d, "A", "B", context)
    assert forward == before + "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"
    assert reverse == before + "<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nA<|im_end|>"


def test_text_that_spells_a_special_token_stays_text():
    d = encoder("smollm2")
    (pair,) = d.encode([("a<|im_end|>b", "c")], [()])
    assert d.tokenizer.convert_tokens_to_ids("<|im_end|>") not in pair.x
    assert d.tokenizer.decode(pair.x) == "a<|im_end|>b"


def test_context_that_the_template_cannot_render_is_reported():
    d = encoder("mistral")
    assert "system" in (d.context_problem([Turn("system", "S")]) or "")
    assert "tool" in (d.context_problem([Turn("tool", "S")]) or "")
    assert d.context_problem([Turn("user", "Q"), Turn("assistant", "R")]) is None
    with pytest.raises(ValueError, match="system"):
        d.encode([("x", "y")], [(Turn("system", "S"),)])


def test_a_template_that_cannot_render_a_conversation_is_reported(caplog):
    tokenizer = byte_tokenizer(template="{{ raise_exception('no') }}")
    assert read_markers(tokenizer) == Markers(system=("", "\n\n"))
    assert "without role markers" in caplog.text


def test_eos_stands_in_for_a_missing_bos():
    tokenizer = byte_tokenizer(bos=None, template=None)
    assert PairEncoder(tokenizer).bos == [tokenizer.eos_token_id]
