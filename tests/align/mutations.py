"""Mutations of the training code: break one place at a time and check that its tests fail.

    python -m tests.align.mutations [word ...]

The machinery is that of tests.kernels.mutations.
"""

from __future__ import annotations

import sys

from tests.kernels.mutations import Mutation, run

LIKELY = ("test_step.py", "test_scale.py", "test_loss.py", "dataset", "model", "metrics", "trainer")
TESTS = [*(f"tests/align/training/{name}" for name in LIKELY), "tests/align/data/test_components.py"]
HOME = "python/main_align/training/"
LOSS, OBJECTIVE, MICRO_BATCH, STEP, WEIGHT = (
    f"{HOME}{name}.py" for name in ("loss", "objective", "micro_batch", "step", "synthetic_weight")
)
COLLATOR, PREPARATION, READER = (f"{HOME}dataset/{name}.py" for name in ("collator", "preparation", "reader"))
EVALUATION, MONITOR = (f"{HOME}metrics/{name}.py" for name in ("evaluation", "monitor"))
COMPONENTS = "python/main_align/data/components.py"
HOOKS = f"{HOME}model/hooks.py"
CHECKPOINTS, MIXIN = (f"{HOME}trainer/{name}.py" for name in ("checkpoint_mixin", "mixin"))

MUTATIONS = [
    Mutation(OBJECTIVE, "self.value * self.pairs / step_pairs", "self.value"),
    Mutation(OBJECTIVE, "alignment.weight(name) * value", "1.0 * value"),
    Mutation(OBJECTIVE, "self.cached_gradient - self.cached_gradient.detach()", "self.cached_gradient"),
    Mutation(OBJECTIVE, "return contribution.detach() + self", "return contribution + self"),
    Mutation(MIXIN, "set_rng_state(step.gradient_cache.rng_states[step.position], self.args.device)", "pass"),
    Mutation(MIXIN, "projection.attach(self._base, self._head)", "pass"),
    Mutation(MIXIN, "step.position += 1", "step.position += 0"),
    Mutation(
        CHECKPOINTS, "checkpoint.read(folder, self._head, self._synthetic_weight, restores_heads=restores_heads)", "0"
    ),
    Mutation(
        MIXIN,
        "weights = token_loss_weights if training else torch.ones_like(token_loss_weights)",
        "weights = token_loss_weights",
    ),
    Mutation(PREPARATION, "sequences * self.reader.max_length", "self.reader.max_length"),
    Mutation(EVALUATION, "float(value) * len(x) / count", "float(value)"),
    Mutation(EVALUATION, "float(loss) + added / count", "float(loss)"),
    Mutation(CHECKPOINTS, "self._read_checkpoint(best)", "pass"),
    Mutation(MONITOR, "token_loss_weights > 0", "token_loss_weights >= 0"),
    Mutation(MONITOR, "value * contrast.pairs, contrast.pairs", "value"),
    Mutation(MONITOR, "per_step = float(step.position == 0)", "per_step = 1.0"),
    Mutation(
        STEP,
        "torch.stack([1 - synthetic_weight, synthetic_weight])",
        "torch.stack([synthetic_weight, 1 - synthetic_weight])",
    ),
    Mutation(STEP, "by_kind = torch.where(present.all(0), by_kind, present.to(by_kind.dtype))", "pass"),
    Mutation(
        STEP, "per_token = by_kind / self.tokens.clamp(min=1)", "per_token = by_kind / self.tokens.sum(0).clamp(min=1)"
    ),
    Mutation(STEP, "fill_(alignment.reverse_weight)", "fill_(1.0)"),
    Mutation(STEP, "fill_(alignment.forward_weight)", "fill_(1.0)"),
    Mutation(STEP, "torch.where(tokens.sum(1) > 0, (sums", "torch.where(tokens.sum(1) < 0, (sums"),
    Mutation(HOOKS, "normalize=False)[0::2]", "normalize=False)[1::2]"),
    Mutation(HOOKS, "x, y = pooled[0::2], pooled[1::2]", "y, x = pooled[0::2], pooled[1::2]"),
    Mutation(HOOKS, "logits_to_keep=1", "logits_to_keep=0"),
    Mutation(HOOKS, "-(logp * factors.to(logp.dtype)).sum(), logp", "-logp.mean(), logp"),
    Mutation(HOOKS, "nll = torch.where(token_factors > 0, weighted / token_factors, 0)", "nll = weighted"),
    Mutation(COLLATOR, '"rows": where - 1', '"rows": where'),
    Mutation(
        COLLATOR,
        "(LogpColumn.Y_GIVEN_X, LogpColumn.X)",
        "(LogpColumn.Y_GIVEN_X, LogpColumn.Y)",
    ),
    Mutation(COLLATOR, "stop = sequence.pool_span[1]", "stop = sequence.pool_span[1] - 1"),
    Mutation(COLLATOR, 'ending = [1 in pair["y_mask"]]', "ending = [1]"),
    Mutation(LOSS, "temperature=tau, pair_ids=pair_ids)\n        if", "temperature=tau)\n        if"),
    Mutation(LOSS, 'terms["intentional"] = -mutual', 'terms["intentional"] = mutual'),
    Mutation(LOSS, "-logp.sum() / tokens.sum().clamp(min=1)", "-(logp / tokens).mean()"),
    Mutation(LOSS, "(tokens_x + tokens_y).clamp(min=1)", "tokens_y.clamp(min=1)"),
    Mutation(COMPONENTS, "first.setdefault(key, row)", "row"),
    Mutation(READER, 'problem = "" if fitted is not None else OVER_LENGTH', 'problem = ""'),
    Mutation(READER, "(mask or [1] * len(pair.y))[: len(pair.y)]", "[1] * len(pair.y)"),
    Mutation(WEIGHT, "ratio = seed / (seed + synthetic)", "ratio = synthetic / (seed + synthetic)"),
    Mutation(WEIGHT, "moved = torch.where(means.isnan(), losses, moved)", "pass"),
    # only the slow tests of several processes notice these: apply one by hand and run `pytest -m slow`
    # distributed.py: `upstream[ctx.rank_slice] * world_size()` -> `upstream[ctx.rank_slice]`
    # evaluation.py: `{name: tensor[first] for name, tensor in whole.items()}` -> `whole`
    # objective.py: `outputs.lm_loss * world_size()` -> `outputs.lm_loss`
    # micro_batch.py: `TermValue(gaps.mean(), count * world_size())` -> `TermValue(gaps.mean(), count)`
]

if __name__ == "__main__":
    sys.exit(run(MUTATIONS, TESTS))
