"""faults: what a compiled kernel must not be, from spills to an epilogue that no product hides."""

from __future__ import annotations

import re
from typing import Any

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program can have, by architecture."""
MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}
"""The instruction that matrix products must be made of."""

WALKS = (
    "fused_reduce",
    "softplus_reduce",
    "fused_score_grad",
    "two_sided_reduce",
    "exact_columns",
    "whole_score_grad",
)
"""The kernels that walk over tiles of scores and contain the product."""
PERSISTENT = (*WALKS, "row_loss", "divergence")
"""The kernels whose programs are as many as multiprocessors hold."""

EPILOGUE_LIMITS = (
    (r"reduce both b?float16 8192x", "two_sided_reduce", 1024, 0.5),
    (r"reduce both (ids|left out) b?float16 8192x", "two_sided_reduce", 1024, 0.6),
    (r"reduce ranks b?float16 8192x", "two_sided_reduce", 1024, 0.8),
    (r"reduce ranks ids b?float16 8192x", "two_sided_reduce", 1024, 1.0),
    (r"score_grad (both|(softplus|softplus bias)( others)?) b?float16 ", "whole_score_grad", 1024, 0.5),
    (r"score_grad both (ids|left out) b?float16 ", "whole_score_grad", 1024, 0.65),
    (r"reduce softplus b?float16 8192x", "softplus_reduce", 1024, 0.3),
    (r"reduce sigmoid bias (others|left out) b?float16 8192x", "softplus_reduce", 1024, 0.7),
    (r"score_grad softplus bias left out b?float16 ", "whole_score_grad", 1024, 0.6),
    (r"reduce (statistics|sums|bounds|both (bias|softcap)) b?float16 8192x", "fused_reduce", 1024, 1.4),
    (r"reduce rows others b?float16 8192x", "fused_reduce", 1024, 0.7),
    (r"score_grad both softcap b?float16 8192x", "fused_score_grad", 1024, 0.9),
    (r"reduce rows b?float16 8192x", "fused_reduce", 4096, 0.1),
)
"""(cases, kernel, width D, limit): the modelled cycles of the epilogue on sm_90 over those of the tile's products, at D
columns of the operands and full tensor rate."""
MULTIPLY_ADDS_PER_CYCLE = 2048
"""bfloat16 multiply-adds per cycle of a multiprocessor of sm_90."""

OPERAND_LIMITS = dict.fromkeys(("two_sided_reduce", "softplus_reduce", "exact_columns", "whole_score_grad"), 160)
"""Bytes per cycle that the products of a kernel may read from and write to shared memory at full tensor rate. A
multiprocessor does 128: cuBLAS's 128 x 256 needs as many, 128 x 128 needs 160, 128 x 64 needs 224. 128 x 256 would
leave one program per multiprocessor, whose epilogue nothing hides."""
LAST_OPERAND_LIMIT = 352
"""The same of all other kernels: 128 x 32, for all reductions at once."""

MEMORY_BYTES_PER_CYCLE = 3.0e12 / 132 / 1.7e9
"""A multiprocessor's share of the memory's bandwidth on an H100."""
ISSUE_LIMITS = (
    (r"chunk row_loss rows bfloat16", "row_loss", 2),
    (r"chunk score_grad (rows|both) bfloat16", "score_grad", 4),
    (r"chunk reduce both bfloat16", "reduce_both", 2),
    (r"divergence KL q bfloat16 bfloat16", "divergence", 4),
)
"""(cases, kernel, bytes): kernels over scores in memory that move so many bytes per score in their longest loop. On
sm_90 they may issue 1.1 times as many instructions as they have cycles for that."""

REGISTERS, WARPS = 1 << 16, 64
"""Registers and warps of a multiprocessor."""
SHARED_OF_MULTIPROCESSOR = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
"""Bytes of shared memory of a multiprocessor; each program takes 1 KB more than it asks for."""


def faults(row: dict[str, Any]) -> list[str]:
    """List the faults of a compiled kernel: spills, more shared memory than the device has, a product without the
    architecture's matrix instructions, or a tensor descriptor that the copy engine does not fetch."""
    arch, name = row["architecture"], row["kernel"]
    wrong = []
    if row["local"] or row["stack"]:
        wrong.append(f"{row['local']} accesses of local memory, {row['stack']} bytes of stack")
    if row["shared"] > SHARED_LIMIT[arch]:
        wrong.append(f"{row['shared']} bytes of shared memory")
    if name in (*WALKS, "target_scores") and not row[MATRIX[arch]]:
        wrong.append(f"no {MATRIX[arch]}")
    if name in WALKS and arch >= 90 and not row["UTMALDG"]:
        wrong.append("no UTMALDG")
    if "programs_planned" in row and programs_that_fit(row) < row["programs_planned"]:
        wrong.append(f"{programs_that_fit(row)} programs per multiprocessor, {row['programs_planned']} planned")
    return wrong + slow_products(row) + slow_epilogue(row) + slow_chunk(row)


def programs_that_fit(row: dict[str, Any]) -> int:
    """Return how many programs a multiprocessor can hold."""
    of_registers = REGISTERS // (-(-row["registers"] // 8) * 8 * 32 * row["num_warps"])
    of_shared = SHARED_OF_MULTIPROCESSOR[row["architecture"]] // (row["shared"] + 1024)
    return min(of_registers, of_shared, WARPS // row["num_warps"])


def slow_products(row: dict[str, Any]) -> list[str]:
    """List what slows the products of a walk on sm_90: operands that shared memory cannot supply, or a wait for each
    group of products before the next is issued."""
    if row["kernel"] not in WALKS or "product_columns" not in row:
        return []
    wrong = []
    if row["pending_products"] < 1:
        wrong.append("no products in flight while the next are issued")
    limit = OPERAND_LIMITS.get(row["kernel"], LAST_OPERAND_LIMIT)
    if operand_bytes(row) > limit:
        wrong.append(f"operands of {operand_bytes(row):.0f} bytes per cycle, more than {limit}")
    return wrong


def operand_bytes(row: dict[str, Any]) -> float:
    """Return the bytes per cycle that the products of a walk read from and write to shared memory at full tensor rate,
    16 columns of the operands at a time."""
    height, width = (int(size) for size in row["tile"].split("x")[:2])
    cycles = height * width * 16 / MULTIPLY_ADDS_PER_CYCLE
    columns = row["product_columns"]
    read = height / 64 * width / columns * (64 + columns)
    return 2 * 16 * (read + height + width) / cycles


def slow_chunk(row: dict[str, Any]) -> list[str]:
    """List what exceeds ISSUE_LIMITS."""
    wrong = []
    for cases, kernel, size in ISSUE_LIMITS:
        if (
            "issued" not in row
            or row["architecture"] != 90
            or row["kernel"] != kernel
            or not re.fullmatch(cases, row["case"])
        ):
            continue
        height, width = (int(size) for size in row["tile"].split("x"))
        allowed = 1.1 * height * width * size / MEMORY_BYTES_PER_CYCLE
        if row["issued"] > allowed:
            wrong.append(f"{row['issued']} instructions per scheduler, more than {allowed:.0f}")
    return wrong


def slow_epilogue(row: dict[str, Any]) -> list[str]:
    """List what exceeds EPILOGUE_LIMITS. Rows of older tables have no epilogue."""
    if "epilogue_cycles" not in row:
        return []
    wrong = []
    for cases, kernel, width, limit in EPILOGUE_LIMITS:
        if row["kernel"] != kernel or not re.match(cases, row["case"]):
            continue
        tile = [int(size) for size in row["tile"].split("x")]
        allowed = limit * tile[0] * tile[1] * width / MULTIPLY_ADDS_PER_CYCLE
        if row["epilogue_cycles"] > allowed:
            wrong.append(f"an epilogue of {row['epilogue_cycles']} cycles, more than {allowed:.0f}")
    # exact_columns runs for few tiles, and its ids spill if they wait in registers
    if row["epilogue_global_loads"] and row["kernel"] != "exact_columns":
        wrong.append(f"{row['epilogue_global_loads']} global loads after the products")
    return wrong
