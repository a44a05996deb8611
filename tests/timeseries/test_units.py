"""Errors and forecasts in the units of the file: tables, MASE, MAPE, quantiles, forecasts above zero, dates."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from matplotlib.dates import ConciseDateFormatter
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, table

from core.errors import InputError
from timeseries import CSVSeries, ForecastTask
from timeseries.metrics import ForecastErrors, QuantileErrors, seasonal_errors
from timeseries.plots import Example, band_name, forecast_figure
from timeseries.tables import Measured, channel_table, step_table

LENGTHS = {"seq_len": 24, "pred_len": 6}


def test_scale_of_mase_by_hand() -> None:
    values = np.array([[1.0, 5], [3, 5], [4, 5], [8, 5]])
    assert seasonal_errors([values], 1)[0, 0] == pytest.approx((2 + 1 + 4) / 3)
    assert seasonal_errors([values], 2)[0, 0] == pytest.approx((3 + 5) / 2)
    assert np.isnan(seasonal_errors([values], 2)[0, 1])  # the channel never changes
    assert seasonal_errors([values], 9)[0, 0] == pytest.approx((3 + 5) / 2)  # half of so short a series


def test_errors_of_each_series() -> None:
    errors, metric_ = torch.randn(7, 3, 2), ForecastErrors(3, 2, series=2)
    series = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    metric_.update(errors[:4], errors[:4].abs(), series[:4])
    metric_.update(errors[4:], errors[4:].abs(), series[4:])
    found = metric_.compute()
    assert found["windows"].tolist() == [2, 5]
    assert_close(found["mse"].float(), errors.square().mean())
    for i in range(2):
        assert_close(found["squared"][i].float(), errors[series == i].square().mean(dim=0))
        assert_close(found["relative"][i].float(), errors[series == i].abs().mean(dim=0))


def test_pinball_and_coverage_by_hand() -> None:
    metric_ = QuantileErrors((0.1, 0.9), 1, 1)
    y = torch.tensor([[1.0, 4.0], [2.0, 3.0]]).view(2, 1, 1, 2)
    metric_.update(y[:1], torch.tensor([3.0]).view(1, 1, 1))
    metric_.update(y[1:], torch.tensor([5.0]).view(1, 1, 1))
    found = metric_.compute()
    losses = [0.1 * 2, 0.1 * 1, 0.1 * 3, 0.9 * 2]
    assert float(found["pinball"]) == pytest.approx(sum(losses) / 4)
    assert float(found["coverage"]) == 0.5


def test_tables_by_hand() -> None:
    absolute = np.array([[[1.0, 2], [3, 4]]])
    measured = Measured(
        absolute=absolute,
        squared=absolute**2,
        relative=absolute / 10,
        scale=np.array([[2.0, np.nan]]),
        one_sign=np.array([False, True]),
        windows=np.array([5]),
        pinball=absolute[0] / 4,
        coverage=absolute[0] / 8,
    )
    found = channel_table({"model": measured, "last": measured}, ["a", "b"], [""])
    assert list(found.columns) == [
        "channel", "windows", "mae", "rmse", "mape_percent", "mase", "pinball", "coverage", "mae_last",
    ]  # fmt: skip
    assert found["mae"].tolist() == [2, 3]
    assert found["rmse"].tolist() == pytest.approx([5**0.5, 10**0.5])
    assert found["mase"].tolist() == pytest.approx([1, np.nan], nan_ok=True)
    assert found["mape_percent"].tolist() == pytest.approx([np.nan, 30], nan_ok=True)
    assert found["coverage"].tolist() == pytest.approx([2 / 8, 3 / 8])
    steps = step_table({"model": measured}, ["a", "b"])
    assert steps[["step", "channel", "mae"]].to_numpy().tolist() == [
        [1, "a", 1.0], [1, "b", 2.0], [2, "a", 3.0], [2, "b", 4.0],
    ]  # fmt: skip


def _quiet(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options
    )


def test_tables_of_a_run_are_in_the_units_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = 100 * waves(300, 2) + [200, 0]  # the first channel is above zero, the second changes its sign
    values[:, 1] -= values[:, 1].mean()
    file = write_series(tmp_path / "a.csv", values)
    config = write_series_config(tmp_path / "c.yaml", file, model={"quantiles": [0.1, 0.5, 0.9]}, **LENGTHS)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1")
    capsys.readouterr()
    command("test", config, tmp_path, "--ckpt_path", "best")
    printed = capsys.readouterr().out
    assert "mae_seasonal" in printed
    assert "MAPE is left out for channels with zeros or changes of sign: b" in printed

    fit, tested = series_runs(tmp_path)
    task = ForecastTask.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    data = CSVSeries(str(file), **LENGTHS, num_workers=0)
    data.setup("test")
    samples = [data.test_set[i] for i in range(len(data.test_set))]  # type: ignore[arg-type,index]
    x, y = (torch.stack(parts) for parts in zip(*samples, strict=True))
    with torch.no_grad():
        forecast = task(x)
    error = (forecast[..., 1] - y).numpy()
    by_channel = {row["channel"]: row for row in table(tested / "errors_by_channel.csv")}
    train = values[:210]
    scale = np.abs(train[24:] - train[:-24]).mean(axis=0)  # the period that stats finds
    for i, name in enumerate("ab"):
        row = by_channel[name]
        assert float(row["mae"]) == pytest.approx(np.abs(error[..., i]).mean(), rel=1e-3)
        assert float(row["rmse"]) == pytest.approx(np.sqrt(np.square(error[..., i]).mean()), rel=1e-3)
        assert float(row["mase"]) == pytest.approx(np.abs(error[..., i]).mean() / scale[i], rel=1e-3)
        levels = torch.tensor([0.1, 0.5, 0.9])
        above = y[..., i, None] - forecast[..., i, :]
        pinball = torch.maximum(levels * above, (levels - 1) * above).mean()
        assert float(row["pinball"]) == pytest.approx(float(pinball), rel=1e-3)
        inside = (y[..., i] >= forecast[..., i, 0]) & (y[..., i] <= forecast[..., i, 2])
        assert float(row["coverage"]) == pytest.approx(float(inside.double().mean()), abs=1e-6)
    mape = 100 * np.abs(error[..., 0] / y[..., 0].numpy()).mean()
    assert float(by_channel["a"]["mape_percent"]) == pytest.approx(mape, rel=1e-3)
    assert by_channel["b"]["mape_percent"] == ""
    assert metric(tested, "test_mape") == pytest.approx([mape], rel=1e-3)
    assert metric(tested, "test_mase") == pytest.approx([(np.abs(error).mean(axis=(0, 1)) / scale).mean()], rel=1e-3)
    assert not metric(tested, "test_mae_units")  # the channels may have different units
    by_step = table(tested / "errors_by_step.csv")
    assert [(row["step"], row["channel"]) for row in by_step[:3]] == [("1", "a"), ("1", "b"), ("2", "a")]
    assert float(by_step[2]["mae"]) == pytest.approx(np.abs(error[:, 1, 0]).mean(), rel=1e-3)


def test_one_channel_logs_its_errors_in_its_unit(tmp_path: Path) -> None:
    file = write_series(tmp_path / "a.csv", 100 * waves(300, 1))
    data = CSVSeries(str(file), **LENGTHS, num_workers=0)
    task = ForecastTask(**TINY, spec=data.spec())
    (found,) = _quiet(tmp_path).validate(task, data, verbose=False)
    std = float(task.feature_map.std[0])
    assert found["val_mae_units"] == pytest.approx(found["val_mae"] * std, rel=1e-4)
    assert found["val_rmse_units"] == pytest.approx(found["val_mse"] ** 0.5 * std, rel=1e-4)


def test_without_a_period_mase_is_that_of_the_last_value(tmp_path: Path) -> None:
    steps = np.random.default_rng(1).standard_normal((600, 1)).cumsum(axis=0)
    data = CSVSeries(str(write_series(tmp_path / "walk.csv", steps)), **LENGTHS, num_workers=0)
    assert data.season() == 1
    data = CSVSeries(str(write_series(tmp_path / "a.csv", waves(300, period=12))), **LENGTHS, num_workers=0)
    assert data.season() == 12


@pytest.mark.parametrize("quantiles", [(), (0.1, 0.5, 0.9)])
@pytest.mark.parametrize("blend", [False, True])
def test_nonnegative_forecasts(quantiles: tuple[float, ...], blend: bool) -> None:
    options: dict[str, Any] = {"channels": 2, **LENGTHS, "quantiles": quantiles, "blend": blend}
    torch.manual_seed(0)
    free = ForecastTask(**TINY, **options).eval()
    torch.nn.init.normal_(free.head.projection.bias)
    cut = ForecastTask(**TINY, **options, nonnegative=True).eval()
    cut.load_state_dict(free.state_dict())
    for task in (free, cut):
        task.feature_map.set_scale([0.0, 3.0], [1.0, 2.0])
        if task.blend is not None:
            task.blend.share.fill_(0.25)
    x = torch.randn(4, 24, 2).abs()
    assert float(free(x).detach().min()) < 0
    assert float(cut(x).detach().min()) >= 0
    if not blend:
        assert_close(cut(x), free(x).clamp(min=0))
        cut.train()
        cut(x).sum().backward()
        assert float(cut.head.projection.bias.grad.abs().min()) > 0  # type: ignore[union-attr]


def test_nonnegative_forecasts_of_values_below_zero(tmp_path: Path) -> None:
    file = write_series(tmp_path / "a.csv", waves(300, 2))
    data = CSVSeries(str(file), **LENGTHS, num_workers=0)
    task = ForecastTask(**TINY, spec=data.spec(), nonnegative=True)
    with pytest.raises(
        InputError, match=r"nonnegative forecasts, but the training rows have values below zero in a \("
    ):
        _quiet(tmp_path).validate(task, data, verbose=False)


def test_pictures_have_dates_and_the_band_its_name(tmp_path: Path) -> None:
    times = pd.date_range("2024-02-28", periods=30, freq="h", tz="UTC")
    forecast = torch.stack([torch.zeros(6), torch.ones(6), 2 * torch.ones(6)], dim=1)
    example = Example("a", torch.zeros(24), forecast, torch.ones(6), times, band_name((0.05, 0.5, 0.95)), 1)
    figure = forecast_figure([example])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    dates = times.tz_localize(None).to_numpy()
    assert lines["forecast"].get_xdata().tolist() == dates[24:].astype("datetime64[s]").tolist()
    assert lines["forecast"].get_ydata().tolist() == [1] * 6
    assert len(lines["history"].get_xdata()) == 18
    assert isinstance(axes.xaxis.get_major_formatter(), ConciseDateFormatter)
    assert "5 to 95 %" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure.canvas.draw()

    unsorted = Example("a", torch.zeros(24), torch.ones(6), None, times[::-1])
    (axes,) = forecast_figure([unsorted]).axes
    assert list(axes.get_lines()[0].get_xdata())[-1] == 0  # such rows are taken in order, and have no axis of dates


def test_examples_of_a_run_know_their_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[Example]] = []
    monkeypatch.setattr("timeseries.task.forecast_figure", lambda examples: seen.append(examples))
    monkeypatch.setattr(
        "timeseries.task.draw_figure", lambda trainer, name, draw: draw() if name == "forecasts" else None
    )
    file = write_series(tmp_path / "a.csv", waves(300, 1))
    table_ = pd.read_csv(file, parse_dates=["date"]).set_index("date")["a"]
    data = CSVSeries(str(file), **LENGTHS, num_workers=0, batch_size=5)
    task = ForecastTask(**TINY, spec=data.spec())
    _quiet(tmp_path).test(task, data, verbose=False)
    assert "mae_seasonal" not in capsys.readouterr().out
    _quiet(tmp_path).predict(task, data)
    assert [len(examples) for examples in seen] == [6, 1]
    for example in seen[0]:
        assert_close(example.history, torch.tensor(table_[example.times[:24]].to_numpy()), rtol=1e-5, atol=1e-5)
        assert_close(example.truth, torch.tensor(table_[example.times[24:]].to_numpy()), rtol=1e-5, atol=1e-5)
    assert seen[1][0].times[24] == table_.index[-1] + pd.Timedelta(hours=1)
