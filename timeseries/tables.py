"""Tables of the errors of forecasts in the units of the file: by channel, and by step of the horizon.

Shapes: S series, T steps of the horizon, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Measured", "channel_table", "mean_errors", "screen_table", "step_table"]

SHOWN = 20
"""Most rows of a table on the screen; of more than that, those with the largest MASE are shown."""


@dataclass(frozen=True)
class Measured:
    """The errors of one forecast, as means over windows in the units of the file.

    Attributes:
        absolute: (S, T, C) mean absolute errors.
        squared: (S, T, C) mean squared errors.
        relative: (S, T, C) mean absolute errors divided by the true values.
        scale: (S, C) errors of the seasonal value within the training rows, by which MASE divides; NaN for none.
        one_sign: (C,) bool, whether a channel has no zero and no change of sign, so that MAPE makes sense.
        windows: (S,) numbers of windows.
        pinball: (T, C) mean pinball losses, if quantiles were forecast.
        coverage: (T, C) shares of values between the outermost quantiles, if quantiles were forecast.
    """

    absolute: np.ndarray
    squared: np.ndarray
    relative: np.ndarray
    scale: np.ndarray
    one_sign: np.ndarray
    windows: np.ndarray
    pinball: np.ndarray | None = None
    coverage: np.ndarray | None = None

    def means(self, axes: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return MAE, RMSE, MAPE in percent and MASE, averaged over some of the axes series (0), step (1), channel (2).

        Series count by their number of windows. MAPE is NaN where it makes no sense.
        """
        relative = np.where(self.one_sign, 100 * self.relative, np.nan)
        scaled = self.absolute / self.scale[:, None, :]
        errors = {"mae": self.absolute, "rmse": self.squared, "mape_percent": relative, "mase": scaled}
        weight = np.broadcast_to(self.windows[:, None, None].astype(np.float64), self.absolute.shape)
        means = {name: _weighted_mean(values, weight, axes) for name, values in errors.items()}
        means["rmse"] = np.sqrt(means["rmse"])
        return means


def _weighted_mean(values: np.ndarray, weight: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the mean over some axes without the NaN among the values; NaN where nothing else is left."""
    known = ~np.isnan(values)
    weight = weight * known
    total = weight.sum(axis=axes)
    summed = (np.where(known, values, 0) * weight).sum(axis=axes)
    mean: np.ndarray = summed / np.where(total > 0, total, np.nan)
    return mean


def mean_errors(measured: Measured) -> dict[str, float]:
    """Return the means of MAE, RMSE, MAPE in percent and MASE over everything; NaN where one makes no sense."""
    return {name: float(value) for name, value in measured.means((0, 1, 2)).items()}


def channel_table(
    results: Mapping[str, Measured], channels: Sequence[str], series: Sequence[str], series_column: str = "series"
) -> Any:
    """Return the errors of each channel, and with several series those of each channel of each series too.

    Args:
        results: errors by the name of the forecast, the model first, then the baselines.
        channels: C names.
        series: S names.
        series_column: name of the column for them.

    Returns:
        A ``pandas.DataFrame`` with the columns [series,] channel, windows, mae, rmse, mape_percent, mase, [pinball,
        coverage,] and mae_<baseline>.
    """
    parts = [_channel_rows(results, channels, (0, 1))]
    if len(series) > 1:
        parts[0].insert(0, series_column, "all")
        each = _channel_rows(results, [*channels] * len(series), (1,))
        each.insert(0, series_column, np.repeat(list(series), len(channels)))
        parts.append(each)
    return pd.concat(parts, ignore_index=True)


def _channel_rows(results: Mapping[str, Measured], channels: Sequence[str], axes: tuple[int, ...]) -> Any:
    model = next(iter(results.values()))
    windows = np.broadcast_to(model.windows[:, None], (len(model.windows), model.absolute.shape[2]))
    means = {name: values.reshape(-1) for name, values in model.means(axes).items()}
    counts = windows.sum(axis=0) if 0 in axes else windows.reshape(-1)
    table = pd.DataFrame({"channel": list(channels), "windows": counts, **means})
    if model.pinball is not None and model.coverage is not None and 0 in axes:
        table = table.assign(pinball=model.pinball.mean(axis=0), coverage=model.coverage.mean(axis=0))
    return table.assign(**_baselines(results, axes))


def step_table(results: Mapping[str, Measured], channels: Sequence[str]) -> Any:
    """Return the errors of each step of the horizon and each channel, over all series.

    Returns:
        A ``pandas.DataFrame`` with the columns step, channel, mae, rmse, mape_percent, mase, [pinball, coverage,] and
        mae_<baseline>.
    """
    model = next(iter(results.values()))
    steps = model.absolute.shape[1]
    table = pd.DataFrame(
        {
            "step": np.repeat(np.arange(1, steps + 1), len(channels)),
            "channel": list(channels) * steps,
            **{name: values.reshape(-1) for name, values in model.means((0,)).items()},
        }
    )
    if model.pinball is not None and model.coverage is not None:
        table = table.assign(pinball=model.pinball.reshape(-1), coverage=model.coverage.reshape(-1))
    return table.assign(**_baselines(results, (0,)))


def _baselines(results: Mapping[str, Measured], axes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the mean absolute errors of the baselines, as columns."""
    _, *names = results
    return {f"mae_{name}": results[name].means(axes)["mae"].reshape(-1) for name in names}


def screen_table(table: Any) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table of errors with at most :data:`SHOWN` rows, as text for the screen."""
    if len(table) > SHOWN:
        table = table.sort_values("mase", ascending=False).head(SHOWN)
    table = table.dropna(axis=1, how="all")
    rows = [["" if pd.isna(value) else _short(value) for value in row] for row in table.itertuples(index=False)]
    return [str(name) for name in table.columns], rows


def _short(value: Any) -> str:
    """Return four digits of a number, and everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
