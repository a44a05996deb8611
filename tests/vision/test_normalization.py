"""A warning where data are normalized otherwise than the pretrained weights were trained with."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from lightning.pytorch.trainer.states import TrainerFn

from core.data.module import DataModule
from vision import ImageClassifier, ImageSpec

IMAGENET, HALVES = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _task(weights: Path | None) -> ImageClassifier:
    task = ImageClassifier("test_replknet", num_classes=3, weights=str(weights) if weights else None)
    task.backbone.pretrained_cfg = timm.get_pretrained_cfg("replknet_xl.meg73m_ft_in1k_320").to_dict()
    return task


class _Pixels(DataModule):
    """Nothing but what it says of its pixels."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.given = spec

    def settings(self) -> ImageSpec:
        return self.given


def _setup(
    task: ImageClassifier, mean: tuple[float, ...], std: tuple[float, ...], size: int = 320, verb: str = "fit"
) -> list[str]:
    data = _Pixels(ImageSpec(mean=mean, std=std, size=size))
    task._trainer = SimpleNamespace(datamodule=data, state=SimpleNamespace(fn=TrainerFn(verb)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task.setup("fit")
    return [str(warning.message) for warning in caught]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(timm.create_model("test_replknet", num_classes=3).state_dict(), tmp_path / "xl.pth")
    return tmp_path / "xl.pth"


def test_weights_of_the_largest_net_want_pixels_around_a_half(weights: Path) -> None:
    told = _setup(_task(weights), *IMAGENET)
    assert len(told) == 2
    assert "mean (0.5, 0.5, 0.5), but the data are normalized by (0.485, 0.456, 0.406)" in told[0]
    assert "set --data.std '[0.5, 0.5, 0.5]'" in told[1]
    assert _setup(_task(weights), *HALVES) == []


def test_random_weights_want_nothing() -> None:
    assert _setup(_task(None), *IMAGENET) == []


def test_another_size_than_the_published_one_is_said_in_evaluation(weights: Path) -> None:
    (told,) = _setup(_task(weights), *HALVES, size=224, verb="test")
    assert told.endswith("published for images of 320 pixels, the data have 224; set --data.size 320")
    assert _setup(_task(weights), *HALVES, size=224) == []
    assert _setup(_task(weights), *HALVES, verb="test") == []


def test_weights_of_ones_own_run_know_the_pixels_of_that_run(weights: Path, tmp_path: Path) -> None:
    spec = ImageSpec(mean=HALVES[0], std=(0.25,) * 3).to_dict()
    own = {"state_dict": torch.load(weights), "hyper_parameters": {"spec": spec}}
    torch.save(own, tmp_path / "run.ckpt")
    assert _setup(_task(tmp_path / "run.ckpt"), HALVES[0], (0.25,) * 3, size=64, verb="test") == []
    (told,) = _setup(_task(tmp_path / "run.ckpt"), *HALVES)
    assert "std (0.25, 0.25, 0.25), but the data are normalized by (0.5, 0.5, 0.5)" in told


def test_a_checkpoint_that_came_from_elsewhere_is_not_looked_for_again(weights: Path) -> None:
    task = _task(weights)
    task.hparams["weights"] = "https://example.org/run.ckpt"
    assert _setup(task, *IMAGENET, size=64, verb="test") == []
