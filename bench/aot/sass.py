"""epilogue_of, issued_by and pending_products: what machine code of sm_90 says of a kernel's speed.

``epilogue_of`` has the instructions between the products of a tile and the next tile, and an in-order model of their
cycles. Stall counts and scoreboards come from the control words, pipe rates and latencies from the tables below. The
latencies are guesses and a device may schedule warps better, so trust ratios between kernels, not cycles. Four warps of
a program run one per scheduler; with eight, two share its pipes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

LATENCY = {
    "MUFU": 22, "SHFL": 24, "LDS": 30, "STS": 12, "LDG": 500, "STG": 12, "F2F": 20, "S2R": 30, "LDC": 35, "SYNCS": 30,
    "STSM": 16, "LDSM": 33, "ULDC": 20, "R2UR": 12, "I2F": 20, "VOTEU": 12, "REDUX": 30, "CS2R": 10,
}  # fmt: skip
MEMORY = {"SHFL", "LDS", "STS", "STSM", "LDSM", "LDG", "STG"}
INTEGER = {
    "FMNMX", "FSEL", "FSETP", "ISETP", "LOP3", "SEL", "PRMT", "SHF", "F2FP", "LEA", "IADD3", "MOV", "P2R", "VIADD",
    "VIMNMX",
}  # fmt: skip
FLOAT = {"FADD", "FMUL", "FFMA", "IMAD"}
BARRIER_CYCLES = 30
RARE_BLOCK = 64
"""A forward branch over at least this many instructions skips work that few tiles need."""

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_FIRST = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);\s+/\* 0x[0-9a-f]{16} \*/")
_SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb\d, (0x[0-9a-f]+)")
_TARGET = re.compile(r"BRA.*`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Epilogue:
    """Instructions of one warp between the products of a tile and the next tile, and their modelled cycles."""

    instructions: int
    barriers: int
    global_loads: int
    cycles: int


def epilogue_of(code: str, num_warps: int) -> Epilogue | None:
    """Return the epilogue of a persistent kernel, None if its loops are not recognised.

    Args:
        code: output of ``nvdisasm -c -hex``.
        num_warps: warps of a program.
    """
    instructions, labels = _parse(code)
    products = [at for at, (text, _) in enumerate(instructions) if "HGMMA" in text]
    branches = [(at, labels[m[1]]) for at, (text, _) in enumerate(instructions) if (m := _TARGET.search(text))]
    loops = [(at, to) for at, to in branches if to < at]
    inner = [(at, to) for at, to in loops if products and to < products[0] and products[-1] < at < products[-1] + 60]
    outer = [at for at, to in loops if inner and to < inner[0][1] and at > inner[0][0]]
    if not outer:
        return None
    skips = {at: to for at, to in branches if to - at >= RARE_BLOCK and instructions[at][0].startswith("@")}
    path, at = [], inner[0][0] + 1
    while at <= max(outer):
        path.append(instructions[at])
        at = skips[at] if skips.get(at, max(outer) + 1) <= max(outer) else at + 1
    return _run(path, max(num_warps // 4, 1))


def issued_by(code: str, num_warps: int) -> int:
    """Return the instructions that a scheduler issues for a program in its longest loop, or in all of a program without
    loops. Blocks that few tiles need do not count.

    Args:
        code: output of ``nvdisasm -c -hex``.
        num_warps: warps of a program.
    """
    instructions, labels = _parse(code)
    branches = [(at, labels[m[1]]) for at, (text, _) in enumerate(instructions) if (m := _TARGET.search(text))]
    end = max(at for at, (text, _) in enumerate(instructions) if "EXIT" in text)
    loops = [(to, at) for at, to in branches if to < at]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    skips = {at: to for at, to in branches if to - at >= RARE_BLOCK and instructions[at][0].startswith("@")}
    longest = 0
    for first, last in inner or [(0, end)]:
        count, at = 0, first
        while at <= last:
            count += 1
            at = skips[at] if skips.get(at, last + 1) <= last else at + 1
        longest = max(longest, count)
    return longest * num_warps // 4


def pending_products(code: str) -> int:
    """Return how many groups of products a warp leaves unfinished while it goes on to load and issue the next.

    Args:
        code: output of ``nvdisasm -c -hex``.
    """
    return max((int(depth, 16) for depth in _WAIT.findall(code)), default=0)


def _parse(code: str) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Return the instructions with their control words, and the index of each label."""
    texts: list[str] = []
    words: list[int] = []
    labels: dict[str, int] = {}
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(texts)
        elif first := _FIRST.match(line):
            texts.append(first[1])
        elif (second := _SECOND.match(line)) and len(words) < len(texts):
            words.append(int(second[1], 16))
    return list(zip(texts, words, strict=True)), labels


def _run(path: list[tuple[str, int]], sharing: int) -> Epilogue:
    cycle, ready, pipes, counts = 0, [0] * 6, Counter[str](), Counter[str]()
    for text, word in path:
        name = re.sub(r"^@!?U?P\d\s+", "", text).split()[0].split(".")[0]
        control = word >> 41
        stall, writes, reads, waits = control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63
        for barrier in range(6):
            if waits >> barrier & 1:
                cycle = max(cycle, ready[barrier])
        pipe, busy = _pipe(name)
        if pipe:
            cycle = max(cycle, pipes[pipe])
            pipes[pipe] = cycle + busy * sharing
        if name == "BAR":
            cycle += BARRIER_CYCLES
        if writes != 7:
            ready[writes] = max(ready[writes], cycle + LATENCY.get(name, 6))
        if reads != 7:
            ready[reads] = max(ready[reads], cycle + (10 if name in MEMORY else 6))
        cycle += max(stall, 1)
        counts[name] += 1
    return Epilogue(sum(counts.values()), counts["BAR"], counts["LDG"], cycle)


def _pipe(name: str) -> tuple[str, int]:
    if name == "MUFU":
        return "special", 8
    if name in MEMORY:
        return "memory", 8 if name in ("LDG", "STG") else 4
    if name in INTEGER:
        return "integer", 2
    return ("float", 1) if name in FLOAT else ("", 0)
