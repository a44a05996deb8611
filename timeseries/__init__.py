"""Time series: histories become maps, maps become forecasts."""

from timeseries.corrformer import GlobalArchitecture
from timeseries.covariates import Covariates
from timeseries.data import SeriesDataModule, SeriesSpec
from timeseries.demo import MadeUpWorld, NewYorkWeather
from timeseries.feature_map import SeriesMap, dominant_period, fold_by_period, map_shape, time_marks
from timeseries.global_forecaster import GlobalForecaster
from timeseries.sets import CSVSeries, GlobalSpec, GlobalWeather
from timeseries.task import ForecastTask, GlobalForecastTask, SeriesTask

__all__ = [
    "CSVSeries",
    "Covariates",
    "ForecastTask",
    "GlobalArchitecture",
    "GlobalForecastTask",
    "GlobalForecaster",
    "GlobalSpec",
    "GlobalWeather",
    "MadeUpWorld",
    "NewYorkWeather",
    "SeriesDataModule",
    "SeriesMap",
    "SeriesSpec",
    "SeriesTask",
    "dominant_period",
    "fold_by_period",
    "map_shape",
    "time_marks",
]
