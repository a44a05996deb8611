"""Cross-validation by the command: one run for each fold, and the mean and spread of what they reach."""

import statistics
from collections.abc import Callable
from typing import Any

from core.io.checkpoint import TaskCheckpoint
from core.training.callbacks import saved_checkpoint

__all__ = ["SeveralFolds", "run_folds"]


class SeveralFolds(Exception):  # noqa: N818
    """Raised by the command when its words ask for a run on each of several folds.

    Attributes:
        count: number of folds.
    """

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} folds")
        self.count = count


def run_folds(words: list[str], count: int, run: Callable[[list[str]], Any]) -> None:
    """Train once for each fold, and print a table of the validation metrics of the best checkpoints.

    Args:
        words: words of the command, from the verb on.
        count: number of folds.
        run: function that runs the command with words, and returns it.
    """
    measured: list[dict[str, float]] = []
    for fold in range(count):
        print(f"\nFold {fold} of {count}")
        command = run([*words, "--data.fold", str(fold)])
        checkpoint = saved_checkpoint(command.trainer)
        if checkpoint is not None:  # trial runs, and runs without checkpoints, leave nothing to compare
            measured.append(TaskCheckpoint.read(checkpoint).metrics)

    if command.trainer.is_global_zero and len(measured) == count and all(measured):
        print(folds_table(measured))


def folds_table(measured: list[dict[str, float]]) -> str:
    """Return a table with a row for each metric: mean, standard deviation over the folds, and each fold.

    Args:
        measured: metrics by name, for each fold.
    """
    names = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    width = max(map(len, names))
    lines = [f"\n{'metric':{width}}  {'mean':>8}  {'std':>8}  folds 0 to {len(measured) - 1}"]
    for name in names:
        values = [metrics[name] for metrics in measured]
        each = " ".join(f"{value:.4g}" for value in values)
        lines.append(f"{name:{width}}  {statistics.mean(values):8.4g}  {statistics.stdev(values):8.4g}  {each}")
    return "\n".join(lines)
