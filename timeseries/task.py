"""The forecasting tasks: one for any series, and one for all stations of the papers' global system.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, K covariates, Q quantiles, G channels of one
map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from core.analysis.report import print_table
from core.data.module import DataModule, attached_data_module
from core.data.spec import DataSpec
from core.errors import InputError, listed
from core.export import Exported
from core.io.atomic import atomic_write
from core.io.weights import load_weights, read_state_dict
from core.training.plots import draw_figure
from core.training.report import Section, logged_figures, picture_sections, table_sections
from core.training.run_folder import run_folder
from core.training.task import Backbone, EvaluationSplit, Task
from timeseries.backtest import run_backtest
from timeseries.blend import SHARES, Blend
from timeseries.corrformer import PUBLISHED, GlobalArchitecture
from timeseries.data import Place, SeriesSpec, WindowDataModule, numbered_channels
from timeseries.feature_map import Layout, Normalize, SeriesMap
from timeseries.global_forecaster import GlobalForecaster, freeze_output_norm
from timeseries.metrics import Baselines, ForecastErrors, QuantileErrors, quantile_loss, seasonal_errors
from timeseries.plots import Example, band_name, errors_figure, forecast_figure
from timeseries.report import result_section, window_errors
from timeseries.sets import CSVSeries, GlobalSpec, GlobalWeather
from timeseries.tables import Measured, channel_table, mean_errors, screen_table, step_table

__all__ = ["ForecastHead", "ForecastTask", "GlobalForecastTask", "SeriesTask"]

EXAMPLES = 6
"""Panels in a picture of forecasts; each shows one channel of one window."""
TABLES = {"errors_by_channel": "Errors by channel", "errors_by_step": "Errors by step"}
"""Tables of an evaluation that its report shows: title by file name."""


_BATCH_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Lightning's precisions that cast the batches too, and the dtype they get."""


class SeriesTask(Task):
    """Base of the forecasting tasks: baselines, metrics, pictures and predictions.

    A subclass builds the model and computes the forecast in ``forward``. Batches are (raw, horizon (B, T, C)); raw is
    the history (B, L, C), or a tuple that begins with it.

    Logs ``train_loss``, ``lr``, ``val_mse`` and ``val_mae``, and ``test_mse`` and ``test_mae``. If the data come from a
    data module of this package, three baselines are measured on the same windows and logged with their name at the end,
    as in ``val_mse_linear``: the last value, the last period, and one linear layer fitted on the training rows. Errors
    that need no unit are logged too: ``val_mase``, which divides by the error of the seasonal value within the training
    rows, and ``val_mape`` in percent, the mean over the channels without zeros and changes of sign. With a single
    channel, ``val_mae_units`` and ``val_rmse_units`` are in the units of the file. After each evaluation, the run
    folder holds ``forecasts.png`` and ``errors.png``, and the errors in the units of the file in
    ``errors_by_channel.csv`` and ``errors_by_step.csv``.
    """

    monitor: ClassVar[str] = "val_mse"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    baseline_names: ClassVar[tuple[str, ...]] = ("last", "seasonal", "linear")
    pipeline_tag: ClassVar[str | None] = "time-series-forecasting"
    pictures: ClassVar[Mapping[str, str]] = {"forecasts": "Forecasts", "errors": "Errors by step and channel"}
    spec_class: ClassVar[type[SeriesSpec]] = SeriesSpec
    data_class: ClassVar[type[DataModule]] = CSVSeries
    metric_unit: ClassVar[str] = "standard deviations"
    """What the errors of the metrics are measured in."""
    spec: SeriesSpec

    def __init__(self, backbone: Backbone, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.baselines: Baselines | None = None
        self.series_names = [""]
        self.seasonal_scale = np.full((1, len(self.spec.channels)), np.nan)
        self.one_sign = np.zeros(len(self.spec.channels), dtype=bool)
        self.errors = nn.ModuleDict({"model": self._new_errors()})
        self.quantiles: tuple[float, ...] = ()
        self.quantile_errors: QuantileErrors | None = None
        self.examples: list[Example] = []
        self.batches_seen = 0
        self.windows_seen = 0

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels; 'channel_0', 'channel_1', ... until the data are known."""
        return list(self.spec.channels)

    # What the task knows about its data

    def setup(self, stage: str) -> None:
        """Read the specification of the data, and check that the precision of the trainer can hold them.

        Raises:
            InputError: if the data contradict the model, or batches of 16 bits would lose how a channel changes.
        """
        super().setup(stage)
        self._check_precision()

    def _check_precision(self) -> None:
        """Raise an error if Lightning would round a channel by more than a tenth of its standard deviation."""
        dtype = _BATCH_DTYPES.get(self.trainer.precision)
        if dtype is None:
            return
        for name, mean, std in zip(self.spec.channels, self.spec.mean, self.spec.std, strict=False):
            if abs(mean) * torch.finfo(dtype).eps / 2 > std / 10:
                raise InputError(
                    f"--trainer.precision {self.trainer.precision} rounds the rows before the model centers them, and "
                    f"{name} changes by only {std:.3g} around {mean:.7g}; set --trainer.precision bf16-mixed"
                )

    def use_spec(self, theirs: SeriesSpec) -> None:
        """Check that channels and lengths are those of the data, and adopt names and scale if the task has none.

        Raises:
            InputError: if the data contradict the model.
        """
        for name in self.fixed_by_model():
            _check_equal(name, model=getattr(self.spec, name), data=getattr(theirs, name))
        _check_covariates(self.spec, theirs)
        self.check_channels(theirs.channels)
        if not self.knows_data and theirs.channels:
            self.adopt_spec(theirs)

    def fixed_by_model(self) -> tuple[str, ...]:
        """Return the names of the fields of the spec that cannot change once the model is built."""
        return ("seq_len", "pred_len", "period")

    def check_channels(self, names: Sequence[str]) -> None:
        """Raise an error if the data have other channels than the model.

        Args:
            names: channels of the data; without any, nothing is checked.

        Raises:
            InputError: if the channels differ; the message names them.
        """
        own = self.channel_names
        if not names or list(names) == own:
            return
        if len(names) != len(own):
            advice = "leave --model.channels out"
            if self.knows_data:
                advice = f"give data with the channels {listed(own)}, or choose columns with --data.channels"
            raise InputError(f"the model has {len(own)} channels and the data {len(names)} ({listed(names)}); {advice}")
        if self.knows_data:
            raise InputError(
                f"the model was trained on the channels {listed(own)}, the data have {listed(names)}; give data with "
                "the same columns in the same order, or name them with --data.channels"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a resumed run has the channels with which it began.

        Raises:
            InputError: if the data have other channels; the message names them.
        """
        super().on_load_checkpoint(checkpoint)
        trained = checkpoint.get("hyper_parameters", {}).get("spec") or {}
        if trained and tuple(trained["channels"]) != self.spec.channels:
            raise InputError(
                f"the model was trained on the channels {listed(trained['channels'])}, the data have "
                f"{listed(self.spec.channels)}; give data with the same columns in the same order"
            )

    def use_data(self, data: DataModule, stage: str) -> None:
        """Fit the baselines on the training rows; for ``predict``, check the channels of the series to continue."""
        if not isinstance(data, WindowDataModule):
            return
        if stage == "predict":
            self.check_channels(data.channels)
            return

        parts = data.training_parts()
        self.baselines = Baselines(
            parts,
            self.spec.seq_len,
            self.spec.pred_len,
            self.spec.period,
        )
        self.series_names = data.series_names()
        self.seasonal_scale = seasonal_errors(parts, data.season())
        self.one_sign = data.has_one_sign()
        for name in ("model", *self.baseline_names):
            self.errors[name] = self._new_errors()

    def _new_errors(self) -> ForecastErrors:
        return ForecastErrors(self.spec.pred_len, len(self.spec.channels), len(self.series_names)).to(self.device)

    # The flow

    def training_output(self, raw: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the forecast and the target; nothing is augmented."""
        output = self(*raw) if isinstance(raw, tuple) else self(raw)
        return output, target

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Convert errors from the units of the data to those of the metrics."""
        raise NotImplementedError

    def unit(self) -> Tensor:
        """Return what one unit of the metrics is in the units of the tables, (C,)."""
        return torch.ones(len(self.spec.channels), device=self.device)

    def point_forecast(self, output: Tensor) -> Tensor:
        """Return the forecast (B, T, C) whose errors are measured."""
        return output

    # Metrics and pictures

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Tensor) -> None:
        """Add the errors of the model and of the baselines."""
        forecasts = {"model": self.point_forecast(output)}
        if self.baselines is not None:
            forecasts |= self.baselines(_history(raw))
        for name, metric in self._metrics().items():
            self.measure(metric, split, forecasts[name], target)
        if self.quantile_errors is not None:
            self.quantile_errors.update(output, target)

    def measure(self, metric: ForecastErrors, split: EvaluationSplit, forecast: Tensor, target: Tensor) -> None:
        """Add the errors of one forecast (B, T, C) to a metric."""
        error = forecast - target
        # The channels without a zero were found in the data; in the others, a value may be zero.
        one_sign = torch.from_numpy(self.one_sign).to(error.device)
        relative = torch.where(one_sign, error.abs() / torch.where(one_sign, target.abs(), 1), 0)
        data = self._window_data()
        series = None
        if data is not None and len(self.series_names) > 1:
            series = data.series_of(split, self._indices(len(target)))
        metric.update(self.in_metric_units(error), relative, series)

    def _indices(self, count: int) -> list[int]:
        """Return the indices in their split of the next windows of this process; see ``DistributedSampler``."""
        first = self.windows_seen
        return [i * self.trainer.world_size + self.trainer.global_rank for i in range(first, first + count)]

    def _window_data(self) -> WindowDataModule | None:
        """Return the data module of the run, if it knows where its windows lie."""
        data = attached_data_module(self.trainer) if self._trainer is not None else None
        return data if isinstance(data, WindowDataModule) else None

    def _place(self, split: EvaluationSplit, window: int) -> Place:
        """Return where a window of the next batch of this process lies."""
        data = self._window_data()
        return Place(0, "", None) if data is None else data.place(split, self._indices(window + 1)[-1])

    def keep_examples(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Any) -> None:
        """Keep one channel of the first window of some batches; in ``predict``, channels of the first windows."""
        history = _history(raw)
        channels = history.shape[2]
        if split == "predict":
            for i in range(len(history)):
                for channel in range(channels):
                    if len(self.examples) < EXAMPLES:
                        self._keep(history[i], output[i], None, channel, self._place(split, i))
        else:
            every = max(1, self.batch_count(split) // EXAMPLES)
            if self.batches_seen % every == 0 and len(self.examples) < EXAMPLES:
                self._keep(history[0], output[0], target[0], len(self.examples) % channels, self._place(split, 0))
        self.batches_seen += 1
        self.windows_seen += len(history)

    def _keep(self, x_LC: Tensor, forecast: Tensor, y_TC: Tensor | None, channel: int, place: Place) -> None:
        name = self.channel_names[channel]
        example = Example(
            title=f"{place.name}: {name}" if place.name else name,
            history=_copy(x_LC[:, channel]),
            forecast=_copy(forecast[:, channel]),
            truth=None if y_TC is None else _copy(y_TC[:, channel]),
            times=place.times,
            band=band_name(self.quantiles) if self.quantiles else "",
            middle=self.middle if self.quantiles else None,
        )
        self.examples.append(example)

    @property
    def middle(self) -> int:
        """Index of the quantile nearest to the median."""
        return min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))

    def report(self, split: EvaluationSplit) -> None:
        """Log the errors, draw them and the kept forecasts, and reset both."""
        if split != "predict":
            self._report_errors(split)
        if self.examples and not self.trainer.sanity_checking:
            draw_figure(self.trainer, "forecasts", partial(forecast_figure, list(self.examples)))
        self.examples.clear()
        self.batches_seen = 0
        self.windows_seen = 0

    def _report_errors(self, split: EvaluationSplit) -> None:
        results = {name: metric.compute() for name, metric in self._metrics().items()}
        for name, values in results.items():
            suffix = "" if name == "model" else f"_{name}"
            for kind in ("mse", "mae"):
                self.log(f"{split}_{kind}{suffix}", values[kind].float(), prog_bar=not suffix)
        quantiles = None if self.quantile_errors is None else self.quantile_errors.compute()
        if quantiles is not None:
            self.log(f"{split}_coverage", quantiles["coverage"].mean().float())
            pinball = self.in_metric_units(quantiles["pinball"].reshape(self._sizes()))
            self.log(f"{split}_pinball", pinball.mean().float())

        measured = {name: self._measured(values) for name, values in results.items()}
        if quantiles is not None:
            measured["model"] = replace(
                measured["model"],
                pinball=(pinball * self.unit()).cpu().numpy(),
                coverage=quantiles["coverage"].reshape(self._sizes()).cpu().numpy(),
            )
        for kind, value in mean_errors(measured["model"]).items():
            name = {"mae": "mae_units", "rmse": "rmse_units", "mape_percent": "mape"}.get(kind, kind)
            has_one_unit = kind not in ("mae", "rmse") or len(self.spec.channels) == 1
            if has_one_unit and np.isfinite(value):
                self.log(f"{split}_{name}", value)

        if not self.trainer.sanity_checking:
            # torchmetrics turns a tensor of one number into a scalar
            by_step = {name: values["by_step"].reshape(-1).cpu() for name, values in results.items()}
            by_channel = results["model"]["by_channel"].reshape(-1).cpu()
            draw_figure(self.trainer, "errors", partial(errors_figure, by_step, by_channel, self.channel_names))
            if self.trainer.is_global_zero:
                self._write_tables(split, measured)

        if self.quantile_errors is not None:
            self.quantile_errors.reset()
        for metric in self._metrics().values():
            metric.reset()

    def _sizes(self) -> tuple[int, int]:
        """Return (T, C)."""
        return self.spec.pred_len, len(self.spec.channels)

    def _measured(self, values: Mapping[str, Tensor]) -> Measured:
        """Return the errors of one forecast in the units of the tables."""
        shape = (len(self.series_names), *self._sizes())
        unit = self.unit().double().cpu()
        scale = self.in_metric_units(torch.from_numpy(self.seasonal_scale).to(self.device)).cpu() * unit
        return Measured(
            absolute=(values["absolute"].reshape(shape).cpu() * unit).numpy(),
            squared=(values["squared"].reshape(shape).cpu() * unit.square()).numpy(),
            relative=values["relative"].reshape(shape).cpu().numpy(),
            scale=scale.numpy(),
            one_sign=self.one_sign,
            windows=values["windows"].reshape(-1).cpu().numpy(),
        )

    def _write_tables(self, split: EvaluationSplit, measured: Mapping[str, Measured]) -> None:
        """Write the errors in the units of the file as tables, and print those by channel after a test."""
        column = self.spec.series_column or "series"
        by_channel = channel_table(measured, self.channel_names, self.series_names, column)
        folder = run_folder(self.trainer)
        if folder is not None:
            tables = {"errors_by_channel": by_channel, "errors_by_step": step_table(measured, self.channel_names)}
            for name, table in tables.items():
                with atomic_write(folder / f"{name}.csv") as unfinished:
                    table.to_csv(unfinished, index=False, float_format="%.6g")
        if split != "test" or not self.trainer.test_loop.verbose:
            return

        print_table(*screen_table(by_channel))
        left_out = [name for name, keeps in zip(self.channel_names, self.one_sign, strict=True) if not keeps]
        if left_out and self.baselines is not None:
            print(f"MAPE is left out for channels with zeros or changes of sign: {listed(left_out)}")

    def sample_results(self, raw: Any, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the errors of the model and of the baselines in each window."""
        forecasts = {"model": self.point_forecast(output)}
        if self.baselines is not None:
            forecasts |= self.baselines(_history(raw))
        return window_errors({name: self.in_metric_units(y - target) for name, y in forecasts.items()})

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the errors beside those of the baselines with their intervals, and the pictures."""
        if not results:
            return super().report_sections(split, results)
        logged = logged_figures(self.trainer, split)
        section = result_section(results, logged, self.spec.pred_len, self.metric_unit)
        pictures = picture_sections(self.trainer, self.pictures)
        return [section, *pictures, *table_sections(self.trainer, TABLES)]

    def _metrics(self) -> dict[str, ForecastErrors]:
        return {name: cast(ForecastErrors, metric) for name, metric in self.errors.items()}

    # Backtests

    def backtest(self, data: DataModule, folder: Path, *, stride: int | None = None) -> None:
        """Forecast from many origins over the test part, and write the errors beside those of the baselines.

        Args:
            data: a data module of this package.
            folder: folder for ``backtest.csv`` and ``backtest.png``.
            stride: number of steps from one origin to the next; by default that of the horizon.

        Raises:
            InputError: if the stride is below 1, or the data contradict the model.
        """
        if not isinstance(data, WindowDataModule):
            raise InputError(f"backtest needs a data module of series, and {type(data).__name__} is none")
        data.prepare_data()
        data.setup("test")
        self.use_spec(cast(SeriesSpec, data.spec()))
        self.use_data(data, "test")
        assert self.baselines is not None

        self.eval()
        stride = self.spec.pred_len if stride is None else stride
        result = run_backtest(self, self.baselines, data, self.seasonal_scale, stride)
        with atomic_write(folder / "backtest.csv") as unfinished:
            result.table(self.spec.series_column or "series").to_csv(unfinished, index=False, float_format="%.7g")
        with atomic_write(folder / "backtest.png") as unfinished:
            result.figure().savefig(unfinished, dpi=120, format="png")
        print_table(*result.summary())
        print(f"{len(result.origins)} origins, {stride} steps apart; wrote {folder}/backtest.csv and backtest.png")

    # Prediction

    def rows(self, output: Tensor, names: list[list[dict[str, Any]]]) -> dict[str, list[Any]]:
        """Return the columns of ``predictions.csv``, with one row for each step of the horizon.

        Args:
            output: forecasts (B, T, C), or (B, T, C, Q) with quantiles.
            names: for each window, the names of its T steps, such as ``{"date": "2024-01-01"}``.
        """
        steps = [step for horizon in names for step in horizon]
        keys = dict.fromkeys(key for step in steps for key in step)  # files have dates, arrays have numbers of steps
        columns: dict[str, list[Any]] = {key: [step.get(key) for step in steps] for key in keys}
        for i, name in enumerate(self.channel_names):
            columns |= self.channel_columns(name, output[:, :, i].flatten(0, 1))
        return columns

    def channel_columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        """Return the columns of one channel from its forecasts (steps,), or (steps, Q) with quantiles."""
        return {name: _rounded(forecast)}


class ForecastHead(nn.Module):
    """LayerNorm, dropout and a linear layer, from the backbone's last map to the forecast of the channels in the map.

    Args:
        features: number of values in the last map, D h w.
        channels: C.
        group: G, the number of channels in one map.
        pred_len: T.
        outputs: Q, or 1 without quantiles.
        dropout: probability of the dropout before the linear layer.
    """

    def __init__(
        self, features: int, *, channels: int, group: int, pred_len: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.channels = channels
        self.pred_len = pred_len
        self.outputs = outputs
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(features, group * pred_len * outputs)

        # The head begins at zero, so that training begins with the linear path alone.
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return standardized forecasts (B, T, C, Q) for last maps (B C / G, D, h, w)."""
        y = self.projection(self.dropout(self.norm(features.flatten(1))))
        return y.reshape(-1, self.channels, self.pred_len, self.outputs).transpose(1, 2)


class ForecastTask(SeriesTask):
    """Forecasts any series: histories become maps, the backbone reads them, and a head writes the horizon.

    ::

        x ── standardize, level out ──┬── map ── backbone ── head ──┬── + ── level in, units of the file ── y
                                      └──────── Linear(L, T) ───────┘

    ``task(x)`` takes histories (B, L, C) in the units of the file and returns forecasts (B, T, C) in the same units, or
    (B, T, C, Q) with ``quantiles``. If the data have covariates, ``task(x, covariates)`` takes those of history and
    horizon too, (B, L + T, K), as :class:`timeseries.covariates.Covariates` makes them. Errors are logged in standard
    deviations of the training rows. With quantiles, they are those of the quantile nearest to 0.5, ``val_coverage`` is
    the share of values between the outermost two, and ``val_pinball`` the mean pinball loss.

    Args:
        backbone: name of a LarKit or timm model, or a module without classifier.
        channels: C; by default that of the data.
        spec: description of the data, from a data module's ``spec()`` or a checkpoint; the command passes it.
        seq_len: L, steps of history; by default that of the data.
        pred_len: T, steps to forecast; by default that of the data.
        period: steps of a season, one row of the folded map; by default that of the data.
        criterion: 'mse', 'mae', or 'huber' (squared up to one standard deviation, absolute above).
        layout: 'fold', with a row for each period, or 'embed', a map of tokens; see :class:`SeriesMap`.
        enlarge: factor by which a folded map grows, because a backbone's stem shrinks it.
        embed_dim: size of a token of the layout 'embed'.
        group: number of neighboring channels in one map; 1 reads each on its own.
        normalize: the level that is taken out of a window and put back into its forecast: 'none', 'mean', 'last' value,
            or 'revin', mean and standard deviation with a learned affine map.
        linear: add a linear path from history to horizon, past the backbone.
        dropout: probability of the dropout before the head.
        quantiles: rising levels in (0, 1), such as [0.1, 0.5, 0.9], forecast with the pinball loss and sorted, so that
            they never cross.
        blend: move the forecast towards the last value, as far as is best on validation.
        nonnegative: cut forecasts off at zero.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        weights: file or Hub name of a checkpoint of this task, or of weights of the backbone alone.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if arguments do not fit together, or contradict the data.
    """

    feature_map: SeriesMap

    def __init__(
        self,
        backbone: Backbone,
        channels: int | None = None,
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        seq_len: int | None = None,
        pred_len: int | None = None,
        period: int | None = None,
        criterion: Literal["mse", "mae", "huber"] = "mse",
        layout: Layout = "fold",
        enlarge: int = 4,
        embed_dim: int = 96,
        group: int = 1,
        normalize: Normalize = "none",
        linear: bool = True,
        dropout: float = 0.5,
        quantiles: Sequence[float] = (),
        blend: bool = False,
        nonnegative: bool = False,
        backbone_args: dict[str, Any] | None = None,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if criterion not in ("mse", "mae", "huber"):
            raise InputError(f"criterion={criterion!r}; expected 'mse', 'mae' or 'huber'")
        if any(low >= high for low, high in pairwise((0.0, *quantiles, 1.0))):
            raise InputError(f"quantiles={tuple(quantiles)}; give rising levels between 0 and 1")

        knows_data = spec is not None
        known = _completed(
            self.to_spec(spec),
            knows_data,
            channels=channels,
            seq_len=seq_len,
            pred_len=pred_len,
            period=period,
        )
        feature_map = SeriesMap(
            len(known.channels),
            known.seq_len,
            period=known.period,
            layout=layout,
            enlarge=enlarge,
            embed_dim=embed_dim,
            group=group,
            normalize=normalize,
            covariates=len(known.covariates.names),
            pred_len=known.pred_len,
        )
        if isinstance(backbone, str):
            backbone_args = {"in_chans": feature_map.in_chans, "num_classes": 0, **(backbone_args or {})}
        super().__init__(backbone, spec=known, backbone_args=backbone_args, **kwargs)

        self.knows_data = knows_data
        self.criterion = criterion
        self.nonnegative = nonnegative
        self.quantiles = tuple(quantiles)
        self.quantile_errors = self._new_quantile_errors()
        self.feature_map = feature_map
        freeze_output_norm(self.backbone)
        self.head = ForecastHead(
            self._count_features(),
            channels=len(known.channels),
            group=group,
            pred_len=known.pred_len,
            outputs=max(1, len(self.quantiles)),
            dropout=dropout,
        )

        self.linear: nn.Linear | None = None
        if linear:
            # Training begins with the last value as the forecast if windows are centered on it, else with the mean.
            self.linear = nn.Linear(known.seq_len, known.pred_len)
            nn.init.constant_(self.linear.weight, 0.0 if normalize == "last" else 1 / known.seq_len)
            nn.init.zeros_(self.linear.bias)

        self.blend = Blend(known.pred_len, len(known.channels)) if blend else None
        self.quantile_candidates = nn.ModuleList()
        if blend and self.quantiles:
            self.quantile_candidates.extend([cast(nn.Module, self._new_quantile_errors()) for _ in SHARES])

        self._set_scale()
        if weights is not None:
            self.load(weights)

    def _count_features(self) -> int:
        """Return the number of values in the backbone's last map."""
        self.backbone.eval()
        maps = self.feature_map
        zeros = torch.zeros(2, self.spec.seq_len, len(self.spec.channels))
        covariates = torch.zeros(2, maps.steps, maps.covariates) if maps.covariates else None
        try:
            with torch.no_grad():
                return self._features(maps(zeros, covariates)[:2])[0].numel()
        except RuntimeError as error:
            raise InputError(
                f"the backbone does not take these maps: {error}; build it with in_chans={self.feature_map.in_chans}"
            ) from error
        finally:
            self.backbone.train()

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Adopt the names and the scale of the channels."""
        super().adopt_spec(theirs)
        self._set_scale()

    def _set_scale(self) -> None:
        if self.spec.mean and self.spec.std:
            self.feature_map.set_scale(self.spec.mean, self.spec.std)
        if self.spec.known_mean and self.spec.known_std:
            self.feature_map.set_known_scale(self.spec.known_mean, self.spec.known_std)

    def use_data(self, data: DataModule, stage: str) -> None:
        """Fit the baselines on the training rows, and get ready to measure.

        Raises:
            InputError: if forecasts should not be negative, and the training rows are.
        """
        super().use_data(data, stage)
        if self.blend is not None:
            self.blend.candidates = nn.ModuleList([self._new_errors() for _ in SHARES])
        if not self.nonnegative or stage == "predict" or not isinstance(data, WindowDataModule):
            return
        lowest = np.min([part.min(axis=0) for part in data.training_parts()], axis=0)
        negative = [f"{name} ({low:g})" for name, low in zip(self.channel_names, lowest, strict=True) if low < 0]
        if negative:
            raise InputError(
                f"nonnegative forecasts, but the training rows have values below zero in {listed(negative)}; leave "
                "--model.nonnegative out, or choose columns with --data.channels"
            )

    def _new_quantile_errors(self) -> QuantileErrors | None:
        if not self.quantiles:
            return None
        return QuantileErrors(self.quantiles, *self._sizes()).to(self.device)

    # The flow

    def forward(self, x_BLC: Tensor, covariates_BTK: Tensor | None = None) -> Tensor:
        """Return forecasts (B, T, C), or (B, T, C, Q) with quantiles, in the units of the file.

        Args:
            x_BLC: histories in the units of the file. For histories of float64 or integers the forecasts are float64,
                which holds the digits of channels far from zero; for all others they are float32.
            covariates_BTK: covariates (B, L + T, K) of history and horizon, if the data have some; known columns in the
                units of the file.
        """
        z_BLC, level = self.feature_map.standardize(x_BLC, covariates_BTK)
        y_BTCQ = self.read(self.feature_map.to_maps(z_BLC, level.covariates))
        if self.linear is not None:
            z_BCL = z_BLC.transpose(1, 2).to(self.linear.weight.dtype)
            y_BTCQ = y_BTCQ + self.linear(z_BCL).transpose(1, 2)[..., None]
        y_BTCQ = self.feature_map.restore(y_BTCQ, level)

        # Sorting quantiles that cross never makes their pinball loss larger (Chernozhukov et al., 2010).
        output = y_BTCQ.sort(dim=-1).values if self.quantiles else y_BTCQ[..., 0]
        if self.nonnegative and not self.training:  # in training, a value cut off at zero would have no gradient
            output = output.clamp(min=0)
        return output if self.blend is None or self._is_fitting() else self.blended(output, x_BLC)

    def blended(self, output: Tensor, history: Tensor, share: float | None = None) -> Tensor:
        """Return the output of the model, moved towards the last value of the history; quantiles move together.

        Args:
            output: (B, T, C) or (B, T, C, Q), or without B and C for a single channel.
            history: (B, L, C), or (L,).
            share: share of the model; by default the chosen one.
        """
        assert self.blend is not None
        if not self.quantiles:
            return self.blend(output, history, share)
        center = output[..., self.middle]
        moved = output + (self.blend(center, history, share) - center)[..., None]
        return moved.clamp(min=0) if self.nonnegative else moved

    def _is_fitting(self) -> bool:
        """Return whether a trainer trains the model; its validation then chooses the share of the blend."""
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    def read(self, maps: Tensor) -> Tensor:
        """Return the head's part of the standardized forecasts (B, T, C, Q), without the linear path and the level."""
        return self.head(self._features(maps))

    def _features(self, maps: Tensor) -> Tensor:
        backbone: Any = self.backbone
        dtype = next(backbone.parameters()).dtype
        return backbone.forward_features(maps.to(dtype))

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Convert errors to standard deviations of the training rows."""
        return error_BTC / self.feature_map.std

    def unit(self) -> Tensor:
        """Return the standard deviation of each channel, (C,)."""
        return self.feature_map.std

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the criterion, or with quantiles their loss, on standardized channels."""
        std = self.feature_map.std
        if self.quantiles:
            return quantile_loss(output / std[:, None], target / std, self.quantiles).float()
        losses = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
        error = self.in_metric_units(output - target).float()
        return losses[self.criterion](error, torch.zeros_like(error))

    def point_forecast(self, output: Tensor) -> Tensor:
        """Return the forecast itself, or the quantile nearest to the median."""
        return output[..., self.middle] if self.quantiles else output

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Tensor) -> None:
        """Add the errors of the model and of the baselines and, to choose the blend, of each share of the model."""
        super().update_metrics(split, raw, output, target)
        if self.blend is None or not self._is_fitting():
            return
        for i, share in enumerate(SHARES):
            forecast = self.blended(output, _history(raw), share)
            self.measure(cast(ForecastErrors, self.blend.candidates[i]), split, self.point_forecast(forecast), target)
            if self.quantiles:
                cast(QuantileErrors, self.quantile_candidates[i]).update(forecast, target)

    def report(self, split: EvaluationSplit) -> None:
        """Log and draw the errors; in training, after validation has chosen the share of the model in the blend."""
        if self.blend is not None and self._is_fitting():
            self.errors["model"] = self.blend.choose()
            if self.quantiles:
                chosen = SHARES.index(float(self.blend.share))
                self.quantile_errors = cast(QuantileErrors, self.quantile_candidates[chosen])
            self.examples = [
                replace(example, forecast=self.blended(example.forecast, example.history)) for example in self.examples
            ]
            self.log("model_share", self.blend.share)

        super().report(split)
        if self.blend is not None:
            self.blend.reset()
            self.errors["model"] = self._new_errors()
            self.quantile_errors = self._new_quantile_errors()
            for candidate in self.quantile_candidates:
                cast(QuantileErrors, candidate).reset()

    def sample_results(self, raw: Any, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the errors in each window; in training those of each share of the model in the blend too."""
        columns = super().sample_results(raw, output, target)
        if self.blend is not None and self._is_fitting():
            blends = {f"model at {share:g}": self.blended(output, _history(raw), share) for share in SHARES}
            points = {name: self.point_forecast(y) for name, y in blends.items()}
            columns |= window_errors({name: self.in_metric_units(y - target) for name, y in points.items()})
        return columns

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the sections of the report, on the share of the model in the blend that validation has chosen."""
        if self.blend is not None and self._is_fitting():
            chosen = f"model at {float(self.blend.share):g}"
            own = {f"{kind} model": results[f"{kind} {chosen}"] for kind in ("mse", "mae")} if results else {}
            results = {name: values for name, values in results.items() if " model at " not in name} | own
        return super().report_sections(split, results)

    def channel_columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        """Return the column of a channel, or one for each quantile, as in ``temperature_q0.1``."""
        if not self.quantiles:
            return super().channel_columns(name, forecast)
        return {f"{name}_q{level:g}": _rounded(forecast[:, i]) for i, level in enumerate(self.quantiles)}


class GlobalForecastTask(SeriesTask):
    """Forecasts all stations at once with :class:`timeseries.GlobalForecaster`, on :class:`timeseries.GlobalWeather`.

    ``task(x, marks, marks_ahead)`` takes histories (B, L, N), their calendar features, and those of the steps to come,
    and returns forecasts (B, T, N). Values are those that the data set stores: the quantity times ten. The loss is the
    mean squared error of stored values. Errors are logged in the unit of the quantity: as in the papers, the mean
    squared error is divided by 100 and the mean absolute error by 10.

    Args:
        backbone: name of a LarKit or timm model, or a module; one built by name gets one input channel.
        architecture: the sizes of the decoder and the tree of stations.
        spec: description of the data, from a data module's ``spec()`` or a checkpoint; the command passes it.
        grad_checkpointing: save memory by recomputing the backbone's blocks and the decoder in the backward pass.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if arguments do not fit together, or contradict the data.
    """

    spec_class: ClassVar[type[SeriesSpec]] = GlobalSpec
    data_class: ClassVar[type[DataModule]] = GlobalWeather
    can_export: ClassVar[bool] = False
    metric_unit: ClassVar[str] = "units of the quantity"
    spec: GlobalSpec

    def __init__(
        self,
        backbone: Backbone,
        architecture: GlobalArchitecture = PUBLISHED,
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        grad_checkpointing: bool = False,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(architecture, Mapping):  # as a checkpoint holds it
            architecture = GlobalArchitecture.from_dict(architecture)
        if isinstance(backbone, str):
            backbone_args = {"in_chans": 1, "num_classes": 0, **(backbone_args or {})}

        # The base class calls build(), which needs these two.
        self.architecture = architecture
        self.grad_checkpointing = grad_checkpointing
        super().__init__(backbone, spec=self._with_numbered_stations(spec), backbone_args=backbone_args, **kwargs)

        self.knows_data = spec is not None
        self.hparams["architecture"] = asdict(architecture)
        if self.knows_data:
            self.net.check_stations(len(self.spec.channels))
        self._set_stations()

    def _with_numbered_stations(self, spec: DataSpec | Mapping[str, Any] | None) -> GlobalSpec:
        known: GlobalSpec = self.to_spec(spec)
        if known.channels:
            return known
        return replace(known, channels=numbered_channels(self.architecture.leaves * self.architecture.stations))

    def build(self, backbone: nn.Module) -> None:
        """Build the whole net with the backbone as its encoder."""
        self.net = GlobalForecaster(
            backbone,
            self.architecture,
            seq_len=self.spec.seq_len,
            label_len=self.spec.label_len,
            pred_len=self.spec.pred_len,
            grad_checkpointing=self.grad_checkpointing,
        )

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The encoder of the net."""
        return self.net.encoder

    def load(self, source: str) -> None:
        """Load a checkpoint of this task, weights of the net with the published names, or weights of the backbone."""
        names = list(read_state_dict(source))
        if any(name.startswith("net.") for name in names):
            load_weights(self, source)
        elif any(name.startswith("decoder.") for name in names):
            load_weights(self.net, source)
        else:
            load_weights(self.backbone, source)

    def fixed_by_model(self) -> tuple[str, ...]:
        """Return the names of the fields of the spec that cannot change once the net is built."""
        return (*super().fixed_by_model(), "label_len")

    def check_channels(self, names: Sequence[str]) -> None:
        """Raise an error if the data have another number of stations than the tree has places.

        Args:
            names: stations of the data; without any, nothing is checked.

        Raises:
            InputError: if the numbers differ.
        """
        if names:
            self.net.check_stations(len(names))

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Adopt the stations and their places."""
        super().adopt_spec(theirs)
        self._set_stations()

    def _set_stations(self) -> None:
        if self.spec.places:
            self.net.set_stations(torch.tensor(self.spec.places, dtype=torch.float64, device=self.device))

    # The flow

    def forward(self, x_BLN: Tensor, marks_BLM: Tensor, marks_ahead_BTM: Tensor) -> Tensor:
        """Return forecasts (B, T, N), in stored values like the histories.

        Args:
            x_BLN: histories (B, L, N) in stored values.
            marks_BLM: their calendar features (B, L, 4), see :func:`timeseries.time_marks`.
            marks_ahead_BTM: features (B, label_len + T, 4) of the last steps of the history and of the steps to come.
        """
        return self.net(x_BLN, marks_BLM, marks_ahead_BTM)

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Convert errors to the unit of the quantity."""
        return error_BTC / self.spec.value_scale

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of stored values."""
        return F.mse_loss(output, target)

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Raise an error: the decoder's Fourier transforms are complex, and the net has several inputs.

        Raises:
            InputError: always.
        """
        raise InputError("GlobalForecastTask takes several inputs and Fourier transforms; it cannot be exported")


def _check_equal(name: str, *, model: int, data: int) -> None:
    """Raise an error if the model and the data differ in a setting."""
    if model != data:
        raise InputError(
            f"the model has {name}={model}, the data {data}; leave --model.{name} out and set --data.{name}"
        )


def _check_covariates(own: SeriesSpec, theirs: SeriesSpec) -> None:
    """Raise an error if the data have other covariates than the model reads."""
    for name in ("known", "calendar", "holidays"):
        model, data = getattr(own, name), getattr(theirs, name)
        if model != data:
            given = f"[{', '.join(model)}]" if isinstance(model, tuple) else "null" if model is None else model
            found = f"[{', '.join(data)}]" if isinstance(data, tuple) else data
            raise InputError(
                f"the model was built with {name}={given}, the data have {found}; set --data.{name} '{given}'"
            )


def _completed(spec: SeriesSpec, knows_data: bool, *, channels: int | None, **settings: int | None) -> SeriesSpec:
    """Return the specification, completed by the task's own arguments.

    Args:
        spec: description of the data, or the defaults.
        knows_data: whether ``spec`` describes data, which the arguments must not contradict.
        channels: the task's argument, or None.
        settings: further arguments of the task that are fields of the specification, or None.

    Raises:
        InputError: if an argument contradicts the data, or the number of channels is not known.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if knows_data:
        for name, value in given.items():
            _check_equal(name, model=value, data=getattr(spec, name))

    if channels is not None and spec.channels and channels != len(spec.channels):
        raise InputError(
            f"the model has {channels} channels and the data {len(spec.channels)} ({listed(spec.channels)}); leave "
            f"--model.channels out, or set it to {len(spec.channels)}"
        )
    if not spec.channels:
        if channels is None:
            raise InputError("nothing says how many channels there are; give channels, or spec=data.spec()")
        spec = replace(spec, channels=numbered_channels(channels))

    spec = replace(spec, **cast(Any, given))
    if min(len(spec.channels), spec.seq_len, spec.pred_len) < 1:
        raise InputError(
            f"channels={len(spec.channels)}, seq_len={spec.seq_len}, pred_len={spec.pred_len}; all must be at least 1"
        )
    return spec


def _history(raw: Any) -> Tensor:
    """Return the history (B, L, C), which a tuple of inputs begins with."""
    return raw[0] if isinstance(raw, tuple) else raw


def _copy(values: Tensor) -> Tensor:
    """Return a copy in float64 on the CPU, since a slice would keep its whole batch."""
    return values.detach().cpu().double().clone()


def _rounded(values: Tensor) -> list[float]:
    """Return numbers with the digits that their dtype holds: 15 for float64, 7 for float32."""
    digits = 15 if values.dtype == torch.float64 else 7
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
