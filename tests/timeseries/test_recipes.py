"""The long-term recipes on files with the sizes, dates and names of the public ones, and made-up values."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from timeseries import CSVSeries

RECIPES = Path(__file__).parents[2] / "timeseries" / "configs" / "recipes"

ETT = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
WEATHER = ["p (mbar)", "wv (m/s)", "SWDR (W/m\ufffd)", "max. PAR (\ufffdmol/m\ufffd/s)", "OT"]
ILI = ["% WEIGHTED ILI", "%UNWEIGHTED ILI", "AGE 0-4", "AGE 5-24", "ILITOTAL", "NUM. OF PROVIDERS", "OT"]

FILES: dict[str, tuple[str, str, int, list[str], tuple[int, int, int]]] = {
    "etth1": ("2016-07-01 00:00", "h", 17_420, ETT, (8640, 2880, 2880)),
    "etth2": ("2016-07-01 00:00", "h", 17_420, ETT, (8640, 2880, 2880)),
    "ettm1": ("2016-07-01 00:00", "15min", 69_680, ETT, (34_560, 11_520, 11_520)),
    "ettm2": ("2016-07-01 00:00", "15min", 69_680, ETT, (34_560, 11_520, 11_520)),
    "weather": ("2020-01-01 00:10", "10min", 52_696, WEATHER, (36_887, 5270, 10_539)),
    "electricity": ("2016-07-01 02:00", "h", 26_304, ["0", "1", "319", "OT"], (18_412, 2632, 5260)),
    "traffic": ("2016-07-01 02:00", "h", 17_544, ["0", "1", "860", "OT"], (12_280, 1756, 3508)),
    "ili": ("2002-01-01 00:00", "7D", 966, ILI, (676, 97, 193)),
}
"""First date, step, rows, some or all channels, and rows of the splits of the field's protocol."""


def _dates(name: str) -> list[str]:
    start, step, rows, _, _ = FILES[name]
    dates = [str(time) for time in pd.date_range(start, periods=rows, freq=step)]
    if name == "weather":  # one date twice, and a gap of an hour and 40 minutes
        dates = [*dates[:20_000], dates[19_999], *dates[20_000:-1]]
        later = pd.date_range(pd.Timestamp(dates[40_000]) + pd.Timedelta(minutes=100), periods=rows - 40_001, freq=step)
        dates[40_001:] = [str(time) for time in later]
    return dates


def _table(name: str) -> pd.DataFrame:
    """The values wander; Weather has the -9999 of a broken sensor, and the loads of a client begin with zeros."""
    _, _, rows, channels, _ = FILES[name]
    steps = np.random.default_rng(0).standard_normal((rows, len(channels)))
    table = pd.DataFrame(np.round(steps.cumsum(axis=0), 3), columns=channels)
    if name == "weather":
        table.iloc[30_000, 1:] = -9999.0
    if name == "electricity":
        table.iloc[: rows // 2, 0] = 0.0
    table.insert(0, "date", _dates(name))
    return table


@pytest.mark.parametrize("name", FILES)
def test_recipe_reads_the_public_file(name: str, tmp_path: Path) -> None:
    args: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    path = tmp_path / Path(args["path"]).name
    table = _table(name)
    table.to_csv(path, index=False)

    data = CSVSeries(**args | {"path": str(path)})
    data.setup("fit")
    _, _, rows, channels, splits = FILES[name]
    assert len(data.series()[0]) == rows
    assert list(data.spec().channels) == channels
    sets = (data.train_set, data.val_set, data.test_set)
    found = tuple(len(windows) + data.pred_len - 1 for windows in sets)  # type: ignore[arg-type]
    assert found == (splits[0] - data.seq_len, splits[1], splits[2])
    assert all(windows[0][0].isfinite().all() for windows in sets)  # type: ignore[index]


def test_forecasts_of_weather_go_on_after_the_last_date(tmp_path: Path) -> None:
    path = tmp_path / "weather.csv"
    _table("weather").tail(200).to_csv(path, index=False)
    series = CSVSeries(str(path), in_order=True).series()[0]
    last = pd.Timestamp(_dates("weather")[-1])
    assert [time - last for time in series.ahead(2)] == [pd.Timedelta(minutes=10), pd.Timedelta(minutes=20)]
