"""Pictures of forecasts beside the true values, and of their errors by step and by channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from core.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Example", "band_name", "date_axis", "errors_figure", "forecast_figure", "positions"]

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
        times: ``pandas.DatetimeIndex`` of the L + T steps, or None if they have no timestamps.
        band: name of the range between the outermost quantiles, such as '10 to 90 %'.
        middle: index of the quantile that is drawn as the forecast; by default the one in the middle.
    """

    title: str
    history: Tensor
    forecast: Tensor
    truth: Tensor | None = None
    times: Any | None = None
    band: str = "outer quantiles"
    middle: int | None = None


def band_name(levels: Sequence[float]) -> str:
    """Return the name of the range between the outermost quantiles, such as '10 to 90 %'."""
    return f"{100 * levels[0]:g} to {100 * levels[-1]:g} %"


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
    """Draw the end of the history, and the horizon; over dates, or else with step 0 as the last of the history."""
    steps = len(example.forecast)
    shown = example.history[-3 * steps :]  # three times the horizon
    x = positions(example.times, len(example.history), steps)
    past = x[len(example.history) - len(shown) : len(example.history)]
    ahead = x[len(example.history) :]

    axes.plot(past, shown.tolist(), color="0.45", lw=1, label="history")
    if example.truth is not None:
        axes.plot(ahead, example.truth.tolist(), color="black", lw=1, label="truth", marker=_marker(steps))

    forecast = example.forecast
    if forecast.ndim == 2:
        low = forecast[:, 0].tolist()
        high = forecast[:, -1].tolist()
        axes.fill_between(ahead, low, high, color="tab:blue", alpha=0.2, lw=0, label=example.band)
        forecast = forecast[:, forecast.shape[1] // 2 if example.middle is None else example.middle]
    axes.plot(ahead, forecast.tolist(), color="tab:blue", lw=1.5, label="forecast", marker=_marker(steps))

    axes.set_title(plain(example.title), fontsize=9)
    axes.tick_params(labelsize=8)
    if x.dtype.kind == "M":
        date_axis(axes)
        axes.axvline(past[-1] + (ahead[0] - past[-1]) / 2, color="0.7", lw=0.8, ls=":")  # where the horizon begins
    else:
        axes.axvline(0.5, color="0.7", lw=0.8, ls=":")
        axes.set_xlabel(f"step (last {len(shown)} of {len(example.history)} steps of history)", fontsize=8)


def _marker(steps: int) -> str | None:
    """Return a marker for a single step, since a line needs two points."""
    return "." if steps == 1 else None


def positions(times: Any | None, history: int, steps: int) -> np.ndarray:
    """Return where the steps of a window stand on the axis, (history + steps,).

    They stand at their dates, or, if there are none or they do not rise, at whole numbers that end with 0 for the last
    step of the history.
    """
    if times is None or not times.is_monotonic_increasing:
        return np.arange(1 - history, steps + 1)
    dates: np.ndarray = times.tz_localize(None).to_numpy().astype("datetime64[s]")
    return dates


def date_axis(axes: Any) -> None:
    """Write the dates of an axis once, in the shortest form that tells the ticks apart."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set_fontsize(8)


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
