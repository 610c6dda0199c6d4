"""RECORD_FORMATS: every record format that is recognised, one object per format.

To add a format, add an object here. The help, docs/data.md and the tests are generated from this list. The first
format that matches a record is used, so a specific format precedes a general one. Field names are compared without
case, spaces and underscores.
"""

from __future__ import annotations

from .format_types import CONVERSATION_FIELDS, Conversation, Instances, Preference, RecordFormat, TwoFields

_X, _Y = "Name a prime.", "Seven."
_TURNS = [{"role": "user", "content": _X}, {"role": "assistant", "content": _Y}]

RECORD_FORMATS: tuple[RecordFormat, ...] = (
    Preference(
        "chosen",
        "rejected",
        used_by="preference sets: TRL, UltraFeedback, hh-rlhf",
        example={"prompt": _X, "chosen": _Y, "rejected": "Nine."},
    ),
    Preference(
        "preferred_output",
        "non_preferred_output",
        ("input",),
        used_by="OpenAI preference tuning",
        example={
            "input": {"messages": _TURNS[:1]},
            "preferred_output": _TURNS[1:],
            "non_preferred_output": [{"role": "assistant", "content": "Nine."}],
        },
    ),
    Preference(
        "response_j",
        "response_k",
        used_by="stack-exchange-paired",
        example={"question": _X, "response_j": _Y, "response_k": "Nine."},
    ),
    TwoFields(
        "prompt",
        ("completion", "response", "output", "answer", "generation"),
        used_by="TRL, OpenAI completions, GPT4All, HelpSteer",
        example={"prompt": _X, "completion": _Y},
    ),
    TwoFields(
        "instruction",
        ("response", "output", "answer", "completion", "target", "generation"),
        used_by="Alpaca, Dolly, LaMini, LLaMA-Factory",
        example={"instruction": "Name a", "input": "prime.", "output": _Y},
    ),
    Instances(
        used_by="self-instruct, unnatural-instructions",
        example={"instruction": "Name a", "instances": [{"input": "prime.", "output": _Y}]},
    ),
    Conversation(
        CONVERSATION_FIELDS,
        used_by="OpenAI, TRL, ShareGPT, LIMA",
        example={"messages": [{"role": "system", "content": "Be brief."}, *_TURNS]},
    ),
    Conversation(
        ("conversation", "dialogue", "dialog", "chat"),
        check_value=True,
        used_by="WildChat, LMSYS-Chat, Capybara",
        example={"conversation": [{"input": _X, "output": _Y}]},
    ),
    Conversation(
        ("data", "contents"),
        check_value=True,
        allow_exchanges=False,
        used_by="UltraChat, Gemini",
        example={"data": [_X, _Y]},
    ),
    TwoFields(
        "question",
        ("answer", "response", "output", "solution"),
        used_by="OpenOrca, GSM8K, question-answer tables",
        example={"system_prompt": "Be brief.", "question": _X, "response": _Y},
    ),
    TwoFields(
        "query", ("response", "answer", "answers"), used_by="MetaMathQA, xLAM", example={"query": _X, "response": _Y}
    ),
    TwoFields(
        "problem",
        ("solution", "answer", "response"),
        used_by="MATH, NuminaMath, OSS-Instruct",
        example={"problem": _X, "solution": _Y},
    ),
    TwoFields("inputs", ("targets", "outputs", "output"), used_by="FLAN, Aya", example={"inputs": _X, "targets": _Y}),
    TwoFields(
        "inputs_pretokenized",
        ("targets_pretokenized",),
        used_by="P3, T0",
        example={"inputs_pretokenized": _X, "targets_pretokenized": _Y},
    ),
    TwoFields("message_1", ("message_2",), used_by="CAMEL", example={"message_1": _X, "message_2": _Y}),
    TwoFields("user", ("assistant", "bot"), used_by="chat tables", example={"user": _X, "assistant": _Y}),
    TwoFields("human", ("assistant", "bot", "gpt"), used_by="chat tables", example={"human": _X, "assistant": _Y}),
    TwoFields("anchor", ("positive",), used_by="sentence-transformers", example={"anchor": _X, "positive": _Y}),
    TwoFields(
        "input",
        ("output", "target", "response", "answer"),
        only_prompt=True,
        used_by="Firefly, input-output tables",
        example={"input": _X, "output": _Y},
    ),
    TwoFields(
        "context",
        ("response",),
        only_prompt=True,
        used_by="counselling and dialogue tables",
        example={"Context": _X, "Response": _Y},
    ),
)
