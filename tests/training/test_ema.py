"""The average of the weights before and after its first update, against the recursion by hand."""

from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from core.training import EMA

DECAY = 0.8


class _Line(LightningModule):
    """A linear map with batch norm that moves with every step and notes the weights it is validated with."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.validated: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.net(batch) - 1).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def loader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), batch_size=4)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = loader


class _Current(Callback):
    """The current weights after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps.append(pl_module.get_submodule("net.0").weight.detach().clone())


def _fit(
    average: Callback, folder: Any, epochs: int = 2, precision: Any = 32
) -> tuple[_Line, _Current, list[dict[str, Any]], Tensor]:
    torch.manual_seed(0)
    model, current = _Line(), _Current()
    first = model.net[0].weight.detach().clone()
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[average, current, save],
        log_every_n_steps=1,
        precision=precision,
        **options,
    )
    trainer.fit(model)
    files = [torch.load(folder / f"epoch={e}.ckpt", weights_only=True) for e in range(epochs)]
    return model, current, files, first


def _recursion(steps: list[Tensor], start: int) -> Tensor:
    """The average after the last of ``steps``: it begins with the weights after step ``start``."""
    average = steps[start]
    for weight in steps[start + 1 :]:
        average = DECAY * average + (1 - DECAY) * weight
    return average


def test_before_its_start_the_average_is_the_current_weights(tmp_path: Any) -> None:
    model, current, files, first = _fit(EMA(DECAY, start_step=100), tmp_path)
    assert len(current.steps) == 6
    for epoch, file in enumerate(files):
        weight = current.steps[3 * epoch + 2]
        assert_close(model.validated[epoch * 3], weight, rtol=0, atol=0)
        assert_close(file["state_dict"]["net.0.weight"], weight, rtol=0, atol=0)
        assert_close(file["current_model_state"]["net.0.weight"], weight, rtol=0, atol=0)
    assert_close(model.net[0].weight.detach(), current.steps[-1], rtol=0, atol=0)
    assert (current.steps[-1] - first).abs().max() > 1e-3


def test_lightnings_own_would_validate_and_save_the_initial_weights(tmp_path: Any) -> None:
    model, _, files, first = _fit(EMAWeightAveraging(decay=DECAY, update_starting_at_step=100), tmp_path)
    assert_close(model.validated[0], first, rtol=0, atol=0)
    assert_close(files[-1]["state_dict"]["net.0.weight"], first, rtol=0, atol=0)


def test_before_its_start_the_norm_statistics_follow_too(tmp_path: Any) -> None:
    _, _, files, _ = _fit(EMA(DECAY, start_step=100), tmp_path)
    for name in ("net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"):
        assert_close(files[-1]["state_dict"][name], files[-1]["current_model_state"][name], rtol=0, atol=0)
    assert files[-1]["state_dict"]["net.1.running_mean"].abs().max() > 0


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_average_is_the_recursion(start: int, tmp_path: Any) -> None:
    model, current, files, _ = _fit(EMA(DECAY, start_step=start), tmp_path)
    for epoch, file in enumerate(files):
        steps = current.steps[: 3 * epoch + 3]
        expected = _recursion(steps, start) if start < len(steps) else steps[-1]
        assert_close(file["state_dict"]["net.0.weight"], expected)
        assert_close(model.validated[epoch * 3], expected)
        assert_close(file["current_model_state"]["net.0.weight"], steps[-1], rtol=0, atol=0)
    assert_close(model.net[0].weight.detach(), _recursion(current.steps, start))


def test_training_goes_on_from_the_current_weights_not_the_average(tmp_path: Any) -> None:
    _, with_average, _, _ = _fit(EMA(DECAY, start_step=1), tmp_path / "a")
    _, without, _, _ = _fit(Callback(), tmp_path / "b")
    assert_close(with_average.steps, without.steps, rtol=0, atol=0)


def test_average_lives_where_the_model_is_trained(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning calls ``setup`` before it moves the model; a meta device stands for a GPU."""
    average, model = EMA(decay=DECAY), _Line()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
    average.setup(trainer, model, "fit")
    assert average._average_model is not None
    assert all(p.device.type == "meta" for p in average._average_model.parameters())


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_average_of_weights_of_16_bits_is_kept_in_float32(
    precision: str, dtype: torch.dtype, start: int, tmp_path: Any
) -> None:
    model, current, files, _ = _fit(EMA(DECAY, start_step=start), tmp_path, precision=precision)
    for epoch, file in enumerate(files):
        steps = [weight.float() for weight in current.steps[: 3 * epoch + 3]]
        average = file["state_dict"]["net.0.weight"]
        assert average.dtype == torch.float32
        assert_close(average, _recursion(steps, start))
        assert_close(model.validated[epoch * 3], average.to(dtype), rtol=0, atol=0)
        assert_close(file["current_model_state"]["net.0.weight"], current.steps[3 * epoch + 2], rtol=0, atol=0)
    assert model.net[0].weight.dtype == dtype
