"""Parameter groups, and the learning rate by step, alone and in a run."""

import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from training.small_runs import add_callbacks, command, write_config

from core.data.module import DataModule
from core.errors import InputError
from core.training.optim import parameter_groups, warmup_cosine
from vision import ImageClassifier

pytestmark = pytest.mark.usefixtures("no_pictures")

QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    **{"enable_progress_bar": False, "enable_model_summary": False},
}
STEPS = st.integers(0, 400)
FLOORS = st.floats(0, 1)


@given(STEPS, st.integers(0, 200), st.integers(1, 400), FLOORS)
def test_factor_is_between_zero_and_one(step: int, warmup: int, total: int, floor: float) -> None:
    assert 0 <= warmup_cosine(step, warmup=warmup, total=total, floor=floor) <= 1


@given(st.integers(1, 200), st.integers(1, 200), FLOORS, STEPS)
def test_ends_of_the_schedule(warmup: int, rest: int, floor: float, after: int) -> None:
    args: dict[str, Any] = {"warmup": warmup, "total": warmup + rest, "floor": floor}
    assert warmup_cosine(0, **args) == 0
    assert warmup_cosine(warmup, **args) == 1
    assert warmup_cosine(warmup + rest + after, **args) == pytest.approx(floor, abs=1e-12)


@given(st.integers(0, 100), st.integers(1, 200), FLOORS)
def test_rises_then_falls(warmup: int, rest: int, floor: float) -> None:
    factors = [warmup_cosine(s, warmup=warmup, total=warmup + rest, floor=floor) for s in range(warmup + rest + 3)]
    rising, falling = factors[: warmup + 1], factors[warmup:]
    assert rising == sorted(rising)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert rising == pytest.approx([s / max(warmup, 1) if warmup else 1.0 for s in range(warmup + 1)])


@given(st.integers(0, 300), st.integers(1, 300), FLOORS)
def test_without_warmup_it_is_the_cosine_of_torch(step: int, total: int, floor: float) -> None:
    formula = floor + (1 - floor) * (1 + math.cos(math.pi * min(step, total) / total)) / 2
    assert warmup_cosine(step, warmup=0, total=total, floor=floor) == pytest.approx(formula, abs=1e-12)


class _Task(nn.Module):
    """A backbone with a head of its own, as a detector or a forecaster has it."""

    def __init__(self, name: str = "test_unireplknet", **kwargs: Any) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=3, **kwargs)
        self.head = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 2))


def _settings(task: nn.Module, **kwargs: Any) -> dict[str, tuple[float, float]]:
    """(lr, weight decay) by name; a parameter in two groups fails."""
    names = {id(p): name for name, p in task.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in parameter_groups(task, lr=2.0, weight_decay=0.1, **kwargs):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_unireplknet", "resnet18", "test_vit"])
def test_every_trainable_parameter_is_in_one_group(name: str, layer_decay: float) -> None:
    task = _Task(name)
    frozen = next(iter(task.backbone.parameters()))
    frozen.requires_grad = False
    assert set(_settings(task, layer_decay=layer_decay)) == {n for n, p in task.named_parameters() if p is not frozen}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", ["test_unireplknet", "resnet18"])
def test_vectors_do_not_decay_and_the_rest_does(name: str, layer_decay: float) -> None:
    task = _Task(name)
    settings = _settings(task, layer_decay=layer_decay)
    wrong = [n for n, p in task.named_parameters() if (settings[n][1] == 0) != (p.ndim <= 1 or n.endswith(".bias"))]
    assert not wrong


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_grn_decays_as_it_has_four_dimensions(layer_decay: float) -> None:
    task = _Task()
    grn = [n for n, p in task.named_parameters() if n.endswith((".gamma", ".beta")) and p.ndim == 4]
    settings = _settings(task, layer_decay=layer_decay)
    assert len(grn) == 12
    assert {settings[n][1] for n in grn} == {0.1}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_names_that_the_backbone_exempts_do_not_decay(layer_decay: float) -> None:
    task = _Task("test_vit")
    assert "pos_embed" in task.backbone.no_weight_decay()
    assert _settings(task, layer_decay=layer_decay)["backbone.pos_embed"][1] == 0


def test_layer_decay_of_every_group_of_unireplknet_a() -> None:
    settings = _settings(_Task("unireplknet_a"), layer_decay=0.5)
    parts = {  # from the output: classifier, stage 4, stage 3 in threes, stage 2, stage 1, stem
        0: ["backbone.head.weight", "backbone.norm.weight", "head.1.weight", "head.0.bias"],
        1: ["backbone.stages.3.1.norm.weight", "backbone.downsample_layers.3.0.weight"],
        2: ["backbone.stages.2.5.norm.weight", "backbone.stages.2.3.norm.weight"],
        3: ["backbone.stages.2.2.norm.weight", "backbone.stages.2.0.norm.weight"],
        4: ["backbone.stages.1.0.norm.weight", "backbone.downsample_layers.1.1.bias"],
        5: ["backbone.stages.0.0.norm.weight", "backbone.stages.0.1.norm.weight"],
        6: ["backbone.downsample_layers.0.0.weight", "backbone.downsample_layers.0.4.bias"],
    }
    parts[3].append("backbone.downsample_layers.2.0.weight")
    for distance, names in parts.items():
        assert {n: settings[n][0] for n in names} == dict.fromkeys(names, 2.0 * 0.5**distance)
    assert len({lr for lr, _ in settings.values()}) == 7


def test_layer_decay_of_a_timm_model() -> None:
    settings = _settings(_Task("resnet18"), layer_decay=0.5)
    chain = ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "backbone.layer4.1.conv1.weight"]
    rates = [settings[n][0] for n in [*chain, "backbone.fc.weight", "head.1.weight"]]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] < rates[2]
    assert rates[-2:] == [2.0, 2.0]


def test_frozen_stem_does_not_shift_the_other_groups() -> None:
    free, frozen = _Task(), _Task()
    frozen.backbone.downsample_layers[0].requires_grad_(False)
    expected = {n: s for n, s in _settings(free, layer_decay=0.5).items() if "downsample_layers.0." not in n}
    assert _settings(frozen, layer_decay=0.5) == expected


class _Rates(Callback):
    """Notes the learning rate that each optimizer step is taken with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[-1]["lr"])


def _rates(photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[float]:
    noted = _Rates()
    add_callbacks(monkeypatch, noted)
    config = write_config(out / "photos.yaml", photos, auto_augment=None)  # 18 images, 3 steps an epoch
    command("fit", config, out, "--trainer.limit_val_batches", "0", "--model.lr", "0.1", *words)
    return noted.rates


def test_run_follows_the_schedule(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model.warmup_epochs", "1", "--model.min_lr", "0.01"]
    rates = _rates(photos, tmp_path, monkeypatch, *words)
    assert rates == pytest.approx([0.1 * warmup_cosine(s, warmup=3, total=6, floor=0.1) for s in range(6)])
    assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (3, 2)])
def test_lr_batch_scales_by_the_real_global_batch(
    accumulate: int, steps: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model.lr_batch", "24", "--trainer.accumulate_grad_batches", str(accumulate)]
    rates = _rates(photos, tmp_path, monkeypatch, *words)
    assert len(rates) == steps
    assert rates[0] == pytest.approx(0.1 * 6 * accumulate / 24)


def test_warmup_counts_optimizer_steps_under_accumulation(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model.warmup_epochs", "2", "--trainer.max_epochs", "4", "--trainer.accumulate_grad_batches", "3"]
    assert _rates(photos, tmp_path, monkeypatch, *words)[:3] == pytest.approx([0.0, 0.05, 0.1])


@pytest.mark.parametrize("epochs", ["-1", "10"])
def test_run_of_a_number_of_steps(epochs: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--trainer.max_epochs", epochs, "--trainer.max_steps", "4", "--model.warmup_epochs", "0.67"]
    rates = _rates(photos, tmp_path, monkeypatch, *words)
    assert rates == pytest.approx([0.1 * warmup_cosine(s, warmup=2, total=4, floor=1e-5) for s in range(4)])


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        *[("0.5", [1, 0.5, 0.25]), ("0.5 --model.decay_start 2", [1, 1, 0.5]), ("1.0", [1, 1, 1])],
        *[("0.5 --model.decay_start 9", [1, 1, 1]), ("0.5 --trainer.accumulate_grad_batches 3", [1, 0.5, 0.25])],
    ],
)
def test_decay_by_epoch(
    words: str, factors: list[float], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = _rates(photos, tmp_path, monkeypatch, "--trainer.max_epochs", "3", "--model.decay_rate", *words.split())
    assert rates == pytest.approx([0.1 * factor for factor in factors for _ in range(len(rates) // 3)])
    assert len(rates) == (3 if "accumulate" in words else 9)


@pytest.mark.parametrize(("warmup", "rising"), [("1", [0.0, 1 / 3, 2 / 3]), ("1.34", [0.0, 0.25, 0.5, 0.75])])
def test_decay_by_epoch_after_a_warmup(
    warmup: str, rising: list[float], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up does not put off the decay: epochs count from the start of the run."""
    words = ["--model.decay_rate", "0.85", "--model.decay_start", "2", "--trainer.max_epochs", "4"]
    rates = _rates(photos, tmp_path, monkeypatch, *words, "--model.warmup_epochs", warmup)
    later = [0.85 ** max(0, step // 3 - 1) for step in range(len(rising), 12)]
    assert rates == pytest.approx([0.1 * factor for factor in rising + later])


@pytest.mark.parametrize(("rate", "start"), [(0.0, 1), (-0.5, 1), (1.5, 1), (0.5, 0)])
def test_decay_out_of_range(rate: float, start: int) -> None:
    message = rf"decay_rate={rate}, decay_start={start}; expected a factor in \(0, 1\], and an epoch of 1 or more"
    with pytest.raises(InputError, match=message):
        ImageClassifier("test_unireplknet", 3, decay_rate=rate, decay_start=start)


PLATEAU = ["--trainer.limit_val_batches", "1.0", "--model.lr", "1e-8", "--model.norm_eval", "true"]
"""Rates too small to change a prediction, so that no epoch is better than the first."""


@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ("0 --model.min_lr 0", [1, 1, 0.1, 0.01]),
        ("1 --model.min_lr 0 --trainer.accumulate_grad_batches 3", [1, 1, 1, 0.1]),
        ("0 --model.min_lr 5e-9", [1, 1, 0.5, 0.5]),
        ("0 --model.min_lr 0 --trainer.val_check_interval 0.34", [1, *(0.1**i for i in range(11))]),
    ],
)
def test_rate_falls_on_a_plateau(
    words: str, factors: list[float], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ["--trainer.max_epochs", "4", "--model.plateau_patience"]
    rates = _rates(photos, tmp_path, monkeypatch, *PLATEAU, *limits, *words.split())
    steps = len(rates) // len(factors)
    assert rates == pytest.approx([1e-8 * factor for factor in factors for _ in range(steps)], rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_rate": 0.5}, "decay_rate=0.5 and warmup_epochs=0.0; choose one schedule"),
        ({"warmup_epochs": 2.0}, "decay_rate=None and warmup_epochs=2.0; choose one schedule"),
        ({"plateau_patience": -1}, "plateau_patience=-1; expected a number of validations, 0 or more"),
    ],
)
def test_plateau_is_a_schedule_of_its_own(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageClassifier("test_unireplknet", 3, **{"plateau_patience": 3, **options})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--trainer.check_val_every_n_epoch 2", "check_val_every_n_epoch is 2"),
        ("--trainer.limit_val_batches 0", "limit_val_batches 0"),
        ("--checkpoint.monitor train_loss", "the metric train_loss"),
    ],
)
def test_plateau_needs_a_validation_in_each_epoch(words: str, named: str, photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos)
    with pytest.raises(SystemExit, match=f"plateau_patience needs a validation in each epoch.*{named}"):
        command("fit", config, tmp_path, "--model.plateau_patience", "3", *words.split())


def test_arguments_of_the_optimizer_reach_it(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = add_callbacks(monkeypatch)
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    words = ["--model.opt", "adam", "--model.opt_args", "{betas: [0.95, 0.999], eps: 1.0e-7}"]
    words += ["--model.weight_decay", "5e-7", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    command("fit", config, tmp_path, *words)
    (optimizer,) = trainers[0].optimizers
    assert type(optimizer) is torch.optim.Adam  # whose decay is that of L2, not AdamW's
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.95, 0.999, 1e-7)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-7}


@pytest.mark.parametrize("args", ["{colour: 1}", "{lr: 1.0}", "{weight_decay: 0.1}", "{betas: [2.0, 0.9]}"])
def test_arguments_that_the_optimizer_does_not_take(args: str, photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "photos.yaml", photos, auto_augment=None)
    with pytest.raises(SystemExit, match=r"^lightning: error: .*opt_args"):
        command("fit", config, tmp_path, "--model.opt_args", args)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lamb"])
def test_optimizer_takes_the_rates_of_the_groups(opt: str) -> None:
    from timm.optim import create_optimizer_v2

    groups = parameter_groups(_Task(), lr=2.0, weight_decay=0.1, layer_decay=0.5)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=opt, lr=2.0, weight_decay=0.0)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (g["lr"], g["weight_decay"]) for g in groups
    ]


class _Stream(IterableDataset[Any]):
    """Images whose number nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((3, 32, 32), i / 10), i % 3) for i in range(18))


def _streamed(task: ImageClassifier, **limits: Any) -> list[float]:
    noted = _Rates()
    Trainer(**QUIET | limits, callbacks=[noted]).fit(task, DataLoader(_Stream(), 6))
    return noted.rates


@pytest.mark.parametrize("epochs", [-1, 4])
def test_data_without_a_length_train_for_a_number_of_steps(epochs: int) -> None:
    rates = _streamed(ImageClassifier("test_unireplknet", 3, lr=0.1), max_epochs=epochs, max_steps=5)
    assert rates == pytest.approx([0.1 * warmup_cosine(s, warmup=0, total=5, floor=1e-5) for s in range(5)])


def test_data_without_a_length_have_epochs_if_these_are_limited() -> None:
    task = ImageClassifier("test_unireplknet", 3, lr=0.1, warmup_epochs=1)
    rates = _streamed(task, max_epochs=2, limit_train_batches=2)
    assert rates == pytest.approx([0.1 * warmup_cosine(s, warmup=2, total=4, floor=1e-5) for s in range(4)])


@pytest.mark.parametrize(
    ("arguments", "limits", "message"),
    [
        ({}, {"max_epochs": 2}, "schedule needs an end; set --trainer.max_steps or --trainer.limit_train_batches"),
        (
            {"warmup_epochs": 1},
            {"max_steps": 4},
            "have no length; set --trainer.limit_train_batches.*max_steps",
        ),
        (
            {"decay_rate": 0.5},
            {"max_steps": 4},
            "have no length; set --trainer.limit_train_batches.*max_steps",
        ),
    ],
)
def test_epochs_of_data_without_a_length_are_refused(arguments: Any, limits: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _streamed(ImageClassifier("test_unireplknet", 3, **arguments), **limits)


class _Numbered(DataModule):
    """18 maps with labels."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__(batch_size=batch_size, num_workers=0)
        x = torch.randn(18, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.train_set = self.val_set = TensorDataset(x, torch.arange(18) % 3)


@pytest.mark.filterwarnings("ignore:.*")  # theirs: what the finders say of the trainer that they change
def test_found_learning_rate_is_that_of_the_schedule(tmp_path: Path) -> None:
    finder, noted, task = LearningRateFinder(num_training_steps=20), _Rates(), ImageClassifier("test_unireplknet", 3)
    options = QUIET | {"default_root_dir": tmp_path, "max_steps": 4}
    Trainer(**options, callbacks=[finder, noted]).fit(task, datamodule=_Numbered())
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert task.lr == found
    assert found != 1e-3
    wanted = [found * warmup_cosine(s, warmup=0, total=4, floor=min(1, 1e-6 / found)) for s in range(4)]
    assert noted.rates[-4:] == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore:.*")
def test_found_batch_size_is_that_of_the_schedule(tmp_path: Path) -> None:
    finder = BatchSizeFinder(max_trials=2, init_val=3, steps_per_trial=1)  # tries 3 and 6, and takes 12 or less
    noted, task, data = _Rates(), ImageClassifier("test_unireplknet", 3, lr=0.1, lr_batch=12), _Numbered(2)
    trainer = Trainer(**QUIET | {"default_root_dir": tmp_path, "max_epochs": 2}, callbacks=[finder, noted])
    trainer.fit(task, datamodule=data)
    steps, top = trainer.global_step, 0.1 * data.batch_size / 12
    assert data.batch_size > 2
    assert steps == 2 * (18 // data.batch_size)
    wanted = [top * warmup_cosine(s, warmup=0, total=steps, floor=1e-5) for s in range(steps)]
    assert noted.rates[-steps:] == pytest.approx(wanted)


@pytest.mark.parametrize(("epochs", "warns"), [(2.0, False), (2.34, True), (9.0, True)])
def test_warmup_that_the_run_does_not_complete(epochs: float, warns: bool) -> None:
    task = ImageClassifier("test_unireplknet", 3, warmup_epochs=epochs)
    limits = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(**QUIET | limits).fit(task, datamodule=_Numbered())
    found = [str(warning.message) for warning in caught if "warm-up" in str(warning.message)]
    assert len(found) == warns
    assert all(f"takes {round(epochs * 3)} steps and the run 6:" in text for text in found)


def test_decay_needs_no_end_of_the_run() -> None:
    noted, limits = _Rates(), {"max_epochs": -1, "max_time": {"seconds": 1}, "limit_train_batches": 2}
    task = ImageClassifier("test_unireplknet", 3, lr=0.1, decay_rate=0.5)
    Trainer(**QUIET | limits, callbacks=[noted]).fit(task, datamodule=_Numbered())
    assert len(noted.rates) >= 4
    assert noted.rates[:4] == pytest.approx([0.1, 0.1, 0.05, 0.05])
