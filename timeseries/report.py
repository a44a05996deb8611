"""The results of a forecaster in the report of its run: errors with intervals, beside those of the baselines.

Shapes: B windows of a batch, N windows of a split, T steps of the horizon, C channels.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from torch import Tensor

from core.training.report import Block, Figures, Section
from core.training.results import RESAMPLES, bootstrap_intervals

__all__ = ["result_section", "window_errors"]

_KINDS = {"mse": "mean squared error", "mae": "mean absolute error"}


def window_errors(errors_BTC: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the errors of each window, (B,) for each kind of error and each forecast.

    Args:
        errors_BTC: errors in the units of the metrics, by the name of the forecast.
    """
    columns = {}
    for name, error in errors_BTC.items():
        columns[f"mse {name}"] = error.double().square().mean(dim=(1, 2)).float()
        columns[f"mae {name}"] = error.double().abs().mean(dim=(1, 2)).float()
    return columns


def result_section(windows: Mapping[str, np.ndarray], logged: Mapping[str, float], pred_len: int, unit: str) -> Section:
    """Return the section with the table of errors.

    Args:
        windows: columns of :func:`window_errors` for the N windows of a split.
        logged: metrics that were logged for the split, by name.
        pred_len: T.
        unit: what the errors are measured in.
    """
    return Section("Results", partial(_results, dict(windows), dict(logged), pred_len, unit))


def _results(windows: Mapping[str, np.ndarray], logged: Mapping[str, float], pred_len: int, unit: str) -> list[Block]:
    errors = {name: values for name, values in windows.items() if name != "position"}
    forecasts = list(dict.fromkeys(name.partition(" ")[2] for name in errors))
    count = len(windows["position"])

    def means(drawn: np.ndarray) -> list[float]:
        return [float(values[drawn].mean()) for values in errors.values()]

    def ratios(drawn: np.ndarray) -> list[float]:
        model = errors["mse model"][drawn].mean()
        return [float(model / errors[f"mse {name}"][drawn].mean()) for name in baselines]

    ends = dict(zip(errors, bootstrap_intervals(count, means, block=pred_len).tolist(), strict=True))
    model = {text: float(errors[f"{kind} model"].mean()) for kind, text in _KINDS.items()}
    intervals = {text: ends[f"{kind} model"] for kind, text in _KINDS.items()}
    baselines = [name for name in forecasts if name != "model"]
    of_baselines = {
        name: {text: float(errors[f"{kind} {name}"].mean()) for kind, text in _KINDS.items()} for name in baselines
    }

    shown = {f"{split}_{kind}" for split in ("val", "test") for kind in _KINDS}
    others = {name: value for name, value in logged.items() if name not in shown}
    model |= {name: value for name, value in others.items() if not name.endswith(tuple(f"_{n}" for n in baselines))}

    notes = [f"Errors in {unit}, {count:,} windows."]
    if count >= 2 * pred_len:
        notes.append(
            f"The intervals come from {RESAMPLES:,} draws of these windows, in blocks of {pred_len} neighbors, whose "
            "horizons overlap."
        )
        if baselines:
            best = min(baselines, key=lambda name: of_baselines[name][_KINDS["mse"]])
            low, high = bootstrap_intervals(count, ratios, block=pred_len)[baselines.index(best)].tolist()
            verdict = "better than" if high < 1 else "worse than" if low > 1 else "not clearly different from"
            notes.append(
                f"The model is {verdict} the best baseline, {best}: its squared error is {low:.2f} to {high:.2f} "
                "times that one, on the same windows."
            )
    return [Figures(model, intervals, of_baselines, notes).table()]
