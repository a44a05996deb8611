"""What all forecasting tasks have in common: baselines, metrics, pictures and predictions beside the net's own."""

import re
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from core.checkpoints import load_weights, read_state_dict
from core.errors import InputError, listed
from core.training.data import padding_in_batch
from core.training.drawing import draw_figure
from core.training.task import Task
from timeseries.baselines import fit_linear, last_value, linear_forecast, seasonal_value
from timeseries.metrics import ForecastErrors
from timeseries.pictures import Example, errors_figure, forecast_figure

__all__ = ["SeriesTask"]

_EXAMPLES = 6
_BASELINES = ("last", "seasonal", "linear")


class SeriesTask(Task):
    """Base of the forecasting tasks: subclasses wrap the backbone into a net, and say what a batch holds.

    Logged are ``train_loss``, ``lr``, ``val_mse`` and ``val_mae``, and the same for test; beside them those of three
    baselines on the same windows, as in ``test_mse_linear``: the last value, the last season, and the linear layer with
    the least error on the training rows. After each evaluation the run folder holds ``forecasts.png`` and
    ``errors.png``.

    Args:
        backbone: name of a LarKit or timm model, or a module; a named one is built for one channel, without classifier.
        period: steps of a season, for the baseline that repeats the last one.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if the period is below 1, or the learning rate is to decay by layer.
    """

    monitor: ClassVar[str] = "val_mse"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    pipeline_tag: ClassVar[str | None] = "time-series-forecasting"
    linear: Tensor
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        period: int = 24,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if period < 1 or kwargs.get("layer_decay", 1.0) != 1.0:
            raise InputError(
                f"period={period}, layer_decay={kwargs.get('layer_decay', 1.0)}; at least 1, and no decay by layer"
            )
        if isinstance(backbone, str):
            backbone_args = {"in_chans": 1, "num_classes": 0, **(backbone_args or {})}
        super().__init__(backbone, backbone_args=backbone_args, **kwargs)
        self.period, self.channel_names = period, list[str]()
        self.errors = nn.ModuleDict()
        self.coverage = MeanMetric()
        self.examples: list[Example] = []
        for name in ("linear", "center", "spread"):
            self.register_buffer(name, None, persistent=False)

    def load(self, source: str) -> None:
        """Load a checkpoint of this task, a file of the whole net, or weights of the backbone alone.

        Raises:
            InputError: if they do not fit.
        """
        whole = any(re.match(r"(backbone\.)?encoder\.", name) for name in read_state_dict(source))
        load_weights(self if whole else self.backbone.get_submodule("encoder"), source)

    @abstractmethod
    def history(self, inputs: Any) -> Tensor:
        """(B, L, C) of what a batch holds before its horizon."""

    @abstractmethod
    def reported(self, error_BTC: Tensor) -> Tensor:
        """Differences in the units of the series in those of the metrics."""

    def loss(self, forecast: Tensor, y_BTC: Tensor) -> Tensor:
        """Mean squared error in the units of the metrics."""
        return self.reported(forecast - y_BTC).square().mean()

    def middle(self, forecast: Tensor) -> Tensor:
        """The forecast (B, T, C) that is measured."""
        return forecast

    def setup(self, stage: str) -> None:
        """Take names and scale of the channels from the data, and fit the linear baseline.

        Raises:
            InputError: if the data do not fit the model.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "channels"):
            return
        net: Any = self.backbone
        if (data.seq_len, data.pred_len) != (net.seq_len, net.pred_len):
            raise InputError(
                f"the model has seq_len={net.seq_len} and pred_len={net.pred_len}, the data {data.seq_len} and "
                f"{data.pred_len}; set --model.seq_len, --model.pred_len, --data.seq_len and --data.pred_len alike"
            )
        self.channel_names = self.channel_names or list(data.channels)
        self.check_data(data, stage)
        if stage != "predict":
            self.center, self.spread = data.mean.to(self.device), data.std.to(self.device)
            self.linear = fit_linear(data.training_rows(), data.seq_len, data.pred_len).to(self.device)
            names = ("model", *_BASELINES)
            sizes = data.pred_len, len(data.channels)
            self.errors = nn.ModuleDict({name: ForecastErrors(*sizes) for name in names}).to(self.device)

    def check_data(self, data: Any, stage: str) -> None:
        """Compare the data module, which is set up, with the net; a subclass says how.

        Raises:
            InputError: if they do not fit together.
        """

    def training_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        inputs, y = batch
        loss = self.loss(self(inputs), y)
        self.log_training(loss, len(y))
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add one batch to the metrics."""
        self._evaluate(batch, batch_idx, self.trainer.val_dataloaders, self.trainer.num_val_batches)

    def test_step(self, batch: tuple[Any, Tensor], batch_idx: int) -> None:
        """Add one batch to the metrics."""
        self._evaluate(batch, batch_idx, self.trainer.test_dataloaders, self.trainer.num_test_batches)

    def _evaluate(self, batch: tuple[Any, Tensor], batch_idx: int, loader: Any, batches: list[int | float]) -> None:
        inputs, y = batch
        forecast, x = self(inputs), self.history(inputs)
        own = len(y) - padding_in_batch(loader, batch_idx, len(y))
        if not own:
            return
        y = y[:own]
        forecasts = {"model": self.middle(forecast)[:own], **self._baselines(x[:own], y.shape[1])}
        for name, metric in self._measured():
            metric.update(self.reported(forecasts[name] - y))
        if forecast.ndim == 4:
            inside = (y >= forecast[:own, ..., 0]) & (y <= forecast[:own, ..., -1])
            self.coverage.update(inside.double().mean(), weight=own)
        step = max(1, int(sum(batches)) // _EXAMPLES)
        if batch_idx % step == 0 and len(self.examples) < _EXAMPLES:
            self._keep(x[0], forecast[0], y[0], len(self.examples) % x.shape[2])

    def _baselines(self, x_BLC: Tensor, steps: int) -> dict[str, Tensor]:
        """Forecasts (B, steps, C) in the units of the series."""
        z = linear_forecast((x_BLC - self.center) / self.spread, self.linear)
        linear = z * self.spread + self.center
        return {
            "last": last_value(x_BLC, steps),
            "seasonal": seasonal_value(x_BLC, steps, self.period),
            "linear": linear,
        }

    def _keep(self, x_LC: Tensor, forecast: Tensor, y_TC: Tensor | None, channel: int) -> None:
        history, ahead, truth = (  # copies: slices would keep their batches
            None if values is None else values[:, channel].to("cpu", torch.float32, copy=True)
            for values in (x_LC, forecast, y_TC)
        )
        assert history is not None
        assert ahead is not None
        self.examples.append(Example(self.channel_names[channel], history, ahead, truth))

    def on_validation_epoch_end(self) -> None:
        """Log the errors and draw."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log the errors and draw."""
        self._report("test")

    def _report(self, split: str) -> None:
        results = {name: metric.compute() for name, metric in self._measured()}
        for name, values in results.items():
            suffix = "" if name == "model" else f"_{name}"
            for kind in ("mse", "mae"):
                self.log(f"{split}_{kind}{suffix}", values[kind].float(), prog_bar=not suffix, sync_dist=False)
        if self.coverage.update_called:
            self.log(f"{split}_coverage", self.coverage.compute())
        if not self.trainer.sanity_checking:
            by_step = {name: values["by_step"].cpu() for name, values in results.items()}
            by_channel = results["model"]["by_channel"].cpu()
            draw_figure(self.trainer, "errors", partial(errors_figure, by_step, by_channel, self.channel_names))
            self._draw()
        self.examples.clear()
        self.coverage.reset()
        for _, metric in self._measured():
            metric.reset()

    def _measured(self) -> list[tuple[str, ForecastErrors]]:
        return [(name, cast(ForecastErrors, metric)) for name, metric in self.errors.items()]

    def _draw(self) -> None:
        if self.examples:
            draw_figure(self.trainer, "forecasts", partial(forecast_figure, list(self.examples)))

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """A row for each step of the horizon: its date, and a column for each channel, in the units of the series."""
        inputs, ahead = batch
        forecast, x = self(inputs), self.history(inputs)
        for channel in range(min(_EXAMPLES, x.shape[2])):
            self._keep(x[0], forecast[0], None, channel)
        columns: dict[str, Any] = {"date": [date for dates in ahead for date in dates]}
        for i, name in enumerate(self.channel_names):
            columns |= self._columns(name, forecast[:, :, i].flatten(0, 1))
        return columns

    def _columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        return {name: [float(f"{value:.7g}") for value in forecast.tolist()]}  # what float32 holds, in any unit

    def on_predict_epoch_end(self) -> None:
        """Draw the forecasts."""
        self._draw()
        self.examples.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the names of the channels, which are not known without the training data."""
        checkpoint["channel_names"] = list(self.channel_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the names of the channels.

        Raises:
            InputError: if the data have others.
        """
        names = checkpoint.get("channel_names", [])
        if self.channel_names and names and self.channel_names != names:
            raise InputError(
                f"the model was trained on the channels {listed(names)}, the data have "
                f"{listed(self.channel_names)}; give data with the same columns in the same order"
            )
        self.channel_names = list(names)
