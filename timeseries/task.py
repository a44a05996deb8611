"""The forecasting tasks: for any series, and for all stations of the papers' global system.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, Q quantiles, G channels of one map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError, listed
from core.export import Exported
from core.io.weights import load_weights, read_state_dict
from core.training.plots import draw_figure
from core.training.task import Backbone, EvaluationSplit, Task
from timeseries.corrformer import PUBLISHED, GlobalArchitecture
from timeseries.data import SeriesSpec, WindowDataModule, numbered_channels
from timeseries.feature_map import Layout, Normalize, SeriesMap
from timeseries.global_forecaster import GlobalForecaster, freeze_output_norm
from timeseries.metrics import Baselines, ForecastErrors, quantile_loss
from timeseries.plots import Example, errors_figure, forecast_figure
from timeseries.sets import CSVSeries, GlobalSpec, GlobalWeather

__all__ = ["ForecastHead", "ForecastTask", "GlobalForecastTask", "SeriesTask"]

EXAMPLES = 6
"""Windows in a picture of forecasts."""


_BATCH_DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Precisions for which Lightning casts the batches too, and to what."""


class SeriesTask(Task):
    """Base of the forecasting tasks: baselines, metrics, pictures and predictions.

    A subclass builds the model, and says in ``forward`` how it forecasts. Batches are (raw, horizon (B, T, C)); raw is
    the history (B, L, C), or a tuple that begins with it.

    Logs ``train_loss``, ``lr``, ``val_mse`` and ``val_mae``, and the same for test. Three baselines are measured on the
    same windows, where the data come from a data module of this package, and logged as in ``val_mse_linear``: the last
    value, the last period, and one linear layer fitted on the training rows. After each evaluation the run folder holds
    ``forecasts.png`` and ``errors.png``.
    """

    monitor: ClassVar[str] = "val_mse"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    baseline_names: ClassVar[tuple[str, ...]] = ("last", "seasonal", "linear")
    pipeline_tag: ClassVar[str | None] = "time-series-forecasting"
    spec_class: ClassVar[type[SeriesSpec]] = SeriesSpec
    data_class: ClassVar[type[DataModule]] = CSVSeries
    spec: SeriesSpec

    def __init__(self, backbone: Backbone, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.baselines: Baselines | None = None
        self.errors = nn.ModuleDict({"model": self._new_errors()})
        self.coverage = MeanMetric()
        self.examples: list[Example] = []
        self.batches_seen = 0

    @property
    def channel_names(self) -> list[str]:
        """Names of the channels; numbers until the data are known."""
        return list(self.spec.channels)

    # What the task knows of its data

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
        """Compare channels and lengths with those of the data, and take names and scale that the task lacks.

        Raises:
            InputError: if the data contradict the model.
        """
        for name in self.fixed_by_model():
            own, found = getattr(self.spec, name), getattr(theirs, name)
            if own != found:
                raise InputError(
                    f"the model has {name}={own}, the data {found}; leave --model.{name} out and set --data.{name}"
                )
        self.check_channels(theirs.channels)
        if not self.knows_data and theirs.channels:
            self.adopt_spec(theirs)

    def fixed_by_model(self) -> tuple[str, ...]:
        """Return the fields of the spec that the built model cannot change any more."""
        return ("seq_len", "pred_len", "period")

    def check_channels(self, names: Sequence[str]) -> None:
        """Refuse data with other channels than the model's.

        Raises:
            InputError: naming the channels.
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
        """Refuse to continue a run on data with other channels.

        Raises:
            InputError: naming the channels.
        """
        super().on_load_checkpoint(checkpoint)
        trained = checkpoint.get("hyper_parameters", {}).get("spec") or {}
        if trained and tuple(trained["channels"]) != self.spec.channels:
            raise InputError(
                f"the model was trained on the channels {listed(trained['channels'])}, the data have "
                f"{listed(self.spec.channels)}; give data with the same columns in the same order"
            )

    def use_data(self, data: DataModule, stage: str) -> None:
        """Fit the baselines on the training rows; to predict, compare the channels of the file to continue."""
        if not isinstance(data, WindowDataModule):
            return
        if stage == "predict":
            self.check_channels(data.channels)
            return
        baselines = Baselines(
            data.training_rows(),
            self.spec.seq_len,
            self.spec.pred_len,
            self.spec.period,
        )
        self.baselines = baselines.to(self.device)
        for name in ("last", "seasonal", "linear"):
            self.errors[name] = self._new_errors()

    def _new_errors(self) -> ForecastErrors:
        return ForecastErrors(self.spec.pred_len, len(self.spec.channels)).to(self.device)

    # The flow

    def training_output(self, raw: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the forecast; nothing is augmented."""
        return self(*raw) if isinstance(raw, tuple) else self(raw), target

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Errors in the units of the data to errors in the units of the metrics."""
        raise NotImplementedError

    def point_forecast(self, output: Tensor) -> Tensor:
        """Return the forecast (B, T, C) that is measured."""
        return output

    # Metrics and pictures

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Tensor) -> None:
        """Add the errors of the model and of the baselines."""
        forecasts = {"model": self.point_forecast(output)}
        if self.baselines is not None:
            forecasts |= self.baselines(_history(raw))
        for name, metric in self._metrics().items():
            metric.update(self.in_metric_units(forecasts[name] - target))
        if output.ndim == 4:
            inside = (target >= output[..., 0]) & (target <= output[..., -1])
            self.coverage.update(inside.double().mean(), weight=len(target))

    def keep_examples(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Any) -> None:
        """Keep the first window of some batches, one channel of each; in ``predict`` some channels of the first."""
        history = _history(raw)
        channels = history.shape[2]
        if split == "predict":
            if not self.examples:
                for channel in range(min(EXAMPLES, channels)):
                    self._keep(history[0], output[0], None, channel)
            return

        every = max(1, self.batch_count(split) // EXAMPLES)
        if self.batches_seen % every == 0 and len(self.examples) < EXAMPLES:
            self._keep(history[0], output[0], target[0], len(self.examples) % channels)
        self.batches_seen += 1

    def _keep(self, x_LC: Tensor, forecast: Tensor, y_TC: Tensor | None, channel: int) -> None:
        truth = None if y_TC is None else _copy(y_TC[:, channel])
        name = self.channel_names[channel]
        self.examples.append(Example(name, _copy(x_LC[:, channel]), _copy(forecast[:, channel]), truth))

    def report(self, split: EvaluationSplit) -> None:
        """Log the errors, draw them and some forecasts, and begin anew."""
        if split != "predict":
            self._report_errors(split)
        if self.examples and not self.trainer.sanity_checking:
            draw_figure(self.trainer, "forecasts", partial(forecast_figure, list(self.examples)))
        self.examples.clear()
        self.batches_seen = 0

    def _report_errors(self, split: EvaluationSplit) -> None:
        results = {name: metric.compute() for name, metric in self._metrics().items()}
        for name, values in results.items():
            suffix = "" if name == "model" else f"_{name}"
            for kind in ("mse", "mae"):
                self.log(f"{split}_{kind}{suffix}", values[kind].float(), prog_bar=not suffix)
        if self.coverage.update_called:
            self.log(f"{split}_coverage", self.coverage.compute())

        if not self.trainer.sanity_checking:
            # torchmetrics turns a tensor of one number into a scalar
            by_step = {name: values["by_step"].reshape(-1).cpu() for name, values in results.items()}
            by_channel = results["model"]["by_channel"].reshape(-1).cpu()
            draw_figure(self.trainer, "errors", partial(errors_figure, by_step, by_channel, self.channel_names))

        self.coverage.reset()
        for metric in self._metrics().values():
            metric.reset()

    def _metrics(self) -> dict[str, ForecastErrors]:
        return {name: cast(ForecastErrors, metric) for name, metric in self.errors.items()}

    # Prediction

    def rows(self, output: Tensor, names: list[list[dict[str, Any]]]) -> dict[str, list[Any]]:
        """Return a row for each step of the horizon: its date or number, and the channels in the units of the data."""
        steps = [step for horizon in names for step in horizon]
        columns: dict[str, list[Any]] = {key: [step.get(key) for step in steps] for key in steps[0]}
        for i, name in enumerate(self.channel_names):
            columns |= self.channel_columns(name, output[:, :, i].flatten(0, 1))
        return columns

    def channel_columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        """Return the columns of one channel, whose forecasts are (steps,), or (steps, Q) with quantiles."""
        return {name: _rounded(forecast)}


class ForecastHead(nn.Module):
    """LayerNorm, dropout and a linear layer from the backbone's last map to the horizon of the map's channels.

    Args:
        features: numbers in the last map.
        channels: C.
        group: G, channels of one map.
        pred_len: T.
        outputs: Q, or 1 without quantiles.
        dropout: before the linear layer.
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

        # training begins with the linear path alone
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Last maps (B C / G, D, h, w) to standardized forecasts (B, T, C, Q)."""
        y = self.projection(self.dropout(self.norm(features.flatten(1))))
        return y.reshape(-1, self.channels, self.pred_len, self.outputs).transpose(1, 2)


class ForecastTask(SeriesTask):
    """Forecasts any series: each channel's history becomes a map, the backbone reads it, and a head writes the horizon.

    ::

        x ── standardize, level out ──┬── map ── backbone ── head ──┬── + ── level in, units of the file ── y
                                      └──────── Linear(L, T) ───────┘

    ``task(x)`` takes histories (B, L, C) in the units of the file and gives forecasts (B, T, C) in the same units; with
    ``quantiles`` (B, T, C, Q). Errors are logged in standard deviations of the training rows. With quantiles, the level
    nearest to 0.5 is measured, and ``val_coverage``, the share of values between the outermost two.

    Args:
        backbone: name of a LarKit or timm model, or a module without classifier.
        channels: C; taken from the data where they are known.
        spec: what the data are; the command passes it.
        seq_len: L, steps of history; taken from the data.
        pred_len: T, steps to forecast; taken from the data.
        period: steps of a season, which are one row of the folded map; taken from the data.
        criterion: 'mse', 'mae', or 'huber', which is squared below an error of one standard deviation and absolute
            above; for forecasts without quantiles.
        layout: 'fold' for maps with one row for each period, 'embed' for maps of tokens; see :class:`SeriesMap`.
        enlarge: factor by which height and width of a folded map grow, because a backbone's stem shrinks it.
        embed_dim: numbers in a token of the layout 'embed'.
        group: neighboring channels in one map: 1 reads channels independently, C all together.
        normalize: the level taken out of a window and put back: 'none', its 'mean', its 'last' value, or 'revin' for
            mean and standard deviation with a learned affine map.
        linear: add a linear path past the backbone, from history to horizon.
        dropout: before the head.
        quantiles: rising levels in (0, 1), such as [0.1, 0.5, 0.9], each of which gets a forecast of its own.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        weights: a checkpoint of this task, or weights of the backbone alone.
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
        backbone_args: dict[str, Any] | None = None,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if criterion not in ("mse", "mae", "huber"):
            raise InputError(f"criterion={criterion!r}; expected 'mse', 'mae' or 'huber'")
        if any(low >= high for low, high in pairwise((0.0, *quantiles, 1.0))):
            raise InputError(f"quantiles={tuple(quantiles)}; give rising levels between 0 and 1")
        knows_data = spec is not None
        known = _merged(
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
        )
        if isinstance(backbone, str):
            backbone_args = {"in_chans": feature_map.in_chans, "num_classes": 0, **(backbone_args or {})}
        super().__init__(backbone, spec=known, backbone_args=backbone_args, **kwargs)

        self.knows_data = knows_data
        self.criterion = criterion
        self.quantiles = tuple(quantiles)
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
            self.linear = nn.Linear(known.seq_len, known.pred_len)
            nn.init.constant_(self.linear.weight, 1 / known.seq_len)
            nn.init.zeros_(self.linear.bias)
        self._set_scale()
        if weights is not None:
            self.load(weights)

    def _count_features(self) -> int:
        """Numbers in the backbone's last map."""
        self.backbone.eval()
        zeros = torch.zeros(2, self.spec.seq_len, len(self.spec.channels))
        try:
            with torch.no_grad():
                return self._features(self.feature_map(zeros)[:2])[0].numel()
        except RuntimeError as error:
            raise InputError(
                f"the backbone does not take these maps: {error}; build it with in_chans={self.feature_map.in_chans}"
            ) from error
        finally:
            self.backbone.train()

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Take over the names and the scale of the channels."""
        super().adopt_spec(theirs)
        self._set_scale()

    def _set_scale(self) -> None:
        if self.spec.mean and self.spec.std:
            self.feature_map.set_scale(self.spec.mean, self.spec.std)

    # The flow

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Histories (B, L, C) to forecasts (B, T, C), with quantiles (B, T, C, Q); both in the units of the file.

        A float64 history gets a float64 forecast, with the digits that channels far from zero need.
        """
        z_BLC, level = self.feature_map.standardize(x_BLC)
        y_BTCQ = self.read(self.feature_map.to_maps(z_BLC))
        if self.linear is not None:
            z_BCL = z_BLC.transpose(1, 2).to(self.linear.weight.dtype)
            y_BTCQ = y_BTCQ + self.linear(z_BCL).transpose(1, 2)[..., None]
        y_BTCQ = self.feature_map.restore(y_BTCQ, level)
        return y_BTCQ if self.quantiles else y_BTCQ[..., 0]

    def read(self, maps: Tensor) -> Tensor:
        """Maps to the head's part of the standardized forecast (B, T, C, Q), without the linear path and the level."""
        return self.head(self._features(maps))

    def _features(self, maps: Tensor) -> Tensor:
        backbone: Any = self.backbone
        dtype = next(backbone.parameters()).dtype
        return backbone.forward_features(maps.to(dtype))

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Errors in standard deviations of the training rows."""
        return error_BTC / self.feature_map.std

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the criterion on standardized channels, or the quantile loss."""
        std = self.feature_map.std
        if self.quantiles:
            return quantile_loss(output / std[:, None], target / std, self.quantiles).float()
        losses = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
        error = self.in_metric_units(output - target).float()
        return losses[self.criterion](error, torch.zeros_like(error))

    def point_forecast(self, output: Tensor) -> Tensor:
        """Return the forecast itself, or the quantile nearest to the median."""
        if not self.quantiles:
            return output
        return output[..., min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))]

    def channel_columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        """Return the column of a channel, or one for each quantile, as in ``temperature_q0.1``."""
        if not self.quantiles:
            return super().channel_columns(name, forecast)
        return {f"{name}_q{level:g}": _rounded(forecast[:, i]) for i, level in enumerate(self.quantiles)}


class GlobalForecastTask(SeriesTask):
    """Forecasts all stations at once with :class:`timeseries.GlobalForecaster`, on :class:`timeseries.GlobalWeather`.

    ``task(x, marks, marks_ahead)`` takes histories (B, L, N) as they are stored, their calendar features, and those of
    the steps to come; it gives forecasts (B, T, N) as they are stored. The loss is the squared error of stored values.
    Errors are logged in the unit of the quantity: stored values are the quantity times ten, so the papers divide the
    mean squared error by 100 and the mean absolute error by 10.

    Args:
        backbone: name of a LarKit or timm model, or a module; one built by name gets one input channel.
        architecture: the sizes of the decoder and the tree of stations.
        spec: what the data are; the command passes it.
        grad_checkpointing: save memory by computing the backbone's blocks and the decoder again in the backward pass.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if arguments do not fit together, or contradict the data.
    """

    spec_class: ClassVar[type[SeriesSpec]] = GlobalSpec
    data_class: ClassVar[type[DataModule]] = GlobalWeather
    can_export: ClassVar[bool] = False
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
        self.architecture = architecture  # before the base class, which calls build()
        self.grad_checkpointing = grad_checkpointing
        knows_data = spec is not None
        super().__init__(backbone, spec=self._with_numbered_stations(spec), backbone_args=backbone_args, **kwargs)

        self.knows_data = knows_data
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
        """Put the backbone into the whole net, as its encoder."""
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
        """Load a checkpoint of this task, a file of the whole net with the published names, or one of the backbone."""
        names = list(read_state_dict(source))
        if any(name.startswith("net.") for name in names):
            load_weights(self, source)
        elif any(name.startswith("decoder.") for name in names):
            load_weights(self.net, source)
        else:
            load_weights(self.backbone, source)

    def fixed_by_model(self) -> tuple[str, ...]:
        """Return the fields of the spec that the built net cannot change any more."""
        return (*super().fixed_by_model(), "label_len")

    def check_channels(self, names: Sequence[str]) -> None:
        """Refuse data with another number of stations than the tree has places."""
        if names:
            self.net.check_stations(len(names))

    def adopt_spec(self, theirs: DataSpec) -> None:
        """Take over the stations and their places."""
        super().adopt_spec(theirs)
        self._set_stations()

    def _set_stations(self) -> None:
        if self.spec.places:
            self.net.set_stations(torch.tensor(self.spec.places, dtype=torch.float64, device=self.device))

    # The flow

    def forward(self, x_BLN: Tensor, marks_BLM: Tensor, marks_ahead_BTM: Tensor) -> Tensor:
        """Forecasts (B, T, N) as values are stored.

        Args:
            x_BLN: histories (B, L, N) as values are stored.
            marks_BLM: their calendar features (B, L, 4), see :func:`timeseries.time_marks`.
            marks_ahead_BTM: (B, label_len + T, 4), of the last steps of the history and the steps to come.
        """
        return self.net(x_BLN, marks_BLM, marks_ahead_BTM)

    def in_metric_units(self, error_BTC: Tensor) -> Tensor:
        """Errors in the unit of the quantity."""
        return error_BTC / self.spec.value_scale

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of stored values."""
        return F.mse_loss(output, target)

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Refused: the correlations are complex Fourier transforms over several inputs.

        Raises:
            InputError: always.
        """
        raise InputError("GlobalForecastTask takes several inputs and Fourier transforms; it cannot be exported")


def _merged(spec: SeriesSpec, knows_data: bool, *, channels: int | None, **settings: int | None) -> SeriesSpec:
    """Return the specification with what was given to the task, which must not contradict the data.

    Raises:
        InputError: if it does, or nothing says how many channels there are.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if knows_data and value != getattr(spec, name):
            raise InputError(
                f"the model has {name}={value}, the data {getattr(spec, name)}; leave --model.{name} out and set "
                f"--data.{name}"
            )
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
