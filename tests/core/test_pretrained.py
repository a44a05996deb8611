"""Weights from a Hugging Face cache, and through timm's ``pretrained=True``."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_values import TINY, fill, tiny
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor
from torch.testing import assert_close

import core

STEM = "downsample_layers.0.0.weight"


def _state(**options: Any) -> dict[str, Tensor]:
    return tiny(**options).state_dict()


def _same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["org/name", "hf-hub:org/name"])
def test_repository(name: str, repository: Path) -> None:
    save_file(_state(), repository / "model.safetensors")
    _same(core.load_weights(timm.create_model(TINY), name).state_dict(), _state())


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors", "deep/folder/weights.pth"])
def test_file_in_a_repository(file: str, repository: Path) -> None:
    (repository / file).parent.mkdir(parents=True, exist_ok=True)
    if file.endswith("pth"):
        torch.save({"model": _state()}, repository / file)
    else:
        save_file(_state(), repository / file)
    _same(core.load_weights(timm.create_model(TINY), f"hf-hub:org/name/{file}").state_dict(), _state())


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("name", ["org/name", "org/other", "hf-hub:org/name/none.pth", "hf-hub:name"])
def test_not_in_the_cache(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"from the Hugging Face Hub: .*check the name and the network"):
        core.load_weights(timm.create_model(TINY), name)


def test_dangerous_file_in_a_repository(repository: Path) -> None:
    torch.save({"state_dict": _state(), "code": print}, repository / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        core.load_weights(timm.create_model(TINY), "hf-hub:org/name/weights.pth")


def _pretrained(file: Path, **options: Any) -> Any:
    return timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **options)


@pytest.mark.parametrize("wrapped", [False, True])
def test_timm_loads_a_file(wrapped: bool, tmp_path: Path) -> None:
    torch.save({"model": _state(), "epoch": 3} if wrapped else _state(), tmp_path / "weights.pth")
    _same(_pretrained(tmp_path / "weights.pth").state_dict(), _state())


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_timm_adapts_head_and_stem(num_classes: int, in_chans: int, tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.pth")
    model = _pretrained(tmp_path / "weights.pth", num_classes=num_classes, in_chans=in_chans)
    got = {n: t for n, t in model.state_dict().items() if not n.startswith("head.")}
    expected = {n: t for n, t in _state().items() if not n.startswith("head.")}
    _same(got, expected | {STEM: adapt_input_conv(in_chans, expected[STEM])})
    assert model.num_classes == num_classes


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2)])
def test_timm_loads_feature_models(out_indices: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.pth")
    got = _pretrained(tmp_path / "weights.pth", features_only=True, out_indices=out_indices).model.state_dict()
    _same(got, {n: t for n, t in _state().items() if n in got})
    assert len(got) > 100


def test_timm_refuses_another_variant(tmp_path: Path) -> None:
    torch.save(_state(dims=(8, 16, 24, 40)), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"does not fit the model.\n.*stages\.3\.0"):
        _pretrained(tmp_path / "weights.pth")


def test_timm_names_the_official_file(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = repository.parents[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(official.parent))
    official.rename(official.with_name("models--DingXiaoH--UniRepLKNet"))
    snapshot = official.with_name("models--DingXiaoH--UniRepLKNet") / "snapshots" / repository.name
    model = timm.create_model("unireplknet_a")
    fill(model)
    torch.save({"model": model.state_dict()}, snapshot / "unireplknet_a_in1k_224_acc77.03.pth")
    loaded = timm.create_model("unireplknet_a.in1k", pretrained=True)
    _same(loaded.state_dict(), model.state_dict())


def test_message_of_a_new_classifier_through_timm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(_state(), tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING, "core.io.weights"):
        _pretrained(tmp_path / "weights.pth", num_classes=5)
    assert "has 1000 classes, the model 5" in caplog.text
