"""Tensors of which there is only a shape (meta, FakeTensorMode) go through every function, those of which there is only
a part (DTensor) through none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.fx.experimental.proxy_tensor import make_fx

from main_kernels import linear_cross_entropy, pair_scores, segment_pool, sequence_logprobs

from .calls import PUBLIC, ids, listed, offsets, values_and_gradients
from .contract import DEVICE


def outline(tensors):
    return [None if t is None else (t.shape, t.dtype) for t in tensors]


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_meta_tensors_give_the_shapes(name, dtype):
    def operands(device):
        return [torch.ones(12, 8, dtype=dtype, device=device, requires_grad=True) for _ in range(2)]

    want = outline(values_and_gradients(PUBLIC[name], *operands(DEVICE)))
    on_meta = values_and_gradients(PUBLIC[name], *operands("meta"))
    assert outline(on_meta) == want
    assert {t.device.type for t in on_meta if t is not None} == {"meta"}
    with FakeTensorMode():
        fake = values_and_gradients(PUBLIC[name], *operands(DEVICE))
    assert outline(fake) == want
    assert {t.device.type for t in fake if t is not None} == {DEVICE}


@pytest.mark.parametrize(
    "name", ["info_nce", "mutual_information_infonce", "mutual_information_bounds", "token_logprobs_stats"]
)
def test_one_compiled_graph_serves_every_batch_size(name):
    """math.log and the arguments of nan_to_num would be constants of the graph."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(PUBLIC[name], fullgraph=True, dynamic=True, backend=keep)
    for rows in (12, 17):
        query, key = torch.randn(2, rows, 8)
        for eager, graph in zip(listed(PUBLIC[name](query, key)), listed(compiled(query, key)), strict=True):
            torch.testing.assert_close(eager, graph)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["info_nce", "sigmoid_loss", "pair_scores", "token_logprobs_stats"])
def test_an_exported_graph_has_no_bound_on_the_rows(name):
    """A chunk size of the plan in the graph would be one."""

    class Module(torch.nn.Module):
        def forward(self, query, key):
            return listed(PUBLIC[name](query, key))

    query, key = torch.randn(2, 12, 8)
    rows = torch.export.Dim("rows", max=1 << 22)
    shapes = {"query": {0: rows}, "key": {0: rows}}
    graph = torch.export.export(Module(), (query, key), dynamic_shapes=shapes, strict=True).module()
    query, key = torch.randn(2, 17, 8)
    for exported, eager in zip(graph(query, key), listed(PUBLIC[name](query, key)), strict=True):
        torch.testing.assert_close(exported, eager)


def test_make_fx_traces_calls_that_check_values():
    """Its default is to trace real tensors, whose values it hides."""
    query, key, targets = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6).flip(0)

    def call(query, key, targets, temperature, cu_seqlens):
        scores = pair_scores(query, key, targets=targets, temperature=temperature)
        return scores.pmi.sum() + sequence_logprobs(query, key, targets, cu_seqlens).sum()

    arguments = query, key, targets, torch.tensor(0.5), torch.tensor([0, 2, 6])
    graph = make_fx(call)(*arguments)
    torch.testing.assert_close(graph(*arguments), call(*arguments))


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or DEVICE != "cpu", reason="a process group of CPUs")
def test_sharded_tensors_are_refused_with_the_remedy(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    sharded = distribute_tensor(weight, mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"weight: expected .*, got a DTensor: pass weight\.full_tensor\(\)"):
        linear_cross_entropy(hidden, sharded, ids(hidden))
    whole = linear_cross_entropy(hidden, sharded.full_tensor(), ids(hidden))
    assert torch.equal(whole, linear_cross_entropy(hidden, weight, ids(hidden)))
    with pytest.raises(ValueError, match=r"cu_seqlens: expected .*, got a DTensor"):
        segment_pool(hidden, distribute_tensor(offsets(hidden), mesh, [Shard(0)]))
    for name, call in PUBLIC.items():
        query = distribute_tensor(torch.randn(12, 8), mesh, [Shard(0)])
        with pytest.raises(ValueError, match="got a DTensor"):
            call(torch.randn(12, 8), query) if "pool" not in name else segment_pool(query, offsets(hidden))
