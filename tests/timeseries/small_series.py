"""Small series, their configuration and short runs, shared by the tests of time series."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

TINY: dict[str, Any] = {
    "backbone": "unireplknet_a",
    "backbone_args": {"depths": [1, 1], "dims": [8, 8], "kernel_sizes": [3, 3], "layer_scale_init_value": 0.1},
}
"""The backbone of all short runs."""


def waves(rows: int = 400, channels: int = 2, *, period: int = 24, noise: float = 0.2, seed: int = 0) -> np.ndarray:
    """(rows, channels): sines of one period, each with a level, size and phase of its own, and noise."""
    generator, steps = np.random.default_rng(seed), np.arange(rows)[:, None]
    c = np.arange(channels)
    clean = (c + 1) * np.sin(2 * np.pi * steps / period + c) + 10 * c
    return clean + noise * (c + 1) * generator.standard_normal((rows, channels))


def write_series(path: Path, values: np.ndarray, *, freq: str = "h", start: str = "2020-01-01") -> Path:
    """A CSV file with a date column and channels a, b, c, ..."""
    table = pd.DataFrame(values, columns=[chr(ord("a") + i) for i in range(values.shape[1])])
    table.insert(0, "date", pd.date_range(start, periods=len(values), freq=freq))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return path


def write_series_config(path: Path, series: Path, *, model: dict[str, Any] | None = None, **data: Any) -> Path:
    """A configuration for any CSV file: a tiny net, 48 steps of history, 12 ahead."""
    net = {**TINY, "enlarge": 2, "lr": 0.005, **(model or {})}
    init = {"path": str(series), "seq_len": 48, "pred_len": 12, "batch_size": 32, "num_workers": 0, **data}
    content = {
        "model": {"class_path": "ForecastTask", "init_args": net},
        "data": {"class_path": "CSVSeries", "init_args": init},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def series_runs(out: Path, task: str = "ForecastTask") -> list[Path]:
    """The run folders below ``out``, oldest first."""
    return sorted((out / "lightning_logs" / task).glob("version_*"))
