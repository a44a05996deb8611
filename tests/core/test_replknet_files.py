"""RepLKNet's published files: where they lie, the forms they come in, and advice for the wrong form."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_values import REPLKNETS, TINY_REPLKNET, tiny
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.testing import assert_close

import core
from core.errors import InputError

State = dict[str, Tensor]
TAGS = [tag for name in REPLKNETS if name != TINY_REPLKNET for tag in timm.list_models(f"{name}.*", include_tags=True)]
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "kernel_sizes": (9, 7, 7, 5)}


def _model(**options: Any) -> core.RepLKNet:
    return timm.create_model(TINY_REPLKNET, **options).eval()


def _state(**options: Any) -> State:
    return tiny(TINY_REPLKNET, **options).state_dict()


def _same(got: State, expected: State) -> None:
    assert_close(got, expected, rtol=0, atol=0)


def _mmpretrain(state: State) -> State:
    """Rename tensors as in OpenMMLab's files: all but the head in the backbone, the final norm in a stage."""
    places = {"norm": "backbone.stages.3.norm", "head": "head.fc"}
    return {re.sub(r"^\w+", lambda first: places.get(first[0], f"backbone.{first[0]}"), n): t for n, t in state.items()}


def test_names_of_mmpretrain() -> None:
    names = set(_mmpretrain(_state()))
    assert {"backbone.stem.0.conv.weight", "backbone.transitions.2.1.bn.bias", "head.fc.weight"} < names
    assert {"backbone.stages.3.norm.running_var", "backbone.stages.3.blocks.1.pw2.bn.bias"} < names


def test_tags_are_the_published_ones() -> None:
    assert {tag.removeprefix("replknet_") for tag in TAGS} == {
        *("31b.in1k", "31b.in1k_384", "31b.in22k", "31b.in22k_ft_in1k", "31b.in22k_ft_in1k_384"),
        *("13.in1k_e120", "31l.in22k", "31l.in22k_ft_in1k_384", "xl.meg73m_ft_in1k_320"),
    }


@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_names_a_file(tag: str) -> None:
    cfg = timm.get_pretrained_cfg(tag)
    assert cfg.license == "mit"
    assert re.fullmatch(r"https://drive\.google\.com/file/d/[\w-]{33}", cfg.origin_url)
    if tag.endswith(("in22k", "e120")):
        assert not cfg.has_weights
    else:
        size = {"384": "384px_", "320": "320px_"}.get(tag.rpartition("_")[2], "")
        assert re.fullmatch(rf"https://download\.openmmlab\.com/.*in1k.?{size}.*-[0-9a-f]{{8}}\.pth", cfg.url)
        assert f"replknet-{tag[9:].partition('.')[0].upper()}_" in cfg.url
        assert ("in21k-pre" in cfg.url) == ("in22k_ft" in tag)
    assert cfg.input_size[-1] == (int(tag[-3:]) if tag[-3:] in ("320", "384") else 224)
    half = (0.5, 0.5, 0.5)
    standard = (half, half) if "_xl." in tag else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    assert (cfg.mean, cfg.std) == standard


def test_every_tag_has_a_file_of_its_own() -> None:
    configs = [timm.get_pretrained_cfg(tag) for tag in TAGS]
    assert len({cfg.origin_url for cfg in configs}) == len(TAGS)
    assert len({cfg.url for cfg in configs if cfg.url}) == len(TAGS) - 3


@pytest.mark.parametrize("tag", ["replknet_13.in1k_e120", "replknet_31b.in22k", "replknet_31l.in22k"])
def test_files_that_no_program_can_download_are_not_replaced_by_random_weights(tag: str) -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"), torch.device("meta"):
        timm.create_model(tag, pretrained=True)


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": dict,
    "under model": lambda s: {"model": s},
    "mmpretrain": lambda s: {"state_dict": _mmpretrain(s), "meta": {"epoch": 300}},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](_state()), tmp_path / "weights.pth")
    _same(core.load_weights(_model(), tmp_path / "weights.pth").state_dict(), _state())
    features = core.load_weights(timm.create_model(TINY_REPLKNET, features_only=True), tmp_path / "weights.pth")
    expected = {n: t for n, t in _state().items() if not n.startswith(("norm.", "head."))}
    _same(features.model.state_dict(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_into_a_larger_model(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](_state()), tmp_path / "weights.pth")
    detector = nn.ModuleDict({"backbone": _model(), "neck": nn.Linear(2, 2)})
    core.load_weights(detector, tmp_path / "weights.pth")
    _same(detector["backbone"].state_dict(), _state())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("in_chans", "num_classes"), [(3, 1000), (1, 5), (4, 0)])
def test_timm_loads_every_form(form: str, in_chans: int, num_classes: int, tmp_path: Path) -> None:
    torch.save(FORMS[form](_state()), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = _model(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans, num_classes=num_classes)
    kept = {n: t for n, t in _state().items() if num_classes == 1000 or not n.startswith("head.")}
    stem = {"stem.0.conv.weight": adapt_input_conv(in_chans, kept["stem.0.conv.weight"])}
    _same({n: t for n, t in model.state_dict().items() if n in kept}, kept | stem)
    assert model.num_classes == num_classes


def test_timm_takes_the_file_of_the_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "hub" / "checkpoints" / "replknet-31B_3rdparty_in1k_20221118-fd08e268.pth"
    cached.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    expected = _state(**SMALL)
    torch.save({"state_dict": _mmpretrain(expected), "meta": {}}, cached)
    small = {"small_kernel": 3, **SMALL}
    _same(timm.create_model("replknet_31b.in1k", pretrained=True, **small).state_dict(), expected)


def test_norms_of_the_maps_come_from_a_detector_file(tmp_path: Path) -> None:
    state = {n: t for n, t in _state(feature_norms=True).items() if not n.startswith(("norm.", "head."))}
    torch.save({"state_dict": {f"backbone.{n}": t for n, t in state.items()}, "meta": {}}, tmp_path / "detector.pth")
    model = core.load_weights(_model(feature_norms=True, num_classes=0), tmp_path / "detector.pth")
    _same({n: t for n, t in model.state_dict().items() if n in state}, state)


FILES: dict[str, Callable[[core.RepLKNet], nn.Module]] = {
    "trained": lambda model: model,
    "merged": lambda model: model.merge_small_kernels(),
    "folded": core.reparameterize,
}
FOR: dict[str, dict[str, bool]] = {
    "trained": {},
    "merged": {"small_kernel_merged": True},
    "folded": {"inference_mode": True},
}
NORMED: dict[str, Any] = {"num_classes": 0, "feature_norms": True}


@pytest.mark.parametrize("options", [{}, NORMED], ids=["classifier", "maps"])
@pytest.mark.parametrize("form", FILES)
def test_every_form_loads_into_a_model_built_for_it(form: str, options: dict[str, Any], tmp_path: Path) -> None:
    state = FILES[form](tiny(TINY_REPLKNET, **options)).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    _same(core.load_weights(_model(**FOR[form], **options), tmp_path / "weights.pth").state_dict(), state)


def test_folded_file_of_a_classifier_into_a_model_without_one(tmp_path: Path) -> None:
    torch.save(core.reparameterize(tiny(TINY_REPLKNET)).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth is folded, with the last norm in its classifier"):
        core.load_weights(_model(inference_mode=True, num_classes=0), tmp_path / "weights.pth")


@pytest.mark.parametrize("options", [{}, NORMED], ids=["classifier", "maps"])
@pytest.mark.parametrize(
    ("form", "built", "advice"),
    [
        ("trained", "merged", r"training form: load it before model\.merge_small_kernels\(\)"),
        (
            "trained",
            "folded",
            r"training form: load it before core\.reparameterize, or build with inference_mode",
        ),
        ("merged", "trained", r"small kernels of the file are merged: build the model with small_kernel_merged=True"),
        ("merged", "folded", r"small_kernel_merged=True, load it, then call core\.reparameterize"),
        ("folded", "trained", r"inference form: build the model with inference_mode=True"),
        ("folded", "merged", r"inference form: build the model with inference_mode=True"),
    ],
)
def test_advice_for_the_wrong_form(form: str, built: str, advice: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.save(FILES[form](tiny(TINY_REPLKNET, **options)).state_dict(), tmp_path / "weights.pth")
    model = _model(**FOR[built], **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=advice):
        core.load_weights(model, tmp_path / "weights.pth")
    _same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_kernel": 0}, r"Unexpected: stages\.0\.blocks\.0\.large_kernel\.small_conv"),
        ({"kernel_sizes": (9, 7, 15, 5)}, r"Other shape: stages\.2\.blocks\.0\.large_kernel\.lkb_origin\.conv\.weight"),
        ({"dw_ratio": 2}, r"Other shape: stages\.0\.blocks\.0\.pw1\.conv\.weight \(8, 8, 1, 1\) where .* \(16, 8"),
    ],
)
def test_another_variant_is_refused_by_name(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message) as error:
        core.load_weights(_model(**options), tmp_path / "weights.pth")
    assert "Build the variant that the file was saved from" in str(error.value)
