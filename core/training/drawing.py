"""When and where pictures are drawn: as PNG in the run's folder and in every logger that takes images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from core.stopping import undisturbed
from core.training.run_folder import run_folder
from core.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_figure", "finish_figures", "save_figure"]

PAUSE = 20.0
"""Seconds between two drawings of a picture while a fit goes on: it takes about a second, an epoch may take less."""

Draw = Callable[[], "Figure"]


@dataclass
class _Drawn:
    """When each picture of a trainer was last drawn, and what waits, with the step that it shows."""

    times: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, tuple[Draw, int]] = field(default_factory=dict)


_trainers: WeakKeyDictionary[Trainer, _Drawn] = WeakKeyDictionary()


def draw_figure(trainer: Trainer, name: str, draw: Draw) -> None:
    """Draw and save a picture: at once, or, in a fit that drew it a moment ago, later or at the fit's end.

    Args:
        trainer: whose run folder and loggers get it.
        name: of the picture.
        draw: makes the figure of what is known now; called in the first process alone, and perhaps later, so that it
            holds what it shows and neither the task nor the trainer.
    """
    if not trainer.is_global_zero or run_folder(trainer) is None:
        return
    drawn, now = _trainers.setdefault(trainer, _Drawn()), time.monotonic()
    if trainer.state.fn == TrainerFn.FITTING and now - drawn.times.get(name, -PAUSE) < PAUSE:
        drawn.waiting[name] = (draw, trainer.global_step)
        return
    drawn.waiting.pop(name, None)
    save_figure(trainer, name, draw())
    drawn.times[name] = time.monotonic()


def finish_figures(trainer: Trainer) -> None:
    """Draw what waits."""
    drawn = _trainers.pop(trainer, _Drawn())
    for name, (draw, step) in drawn.waiting.items():
        save_figure(trainer, name, draw(), step)


def save_figure(trainer: Trainer, name: str, figure: Figure, step: int | None = None) -> Path | None:
    """Write ``name``.png into the run folder and hand its pixels to the loggers; nothing without a run folder.

    Args:
        trainer: whose run folder and loggers get it.
        name: of the picture.
        figure: is saved.
        step: that it shows, for the loggers; by default the trainer's.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero or folder is None:
        return None
    path = folder / f"{name}.png"
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    pixels = np.asarray(Image.open(path).convert("RGB"))  # drawing takes longer than reading
    for logger in trainer.loggers:
        add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
        if callable(add_image):
            with undisturbed():
                add_image(name, pixels, trainer.global_step if step is None else step, dataformats="HWC")
    return path
