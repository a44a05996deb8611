"""Forecasting of all stations at once as a LightningModule."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from timeseries.global_forecaster import GlobalForecaster, Memory
from timeseries.series_task import SeriesTask

__all__ = ["GlobalForecastTask"]


class GlobalForecastTask(SeriesTask):
    """:class:`timeseries.GlobalForecaster` on :class:`timeseries.GlobalWeather`: the squared error of stored values.

    Batches are ((history (B, L, N), its marks, marks ahead), horizon (B, T, N)). Logged errors are those of the
    quantity: values are stored times ``value_scale``, so the mean squared error is divided by its square (MSE / 100)
    and the mean absolute error by it (MAE / 10), as the papers do.

    Args:
        backbone: name of a LarKit or timm model, or a module; a named one is built for one channel.
        tree: see :class:`timeseries.GlobalForecaster`.
        stations: likewise.
        seq_len: likewise.
        label_len: likewise.
        pred_len: likewise.
        d_model: likewise.
        n_heads: likewise.
        d_layers: likewise.
        d_ff: likewise.
        moving_avg: likewise.
        factor: likewise.
        tcn_layers: likewise.
        dropout: likewise.
        coordinates: likewise.
        map_size: likewise.
        memory: likewise.
        grad_checkpointing: likewise.
        value_scale: what stored values are times the quantity.
        period: steps of the season that the seasonal baseline repeats.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        weights: a checkpoint of this task, a file of the whole net with the published names, or weights of the backbone
            alone.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if arguments do not fit together.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        tree: Sequence[int] = (7, 50),
        stations: int = 11,
        seq_len: int = 48,
        label_len: int = 24,
        pred_len: int = 24,
        d_model: int = 768,
        n_heads: int = 16,
        d_layers: int = 1,
        d_ff: int = 2048,
        moving_avg: int = 25,
        factor: int = 1,
        tcn_layers: int = 1,
        dropout: float = 0.05,
        coordinates: int = 3,
        map_size: tuple[int, int] | None = None,
        memory: Memory = "tokens",
        grad_checkpointing: bool = False,
        value_scale: float = 10.0,
        period: int = 24,
        backbone_args: dict[str, Any] | None = None,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if value_scale <= 0:
            raise InputError(f"value_scale={value_scale}; give a positive number")
        super().__init__(backbone, period=period, backbone_args=backbone_args, **kwargs)
        self.value_scale = value_scale
        self.backbone = GlobalForecaster(
            self.backbone,
            tree=tree,
            stations=stations,
            seq_len=seq_len,
            label_len=label_len,
            pred_len=pred_len,
            d_model=d_model,
            n_heads=n_heads,
            d_layers=d_layers,
            d_ff=d_ff,
            moving_avg=moving_avg,
            factor=factor,
            tcn_layers=tcn_layers,
            dropout=dropout,
            coordinates=coordinates,
            map_size=map_size,
            memory=memory,
            grad_checkpointing=grad_checkpointing,
        )
        if weights is not None:
            self.load(weights)

    @property
    def net(self) -> GlobalForecaster:
        """The whole forecaster."""
        return cast(GlobalForecaster, self.backbone)

    def example_shape(self) -> None:
        """The system takes histories and the dates of both sides."""

    def check_data(self, data: Any, stage: str) -> None:
        """Compare the stations with the tree, and take their places.

        Raises:
            InputError: if the tree has another number of stations, or the model another ``label_len``.
        """
        self.net.check_stations(len(data.channels))
        self.net.set_stations(data.stations.to(self.device))
        if data.label_len != self.net.label_len:
            raise InputError(
                f"the model has label_len={self.net.label_len}, the data {data.label_len}; set both to one number"
            )

    def history(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, L, N)."""
        return inputs[0]

    def reported(self, error_BTC: Tensor) -> Tensor:
        """In the unit of the quantity."""
        return error_BTC / self.value_scale

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """History, its marks and the marks ahead to (B, T, N)."""
        return self.net(*inputs)

    def loss(self, forecast: Tensor, y_BTC: Tensor) -> Tensor:
        """Mean squared error of the values as stored."""
        return F.mse_loss(forecast, y_BTC)
