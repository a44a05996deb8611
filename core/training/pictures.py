"""Pictures that a run leaves: learning curves, confusion matrices, sheets of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from core.figures import new_figure
from core.training.drawing import draw_figure, finish_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LearningCurves", "confusion_figure", "image_sheet"]


def confusion_figure(counts: Tensor, classes: list[str]) -> Figure:
    """Confusion matrix as a picture.

    Args:
        counts: (K, K), row the true class, column the predicted one.
        classes: K names.
    """
    size = len(classes)
    share = counts.float() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = new_figure(*[min(4 + 0.3 * size, 14)] * 2)
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
    accuracy = counts.diagonal().sum().item() / max(counts.sum().item(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(counts.sum())} samples, accuracy {accuracy:.3f}")
    if size <= 40:
        axes.set_xticks(range(size), classes, rotation=45 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(size), classes)
    if size <= 20:
        for row, column in torch.nonzero(counts).tolist():
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def image_sheet(
    images: Tensor, titles: list[str], wrong: list[bool] | None = None, columns: int = 8, width: float = 1.5
) -> Figure:
    """A sheet of small images with a line of text above each.

    Args:
        images: (N, C, H, W) with C 1 or 3, in [0, 1].
        titles: N texts.
        wrong: N flags; a marked title is red.
        columns: images a row.
        width: of an image, in inches.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    tall = min(max(width * images.shape[2] / images.shape[3], 0.5), 6.0)  # inches
    figure = new_figure(width * columns, (tall + 0.25) * rows, automatic=False)  # automatic: a second longer
    top = 1 - 0.3 / (rows * (tall + 0.25))
    figure.subplots_adjust(0.01, 0.02, 0.99, top, wspace=0.06, hspace=0.375 / tall)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image, title) in enumerate(zip(grid.flat, images, titles, strict=False)):
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8, color="crimson" if wrong and wrong[i] else "black")
    return figure


class LearningCurves(Callback):
    """Draws every logged metric over the epochs into ``learning_curves.png``; the history survives a resumed run."""

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the metrics of this epoch and draw the picture again."""
        for name, value in trainer.callback_metrics.items():
            points = self.history.setdefault(name, [])
            if not points or points[-1][0] < trainer.current_epoch:
                points.append((trainer.current_epoch, float(value)))
        draw_figure(trainer, "learning_curves", self._draw)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what waits."""
        finish_figures(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what waits, also of an interrupted run; of several processes Lightning ends this one any moment."""
        if trainer.world_size > 1:
            return
        try:
            finish_figures(trainer)
        except Exception as error:  # the exception that is being handled says more
            rank_zero_warn(f"The last pictures were not drawn: {error}")

    def _draw(self) -> Figure:
        panels: dict[str, list[str]] = {}
        for name in sorted(self.history):
            metric = name.removeprefix("train_").removeprefix("val_")
            # val_mse_last, of a baseline, is drawn beside val_mse
            panels.setdefault(next((p for p in panels if metric.startswith(f"{p}_")), metric), []).append(name)
        figure = new_figure(4 * len(panels), 3.4)
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (metric, names) in zip(grid.flat, panels.items(), strict=True):
            for name in names:
                axes.plot(*zip(*self.history[name], strict=True), marker=".", label=name)
            axes.set(xlabel="epoch", title=metric)
            axes.grid(alpha=0.3)
            axes.legend()
        return figure

    def state_dict(self) -> dict[str, Any]:
        """The history, for the checkpoint."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the history of a checkpoint."""
        self.history = state_dict["history"]
