"""Windows, splits, scale, calendar and baselines, value by value."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_series import waves, write_series
from torch.testing import assert_close

from core.errors import InputError, MissingError
from timeseries import CSVSeries, NewYorkWeather, dominant_period, fold_by_period, time_marks
from timeseries.data import split_rows
from timeseries.metrics import (
    ForecastErrors,
    fit_linear,
    last_value,
    linear_forecast,
    quantile_loss,
    seasonal_value,
)
from timeseries.plots import Example, errors_figure, forecast_figure


@settings(max_examples=40)
@given(length=st.integers(1, 60), period=st.integers(1, 70))
def test_fold_keeps_every_value_in_order(length: int, period: int) -> None:
    x = torch.arange(1.0, length + 1).expand(2, 3, -1)
    folded = fold_by_period(x, period)
    assert folded.shape == (2, 3, math.ceil(length / period), period)
    flat = folded.flatten(2)
    assert torch.equal(flat[..., -length:], x)
    assert (flat[..., : flat.shape[-1] - length] == 1).all()


@pytest.mark.parametrize("period", [7, 12, 24])
def test_dominant_period_of_a_wave(period: int) -> None:
    assert dominant_period(torch.tensor(waves(period * 20, 3, period=period)), 48) == period
    with pytest.raises(InputError, match="expected 2 up to half the series"):
        dominant_period(torch.zeros(10, 1), 6)


def test_dominant_period_of_values_that_wander_too() -> None:
    assert dominant_period(NewYorkWeather().read().values, 96) == 24


def test_calendar_features() -> None:
    times = pd.DatetimeIndex(["2020-12-31 23:00", "2021-03-01 06:00"])
    expected = [[0.5, 3 / 6 - 0.5, 0.5, 365 / 365 - 0.5], [6 / 23 - 0.5, -0.5, -0.5, 59 / 365 - 0.5]]
    assert_close(time_marks(times), torch.tensor(expected))


@settings(max_examples=50)
@given(rows=st.integers(10, 50_000))
def test_shares_are_those_of_the_benchmarks(rows: int) -> None:
    train, test = int(rows * 0.7), int(rows * 0.2)
    found = split_rows(rows, (0.7, 0.1, 0.2))
    assert sum(found) == rows
    assert abs(found[0] - train) <= 1
    assert abs(found[2] - test) <= 1


@pytest.mark.parametrize("split", [(0.7, 0.1, 0.1), (0, 0.5, 0.5), (5, 5, 5), (0.5, 0.5), (2.5, 2, 2)])
def test_splits_that_do_not_fit(split: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="split="):
        split_rows(12, split)


def test_windows_of_the_splits_by_hand(tmp_path: Path) -> None:
    values = waves(60, 2)
    path = write_series(tmp_path / "a.csv", values)
    data = CSVSeries(str(path), seq_len=6, pred_len=3, split=(30, 10, 12), batch_size=4, num_workers=0)
    data.setup("fit")
    table = torch.tensor(values, dtype=torch.float32)
    assert_close(torch.tensor(data.spec().mean), table[:30].mean(dim=0))
    assert_close(torch.tensor(data.spec().std), table[:30].std(dim=0, correction=0))
    firsts = {"train": range(6, 28), "val": range(30, 38), "test": range(40, 50)}  # rows of the first forecast step
    for split, rows in firsts.items():
        windows = getattr(data, f"{split}_set")
        assert len(windows) == len(rows)
        for (x, y), row in zip((windows[i] for i in range(len(windows))), rows, strict=True):
            assert_close(x, table[row - 6 : row])
            assert_close(y, table[row : row + 3])
    assert sum(len(y) for _, y in data.test_dataloader()) == 10  # the incomplete last batch is there


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"seq_len": 30}, r"the training split has 30 of the 60 rows, too few .* needs 33"),
        ({"pred_len": 11}, r"the validation split has 10 .*pred_len=11"),
        ({"seq_len": 0}, "seq_len=0"),
    ],
)
def test_lengths_that_do_not_fit(kwargs: dict[str, int], text: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "a.csv", waves(60))
    with pytest.raises(InputError, match=text):
        CSVSeries(str(path), **{"seq_len": 6, "pred_len": 3, "split": (30, 10, 12)} | kwargs).prepare_data()


def test_constant_channels_and_no_file(tmp_path: Path) -> None:
    values = waves(60)
    values[:42, 1] = 3.1
    path = write_series(tmp_path / "a.csv", values)
    with pytest.raises(InputError, match="the training rows of b never change"):
        CSVSeries(str(path), seq_len=4, pred_len=2).setup("fit")
    with pytest.raises(MissingError, match=r"type --data\.path FILE"):
        CSVSeries().prepare_data()


def test_weather_of_new_york() -> None:
    data = NewYorkWeather()
    data.setup("fit")
    assert len(data.channels) == 15
    assert data.channels[:3] == ["EWR_temp", "JFK_temp", "LGA_temp"]
    assert len(data.train_set.values) == 6111  # type: ignore[union-attr]
    assert torch.isfinite(data.read().values).all()
    assert data.read().values[:, 9].max() < 60  # not the wind of 1,048 miles an hour


def test_baselines_by_hand() -> None:
    x = torch.arange(10.0).view(1, 5, 2)
    assert last_value(x, 3).tolist() == [[[8, 9]] * 3]
    assert seasonal_value(x, 4, 3)[0, :, 0].tolist() == [4, 6, 8, 4]
    assert seasonal_value(x, 6, 9)[0, :, 0].tolist() == [0, 2, 4, 6, 8, 0]


def test_linear_layer_is_the_least_squares_solution() -> None:
    values = torch.tensor(waves(300, 3, noise=0.5), dtype=torch.float32)
    values = (values - values.mean(dim=0)) / values.std(dim=0)
    weight = fit_linear(values, 8, 4)
    rows = np.concatenate([[values[i : i + 12, c].numpy() for i in range(289)] for c in range(3)])
    plain = np.linalg.lstsq(np.c_[rows[:, :8], np.ones(len(rows))], rows[:, 8:], rcond=None)[0]
    assert_close(weight, torch.tensor(plain, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    x = values[:8][None]
    assert_close(linear_forecast(x, weight)[0, 1], x[0].T @ weight[:-1, 1] + weight[-1, 1])


def test_linear_layer_is_the_optimum_for_a_random_walk() -> None:
    """Neighboring values are nearly equal, as in exchange rates, so that a small ridge would change the solution."""
    walk = torch.tensor(np.random.default_rng(0).standard_normal((600, 2)).cumsum(axis=0))
    walk = ((walk - walk.mean(dim=0)) / walk.std(dim=0)).float()
    windows = walk.unfold(0, 20, 1).reshape(-1, 20).double()
    x = torch.cat([windows[:, :16], torch.ones(len(windows), 1, dtype=torch.float64)], dim=1)
    y = windows[:, 16:]

    exact = torch.linalg.lstsq(x, y).solution
    smallest = float((x @ exact - y).square().mean())
    found = float((x @ fit_linear(walk, 16, 4).double() - y).square().mean())
    assert found == pytest.approx(smallest, rel=1e-6)

    ridge = torch.linalg.solve(x.T @ x / len(x) + 1e-3 * torch.eye(17, dtype=torch.float64), x.T @ y / len(x))
    assert float((x @ ridge - y).square().mean()) > 1.001 * smallest


def test_errors_by_hand_and_equally_weighted() -> None:
    errors, metric = torch.randn(7, 3, 2), ForecastErrors(3, 2)
    metric.update(errors[:6])
    metric.update(errors[6:])  # a last batch of one window counts as one window
    found = metric.compute()
    assert_close(found["mse"].float(), errors.square().mean())
    assert_close(found["mae"].float(), errors.abs().mean())
    assert_close(found["by_step"].float(), errors.square().mean(dim=(0, 2)))
    assert_close(found["by_channel"].float(), errors.square().mean(dim=(0, 1)))


def test_quantile_loss_by_hand() -> None:
    y, target = torch.tensor([1.0, 4.0]).view(1, 1, 1, 2), torch.tensor([3.0]).view(1, 1, 1)
    assert_close(quantile_loss(y, target, (0.1, 0.9)), torch.tensor((0.1 * 2 + 0.1 * 1) / 2))


def test_pictures_of_forecasts_show_the_last_rows_of_the_history() -> None:
    history, forecast, truth = torch.arange(50.0), torch.tensor([51.0, 53, 55, 57]), torch.arange(50.0, 54)
    figure = forecast_figure([Example("a", history, forecast, truth), Example("b", history[:5], forecast)])
    drawn = [{line.get_label(): line for line in axes.get_lines()} for axes in figure.axes]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for lines, rows in zip(drawn, (range(38, 50), range(5)), strict=True):
        assert list(lines["history"].get_xdata()) == list(range(1 - len(rows), 1))
        assert list(lines["history"].get_ydata()) == list(rows)
        assert list(lines["forecast"].get_xdata()) == [1, 2, 3, 4]
        assert list(lines["forecast"].get_ydata()) == forecast.tolist()
    assert list(drawn[0]["truth"].get_ydata()) == truth.tolist()
    assert "truth" not in drawn[1]


def test_names_of_channels_are_no_formulas() -> None:
    name = "price $x^$"
    forecasts = forecast_figure([Example(name, torch.zeros(5), torch.ones(2))])
    errors = errors_figure({"model": torch.ones(2)}, torch.ones(1), [name])
    for figure in (forecasts, errors):
        figure.canvas.draw()


@pytest.mark.parametrize("channels", [1, 7])
def test_no_period_in_red_noise(channels: int) -> None:
    """Random walks swing slowly, and some of their swings look like waves."""
    found = []
    for seed in range(20):
        steps = np.random.default_rng(seed).standard_normal((600, channels))
        found.append(dominant_period(torch.tensor(steps.cumsum(axis=0)), 96))
    assert found.count(None) >= 19


def test_a_period_within_red_noise() -> None:
    steps = np.random.default_rng(0).standard_normal((2000, 1))
    daily = 3 * np.sin(2 * np.pi * np.arange(2000) / 24)[:, None]
    assert dominant_period(torch.tensor(steps.cumsum(axis=0) + daily), 96) in (23, 24, 25)


def test_statistics_of_a_random_walk(tmp_path: Path) -> None:
    steps = np.random.default_rng(1).standard_normal((600, 2))
    path = write_series(tmp_path / "walk.csv", steps.cumsum(axis=0))
    measured = CSVSeries(str(path), seq_len=96, pred_len=12).measure()["dominant period"]
    assert measured == "none; no period of 2 to 96 steps of h stands out of red noise (--data.period is 24)"
