"""Break the formulas one by one and check that the tests notice: python -m tests.kernels.mutations [word ...]

Each mutation is applied to a copy of the repository, the C++ rebuilt where it is in C++, and the quick kernel tests run
until one fails. A mutation that survives is a missing test; the exit status is then 1. With words, only mutations whose
file or text contains one of them. Not part of `make test`: the whole list takes about half an hour on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIKELY = (
    "token_logprobs",
    "sweep",
    "contrastive",
    "head_losses",
    "ops",
    "linear_kl",
    "consistency",
    "pooling",
    "information",
    "gaussians",
)
TESTS = [*(f"tests/kernels/test_{name}.py" for name in LIKELY), "tests/kernels"]  # those that notice most go first


class Mutation(NamedTuple):
    file: str
    old: str
    new: str


SCORE_BLOCK, ROWS, COLUMNS = (
    f"csrc/cpu/{name}" for name in ("score_block.h", "row_reductions.cpp", "column_reductions.cpp")
)
SIMD, LOSS_KERNEL = "csrc/cpu/simd.h", "csrc/cpu/row_loss.cpp"
SINGLE_EXP, SCORE_GRAD = "csrc/cpu/single_exp.cpp", "csrc/cpu/score_grad.cpp"
PLAIN, TILING = "main_kernels/backends/plain.py", "main_kernels/sweep/tiling.py"
CONTRASTIVE, LIKELIHOOD = "main_kernels/contrastive.py", "main_kernels/likelihood.py"
DIVERGENCE, POOL = "csrc/cpu/divergence.cpp", "csrc/cpu/pool.cpp"
CONSISTENCY, INFORMATION = "main_kernels/consistency.py", "main_kernels/information.py"
DISTILLATION = "main_kernels/distillation.py"
BACKWARD, PROBLEM = "main_kernels/sweep/backward.py", "main_kernels/sweep/problem.py"
ROW_LOSS = "main_kernels/sweep/row_loss.py"
OPERAND = "main_kernels/sweep/operand.py"

MUTATIONS = [
    # the C++ kernels: masks, running sums, tails
    Mutation(
        SCORE_BLOCK, "x[j] = select(columns[j] == row, fill, x[j]);", "x[j] = select(columns[j] != row, fill, x[j]);"
    ),
    Mutation(SCORE_BLOCK, "if (inside) x[target] = keep_target ? own : fill;", "if (inside) x[target] = own;"),
    Mutation(SCORE_BLOCK, "if (inside) x[target] = keep_target ? own : fill;", ""),
    Mutation(ROWS, "mask.rows || (!mask.keep_target && target >= j0", "mask.rows || (!mask.keep_target && target > j0"),
    Mutation("csrc/cpu/scores.h", "return rows || !keep_target;", "return rows;"),
    Mutation(PROBLEM, "Mask(None, None, False)", "None"),
    Mutation(
        SCORE_BLOCK, "const bool inside = target >= 0 && target < n;", "const bool inside = target > 0 && target < n;"
    ),
    Mutation(ROWS, "weighted = factor * (weighted + shift * total);", "weighted = factor * weighted;"),
    Mutation(ROWS, "          total *= factor;\n", ""),
    Mutation(ROWS, "sums.total[i] = total + poison;", "sums.total[i] = total;"),
    Mutation(ROWS, "sums.softplus[i] += softplus + poison;", "sums.softplus[i] += softplus;"),
    Mutation(ROWS, "sums.logits[i] += logits + poison;", "sums.logits[i] = logits + poison;"),
    Mutation(ROWS, "const float start = clamp(zero, sums.clip);", "const float start = zero;"),
    Mutation(ROWS, "exp_(clamp(s[j], sums.clip) - start)", "exp_(s[j] - start)"),
    Mutation(ROWS, "small[j] = e;", "small[j] = 0.f;"),
    Mutation(ROWS, "select(s[j] > 0.f, 1.f, e) / (1.f + e)", "1.f / (1.f + e)"),
    Mutation(ROWS, "sums.sigmoid[i] += sigmoid + poison;", "sums.sigmoid[i] += sigmoid;"),
    Mutation(ROWS, "count += s[j] > at_target ? 1 : 0;", "count += s[j] >= at_target ? 1 : 0;"),
    Mutation(ROWS, "const float zero = maximum > kNegInf ? maximum : 0.f;", "const float zero = maximum;"),
    Mutation(COLUMNS, "if (own >= 0 && own < n) s[i][own] = kNegInf;", ""),
    Mutation(COLUMNS, "total[j] *= std::exp(static_cast<double>(before) - top[j]);", ";"),
    Mutation(COLUMNS, "sums.logits[j0 + j] += logits[j];", "sums.logits[j0 + j] = logits[j];"),
    Mutation(COLUMNS, "poison[j] += select(s[i][j] == excluded, 0.f, s[i][j] * 0.f);", ""),
    Mutation(ROWS, "sum(clipped, n) * exp_(zero - clamp(zero, clip))", "sum(clipped, n)"),
    Mutation(ROWS, "/ select(x > 1.f, x, 1.f);", ";"),
    Mutation(ROWS, "select(e < low, low, select(e > high, high, e))", "select(e > high, high, e)"),
    # ... the single-exp kernels
    Mutation(SINGLE_EXP, "std::isnan(squares) ?", "false ?"),
    Mutation(SINGLE_EXP, "masked ? select(ids[j] == id, 0.f, weight) : weight", "weight"),
    Mutation(SINGLE_EXP, "masked ? select(ids[j] == id, kNegInf, s) : s", "s"),
    Mutation(SINGLE_EXP, "if (masked && ids[own] == id) {", "if (false) {"),
    Mutation(SINGLE_EXP, "masked ? select(ids[j] == id, 0.f, s) : s", "s"),
    Mutation(SINGLE_EXP, "logits[own] += s;", ""),
    Mutation(SINGLE_EXP, "sum_of_scores += s;", ""),
    Mutation(SINGLE_EXP, "masked ? select(columns[j] == id, 0.f, all) : all", "all"),
    Mutation(SINGLE_EXP, "weight + (of_row + of_column[j])", "weight + of_row"),
    Mutation(SINGLE_EXP, "exp_(terms.scale * at_target) + constant", "exp_(terms.scale * at_target)"),
    Mutation(
        SINGLE_EXP,
        "store(row + target, (own + terms.target_grad) * terms.scale);",
        "store(row + target, own * terms.scale);",
    ),
    Mutation(
        SINGLE_EXP,
        "(static_cast<double>(terms.target_grad) + masked_own) * at_target",
        "static_cast<double>(terms.target_grad) * at_target",
    ),
    Mutation(SINGLE_EXP, "run[own] += e;", ""),
    Mutation(SINGLE_EXP, "count += counted > at_target ? 1 : 0;", "count += counted >= at_target ? 1 : 0;"),
    Mutation(SINGLE_EXP, "} else if (ranked && at_target > column_target[own]) {", "} else if (ranked) {"),
    # ... the score gradient
    Mutation(SCORE_GRAD, "exp_((s[j] - ri) - ri_low) + ui", "exp_(s[j] - ri) + ui"),
    Mutation(SCORE_GRAD, "exp_((s[j] - ri) - ri_low) + ui", "exp_((s[j] - ri) - ri_low)"),
    Mutation(SCORE_GRAD, "exp_((s[j] - c[j]) - c_low[j])", "exp_((s[j] - c[j]) + c_low[j])"),
    Mutation(SCORE_GRAD, "g[j] += ei * sigmoid_(s[j]);", "g[j] += ei * sigmoid_(-s[j]);"),
    Mutation(SCORE_GRAD, "g = softplus_grad * sigmoid_(s);", "g = softplus_grad * sigmoid_(-s);"),
    Mutation(SCORE_GRAD, "if (masked) g = select(columns[j] == id, 0.f, g);", ""),
    Mutation(SCORE_GRAD, "s = select(s == kNegInf, 0.f, s);", ""),
    Mutation(SCORE_GRAD, "(mask.keep_target ? of_softplus : 0.f)", "of_softplus"),
    Mutation(SCORE_GRAD, "mask.rows && mask.columns[target] == id ? 0.f : of_softplus;", "of_softplus;"),
    Mutation(SCORE_GRAD, "g[j] += v[j];", ""),
    Mutation(SCORE_GRAD, "g[target - j0] += terms.target_grad[i];", "g[target - j0] -= terms.target_grad[i];"),
    Mutation(SCORE_GRAD, "mask.keep_target, 0.f);", "true, 0.f);"),
    Mutation(SCORE_BLOCK, "g[j] * map.scale * (1.f - t * t)", "g[j] * map.scale"),
    Mutation(SCORE_GRAD, "scale_grad[i] = against_slope / map.scale;", "scale_grad[i] = against_slope;"),
    Mutation(SCORE_GRAD, "g * (kind == Bias::uniform ? map.scale * x : s)", "g * s"),
    Mutation(SIMD, "q[l] += q[l] * u[r * kLanes + l] + u[r * kLanes + l];", "q[l] += u[r * kLanes + l];"),
    Mutation(SIMD, "return log_(w) + (q - (w - 1.f)) / w;", "return log_(w);"),
    Mutation(SIMD, "exp_(select(s < -87.f, 87.f, -s))", "exp_(-s)"),
    # ... the loss of a row
    Mutation(LOSS_KERNEL, "if (maximum > kNegInf) total *= std::exp(static_cast<double>(maximum) - top);", ""),
    Mutation(LOSS_KERNEL, "std::log(total + poison)", "std::log(total)"),
    Mutation(LOSS_KERNEL, "std::exp(zeros[j0 / kBlock] - lse)", "std::exp(zeros[0] - lse)"),
    Mutation(LOSS_KERNEL, "terms.row_lse_slope * sums.lse_high", "terms.row_lse_slope"),
    Mutation(LOSS_KERNEL, "if (has_target) store(raw + target, at_target);", ""),
    Mutation(LOSS_KERNEL, "if (has_target) g[target - j0] += d;", ""),
    Mutation(LOSS_KERNEL, "sums.lse_high == kNegInf ? 0.f : terms.target_grad", "terms.target_grad"),
    Mutation(LOSS_KERNEL, "mask.keep_target, 0.f);", "true, 0.f);"),
    # the same in torch
    Mutation(PLAIN, "return out & ~own if mask.keep_target else out | own", "return out & ~own"),
    Mutation(PLAIN, "return out & ~own if mask.keep_target else out | own", "return out"),
    Mutation(PLAIN, "sums.softplus.add_(_softplus(s).sum(1) + poison)", "sums.softplus.add_(_softplus(s).sum(1))"),
    Mutation(PLAIN, "sums.sigmoid.add_(s.sigmoid().sum(1) + poison)", "sums.sigmoid.add_(s.sigmoid().sum(1))"),
    Mutation(PLAIN, "(-s.abs()).exp().log1p()", "s.exp().log1p()"),
    Mutation(PLAIN, "sums.weighted + shift * sums.total", "sums.weighted"),
    Mutation(PLAIN, "g += s.sigmoid() * terms.softplus_grad[:, None]", "g += s.sigmoid()"),
    Mutation(PLAIN, "slope = raw.to(s.dtype) * score_map.scale if score_map.is_uniform else s", "slope = s"),
    Mutation(PLAIN, "g += terms.row_sum_grad[:, None]", "pass"),
    Mutation(PLAIN, "g += terms.column_sum_grad\n", "pass\n"),
    Mutation(PLAIN, ".sub_(r.low[:, None])", ""),
    Mutation(PLAIN, "g *= 1 - (s /", "g *= 1 + (s /"),
    # the walk, the plan, autograd
    Mutation(ROW_LOSS, "w * (eps - 1) if has_targets", "-w if has_targets"),
    Mutation(ROW_LOSS, "w * (2 * self.z_loss) if", "w * self.z_loss if"),
    Mutation(ROW_LOSS, "row_sum_grad=w * (-eps / columns) if eps else None", "row_sum_grad=None"),
    Mutation(ROW_LOSS, "(own - logits / columns)", "(own - logits)"),
    Mutation(ROW_LOSS, "self.z_loss * lse.high.square()", "self.z_loss * lse.high"),
    Mutation(PROBLEM, "return bound <= MAX_SCORE_BOUND", "return True"),
    Mutation(TILING, "<= MAX_SCORE_BOUND:", "<= 1e9:"),
    Mutation(TILING, "dot[columns] = pairs.sum(1)", "dot[: len(columns)] = pairs.sum(1)"),
    Mutation(TILING, "column_lse.reciprocal().mul_(column_grad)", "column_lse.reciprocal()"),
    Mutation(TILING, "else targets - left", "else targets"),
    Mutation(BACKWARD, "_Factors(over_power(loss_grad, query_power)", "_Factors(over_power(None, query_power)"),
    Mutation(BACKWARD, "over_power(loss_grad[:1] if is_scalar else None, key_power)", "over_power(None, key_power)"),
    Mutation(BACKWARD, "bool((loss_grad == loss_grad[:1]).all())", "True"),
    Mutation(BACKWARD, "query_grad.high.zero_()", "pass"),
    Mutation(PROBLEM, "ids.new_full((count,), unused_id)", "ids.new_full((count,), 0)"),
    Mutation(PROBLEM, "int(low) > limits.min and int(high) <= limits.max", "True"),
    Mutation(
        PROBLEM,
        "mask = None if mask is None else mask[rows]",
        "mask = None",
    ),
    Mutation(OPERAND, "first=rows.start == 0", "first=True"),
    Mutation(OPERAND, "else out[:, rows])", "else out[:, : len(block)])"),
    Mutation("main_kernels/sweep/plan.py", 'is_small or (device == "cpu" and not has_fast_bfloat16())', "is_small"),
    Mutation(
        "main_kernels/backends/cpu.py", "hidden.new_empty(segments, dtype=torch.float32)", "torch.empty(segments)"
    ),
    Mutation("main_kernels/amp.py", "return torch.get_autocast_dtype(kind)", "return tensor.dtype"),
    Mutation("main_kernels/amp.py", "return autocast(operand.detach()), operand", "return autocast(operand), None"),
    Mutation("main_kernels/sweep/products.py", "out[rows].add_(part)", "out[rows].copy_(part)"),
    Mutation("main_kernels/amp.py", "operand.dtype if source is None else source.dtype", "operand.dtype"),
    # two score matrices at once
    Mutation(DIVERGENCE, "(p - q) - norms.shift", "p - q"),
    Mutation(DIVERGENCE, "far = p * ratio + (q - p)", "far = p * ratio"),
    Mutation(DIVERGENCE, "factor * at.p * (at.ratio - kl)", "factor * at.p * at.ratio"),
    Mutation(DIVERGENCE, "factor * (at.q - at.p)", "factor * (at.p - at.q)"),
    Mutation(DIVERGENCE, "select(mostly_p, mixture.rest, mixture.beta)", "mixture.beta"),
    Mutation(DIVERGENCE, "q_exp * mixture.q_over_p", "q_exp"),
    Mutation(DIVERGENCE, "(p - ratio) - log_m", "p - log_m"),
    Mutation("main_kernels/sweep/divergence.py", "values_grad = values_grad.where(mask, 0)", "pass"),
    # pooling
    Mutation(POOL, "total *= shrink;", ""),
    Mutation(POOL, "for (int64_t j = 0; j < D; ++j) sum[j] *= shrink;", "for (int64_t j = 0; j < D; ++j) sum[j] *= 1;"),
    Mutation(POOL, "upstream[j] - radial * pooled[j]", "upstream[j]"),
    Mutation(POOL, "pooled[j] = mean + 0 * mean;", "pooled[j] = mean;"),
    # the objectives
    Mutation(CONSISTENCY, "(within - cross) * trace", "(within + cross) * trace"),
    Mutation(CONSISTENCY, "unit * (args.within - args.cross)", "unit * (args.cross - args.within)"),
    Mutation(CONSISTENCY, "c.T + sign * a", "c + sign * a"),
    Mutation(CONSISTENCY, "squares / (-4 * query.shape[0])", "squares / (-4 * query.shape[0] ** 2)"),
    Mutation(CONSISTENCY, "x.mul_(weights[rows, None]).add_(y)", "x.mul_(weights[rows, None])"),
    Mutation(DISTILLATION, "checks.inverse_temperature(temperature, student_hidden)", "1.0"),
    Mutation(DISTILLATION, "token_mask.sum().clamp(min=1)", "values.shape[0]"),
    Mutation(INFORMATION, "_log(rows * (rows - 1), others)", "_log(rows * rows, others)"),
    Mutation(INFORMATION, "(_log_mean_exp(others) - 1).exp()", "_log_mean_exp(others).exp()"),
    Mutation(INFORMATION, "return 1 + joint.mean() -", "return joint.mean() -"),
    Mutation(INFORMATION, "joint, others = joint - baseline, others - baseline", "others = others - baseline"),
    Mutation(INFORMATION, "others_softplus.mean() / (joint.shape[0] - 1)", "others_softplus.mean() / joint.shape[0]"),
    Mutation(INFORMATION, "+ (js - js.detach())", ""),
    Mutation(INFORMATION, "_log(loss.shape[0], loss) -", "-"),
    Mutation(INFORMATION, "torch.logaddexp(swept.row_nll(), torch.zeros_like(joint))", "swept.row_nll()"),
    Mutation(CONTRASTIVE, "label_smoothing * (swept.target - sums / entries)", "label_smoothing * (sums / entries)"),
    Mutation(CONTRASTIVE, "for x in (shared, own) if x is not None", "for x in (shared,) if x is not None"),
    Mutation(CONTRASTIVE, "for x in (shared, own) if x is not None", "for x in (own,) if x is not None"),
    Mutation(CONTRASTIVE, "count + 1 - _occurrences(pair_ids, pair_ids)", "count - _occurrences(pair_ids, pair_ids)"),
    Mutation(CONTRASTIVE, "_own_scores(query, own) * scale", "_own_scores(query, own)"),
    Mutation(CONTRASTIVE, "logit_bias.to(scale) / scale", "logit_bias.to(scale)"),
    Mutation(CONTRASTIVE, "keep_target=False,\n        row_lse=False", "row_lse=False"),
    Mutation(CONTRASTIVE, "- F.logsigmoid(swept.target)", "- F.logsigmoid(-swept.target)"),
    Mutation(CONTRASTIVE, "loss.sum() / torch.where(total == 0, 1, total)", "loss.mean()"),
    Mutation(CONTRASTIVE, "in_column - _occurrences(own, pair_ids) + (own == pair_ids)", "in_column"),
    Mutation(CONTRASTIVE, "0.5 * (entries.log() +", "0.5 * (2 * entries.log() +"),
    Mutation(CONTRASTIVE, "clamp(0.0, MAX_LOGIT_SCALE)", "clamp(max=MAX_LOGIT_SCALE)"),
    Mutation(LIKELIHOOD, "_ignoring(targets, token_weights == 0, ", "_ignoring(targets, token_weights != 0, "),
    Mutation(LIKELIHOOD, "counted.masked_fill(targets == ignore_index, 0)", "counted"),
    Mutation(LIKELIHOOD, "right=True) - 1", "right=False) - 1"),
    Mutation(LIKELIHOOD, "segment_ids.masked_fill(segment_ids >= segments, -1)", "segment_ids"),
    Mutation(LIKELIHOOD, "return sums[1:-1]", "return sums[:-2]"),
    Mutation(LIKELIHOOD, "-swept.row_nll(), swept.entropy", "-swept.row_nll(), -swept.entropy"),
]


def survives(mutation: Mutation, tests: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "out", "build", "results"))
        target = copy / mutation.file
        text = target.read_text()
        if text.count(mutation.old) < 1:
            raise SystemExit(f"{mutation.file}: no longer contains {mutation.old!r}")
        target.write_text(text.replace(mutation.old, mutation.new, 1))
        environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'python'}"}
        if mutation.file.startswith("csrc/"):
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=copy, env=environment, check=True, capture_output=True)
        command = [sys.executable, "-m", "pytest", "-xq", "-m", "not slow", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 0


def run(mutations: list[Mutation], tests: list[str]) -> int:
    words = sys.argv[1:]
    chosen = [m for m in mutations if not words or any(w in m.file or w in m.old for w in words)]
    survivors = 0
    for number, mutation in enumerate(chosen, 1):
        alive = survives(mutation, tests)
        survivors += alive
        verdict = "SURVIVES" if alive else "noticed "
        print(f"[{number}/{len(chosen)}] {verdict} {mutation.file}: {mutation.old!r} -> {mutation.new!r}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(run(MUTATIONS, TESTS))
