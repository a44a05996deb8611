"""Write what ``predict`` returns to a CSV file."""

import csv
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from core.training.run_folder import run_folder
from core.writing import whole_file

__all__ = ["PredictionWriter"]


class PredictionWriter(Callback):
    """Collects the columns that ``predict_step`` returns and writes them as ``predictions.csv``, in data order.

    ``predict_step`` returns a dict of column name to a list with one entry for each sample. Several processes' rows are
    put together by the first one. The file appears only when it is complete.

    Args:
        path: where to write; by default ``predictions.csv`` in the run folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dl_idx: int = 0
    ) -> None:
        """Keep the rows of one batch."""
        values = zip(*outputs.values(), strict=True)
        self.rows += [dict(zip(outputs, row, strict=True)) for row in values]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the rows of all processes and write them."""
        rows, self.rows = self._gathered(trainer.world_size), []
        if not trainer.is_global_zero or not rows:
            return
        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        path = Path(self.path) if self.path else folder / "predictions.csv"
        with whole_file(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        rank_zero_info(f"Wrote {len(rows)} predictions to {path}")

    def _gathered(self, processes: int) -> list[dict[str, Any]]:
        if processes == 1:
            return self.rows
        parts: list[Sequence[dict[str, Any]]] = [[] for _ in range(processes)]
        dist.all_gather_object(parts, self.rows)
        dealt = chain.from_iterable(zip_longest(*parts))  # sample i went to process i mod P
        return [row for row in dealt if row is not None]
