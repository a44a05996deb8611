"""A small made-up world of weather stations: the built-in data of the global system, which needs no download."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.writing import whole_folder
from timeseries.world import SPLITS, GlobalWeather

__all__ = ["MadeUpWorld", "make_world"]


class MadeUpWorld(GlobalWeather):
    """A small world that is made up: waves of weather that travel over stations, for running the global system.

    At the first use it is written to ``root`` in the published layout, from a fixed seed. Nothing in it is measured.

    Args:
        root: folder that it is written to.
        kwargs: arguments of :class:`GlobalWeather`.
    """

    def __init__(self, root: str = "data/made_up_world", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    def check_data(self) -> None:
        """Make the world unless it is there."""
        if not self.root.exists():
            make_world(self.root)
        super().check_data()


def make_world(root: Path, *, regions: int = 3, nodes: int = 4, stations: int = 4, hours: int = 1200) -> None:
    """Write a world in the published layout, 7:1:2 of its hours for the splits.

    A station's temperature is a daily wave by its longitude, a level by its latitude, and fronts: a slow random wave
    that passes over the stations from west to east, so that one station tells the next what will come; plus noise. The
    folder appears when it is complete.

    Args:
        root: a folder that is not there yet.
        regions: anywhere between 50 degrees south and north, the first level of the tree.
        nodes: of each region, about 8 degrees from its middle.
        stations: of each node, about 2 degrees from its middle.
        hours: of all splits together.
    """
    generator = np.random.default_rng(0)
    places = _places(regions, nodes, stations, generator)
    hour, longitude = np.arange(hours)[:, None], places[None, :, 1]
    daily = 5 * np.sin(2 * np.pi * (hour / 24 + longitude / 360))
    level = 25 - 0.3 * np.abs(places[:, 0])[None]
    slow = np.convolve(generator.standard_normal(hours + 600), np.hanning(37) / 4, mode="same")
    delay = np.round(100 + longitude / 2).astype(int)  # half an hour for each degree
    values = level + daily + 3 * slow[300 + hour - delay] + generator.normal(0, 0.5, (hours, len(places)))
    times = pd.date_range("2019-01-01", periods=hours, freq="h").to_numpy()
    wind = np.abs(np.diff(values, axis=0, prepend=values[:1])) + 2
    parts = np.split(np.arange(hours), [int(hours * 0.7), int(hours * 0.8)])
    with whole_folder(root) as folder:
        np.save(folder / "stations_sorted.npy", places)
        for split, rows in zip(SPLITS, parts, strict=True):
            for variable, quantity in (("temp", values), ("wind", wind)):
                stored = np.round(10 * quantity[rows]).astype(np.float32)[..., None]
                np.save(folder / f"{variable}_global_hourly_{split}.npy", stored)
            np.save(folder / f"data_time_{split}.npy", times[rows])


def _places(regions: int, nodes: int, stations: int, generator: np.random.Generator) -> np.ndarray:
    """(N, 3) latitude, longitude and height, neighbours of the tree near each other."""
    centres = generator.uniform((-50, -150, 0), (50, 150, 1000), (regions, 1, 1, 3))
    inner = generator.normal(0, (8, 8, 100), (regions, nodes, 1, 3))
    own = generator.normal(0, (2, 2, 30), (regions, nodes, stations, 3))
    return (centres + inner + own).reshape(-1, 3)
