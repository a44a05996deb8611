"""Several series in one file, named by a column: reading, windows, training, errors and predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_series import TINY, series_runs, waves, write_series_config
from torch.testing import assert_close
from training.small_runs import command, metric, table

from core.errors import InputError
from timeseries import CSVSeries, ForecastTask
from timeseries.files import read_group

LENGTHS = {"seq_len": 24, "pred_len": 6}


def _stores(path: Path, lengths: dict[str, int], *, freq: str = "h") -> Path:
    """Stores of so many rows, each with a level of its own and a later start; their rows stand in turn."""
    parts = []
    for i, (name, rows) in enumerate(lengths.items()):
        dates = pd.date_range(f"2020-01-0{i + 1}", periods=rows, freq=freq)
        values = waves(rows, 1, period=12, seed=i)[:, 0] + 10 * (i + 1)
        parts.append(pd.DataFrame({"date": dates, "store": name, "sales": values}))
    pd.concat(parts).sort_values(["date", "store"], kind="stable").to_csv(path, index=False)
    return path


def test_series_are_read_apart(tmp_path: Path) -> None:
    file = _stores(tmp_path / "a.csv", {"north": 40, "south": 30})
    north, south = read_group(file, series_column="store")
    rows = pd.read_csv(file)
    for series, name, start in ((north, "north", "2020-01-01"), (south, "south", "2020-01-02")):
        expected = rows[rows["store"] == name]["sales"].to_numpy()
        assert (series.name, series.channels, str(series.times[0].date())) == (name, ["sales"], start)
        assert_close(series.values[:, 0], torch.tensor(expected, dtype=torch.float32))


def test_no_window_crosses_from_one_series_to_the_next(tmp_path: Path) -> None:
    file = _stores(tmp_path / "a.csv", {"north": 200, "south": 150})
    data = CSVSeries(str(file), **LENGTHS, series_column="store", num_workers=0)
    data.setup("fit")
    counts = {"north": (140, 20, 40), "south": (105, 15, 30)}
    for i, split in enumerate(("train", "val", "test")):
        windows = getattr(data, f"{split}_set")
        before = 24 + 6 - 1 if split == "train" else 6 - 1
        assert len(windows) == sum(count[i] - before for count in counts.values())
        level = {"north": 10.0, "south": 20.0}
        for k in range(len(windows)):
            place = data.place(split, k) if split != "train" else None
            values = torch.cat(windows[k])[:, 0]
            assert float((values - values.mean()).abs().max()) < 3  # levels are 10 apart
            if place is not None:
                assert abs(float(values.mean()) - level[place.name]) < 2
                assert len(place.times) == 30  # type: ignore[arg-type]
    train = torch.cat([torch.tensor(part) for part in data.training_parts()])
    assert len(train) == 245
    assert data.spec().mean == pytest.approx(train.double().mean(dim=0).tolist())


def test_short_series_are_named_and_left_out(tmp_path: Path) -> None:
    file = _stores(tmp_path / "a.csv", {"north": 200, "brief": 100, "tiny": 10})
    data = CSVSeries(str(file), **LENGTHS, series_column="store", split=(0.5, 0.25, 0.25))
    with pytest.warns(UserWarning, match="1 series with fewer than 24 rows are left out: tiny"):
        data.setup("fit")
    assert data.series_names() == ["north", "brief"]
    data = CSVSeries(str(file), **LENGTHS, series_column="store", split=(0.96, 0.02, 0.02))
    with pytest.raises(InputError, match="each of the 2 series has a split that is too short"):
        data.setup("fit")
    data = CSVSeries(str(file), **LENGTHS, series_column="store", split=(100, 20, 20))
    with pytest.warns(UserWarning, match="too short for one window of seq_len=24 and pred_len=6; .*left out: brief"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("column", "change", "text"),
    [
        ("shop", {}, r"has the columns store, sales; none is called 'shop': set --data\.series_column"),
        ("store", {"store": None}, "row 1: 'store' is empty"),
        (None, {}, r"has the date 2020-01-02 00:00:00 twice; .* --data\.series_column"),
    ],
)
def test_columns_that_name_no_series(column: str | None, change: dict[str, Any], text: str, tmp_path: Path) -> None:
    file = _stores(tmp_path / "a.csv", {"north": 60, "south": 60})
    rows = pd.read_csv(file)
    if change:
        rows["store"] = rows["store"].astype(object)
        rows.loc[0, "store"] = None
        rows.to_csv(file, index=False)
    channels = ["sales"] if column is None else None
    with pytest.raises(InputError, match=text):
        CSVSeries(str(file), **LENGTHS, series_column=column, channels=channels).setup("fit")


def test_series_of_other_steps_are_refused(tmp_path: Path) -> None:
    hours, days = _stores(tmp_path / "a.csv", {"x": 40}), _stores(tmp_path / "b.csv", {"y": 40}, freq="2h")
    pd.concat([pd.read_csv(hours), pd.read_csv(days)]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(InputError, match="x has steps of h, y of 2h; bring all series to one frequency"):
        read_group(tmp_path / "c.csv", series_column="store")


def test_from_training_to_prediction(tmp_path: Path) -> None:
    file = _stores(tmp_path / "a.csv", {"north": 200, "south": 150})
    options = {**LENGTHS, "series_column": "store", "period": 12}
    config = write_series_config(tmp_path / "c.yaml", file, model={"normalize": "last"}, **options)
    command("fit", config, tmp_path, "--trainer.max_epochs", "1")
    command("test", config, tmp_path, "--ckpt_path", "best", "--data.batch_size", "7")
    command("predict", config, tmp_path, "--ckpt_path", "best")
    fit, tested, predicted = series_runs(tmp_path)

    rows = table(predicted / "predictions.csv")
    assert list(rows[0]) == ["store", "date", "sales"]
    assert [row["store"] for row in rows] == ["north"] * 6 + ["south"] * 6
    assert rows[6]["date"] == str(pd.Timestamp("2020-01-02") + pd.Timedelta(hours=150))
    task = ForecastTask.load_from_checkpoint(fit / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    again = task.predict(file)
    assert [(row["store"], row["date"]) for row in again] == [(row["store"], row["date"]) for row in rows]
    assert [row["sales"] for row in again] == pytest.approx([float(row["sales"]) for row in rows], rel=1e-5)

    data = CSVSeries(str(file), **options, num_workers=0)
    data.setup("test")
    errors: dict[str, list[np.ndarray]] = {"north": [], "south": []}
    with torch.no_grad():
        for i in range(len(data.test_set)):  # type: ignore[arg-type]
            x, y = data.test_set[i]  # type: ignore[index]
            errors[data.place("test", i).name].append((task(x[None])[0] - y).numpy())
    found = {row["store"]: row for row in table(tested / "errors_by_channel.csv")}
    scaled = []
    for name, part in zip(("north", "south"), data.training_parts(), strict=True):
        mae = np.abs(errors[name]).mean()
        scale = np.abs(part[12:] - part[:-12]).mean()
        scaled.append((mae / scale, len(errors[name])))
        assert float(found[name]["mae"]) == pytest.approx(mae, rel=1e-3)
        assert float(found[name]["rmse"]) == pytest.approx(np.sqrt(np.square(errors[name]).mean()), rel=1e-3)
        assert float(found[name]["mase"]) == pytest.approx(mae / scale, rel=1e-3)
        assert int(found[name]["windows"]) == len(errors[name])
    mase = sum(value * count for value, count in scaled) / sum(count for _, count in scaled)
    assert float(found["all"]["mase"]) == pytest.approx(mase, rel=1e-3)
    assert metric(tested, "test_mase") == pytest.approx([mase], rel=1e-3)


def test_linear_baseline_sees_no_window_across_series(tmp_path: Path) -> None:
    """Two series without noise are forecast exactly; a window across their border would spoil the fit."""
    parts = []
    for i, name in enumerate(("x", "y")):
        dates = pd.date_range("2020-01-01", periods=200, freq="h")
        parts.append(
            pd.DataFrame({"date": dates, "store": name, "a": waves(200, 1, period=12, noise=0)[:, 0] + 30 * i})
        )
    pd.concat(parts).to_csv(tmp_path / "a.csv", index=False)
    data = CSVSeries(str(tmp_path / "a.csv"), **LENGTHS, series_column="store", num_workers=0)
    data.setup("fit")
    task = ForecastTask(**TINY, spec=data.spec())
    task.use_data(data, "fit")
    assert task.baselines is not None
    x, y = data.train_set[0]  # type: ignore[index]
    assert_close(task.baselines(x[None])["linear"][0], y, atol=1e-2, rtol=0)
