"""The forms in which data sets hold a pair: one object each, in the one list DIALECTS.

Help, docs/data.md and the tests are made from that list. The first dialect that fits a record reads it; field names
are compared without case, spaces and underscores.
"""

from __future__ import annotations

from .dialect import CONVERSATIONS, Conversation, Dialect, Instances, Preference, TwoFields

LISTS = ("conversation", "dialogue", "dialog", "chat")  # names that also mean other things

_X, _Y = "Name a prime.", "Seven."
_TURNS = [{"role": "user", "content": _X}, {"role": "assistant", "content": _Y}]

DIALECTS: tuple[Dialect, ...] = (
    Preference(
        "chosen",
        "rejected",
        seen_in="preference sets: TRL, UltraFeedback, hh-rlhf",
        example={"prompt": _X, "chosen": _Y, "rejected": "Nine."},
    ),
    Preference(
        "preferred_output",
        "non_preferred_output",
        ("input",),
        seen_in="OpenAI preference tuning",
        example={
            "input": {"messages": _TURNS[:1]},
            "preferred_output": _TURNS[1:],
            "non_preferred_output": [{"role": "assistant", "content": "Nine."}],
        },
    ),
    Preference(
        "response_j",
        "response_k",
        seen_in="stack-exchange-paired",
        example={"question": _X, "response_j": _Y, "response_k": "Nine."},
    ),
    TwoFields(
        "prompt",
        ("completion", "response", "output", "answer", "generation"),
        seen_in="TRL, OpenAI completions, GPT4All, HelpSteer",
        example={"prompt": _X, "completion": _Y},
    ),
    TwoFields(
        "instruction",
        ("response", "output", "answer", "completion", "target", "generation"),
        seen_in="Alpaca, Dolly, LaMini, LLaMA-Factory",
        example={"instruction": "Name a", "input": "prime.", "output": _Y},
    ),
    Instances(
        seen_in="self-instruct, unnatural-instructions",
        example={"instruction": "Name a", "instances": [{"input": "prime.", "output": _Y}]},
    ),
    Conversation(
        CONVERSATIONS,
        seen_in="OpenAI, TRL, ShareGPT, LIMA",
        example={"messages": [{"role": "system", "content": "Be brief."}, *_TURNS]},
    ),
    Conversation(
        LISTS,
        sure=False,
        seen_in="WildChat, LMSYS-Chat, Capybara",
        example={"conversation": [{"input": _X, "output": _Y}]},
    ),
    Conversation(
        ("data", "contents"),
        sure=False,
        exchanges=False,
        seen_in="UltraChat, Gemini",
        example={"data": [_X, _Y]},
    ),
    TwoFields(
        "question",
        ("answer", "response", "output", "solution"),
        seen_in="OpenOrca, GSM8K, question-answer tables",
        example={"system_prompt": "Be brief.", "question": _X, "response": _Y},
    ),
    TwoFields(
        "query", ("response", "answer", "answers"), seen_in="MetaMathQA, xLAM", example={"query": _X, "response": _Y}
    ),
    TwoFields(
        "problem",
        ("solution", "answer", "response"),
        seen_in="MATH, NuminaMath, OSS-Instruct",
        example={"problem": _X, "solution": _Y},
    ),
    TwoFields("inputs", ("targets", "outputs", "output"), seen_in="FLAN, Aya", example={"inputs": _X, "targets": _Y}),
    TwoFields(
        "inputs_pretokenized",
        ("targets_pretokenized",),
        seen_in="P3, T0",
        example={"inputs_pretokenized": _X, "targets_pretokenized": _Y},
    ),
    TwoFields("message_1", ("message_2",), seen_in="CAMEL", example={"message_1": _X, "message_2": _Y}),
    TwoFields("user", ("assistant", "bot"), seen_in="chat tables", example={"user": _X, "assistant": _Y}),
    TwoFields("human", ("assistant", "bot", "gpt"), seen_in="chat tables", example={"human": _X, "assistant": _Y}),
    TwoFields("anchor", ("positive",), seen_in="sentence-transformers", example={"anchor": _X, "positive": _Y}),
    TwoFields(
        "input",
        ("output", "target", "response", "answer"),
        alone=True,
        seen_in="Firefly, input-output tables",
        example={"input": _X, "output": _Y},
    ),
    TwoFields(
        "context",
        ("response",),
        alone=True,
        seen_in="counselling and dialogue tables",
        example={"Context": _X, "Response": _Y},
    ),
)
