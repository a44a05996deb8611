"""Weights from files: every form they come in, and what adapts to the model."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_values import TINY, golden_input, tiny
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from tiny_weights import STEM, State, check_same, fresh, saved
from torch import nn
from torch.testing import assert_close

import core
from core.errors import InputError
from core.layers.feature_map import FeatureMap


def _without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "under model": lambda s: {"model": s},
    "under state_dict": lambda s: {"state_dict": s, "epoch": 3, "meta": {"classes": ["a", "b"]}},
    "official training": lambda s: {"model": s, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1.0)},
    "twice wrapped": lambda s: {"state_dict": {"model": s}},
    "data parallel": lambda s: _prefixed(s, "module."),
    "compiled": lambda s: _prefixed(s, "_orig_mod."),
    "compiled and parallel": lambda s: _prefixed(s, "_orig_mod.module."),
    "parallel and compiled": lambda s: _prefixed(s, "module._orig_mod."),
    "with average": lambda s: s | {"ema_" + n.replace(".", "_"): t + 1 for n, t in s.items()},
    "beside a number": lambda s: {"state_dict": s, "best": torch.tensor(0.8), "epoch": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form: str, tmp_path: Path) -> None:
    state, path = saved(), tmp_path / "weights.pth"
    torch.save(FORMS[form](state), path)
    model = fresh()
    assert core.load_weights(model, path) is model
    check_same(model, state)
    check_same(core.load_weights(fresh(), str(path)), state)


def test_safetensors(tmp_path: Path) -> None:
    save_file(saved(), tmp_path / "weights.safetensors")
    check_same(core.load_weights(fresh(), tmp_path / "weights.safetensors"), saved())


def test_detector_file_into_plain_and_feature_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, path = _without(saved(feature_norms=True), "norm.", "head."), tmp_path / "detector.pth"
    extra = {"neck.lateral.weight": torch.ones(3), "roi_head.bbox_head.0.fc.bias": torch.ones(2)}
    ema = {"ema_backbone_" + n.replace(".", "_"): t + 1 for n, t in state.items()}
    torch.save({"state_dict": _prefixed(state, "backbone.") | extra | ema, "meta": {}}, path)
    check_same(core.load_weights(fresh(num_classes=0, feature_norms=True), path), state)
    plain = fresh(num_classes=4)
    head = plain.state_dict()["head.weight"].clone()
    with caplog.at_level(logging.WARNING, "core.io.weights"):
        core.load_weights(plain, path)
    check_same(plain, _without(state, "norm"))
    assert_close(plain.state_dict()["head.weight"], head)
    assert "head.weight, head.bias, norm.weight, norm.bias: they keep their initial weights" in caplog.text


def test_into_features_only_and_models_with_a_backbone(tmp_path: Path) -> None:
    state, path = saved(), tmp_path / "weights.pth"
    torch.save(state, path)
    features = core.load_weights(timm.create_model(TINY, features_only=True), path)
    check_same(features.model, _without(state, "norm", "head"))
    detector = nn.Module()
    detector.backbone, detector.neck = fresh(), nn.Linear(2, 2)
    core.load_weights(detector, path)
    check_same(detector.backbone, state)
    torch.save({"state_dict": _prefixed(saved(), "backbone.") | _prefixed(detector.neck.state_dict(), "neck.")}, path)
    other = nn.Module()
    other.backbone, other.neck = fresh(), nn.Linear(2, 2)
    core.load_weights(other, path)
    check_same(other, detector.state_dict())


def test_into_a_features_only_model_of_the_first_stages(tmp_path: Path) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    model = core.load_weights(timm.create_model(TINY, features_only=True, out_indices=(0, 1)), tmp_path / "weights.pth")
    check_same(
        model.model,
        _without(saved(), "norm", "head", "stages.2", "stages.3", "downsample_layers.2", "downsample_layers.3"),
    )


def test_feature_norms_that_the_file_lacks_stay_initial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    model = fresh(feature_norms=True)
    with caplog.at_level(logging.WARNING, "core.io.weights"):
        core.load_weights(model, tmp_path / "weights.pth")
    check_same(model, saved())
    assert model.state_dict()["norm2.weight"].eq(1).all()
    assert "norm0.weight, norm0.bias" in caplog.text


def test_inference_form(tmp_path: Path) -> None:
    state = core.reparameterize(tiny()).state_dict()
    torch.save(state, tmp_path / "folded.pth")
    check_same(core.load_weights(fresh(inference_mode=True), tmp_path / "folded.pth"), state)
    with pytest.raises(InputError, match="file is in inference form: build the model with inference_mode=True"):
        core.load_weights(fresh(), tmp_path / "folded.pth")
    torch.save(saved(), tmp_path / "train.pth")
    with pytest.raises(InputError, match=r"file is in training form: load it before core.reparameterize"):
        core.load_weights(fresh(inference_mode=True), tmp_path / "train.pth")


def test_an_inference_file_with_its_last_norm_apart_gives_the_vectors(tmp_path: Path) -> None:
    """The official converter leaves the last norm out of the classifier, which may then be left behind."""
    model = tiny()
    state = core.reparameterize(model).state_dict() | {f"norm.{n}": t for n, t in model.norm.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    built = core.load_weights(fresh(inference_mode=True, num_classes=0), tmp_path / "weights.pth")
    x = golden_input(1, 3, 64, 64)
    assert_close(built(x), model.forward_head(model.forward_features(x), pre_logits=True), rtol=1e-4, atol=1e-4)


def test_an_inference_file_with_its_last_norm_in_the_classifier_is_refused(tmp_path: Path) -> None:
    torch.save(core.reparameterize(tiny(num_classes=5)).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        InputError, match=r"weights\.pth is folded, with the last norm in .* with num_classes=5, or load"
    ):
        core.load_weights(fresh(inference_mode=True, num_classes=0), tmp_path / "weights.pth")


@pytest.mark.parametrize("classes", [1, 7])
def test_other_classes_keep_the_new_head(classes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    model = fresh(num_classes=classes)
    head = {n: t.clone() for n, t in model.state_dict().items() if n.startswith("head.")}
    with caplog.at_level(logging.WARNING, "core.io.weights"):
        core.load_weights(model, tmp_path / "weights.pth")
    check_same(model, _without(saved(), "head.") | head)
    assert f"has 1000 classes, the model {classes}: a new classifier is trained" in caplog.text


def test_everything_that_fits_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "core.io.weights"):
        core.load_weights(fresh(), tmp_path / "weights.pth")
        core.load_weights(fresh(num_classes=0), tmp_path / "weights.pth")
    assert not caplog.records


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_stem_adapts_to_other_channels(in_chans: int, tmp_path: Path) -> None:
    torch.save(saved(), tmp_path / "weights.pth")
    model = core.load_weights(fresh(in_chans=in_chans), tmp_path / "weights.pth")
    check_same(model, saved() | {STEM: adapt_input_conv(in_chans, saved()[STEM])})
    assert model.state_dict()[STEM].shape[1] == in_chans


class _Standardize(FeatureMap):
    def __init__(self, mean: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([mean]))


def _task(mean: float, **options: Any) -> nn.ModuleDict:
    return nn.ModuleDict({"feature_map": _Standardize(mean), "backbone": fresh(**options)})


@pytest.mark.parametrize("classes", [1000, 5])
def test_statistics_of_a_task_stay_those_of_its_own_data(classes: int, tmp_path: Path) -> None:
    state = _prefixed(saved(), "backbone.") | {"feature_map.mean": torch.tensor([7.0])}
    torch.save({"state_dict": state}, tmp_path / "task.ckpt")
    torch.save(saved(), tmp_path / "backbone.pth")
    for name in ("task.ckpt", "backbone.pth"):
        task = core.load_weights(_task(2.0, num_classes=classes), tmp_path / name)
        check_same(task["backbone"], saved() if classes == 1000 else _without(saved(), "head."))
        assert task.state_dict()["feature_map.mean"].item() == 2
