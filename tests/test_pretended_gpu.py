"""A few tests as on a GPU, in a process with a pretended one. `make pretend` runs many more."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .pretended_gpu.build import why_not

STEP, SCORER = "tests/align/training/test_step.py", "tests/align/scoring/test_scorer.py"
TEMPERATURE = "tests/kernels/test_temperature.py"
FEW = [
    "tests/pretended_gpu",
    "tests/kernels/test_head_losses.py::test_no_scored_token_gives_zero_in_the_graph",
    f"{TEMPERATURE}::test_a_temperature_tensor_equals_a_number",
    f"{TEMPERATURE}::test_a_temperature_tensor_is_differentiated[info_nce]",
    f"{TEMPERATURE}::test_a_temperature_tensor_is_differentiated[linear_kl]",
    f"{TEMPERATURE}::test_other_temperatures_are_refused",
    "tests/align/models/test_host_copies.py",
    "tests/align/models/test_packed_attention.py",
    "tests/align/scoring/test_bank.py",
    f"{SCORER}::test_scores_match_four_naive_passes[llama]",
    f"{SCORER}::test_a_micro_batch_is_queued_without_waiting_for_the_gpu[llama-bfloat16]",
    f"{SCORER}::test_a_micro_batch_is_queued_without_waiting_for_the_gpu[llama-float32]",
    f"{STEP}::test_loss_and_gradients_match_the_definitions[everything]",
    f"{STEP}::test_the_head_runs_in_the_dtype_of_autocast[True]",
]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_few_tests_pass_as_on_a_gpu():
    command = [sys.executable, "-m", "tests.pretended_gpu", "-q", *FEW]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
