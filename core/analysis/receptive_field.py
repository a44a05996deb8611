"""Effective receptive field: the pixels on which the center of the last map depends, and the area that they cover."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["THRESHOLDS", "ReceptiveField", "effective_receptive_field", "receptive_field_figure"]

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""Shares of the total contribution in the papers' table of high-contribution area ratios."""


@dataclass(frozen=True)
class ReceptiveField:
    """Contribution of each pixel to the center of a model's last map, averaged over images.

    Attributes:
        contributions: (H, W) float64, at least 0: the positive part of the gradient, summed over channels.
        images: number of images that were averaged.
        skipped: number of images that were left out because their gradients were not finite.
    """

    contributions: np.ndarray
    images: int
    skipped: int = 0

    @property
    def scores(self) -> np.ndarray:
        """Scores log10(contributions + 1) divided by their maximum, (H, W) in [0, 1], as plotted in the papers."""
        scores = np.log10(self.contributions + 1)
        return scores / max(float(scores.max()), np.finfo(float).tiny)

    def area_ratios(self, thresholds: Sequence[float] = THRESHOLDS) -> dict[float, float | None]:
        """Return the share of the input area that the smallest centered square with a share t of the scores covers.

        As in RepLKNet's analysis, squares are centered on pixel (H // 2, W // 2) and have odd sides from 3 up to below
        the shorter side of the input. The result is None if none of them holds more than t of the scores.

        Args:
            thresholds: shares t in (0, 1).
        """
        scores = self.scores
        height, width = scores.shape

        # Ring r has the pixels at Chebyshev distance r from the center, so a square of side 2 r + 1 has rings 0 to r.
        rows = np.abs(np.arange(height) - height // 2)
        columns = np.abs(np.arange(width) - width // 2)
        rings = np.maximum(rows[:, None], columns[None, :])
        score_of_ring = np.bincount(rings.ravel(), weights=scores.ravel())
        share_within = np.cumsum(score_of_ring) / max(scores.sum(), np.finfo(float).tiny)

        ratios: dict[float, float | None] = {}
        for threshold in thresholds:
            radii = range(1, min(height, width) // 2)
            radius = next((radius for radius in radii if share_within[radius] > threshold), None)
            ratios[threshold] = None if radius is None else (2 * radius + 1) ** 2 / (height * width)
        return ratios


def effective_receptive_field(model: nn.Module, batches: Iterable[Tensor]) -> ReceptiveField:
    """Measure the effective receptive field of a model's last map (RepLKNet, section 5 and appendix; TPAMI figure 2).

    The center of ``model.forward_features(x)`` is passed through a ReLU and summed over channels. The positive part of
    its gradient at the input, summed over channels, is averaged over images. Images are independent of each other in
    eval mode, so the batch size does not change the result.

    Args:
        model: a timm or LarKit model in eval mode.
        batches: normalized images (B, C, H, W) float32, all of the same size, on the model's device.

    Raises:
        InputError: if the model is in training mode, its last map is not 4-D, images differ in size, or there is no
            image with finite gradients.
    """
    if model.training:
        raise InputError("the receptive field is that of eval mode; call model.eval() first")

    total = None
    images = 0
    skipped = 0
    for x_BCHW in batches:
        gradient, finite = _center_gradient(model, x_BCHW)
        contributions = gradient.double().relu().sum(dim=1)
        if total is not None and total.shape != contributions.shape[1:]:
            raise InputError(
                f"images of {tuple(total.shape)} and {tuple(contributions.shape[1:])} pixels; use one size"
            )
        batch_total = contributions[finite].sum(dim=0)
        total = batch_total if total is None else total + batch_total
        images += int(finite.sum())
        skipped += int((~finite).sum())

    if total is None or images == 0:
        raise InputError(f"no image gave finite gradients ({skipped} tried); give images, and undamaged weights")
    return ReceptiveField((total / images).numpy(), images, skipped)


def _center_gradient(model: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradient (B, C, H, W) at the input, and whether gradient and last map are finite, (B,) bool."""
    x_BCHW = x_BCHW.detach().requires_grad_()
    with torch.enable_grad():
        last = _last_map(model, x_BCHW)
        center = last[:, :, last.shape[2] // 2, last.shape[3] // 2].relu().sum()
        gradient = torch.autograd.grad(center, x_BCHW)[0]
    finite = gradient.isfinite().all(dim=(1, 2, 3)) & last.isfinite().all(dim=(1, 2, 3))
    return gradient.cpu(), finite.cpu()


def _last_map(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the last map (B, C, h, w), for models with channels last as well."""
    name = type(model).__name__
    forward = getattr(model, "forward_features", None)
    if not callable(forward):
        raise InputError(f"{name} has no forward_features, which gives the last map; use a timm or LarKit model")
    try:
        last = forward(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{name} does not take an input of {tuple(x.shape[1:])} ({error}); choose another size"
        ) from error
    if not isinstance(last, Tensor) or last.ndim != 4:
        shape = tuple(last.shape) if isinstance(last, Tensor) else type(last).__name__
        raise InputError(
            f"the last map of {name} is {shape}, not (B, C, H, W): its positions do not form a grid. Choose a model "
            "whose forward_features gives a 4-D map"
        )
    return last.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else last


def receptive_field_figure(fields: dict[str, ReceptiveField], title: str) -> Figure:
    """Plot heat maps side by side, each with its area ratios below.

    Args:
        fields: receptive fields, by the titles of their panels.
        title: title of the figure.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    figure = new_figure(3.6 * len(fields) + 0.8, 5)
    figure.suptitle(plain(title), fontsize=10)
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    upper_half = colormaps["RdYlGn"](np.linspace(0.5, 1, 128))  # the papers use this color map centered at 0
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        image = axes.imshow(field.scores, cmap=ListedColormap(upper_half), vmin=0, vmax=1)
        axes.set_title("\n".join(plain(_panel_line(line)) for line in name.splitlines()), fontsize=8)
        axes.set(xticks=[], yticks=[])

        lines = []
        for threshold, ratio in field.area_ratios().items():
            unit = "" if ratio is None else " of the area"
            lines.append(f"{threshold:.0%}: {ratio_text(ratio)}{unit}")
        axes.set_xlabel("\n".join(lines), fontsize=8)

    figure.colorbar(image, ax=list(panels), shrink=0.6, label="log contribution / largest")
    return figure


def _panel_line(line: str, length: int = 38) -> str:
    """Wrap a line of a panel's title between words; a path that is too long keeps its end, as 'name=.../best.ckpt'."""
    words = []
    for word in line.split(" "):
        if len(word) > length and "/" in word:
            name, equals, path = word.rpartition("=")
            end = path[-max(length - len(name + equals) - 3, 12) :]
            _, slash, whole_folders = end.partition("/")
            word = f"{name}{equals}...{slash}{whole_folders or end}"
        words.append(word)
    return textwrap.fill(" ".join(words), length, break_long_words=False, break_on_hyphens=False)


def ratio_text(ratio: float | None) -> str:
    """Format an area ratio in percent; None becomes 'not reached'."""
    return "not reached" if ratio is None else f"{ratio:.2%}"
