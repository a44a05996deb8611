"""Time series: histories become maps, maps become forecasts."""

from timeseries.data import SeriesDataModule
from timeseries.feature_map import dominant_period, fold_by_period, map_shape, time_marks
from timeseries.forecaster import Forecaster
from timeseries.global_forecaster import GlobalForecaster
from timeseries.global_task import GlobalForecastTask
from timeseries.made_up_world import MadeUpWorld
from timeseries.series_task import SeriesTask
from timeseries.sets import CSVSeries, NewYorkWeather
from timeseries.task import ForecastTask
from timeseries.world import GlobalWeather

__all__ = [
    "CSVSeries",
    "ForecastTask",
    "Forecaster",
    "GlobalForecastTask",
    "GlobalForecaster",
    "GlobalWeather",
    "MadeUpWorld",
    "NewYorkWeather",
    "SeriesDataModule",
    "SeriesTask",
    "dominant_period",
    "fold_by_period",
    "map_shape",
    "time_marks",
]
