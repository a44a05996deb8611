"""Rolling backtests: forecasts from many origins over the test part, beside the simple forecasts.

Shapes: N origins, L steps of history, T steps of the horizon, C channels, Q quantiles, S series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.figures import new_figure, plain
from timeseries.data import WindowDataModule, collate_windows, window_parts
from timeseries.plots import band_name, date_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Backtest", "run_backtest"]

ORIGINS = 6
"""Most forecasts in the picture."""
FAR = 4.0
"""How many times the error of the model a forecast has that does not set the height of an axis."""


@dataclass(frozen=True)
class Backtest:
    """Forecasts from N origins, one series after the other, in the units of the file.

    Attributes:
        channels: C names.
        series: S names.
        of_series: (N,) index of the series of each origin.
        origins: N timestamps of the last rows that a forecast may see; numbers of rows for series without timestamps.
        times: (N, T) timestamps, or numbers of rows, of the forecast steps.
        truth: (N, T, C).
        forecasts: (N, T, C) by the name of the forecast, the model first.
        quantiles: (N, T, C, Q), if the model forecasts quantiles.
        levels: Q levels.
        unit: (C,) by which errors are divided in the picture and the summary.
        unit_name: what errors are measured in after that.
        scale: (S, C) errors of the seasonal value within the training rows, by which MASE divides.
    """

    channels: Sequence[str]
    series: Sequence[str]
    of_series: np.ndarray
    origins: np.ndarray
    times: np.ndarray
    truth: np.ndarray
    forecasts: dict[str, np.ndarray]
    quantiles: np.ndarray | None
    levels: tuple[float, ...]
    unit: np.ndarray
    unit_name: str
    scale: np.ndarray

    def errors(self, name: str) -> np.ndarray:
        """Return the absolute errors (N, T, C) of a forecast in the units of the file."""
        return np.abs(self.forecasts[name] - self.truth)

    def by_origin(self, name: str) -> np.ndarray:
        """Return the mean absolute error (N,) of a forecast from each origin, in :attr:`unit`."""
        mean: np.ndarray = (self.errors(name) / self.unit).mean(axis=(1, 2))
        return mean

    def by_step(self, name: str) -> np.ndarray:
        """Return the mean absolute error (T,) of a forecast at each step ahead, in :attr:`unit`."""
        mean: np.ndarray = (self.errors(name) / self.unit).mean(axis=(0, 2))
        return mean

    def table(self, series_column: str = "series") -> Any:
        """Return a ``pandas.DataFrame`` with a row for each origin, step ahead and channel.

        The columns are origin, [the series,] step, date, channel, truth, then the forecasts and the quantiles, and the
        absolute error of each forecast as error_<name>, all in the units of the file.
        """
        count, steps, channels = self.truth.shape
        columns: dict[str, Any] = {"origin": np.repeat(self.origins, steps * channels)}
        if len(self.series) > 1 or self.series[0]:
            columns[series_column] = np.repeat([self.series[i] for i in self.of_series], steps * channels)
        columns["step"] = np.tile(np.repeat(np.arange(1, steps + 1), channels), count)
        columns["date"] = np.repeat(self.times.reshape(-1), channels)
        columns["channel"] = list(self.channels) * (count * steps)
        columns["truth"] = self.truth.reshape(-1)
        columns |= {name: values.reshape(-1) for name, values in self.forecasts.items()}
        if self.quantiles is not None:
            columns |= {f"q{level:g}": self.quantiles[..., i].reshape(-1) for i, level in enumerate(self.levels)}
        columns |= {f"error_{name}": self.errors(name).reshape(-1) for name in self.forecasts}
        return pd.DataFrame(columns)

    def summary(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of a table for the screen: the errors of each forecast over all origins."""
        model, *_ = self.forecasts
        best = self.by_origin(model)
        rows = []
        for name in self.forecasts:
            scaled = self.errors(name) / self.scale[self.of_series][:, None]
            wins = "" if name == model else f"{100 * np.mean(best < self.by_origin(name)):.0f} %"
            rows.append([name, f"{self.by_origin(name).mean():.4g}", f"{np.nanmean(scaled):.4g}", wins])
        return ["forecast", f"MAE ({self.unit_name})", "MASE", "origins where the model is better"], rows

    def figure(self) -> Figure:
        """Draw the last forecasts of one channel, and the errors by origin and by step ahead."""
        figure = new_figure(10, 9)
        forecasts, by_origin, by_step = figure.subplots(3, 1, height_ratios=[3, 2, 2])
        self._draw_forecasts(forecasts)

        errors = {name: pd.Series(self.by_origin(name)).groupby(self.origins).mean() for name in self.forecasts}
        self._draw_errors(by_origin, {name: (mean.index.to_numpy(), mean.to_numpy()) for name, mean in errors.items()})
        by_origin.set_xlabel("origin")
        self._date_axis(by_origin)

        steps = np.arange(1, self.truth.shape[1] + 1)
        self._draw_errors(by_step, {name: (steps, self.by_step(name)) for name in self.forecasts})
        by_step.set_xlabel("steps ahead")
        by_origin.legend(fontsize=8, ncols=len(self.forecasts))
        return figure

    def _draw_forecasts(self, axes: Any) -> None:
        """Draw truth and forecasts of the first channel of the first series, from the last origins a horizon apart."""
        model, *_ = self.forecasts
        chosen: list[int] = []
        for n in np.flatnonzero(self.of_series == 0)[::-1]:
            if len(chosen) < ORIGINS and (not chosen or self.times[n, -1] < self.times[chosen[-1], 0]):
                chosen.append(int(n))

        marker = "." if self.truth.shape[1] == 1 else None  # a line needs two points
        for i, n in enumerate(reversed(chosen)):
            times = self.times[n]
            labels = ("truth", "forecast", band_name(self.levels) if self.levels else "") if i == 0 else (None,) * 3
            axes.plot(times, self.truth[n, :, 0], color="black", lw=1, marker=marker, label=labels[0])
            forecast = self.forecasts[model][n, :, 0]
            axes.plot(times, forecast, color="tab:blue", lw=1.5, marker=marker, label=labels[1])
            axes.axvline(times[0], color="0.8", lw=0.8, zorder=0)
            if self.quantiles is not None:
                low, high = self.quantiles[n, :, 0, 0], self.quantiles[n, :, 0, -1]
                axes.fill_between(times, low, high, color="tab:blue", alpha=0.2, lw=0, label=labels[2])

        name = f"{self.series[0]}: {self.channels[0]}" if self.series[0] else str(self.channels[0])
        origins = int((self.of_series == 0).sum())
        axes.set_title(f"{plain(name)}, forecast anew at each gray line (the last of {origins} origins)", fontsize=9)
        axes.legend(fontsize=8, ncols=3)
        self._date_axis(axes)

    def _draw_errors(self, axes: Any, lines: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Draw errors; a forecast that is far worse than the model does not set the height of the axis."""
        model, *_ = lines
        usual = [name for name in lines if lines[name][1].mean() <= FAR * lines[model][1].mean()]
        for i, (name, (x, errors)) in enumerate(lines.items()):
            axes.plot(
                x,
                errors,
                label=name if name in usual else f"{name} (mean {errors.mean():.3g}, mostly above the axis)",
                marker="." if len(x) < 40 else None,
                color="tab:blue" if i == 0 else f"C{i}",
                lw=2.0 if i == 0 else 1.2,
                ls="-" if i == 0 else "--",
            )
        highest = max(float(lines[name][1].max()) for name in usual)
        axes.set(ylabel=f"MAE ({self.unit_name})", ylim=(0, 1.1 * highest if highest > 0 else None))
        axes.grid(alpha=0.3)

    def _date_axis(self, axes: Any) -> None:
        if self.times.dtype.kind == "M":
            date_axis(axes)


@torch.no_grad()
def run_backtest(task: Any, baselines: nn.Module, data: WindowDataModule, scale: np.ndarray, stride: int) -> Backtest:
    """Forecast from every origin that is a whole number of strides after the first one of the test part.

    Args:
        task: a forecasting task in eval mode.
        baselines: the simple forecasts, from a history.
        data: data module, whose test windows are used.
        scale: (S, C) errors by which MASE divides.
        stride: number of steps from one origin to the next.

    Raises:
        InputError: if the stride is below 1.
    """
    if stride < 1:
        raise InputError(f"--stride {stride}; expected a number of steps, 1 or more")

    batches = []
    of_series: list[int] = []
    origins: list[Any] = []
    times: list[Any] = []
    parts = window_parts(data.read_windows()[2])
    for i, part in enumerate(parts):
        dates = np.arange(len(part.values)) if part.times is None else _plain_dates(part.times)
        first = range(0, len(part), stride)
        of_series += [i] * len(first)
        origins += [dates[start + part.seq_len - 1] for start in first]
        times += [dates[start + part.seq_len : start + part.seq_len + part.pred_len] for start in first]
        for begin in range(0, len(first), data.batch_size):
            samples = [part[start] for start in first[begin : begin + data.batch_size]]
            batches.append(_forecast(task, baselines, *collate_windows(samples)))

    joined = {name: torch.cat([batch[name] for batch in batches]).double().numpy() for name in batches[0]}
    has_one_channel = len(task.channel_names) == 1
    deviation = 1 / task.in_metric_units(torch.ones(len(task.channel_names), device=task.device)).double().cpu().numpy()
    return Backtest(
        channels=task.channel_names,
        series=[part.name for part in parts],
        of_series=np.array(of_series),
        origins=np.array(origins),
        times=np.stack(times),
        truth=joined.pop("truth"),
        quantiles=joined.pop("quantiles", None),
        forecasts=joined,
        levels=task.quantiles,
        unit=np.ones(1) if has_one_channel else deviation,
        unit_name="units of the file" if has_one_channel else task.metric_unit,
        scale=scale,
    )


def _plain_dates(times: Any) -> np.ndarray:
    """Return timestamps without their time zone, (T,) datetime64[s]."""
    dates: np.ndarray = times.tz_localize(None).to_numpy().astype("datetime64[s]")
    return dates


def _forecast(task: Any, baselines: nn.Module, raw: Any, target: Tensor) -> dict[str, Tensor]:
    """Return truth, forecast, baselines and quantiles of one batch, on the CPU."""
    raw = raw if isinstance(raw, tuple) else (raw,)
    raw = tuple(value.to(task.device) for value in raw)
    output = task(*raw)
    found = {"truth": target, "model": task.point_forecast(output), **baselines(raw[0])}
    if output.ndim == 4:
        found["quantiles"] = output
    return {name: values.cpu() for name, values in found.items()}
