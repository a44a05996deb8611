"""The forecaster for any series as a LightningModule."""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError, listed
from timeseries.forecaster import Forecaster, Layout, Normalize
from timeseries.metrics import quantile_loss
from timeseries.series_task import SeriesTask

__all__ = ["ForecastTask"]


class ForecastTask(SeriesTask):
    """:class:`timeseries.Forecaster` on windows of a series; errors are those of standardised channels.

    Batches are (history (B, L, C), horizon (B, T, C)) as :class:`timeseries.SeriesDataModule` makes them. With
    ``quantiles`` the net writes one forecast for each level and learns by the quantile loss; measured is the level
    nearest to 0.5, and ``val_coverage``, the share of values between the outermost two.

    Args:
        backbone: name of a LarKit or timm model, or a module; a named one is built for ``group`` channels.
        channels: C.
        criterion: 'mse', 'mae', or 'huber', which is squared below an error of one standard deviation and absolute
            above; for forecasts without quantiles.
        seq_len: L.
        pred_len: T.
        period: see :class:`timeseries.Forecaster`; the seasonal baseline repeats the last one.
        layout: see :class:`timeseries.Forecaster`.
        enlarge: likewise.
        embed_dim: likewise.
        group: likewise.
        normalize: likewise.
        linear: likewise.
        dropout: likewise.
        quantiles: likewise.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        weights: a checkpoint of this task, or weights of the backbone alone.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if arguments do not fit together.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        channels: int,
        *,
        criterion: Literal["mse", "mae", "huber"] = "mse",
        seq_len: int = 96,
        pred_len: int = 96,
        period: int = 24,
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
        if isinstance(backbone, str) and layout == "fold":
            backbone_args = {"in_chans": group, **(backbone_args or {})}
        super().__init__(backbone, period=period, backbone_args=backbone_args, **kwargs)
        self.criterion, self.quantiles = criterion, tuple(quantiles)
        self.backbone = Forecaster(
            self.backbone,
            channels=channels,
            seq_len=seq_len,
            pred_len=pred_len,
            period=period,
            layout=layout,
            enlarge=enlarge,
            embed_dim=embed_dim,
            group=group,
            normalize=normalize,
            linear=linear,
            dropout=dropout,
            quantiles=quantiles,
        )
        if weights is not None:
            self.load(weights)

    @property
    def net(self) -> Forecaster:
        """The whole forecaster."""
        return cast(Forecaster, self.backbone)

    def example_shape(self) -> tuple[int, ...]:
        """Two histories."""
        return (2, self.net.seq_len, self.net.channels)

    def check_data(self, data: Any, stage: str) -> None:
        """Compare the channels, and take the scale of the training rows; a checkpoint has its own.

        Raises:
            InputError: if the data have another number of channels.
        """
        if len(data.channels) != self.net.channels:
            raise InputError(
                f"the model has {self.net.channels} channels and the data {len(data.channels)} "
                f"({listed(data.channels)}); set --model.channels {len(data.channels)}"
            )
        if stage == "fit":
            self.net.set_scale(data.mean, data.std)

    def history(self, inputs: Tensor) -> Tensor:
        """(B, L, C), which is all that the net needs."""
        return inputs

    def reported(self, error_BTC: Tensor) -> Tensor:
        """In standard deviations of the training rows."""
        return error_BTC / self.net.std

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, T, C), with quantiles (B, T, C, Q)."""
        return self.net(x_BLC)

    def loss(self, forecast: Tensor, y_BTC: Tensor) -> Tensor:
        """The criterion on standardised channels, or the quantile loss."""
        if self.quantiles:
            scale = self.net.std
            return quantile_loss(forecast / scale[:, None], y_BTC / scale, self.quantiles)
        error = self.reported(forecast - y_BTC)
        losses = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.smooth_l1_loss}
        return losses[self.criterion](error, torch.zeros_like(error))

    def middle(self, forecast: Tensor) -> Tensor:
        """(B, T, C): of quantiles the one nearest to the median."""
        if not self.quantiles:
            return forecast
        return forecast[..., min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))]

    def _columns(self, name: str, forecast: Tensor) -> dict[str, list[float]]:
        if not self.quantiles:
            return super()._columns(name, forecast)
        return {
            f"{name}_q{level:g}": super(ForecastTask, self)._columns(name, forecast[:, i])[name]
            for i, level in enumerate(self.quantiles)
        }
