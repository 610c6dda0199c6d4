"""Breaks the training code in one place after the other and sees whether its tests notice:

    python -m tests.align.mutations [word ...]

What tests.kernels.mutations does for the kernels, whose machinery this is.
"""

from __future__ import annotations

import sys

from tests.kernels.mutations import Mutation, run

TESTS = [
    f"tests/align/training/test_{name}.py"
    for name in ("step", "scale", "loss", "dataset", "models", "settings", "evaluation")
]
HOME = "python/main_align/training/"
MIXIN, UPDATE, ACROSS, WRAPPED = (HOME + name + ".py" for name in ("mixin", "step", "distributed", "hooks"))
MONITOR, EVALUATION, PREPARATION = (HOME + name + ".py" for name in ("monitor", "evaluation", "prepare_data"))
COLLATOR, LOSS, PAIRS, ALPHA = (HOME + name + ".py" for name in ("collator", "loss", "dataset", "alpha"))

MUTATIONS = [
    Mutation(MIXIN, "gaps.sum() / update.pairs * world_size()", "gaps.mean()"),
    Mutation(MIXIN, "cached.terms[name] / update.micro_batches", "cached.terms[name]"),
    Mutation(MIXIN, "value * len(x) / update.pairs", "value / update.micro_batches"),
    Mutation(MIXIN, "restore_generators(update.cached.generators[update.position], self.args.device)", "pass"),
    Mutation(MIXIN, "heads.attach(self._base, self._head)", "pass"),
    Mutation(MIXIN, "update.position += 1", "update.position += 0"),
    Mutation(MIXIN, "checkpoint.read(folder, self._head, self._alpha)", "pass"),
    Mutation(
        MIXIN,
        "weights = token_loss_weights if model.training else torch.ones_like(token_loss_weights)",
        "weights = token_loss_weights",
    ),
    Mutation(PREPARATION, "sequences * self.reader.max_length", "self.reader.max_length"),
    Mutation(EVALUATION, "float(value) * len(x) / count", "float(value)"),
    Mutation(EVALUATION, "loss + added / count", "loss"),
    Mutation(MIXIN, "self._read_checkpoint(best)", "pass"),
    Mutation(MONITOR, "token_loss_weights > 0", "token_loss_weights >= 0"),
    Mutation(MONITOR, "value * count, count", "value"),
    Mutation(UPDATE, "share = torch.stack([1 - alpha, alpha])", "share = torch.stack([alpha, 1 - alpha])"),
    Mutation(UPDATE, "share = torch.where(present.all(0), share, present.to(share.dtype))", "pass"),
    Mutation(UPDATE, "each = share / self.tokens.clamp(min=1)", "each = share / self.tokens.sum(0).clamp(min=1)"),
    Mutation(
        UPDATE,
        "scale[X_GIVEN_Y] = terms.forward_weight, terms.reverse_weight",
        "scale[X_GIVEN_Y] = terms.reverse_weight, terms.forward_weight",
    ),
    Mutation(UPDATE, "torch.where(tokens.sum(1) > 0, (sums", "torch.where(tokens.sum(1) < 0, (sums"),
    Mutation(WRAPPED, "normalize=False)[0::2]", "normalize=False)[1::2]"),
    Mutation(WRAPPED, "x, y = pooled[0::2], pooled[1::2]", "y, x = pooled[0::2], pooled[1::2]"),
    Mutation(WRAPPED, "logits_to_keep=1", "logits_to_keep=0"),
    Mutation(WRAPPED, "return -(logp * factors.to(logp.dtype)).sum(), logp", "return -logp.mean(), logp"),
    Mutation(WRAPPED, "each = torch.where(by_token > 0, loss.detach() / by_token, 0)", "each = loss.detach()"),
    Mutation(COLLATOR, '"rows": where - 1', '"rows": where'),
    Mutation(COLLATOR, "columns = ((Y_GIVEN_X, X), (X_GIVEN_Y, Y))", "columns = ((Y_GIVEN_X, Y), (X_GIVEN_Y, X))"),
    Mutation(COLLATOR, "stop = layout.pooled[1]", "stop = layout.pooled[1] - 1"),
    Mutation(COLLATOR, 'ending = [1 in pair["y_mask"]]', "ending = [1]"),
    Mutation(LOSS, "temperature=tau, pair_ids=pair_ids)\n        if", "temperature=tau)\n        if"),
    Mutation(LOSS, 'terms["intentional"] = -mutual', 'terms["intentional"] = mutual'),
    Mutation(LOSS, "-logp.sum() / tokens.sum().clamp(min=1)", "-(logp / tokens).mean()"),
    Mutation(LOSS, "(tokens_x + tokens_y).clamp(min=1)", "tokens_y.clamp(min=1)"),
    Mutation(PAIRS, "first.setdefault(key, row)", "row"),
    Mutation(PAIRS, 'problem = "" if fitted is not None else OVER_LENGTH', 'problem = ""'),
    Mutation(PAIRS, "(mask or [1] * len(pair.y))[: len(pair.y)]", "[1] * len(pair.y)"),
    Mutation(ALPHA, "ratio = seed / (seed + synthetic)", "ratio = synthetic / (seed + synthetic)"),
    Mutation(ALPHA, "moved = torch.where(means.isnan(), losses, moved)", "pass"),
    # these are noticed by the tests of several processes alone, which are slow: run them by hand with `-m slow`
    # across.py: `upstream[ctx.mine] * world_size()` -> `upstream[ctx.mine]`
    # evaluation.py: `{name: tensor[first] for name, tensor in whole.items()}` -> `whole`
    # mixin.py: `output.lm_loss * world_size()` -> `output.lm_loss`
]

if __name__ == "__main__":
    sys.exit(run(MUTATIONS, TESTS))
