"""Pictures of forecasts beside the true values, and of their errors by step and by channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from core.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Example", "errors_figure", "forecast_figure"]

MAX_BARS = 40
"""Most channels in a bar chart; of more than that, those with the largest errors are shown."""


@dataclass(frozen=True)
class Example:
    """One channel of one window, on the CPU and in the units of the series.

    Attributes:
        title: name of the channel.
        history: (L,).
        forecast: (T,), or (T, Q) with quantiles.
        truth: (T,), or None if it is not known.
    """

    title: str
    history: Tensor
    forecast: Tensor
    truth: Tensor | None = None


def forecast_figure(examples: Sequence[Example]) -> Figure:
    """Draw a panel for each example: history, truth, forecast, and the band between the outermost quantiles.

    Args:
        examples: at least one.
    """
    columns = min(3, len(examples))
    rows = math.ceil(len(examples) / columns)
    figure = new_figure(4.6 * columns, 2.7 * rows + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(examples) :]:
        axes.axis("off")
    for axes, example in zip(grid.flat, examples, strict=False):
        _draw_example(axes, example)

    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
    return figure


def _draw_example(axes: Any, example: Example) -> None:
    """Draw the end of the history up to step 0, and the horizon from step 1 on."""
    steps = range(1, len(example.forecast) + 1)
    shown = example.history[-3 * len(steps) :]  # three times the horizon

    axes.plot(range(1 - len(shown), 1), shown.tolist(), color="0.45", lw=1, label="history")
    if example.truth is not None:
        axes.plot(steps, example.truth.tolist(), color="black", lw=1, label="truth")

    forecast = example.forecast
    if forecast.ndim == 2:
        low = forecast[:, 0].tolist()
        high = forecast[:, -1].tolist()
        axes.fill_between(steps, low, high, color="tab:blue", alpha=0.2, lw=0, label="outer quantiles")
        forecast = forecast[:, forecast.shape[1] // 2]
    axes.plot(steps, forecast.tolist(), color="tab:blue", lw=1.5, label="forecast")

    axes.axvline(0.5, color="0.7", lw=0.8, ls=":")  # where the horizon begins
    axes.set_title(plain(example.title), fontsize=9)
    axes.set_xlabel(f"step (last {len(shown)} of {len(example.history)} steps of history)", fontsize=8)
    axes.tick_params(labelsize=8)


def errors_figure(by_step: Mapping[str, Tensor], by_channel: Tensor, channels: Sequence[str]) -> Figure:
    """Draw the mean squared errors of model and baselines over the horizon, and those of the model by channel.

    Args:
        by_step: errors (T,) by the name of their forecast; the model is first.
        by_channel: errors (C,) of the model.
        channels: names of the channels.
    """
    order = list(range(len(channels)))
    title = "by channel"
    if len(channels) > MAX_BARS:
        order = by_channel.argsort(descending=True)[:MAX_BARS].tolist()
        title = f"the {MAX_BARS} of {len(channels)} channels with the largest error"

    bars_width = max(3.0, 0.25 * len(order))
    figure = new_figure(6 + bars_width, 4)
    left, right = figure.subplots(1, 2, width_ratios=[6, bars_width])
    for i, (name, errors) in enumerate(by_step.items()):
        is_model = i == 0
        left.plot(
            range(1, len(errors) + 1),
            errors.tolist(),
            label=name,
            marker="." if len(errors) == 1 else None,  # a line needs two points
            color="tab:blue" if is_model else f"C{i}",
            lw=2.0 if is_model else 1.2,
            ls="-" if is_model else "--",
        )
    left.set(xlabel="step of the horizon", ylabel="mean squared error", ylim=(0, None))
    left.grid(alpha=0.3)
    left.legend(fontsize=8)

    right.bar(range(len(order)), by_channel[order].tolist(), color="tab:blue")
    right.set_xticks(range(len(order)), [plain(channels[i]) for i in order], rotation=90, fontsize=8)
    right.set_title(title, fontsize=9)
    return figure
