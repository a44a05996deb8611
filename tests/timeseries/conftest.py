"""Fixtures of the tests of time series: runs and data that are only read."""

import os
from pathlib import Path

import pytest
from small_series import series_runs, waves, write_series, write_series_config
from training.small_runs import command

from timeseries.demo import make_world


@pytest.fixture(scope="session")
def trained_series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on two channels: ``folder``, ``config``, ``series``, and ``out`` above."""
    base = tmp_path_factory.mktemp("trained_series")
    environment = os.environ.copy()
    series = write_series(base / "series.csv", waves())
    config = write_series_config(base / "series.yaml", series)
    command("fit", config, base / "out")
    os.environ.clear()
    os.environ.update(environment)
    return {"folder": series_runs(base / "out")[0], "config": config, "series": series, "out": base / "out"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up world of eight stations."""
    root = tmp_path_factory.mktemp("world") / "w"
    make_world(root, regions=2, nodes=2, stations=2, hours=220)
    return root
