"""Pictures of a run: where they go, confusion matrices, and sheets of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor

from core.figures import new_figure, plain
from core.io.atomic import atomic_write
from core.training.run_folder import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Examples", "confusion_figure", "draw_figure", "image_sheet"]

DPI = 120
"""Dots per inch of all pictures."""


def draw_figure(trainer: Trainer, name: str, draw: Callable[[], Figure]) -> Path | None:
    """Draw a picture, write it to ``<name>.png`` in the run folder, and send it to every logger that takes images.

    Args:
        trainer: trainer with the run folder and the loggers; if none of them takes pictures, nothing is drawn.
        name: name of the picture; a trainer with a ``picture_prefix`` puts that before it.
        draw: function that makes the figure; called in the first process only.

    Returns:
        The path of the file, or None if none was written.
    """
    if not trainer.is_global_zero or not _keeps_pictures(trainer):
        return None

    name = getattr(trainer, "picture_prefix", "") + name
    pixels = rendered(draw())
    for logger in trainer.loggers:
        send = _image_method(logger)
        if send is not None:
            send(name, pixels, trainer.global_step)

    folder = run_folder(trainer)
    if folder is None:
        return None
    path = folder / f"{name}.png"
    with atomic_write(path) as unfinished:
        # Low compression takes a third of the time of the default.
        Image.fromarray(pixels).save(unfinished, format="png", compress_level=1)
    return path


def _keeps_pictures(trainer: Trainer) -> bool:
    """Return whether there is a run folder, or a logger that takes images."""
    return run_folder(trainer) is not None or any(_image_method(logger) for logger in trainer.loggers)


def _image_method(logger: Any) -> Callable[[str, np.ndarray, int], object] | None:
    """Return the function by which a logger takes the name, pixels (H, W, 3) uint8 and step of an image, if any."""
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(logger, "log_image", None)):  # Weights & Biases
        return lambda name, pixels, step: logger.log_image(name, [pixels], step)
    if callable(getattr(experiment, "add_image", None)):  # TensorBoard
        return lambda name, pixels, step: experiment.add_image(name, pixels, step, dataformats="HWC")
    if callable(getattr(experiment, "log_image", None)) and getattr(logger, "run_id", None):  # MLflow
        return lambda name, pixels, step: experiment.log_image(logger.run_id, pixels, key=name, step=step)
    return None


def rendered(figure: Figure) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a figure."""
    figure.set_dpi(DPI)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix, colored by shares of each true class.

    Args:
        counts: (K, K) integers; the row is the true class, the column the predicted class.
        classes: K names, which are shown for up to 40 classes; the counts are shown for up to 20.
    """
    size = len(classes)
    share = counts.float() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    accuracy = counts.diagonal().sum().item() / max(counts.sum().item(), 1)

    longest = max(map(len, classes)) if size <= 40 else 0
    inches = min(4 + 0.3 * size + 0.09 * longest, 14)  # names take their room from the matrix
    figure = new_figure(inches, inches)
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(counts.sum())} samples, accuracy {accuracy:.3f}")

    if size <= 40:
        names = [plain(name) for name in classes]
        if max(map(len, classes)) > 2:
            axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(range(size), names)
        axes.set_yticks(range(size), names)
    if size <= 20:
        for row, column in torch.nonzero(counts).tolist():
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", color=color, fontsize=8)

    return figure


def image_sheet(
    images: Tensor, titles: Sequence[str], wrong: Sequence[bool] | None = None, columns: int = 8, width: float = 1.5
) -> Figure:
    """Draw a sheet of small images, each with a line of text above it, or two lines if the text is long.

    Args:
        images: (N, C, H, W) with C = 1 or 3, in [0, 1].
        titles: N texts.
        wrong: N flags; the titles of marked images are red.
        columns: number of images in a row.
        width: width of an image, in inches.
    """
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    height = min(max(width * images.shape[2] / images.shape[3], 0.5), 6.0)  # inches
    lines = [_title_lines(text, int(width * 14)) for text in titles]
    title = 0.12 + 0.13 * max(map(len, lines))  # inches

    # One axes, with coordinates in inches, holds all images: one for each image would take three times as long to draw.
    figure = new_figure(width * columns, (height + title) * rows, automatic=False)
    axes = figure.add_axes((0, 0, 1, 1))
    for i, (image, text) in enumerate(zip(images, lines, strict=True)):
        row, column = divmod(i, columns)
        left = column * width
        top = row * (height + title) + title

        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
        extent = (left + 0.04, left + width - 0.04, top + height - 0.04, top + 0.02)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent)

        color = "crimson" if wrong and wrong[i] else "black"
        middle = left + width / 2
        label = axes.text(middle, top - 0.05, "\n".join(text), ha="center", va="bottom", fontsize=8, color=color)

        # Shrink a text that would run into its neighbor.
        text_width = label.get_window_extent().width / figure.dpi  # inches
        label.set_fontsize(8 / max(text_width / (width - 0.08), 1))

    axes.axis("off")
    axes.set(xlim=(0, width * columns), ylim=((height + title) * rows, 0), aspect="auto")
    return figure


def _title_lines(text: str, length: int) -> list[str]:
    """Split 'predicted 0.93 (true)' before its bracket if it has more than ``length`` characters, and shorten parts."""
    head, bracket, tail = text.partition(" (")
    parts = [head, f"({tail}"] if bracket and len(text) > length else [text]
    longest = 2 * length
    shortened = [part if len(part) <= longest else f"{part[: longest - 10]}...{part[-7:]}" for part in parts]
    return [plain(part) for part in shortened]


class Examples:
    """A sheet of examples that is filled from every batch, so that it shows samples from the whole split.

    Args:
        size: number of samples on a sheet.
        columns: number of samples in a row.
        width: width of a sample on the sheet, in inches.
    """

    def __init__(self, size: int = 32, columns: int = 8, width: float = 1.5) -> None:
        self.size = size
        self.columns = columns
        self.width = width
        self.batches_seen = 0
        self.kept: list[tuple[Tensor, str, bool]] = []

    def keep(
        self,
        show: Callable[[list[int]], Tensor | None],
        titles: Sequence[str],
        wrong: Sequence[bool],
        batches: int,
    ) -> None:
        """Choose some samples of a batch; the choice does not depend on the seed of the run.

        Args:
            show: function from a list of n indices in the batch to pictures (n, C, H, W) of these samples, with C = 1
                or 3, in [0, 1], or to None if samples cannot be shown.
            titles: B lines of text.
            wrong: B flags; the titles of marked samples are red.
            batches: number of batches in the split.
        """
        # After a share of the batches, the same share of the sheet is filled, rounded up.
        self.batches_seen += 1
        filled = math.ceil(self.size * self.batches_seen / max(1, batches))
        missing = max(0, min(filled, self.size) - len(self.kept))

        generator = torch.Generator().manual_seed(len(self.kept))
        chosen = torch.randperm(len(titles), generator=generator)[:missing].tolist()
        pictures = show(chosen) if chosen else None
        if pictures is not None:
            copies = pictures.detach().to("cpu", torch.float32, copy=True)  # a view would keep the whole batch
            self.kept += [(copy, titles[i], wrong[i]) for copy, i in zip(copies, chosen, strict=True)]

    def clear(self) -> None:
        """Remove all samples."""
        self.kept = []
        self.batches_seen = 0

    def draw(self, trainer: Trainer, name: str = "examples") -> None:
        """Draw the sheet, except in Lightning's sanity check, and remove all samples from it.

        Args:
            trainer: trainer with the run folder and the loggers.
            name: name of the picture.
        """
        kept = self.kept
        self.clear()
        if not kept or trainer.sanity_checking or not _keeps_pictures(trainer):
            return

        pictures, titles, wrong = zip(*kept, strict=True)
        draw_figure(trainer, name, lambda: image_sheet(torch.stack(pictures), titles, wrong, self.columns, self.width))
