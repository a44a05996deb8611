"""Rolling backtests: origins, errors of the model and the simple forecasts, table and picture."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_series import TINY, series_runs, waves, write_series, write_series_config
from torch.testing import assert_close
from training.small_runs import command

from core.errors import InputError
from timeseries import CSVSeries, ForecastTask, GlobalForecastTask, GlobalWeather
from vision import Digits, ImageClassifier


def test_backtest_of_a_run_by_hand(trained_series: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = trained_series["folder"]
    before = series_runs(trained_series["out"])
    command("backtest", trained_series["config"], trained_series["out"], "--ckpt_path", str(run), "--stride", "10")
    printed = capsys.readouterr().out
    assert series_runs(trained_series["out"]) == before  # no run of its own
    assert "origins where the model is better" in printed
    assert "7 origins, 10 steps apart" in printed
    with Image.open(run / "backtest" / "backtest.png") as picture:
        assert min(picture.size) > 400

    rows = pd.read_csv(run / "backtest" / "backtest.csv", parse_dates=["origin", "date"])
    dates = pd.date_range("2020-01-01", periods=400, freq="h")
    first = 400 - 80 - 1  # the last row before the test part
    assert rows["origin"].unique().tolist() == dates[first::10][:7].tolist()
    assert len(rows) == 7 * 12 * 2

    task = ForecastTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    values = torch.tensor(pd.read_csv(trained_series["series"])[["a", "b"]].to_numpy(), dtype=torch.float32)
    for i, (origin, part) in enumerate(rows.groupby("origin")):
        last = first + 10 * i
        with torch.no_grad():
            expected = task(values[None, last - 47 : last + 1])[0]
        assert origin == dates[last]
        assert part["date"].tolist() == dates[last + 1 : last + 13].repeat(2).tolist()
        assert_close(torch.tensor(part["truth"].to_numpy()).view(12, 2).float(), values[last + 1 : last + 13])
        assert_close(torch.tensor(part["model"].to_numpy()).view(12, 2).float(), expected, rtol=1e-4, atol=1e-4)
        assert_close(torch.tensor(part["last"].to_numpy()).view(12, 2).float(), values[last].expand(12, -1))
    assert np.allclose(rows["error_model"], (rows["model"] - rows["truth"]).abs(), atol=1e-4)


def test_backtest_of_several_series_with_quantiles(tmp_path: Path) -> None:
    parts = []
    for i, name in enumerate(("north", "south")):
        values = waves(200 - 40 * i, 1, period=12, seed=i)[:, 0]
        dates = pd.date_range("2020-01-01", periods=len(values), freq="h")
        parts.append(pd.DataFrame({"date": dates, "store": name, "a": values}))
    pd.concat(parts).to_csv(tmp_path / "a.csv", index=False)
    options = {"seq_len": 24, "pred_len": 6, "series_column": "store", "calendar": ["hour"]}
    data = CSVSeries(str(tmp_path / "a.csv"), **options, num_workers=0)  # type: ignore[arg-type]
    task = ForecastTask(**TINY, spec=data.spec(), quantiles=[0.1, 0.5, 0.9])
    task.backtest(data, tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "backtest.csv")
    assert list(rows.columns)[:6] == ["origin", "store", "step", "date", "channel", "truth"]
    assert {"q0.1", "q0.5", "q0.9", "error_linear"} < set(rows.columns)
    assert rows.groupby("store").size().to_dict() == {"north": 6 * 6, "south": 5 * 6}
    assert np.allclose(rows["q0.5"], rows["model"])
    assert (rows["q0.1"] <= rows["q0.9"]).all()


def test_backtest_of_the_global_system(world: Path, tmp_path: Path) -> None:
    data = GlobalWeather(str(world), seq_len=12, label_len=4, pred_len=5, num_workers=0, batch_size=4)
    task = GlobalForecastTask(
        "test_unireplknet",
        {"tree": [2, 2], "stations": 2, "d_model": 32, "n_heads": 4, "d_ff": 16},  # type: ignore[arg-type]
        spec=data.spec(),
    )
    task.backtest(data, tmp_path, stride=10)
    rows = pd.read_csv(tmp_path / "backtest.csv", parse_dates=["origin"])
    assert rows["origin"].diff().max() == pd.Timedelta(hours=10)
    assert rows["channel"].nunique() == 8


def test_what_cannot_be_backtested(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ImageClassifier forecasts no series; backtest is for tasks that do"):
        ImageClassifier("test_unireplknet", num_classes=10).backtest(Digits(), tmp_path)
    file = write_series(tmp_path / "a.csv", waves(300))
    data = CSVSeries(str(file), seq_len=24, pred_len=6, num_workers=0)
    with pytest.raises(InputError, match=r"--stride 0; expected a number of steps, 1 or more"):
        ForecastTask(**TINY, spec=data.spec()).backtest(data, tmp_path / "out", stride=0)
    config = write_series_config(tmp_path / "c.yaml", file)
    with pytest.raises(SystemExit, match="backtest would use random weights"):
        command("backtest", config, tmp_path)
