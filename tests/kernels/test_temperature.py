"""A temperature is a number, or a 0-dimensional tensor, which is differentiated; anything else says so."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from main_kernels import (
    info_nce,
    linear_kl,
    mutual_information,
    mutual_information_bounds,
    pair_scores,
    row_logsumexp,
    sequence_logprobs,
    token_logprobs,
)

from .contract import DEVICE, error

TEMPERATURE_CALLS = {
    "token_logprobs": lambda q, k, t: token_logprobs(q, k, torch.arange(5), softcap=4.0, temperature=t),
    "token_stats": lambda q, k, t: token_logprobs(q, k, torch.arange(5), temperature=t, return_stats=True).entropy,
    "sequence_logprobs": lambda q, k, t: sequence_logprobs(
        q, k, torch.arange(5), torch.tensor([0, 2, 5]), temperature=t
    ),
    "info_nce": lambda q, k, t: info_nce(q, k, temperature=t, direction="query"),
    "pair_scores": lambda q, k, t: pair_scores(q, k, temperature=t).pmi,
    "row_logsumexp": lambda q, k, t: row_logsumexp(q, k, temperature=t),
    "infonce": lambda q, k, t: mutual_information(q, k, temperature=t),
    "club": lambda q, k, t: mutual_information(q, k, temperature=t, estimator="club"),
    "bounds": lambda q, k, t: mutual_information_bounds(q, k, temperature=t)["dv"],
    "linear_kl": lambda q, k, t: linear_kl(q, k, k, q, divergence="js", temperature=t, reduction="none"),
}


@pytest.mark.parametrize("name", TEMPERATURE_CALLS)
def test_a_temperature_tensor_is_differentiated(name):
    query, key = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(TEMPERATURE_CALLS[name], (query, key, temperature))


@pytest.mark.parametrize("name", TEMPERATURE_CALLS)
def test_a_temperature_tensor_equals_a_number(backend, name):
    query, key = torch.randn(5, 3), torch.randn(5, 3)
    assert (
        error(TEMPERATURE_CALLS[name](query, key, torch.tensor(0.5)), TEMPERATURE_CALLS[name](query, key, 0.5)) < 1e-6
    )


@pytest.mark.parametrize("name", TEMPERATURE_CALLS)
def test_other_temperatures_are_refused(name):
    query, key = torch.randn(5, 3), torch.randn(5, 3)
    of_shapes = (
        (
            torch.ones(1),
            r"expected a number or a 0-dimensional floating tensor, one for all rows, got .* of shape \(1,\)",
        ),
        (torch.ones(5), r"shape \(5,\)"),
        (torch.tensor(1), "torch.int64"),
        (1e-310, "temperature: expected .*, got 1e-310"),
    )
    of_values = (  # on a device it is an assertion there, after which nothing runs
        (torch.tensor(0.0), "temperature: expected a positive number, got 0.0"),
        (torch.tensor(float("nan")), "temperature: expected .*, got nan"),
        (torch.tensor(1e-310, dtype=torch.float64), "temperature: expected .*, got 1e-310"),
    )
    for wrong, words in of_shapes + (of_values if DEVICE == "cpu" else ()):
        with pytest.raises(ValueError, match=words):
            TEMPERATURE_CALLS[name](query, key, wrong)


@pytest.mark.parametrize("name", [name for name in TEMPERATURE_CALLS if name != "club"])  # ordinary torch
def test_a_forward_mode_derivative_of_the_temperature_is_an_error(name):
    query, key = torch.randn(5, 3), torch.randn(5, 3)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda t: TEMPERATURE_CALLS[name](query, key, t), (torch.tensor(0.5),), (torch.tensor(1.0),))
