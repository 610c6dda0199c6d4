"""Operands of linear_kl, the dense form people write, and ``check``, which compares with the float64 reference."""

from __future__ import annotations

import torch

from main_kernels import linear_kl, reference

from .contract import DEVICE, Matrices, assert_contract, exact, largest_logit, seeded

KINDS = ("forward", "reverse", "js")
NAMES = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
OPTIONS = [{"divergence": "forward"}, {"divergence": "reverse", "temperature": 0.7}, {"divergence": "js", "beta": 0.3}]
MASK = torch.tensor([True, False, True, True, False, True], device=DEVICE)


def logits(hidden, weight, temperature):
    """As people write them: the product in the input's dtype, everything after it in float32."""
    z = hidden.float() @ weight.float().T if hidden.dtype == torch.float16 else hidden @ weight.T
    return z.to(torch.promote_types(hidden.dtype, torch.float32)) / temperature


def dense(operands, *, divergence, beta=0.5, temperature=1.0, token_mask=None, reduction="mean"):
    student, teacher = (logits(*operands[i : i + 2], temperature).log_softmax(1) for i in (0, 2))
    mixture = torch.logaddexp(
        teacher + torch.tensor(beta).log(),
        student + torch.tensor(1 - beta).log(),
    )

    def kl(p, q):
        return (p.exp() * (p - q)).sum(1)

    rows = {
        "forward": kl(teacher, student),
        "reverse": kl(student, teacher),
        "js": beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture),
    }[divergence]
    counts = torch.ones(len(rows), dtype=torch.bool) if token_mask is None else token_mask
    rows = torch.where(counts, rows, 0)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counts.sum().clamp(min=1)}[reduction]


def draw(drawn: Matrices, teacher_dtype, teacher_width, *, masked="some", seed=1):
    student = drawn.draw()
    fields = {**drawn.__dict__, "dtype": teacher_dtype, "width": teacher_width, "seed": drawn.seed + seed}
    operands = (*student, *Matrices(**fields).draw())
    generator = seeded(drawn.seed + 2)
    mask = {
        "none": None,
        "some": torch.rand(drawn.rows, generator=generator) < 0.7,
        "all": torch.zeros(drawn.rows, dtype=torch.bool),
    }[masked]
    return operands, mask


def check(operands, mask, *, upstream="equal", frozen=(), **options):
    options["token_mask"] = mask
    names = [name for name in NAMES if name not in frozen]
    operands = [t.detach().requires_grad_(name in names) for name, t in zip(NAMES, operands, strict=True)]
    got = linear_kl(*operands, **options)
    leaves = exact(*operands)
    want, rough = reference.linear_kl(*leaves, **options), dense(operands, **options)
    temperature = options.get("temperature", 1.0)
    z = [reference.logits(*leaves[i : i + 2], temperature=temperature) for i in (0, 2)]
    largest = max(map(largest_logit, z))
    rows = len(operands[0]) if options.get("reduction") == "sum" else 1
    assert got.dtype == (torch.float64 if torch.float64 in {t.dtype for t in operands} else torch.float32)
    assert_contract("value", got, rough, want, largest * rows)

    generator = seeded(5)
    up = torch.randn(want.shape, generator=generator) if upstream == "random" else torch.full(want.shape, -1 / 7)
    mine, true, theirs = (
        torch.autograd.grad(out, [t for t in some if t.requires_grad], up.to(out.dtype))
        for out, some in ((got, operands), (want, leaves), (rough, operands))
    )
    ratio = float((z[0].log_softmax(1) - z[1].log_softmax(1)).detach().abs().max())
    factor = float(up.abs().max()) / temperature * max(1.0, ratio)  # the largest entry of G, or near it
    partner = dict(zip(NAMES, (operands[1], operands[0], operands[3], operands[2]), strict=True))
    for name, g, r, t in zip(names, mine, theirs, true, strict=True):
        assert_contract(f"d_{name}", g, r, t, factor * float(partner[name].detach().abs().max()))


def leaves(rows=6, columns=11, widths=(5, 3), dtype=torch.float32, frozen=()):
    shapes = ((rows, widths[0]), (columns, widths[0]), (rows, widths[1]), (columns, widths[1]))
    return [
        torch.randn(shape, dtype=dtype, requires_grad=name not in frozen)
        for name, shape in zip(NAMES, shapes, strict=True)
    ]


def trained(operands):
    return [t for t in operands if t.requires_grad]
