"""What is known of the horizon before it comes: the calendar, public holidays, and columns of the file.

Shapes: T steps, K covariates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from core.errors import InputError, listed

__all__ = ["CalendarFeature", "Covariates"]

CalendarFeature = Literal["hour", "weekday", "month"]


@dataclass(frozen=True)
class Covariates:
    """Which covariates a forecaster reads, in this order.

    Attributes:
        known: columns of the file whose values are known ahead, such as a weather forecast or a price.
        calendar: features of the timestamps; each becomes a sine and a cosine.
        holidays: country, or country and subdivision, such as 'DE' or 'DE-BY', for a feature that is 1 on public
            holidays and 0 on other days; None for none.

    Raises:
        InputError: if a feature or a country is unknown, or a name is repeated.
    """

    known: tuple[str, ...] = ()
    calendar: tuple[CalendarFeature, ...] = ()
    holidays: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.calendar if name not in get_args(CalendarFeature)]
        if unknown:
            raise InputError(
                f"--data.calendar has {listed(unknown)}; expected some of {listed(get_args(CalendarFeature))}"
            )
        for option, names in (("known", self.known), ("calendar", self.calendar)):
            if len(set(names)) < len(names):
                raise InputError(f"--data.{option} is {listed(names)}; give each name once")
        if self.holidays is not None:
            _holidays_of(self.holidays, [2000])

    @property
    def names(self) -> list[str]:
        """Names of the K covariates."""
        waves = [f"{feature} ({wave})" for feature in self.calendar for wave in ("sine", "cosine")]
        return [*self.known, *waves, *(["holiday"] if self.holidays else [])]

    def features(self, times: Any, known_TK: Tensor | None = None) -> Tensor:
        """Return the covariates of some steps.

        Args:
            times: ``pandas.DatetimeIndex`` of length T.
            known_TK: values of the known columns in the units of the file, if there are any.

        Returns:
            (T, K) in the dtype of the known columns, or float32. Waves are in [-1, 1].
        """
        columns = [_wave(_share_of_cycle(times, feature)) for feature in self.calendar]
        if self.holidays is not None:
            columns.append(self._on_holidays(times))
        features = [column.float() for column in columns]
        return torch.cat([*([known_TK] if known_TK is not None and self.known else []), *features], dim=1)

    def check_steps(self, times: Any, where: str) -> None:
        """Check that the timestamps of a series let the features change.

        Args:
            times: ``pandas.DatetimeIndex`` of the training rows.
            where: name of the series in messages.

        Raises:
            InputError: if a feature of the calendar has one value only, or holidays are asked of steps beyond a day.
        """
        for feature in self.calendar:
            if len(_share_of_cycle(times, feature).unique()) == 1:
                raise InputError(
                    f"{feature} has the same value in all training rows of {where}, from {times[0]} to {times[-1]}; "
                    "leave it out of --data.calendar"
                )
        if self.holidays is not None and (times[1:] - times[:-1]).min() > pd.Timedelta(days=1):
            raise InputError(
                f"{where} has steps longer than a day, and --data.holidays {self.holidays} tells days apart; leave it "
                "out, or count the holidays of each step in a column of --data.known"
            )

    def _on_holidays(self, times: Any) -> Tensor:
        assert self.holidays is not None
        public = _holidays_of(self.holidays, sorted(set(times.year)))
        days = times.normalize()
        off = [day for day in days.unique() if day.date() in public]
        return torch.from_numpy(days.isin(off).astype("float32"))[:, None]


def _share_of_cycle(times: Any, feature: CalendarFeature) -> Tensor:
    """Return how far each timestamp is through its day, week or year, (T,) in [0, 1)."""
    hour = times.hour + times.minute / 60
    if feature == "hour":
        share = hour / 24
    elif feature == "weekday":
        share = times.day_of_week / 7
    else:
        share = (times.month - 1 + (times.day - 1) / times.days_in_month) / 12
    return torch.from_numpy(share.to_numpy(dtype="float64", copy=True))


def _wave(share: Tensor) -> Tensor:
    """Return sine and cosine (T, 2) of shares of a cycle (T,)."""
    angle = 2 * torch.pi * share
    return torch.stack([angle.sin(), angle.cos()], dim=1)


def _holidays_of(place: str, years: Sequence[int]) -> Any:
    """Return the public holidays of some years: a mapping from days to names."""
    try:
        import holidays  # an extra; few series need it
    except ImportError as error:
        raise InputError(
            f"--data.holidays {place} needs the package holidays; type: pip install holidays, or in LarKit's folder: "
            "pip install -e '.[holidays]'"
        ) from error

    country, _, subdivision = place.partition("-")
    try:
        return holidays.country_holidays(country, subdiv=subdivision or None, years=[int(year) for year in years])
    except NotImplementedError as error:
        known = holidays.list_supported_countries()
        expected = "such as DE or US"
        if country in known:
            expected = f"and for {country} a subdivision of {listed(known[country], 60)}"
        raise InputError(
            f"--data.holidays {place} is no country that the package holidays knows; expected a code of ISO 3166, "
            f"{expected}"
        ) from error
