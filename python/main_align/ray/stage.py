"""ScoreStage: add scores to Arrow tables, one batch at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..data.fields import NO_FIELDS, Fields
from ..scoring.bank import Bank
from ..scoring.columns import COLUMNS
from ..scoring.score_file import column_titles, score_types
from ..scoring.scorer import Scorer

if TYPE_CHECKING:
    import pyarrow as pa


class ScoreStage:
    """Score batches in a pipeline of one's own. A worker makes one, which loads the model, and calls it with tables.

        dataset.map_batches(
            ScoreStage,
            fn_constructor_kwargs={"model": "smollm2", "bank": "bank.safetensors"},
            batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=8), num_gpus=1,
        )

    Every pair is compared with the bank, so the scores do not depend on the batches. `Bank.of(scorer.measure(pairs))`
    makes one, and main-align score leaves one in its output folder.

    Args:
        model: as for `Scorer`.
        bank: path of a bank of this model.
        fields: field names that override the recognised record formats. Default: none.
        options: other arguments of `Scorer`.

    Raises:
        UserError: the model or the bank cannot be loaded, or the bank is another model's.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        *,
        bank: str | os.PathLike[str],
        fields: Fields = NO_FIELDS,
        **options: Any,
    ) -> None:
        self.scorer, self.fields = Scorer(model, **options), fields
        self.bank = Bank.load(bank, self.scorer.device)
        self.bank.check(self.scorer.fingerprint)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table with a column for every score, count, status and reason, but no id.

        A column NAME is called main_NAME if the table has a column NAME, and main_main_NAME if it has both.

        Args:
            table: a pyarrow.Table of records. A row that cannot be scored has a status, a reason and nulls.
        """
        import pyarrow as pa

        rows = self.scorer.score(table, bank=self.bank, fields=self.fields)
        titles = column_titles(table.column_names, self.fields)
        for name, kind in score_types(COLUMNS).items():
            if name != "id":
                table = table.append_column(titles[name], pa.array([row[name] for row in rows], kind))
        return table
