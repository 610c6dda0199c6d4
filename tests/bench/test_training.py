"""The suite `training`: its floor, its losses and its row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from main_align.models.packed_attention import packed_forward, packing_arguments, use_packed_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from bench import training
from bench.products import Pack, Products
from bench.records import read_rows
from bench.report import tables

from ..align.tiny_models import cpu_only, tiny_model, tiny_model_folder

# A query head has its own products with the keys that it shares; torch 2.11 counts one key head per query head alone.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(
        q, q[:2] + k[2:], q[:2] + v[2:]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: (
        sdpa_backward_flop(grad, q, q[:2] + k[2:], q[:2] + v[2:])
    ),
}


def flops(run) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        run()
    return counter.get_total_flops()


@cpu_only("the counter knows CUDA's attention by another name")
def test_the_floor_has_exactly_the_products_of_forward_and_backward():
    model = tiny_model().train()
    use_packed_attention(model)
    lengths = [9, 30, 17]
    ids, packing = torch.randint(5, 250, (1, sum(lengths))), packing_arguments(lengths, "cpu")

    def step() -> None:
        with packed_forward():
            model.base_model(input_ids=ids, **packing).last_hidden_state.square().mean().backward()

    products = Products(model, [Pack(lengths, scored=40)], torch.float32, backward=True)
    head = 40 * 2 * model.get_output_embeddings().weight.numel()
    rotary = flops(lambda: model.base_model.rotary_emb(torch.zeros(1), packing["position_ids"]))
    assert flops(products.run) == flops(step) - rotary + 3 * head
    half = Products(model, [Pack(lengths, scored=40)], torch.bfloat16, backward=True, attention_dtype=torch.float32)
    assert (half.qkv.dtype, half.head.dtype) == (torch.float32, torch.bfloat16)
    assert flops(half.run) == flops(products.run)


def test_a_peer_with_another_loss_differs():
    assert training.differing({"ours": 1.0, "trl": 1.1}, 0.02) == ["trl"]
    assert training.differing({"ours": 1.0, "trl": 1.01}, 0.02) == []
    assert training.differing({"trl": 1.0}, 0.02) == ["trl"]
    assert training.differing({"ours": 1.0, "trl": float("nan")}, 0.02) == ["trl"]


@pytest.mark.slow
def test_a_step_of_ours_has_the_loss_of_trl_and_its_row_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "peak_in_a_process", lambda words, name: 1.0)
    model, out = tiny_model_folder(tmp_path), tmp_path / "training.json"
    words = ["--model", str(model), "--pairs", "3", "--rounds", "2", "--dtype", "float32", "-o", str(out)]
    assert training.main(words) == 0
    (row,) = read_rows(out)
    assert row["differing"] == []
    assert {name for name, run in row["runs"].items() if "missing" not in run} >= {
        *training.FLOORS,
        *training.OURS,
        "ours_again",
        "trl",
    }
    text = tables.markdown([row])
    assert "| `step` | pairs=3, pairs.jsonl | float32 |" in text
    assert "| products |" in text
    if not torch.cuda.is_available():
        assert "- trl_liger: needs a GPU (step)" in text
        assert "- trl_padding_free: needs a GPU (step)" in text


def test_no_row_begins_after_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert training.main(["--model", str(tiny_model_folder(tmp_path)), "--minutes", "0"]) == 0
    assert "out of time: 1 rows are not measured" in capsys.readouterr().err
