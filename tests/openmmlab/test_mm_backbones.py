"""UniRepLKNet and RepLKNet under mm's registries: arguments, freezing, tensor names, weights from files."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import core
import vision.openmmlab
from core.errors import InputError, MissingError
from vision import ImageClassifier

GOLDEN = Path(__file__).parents[1] / "golden" / "state_dict_keys.json.gz"
TINY = {"UniRepLKNet": "test_unireplknet", "RepLKNet": "test_replknet"}
FAMILIES = pytest.mark.parametrize("family", TINY)


def _build(family: str = "UniRepLKNet", **options: Any) -> Any:
    return MODELS.build({"type": family, "variant": TINY[family]} | options)


def _shake(model: nn.Module) -> nn.Module:
    """Norms that have seen something, layer scales that count."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model


@FAMILIES
@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_both_packages_build_it_by_name_and_it_gives_four_maps(family: str, scope: str) -> None:
    package = __import__(f"{scope}.registry", fromlist=["MODELS"])
    model = package.MODELS.build({"type": family, "variant": TINY[family]})
    maps = model(torch.randn(2, 3, 65, 97))
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    dims = [info["num_chs"] for info in model.feature_info]
    assert [tuple(m.shape) for m in maps] == [(2, dim, *size) for dim, size in zip(dims, sizes, strict=True)]
    assert isinstance(maps, tuple)


@pytest.mark.parametrize(("family", "norms"), [("UniRepLKNet", True), ("RepLKNet", True), ("RepLKNet", False)])
def test_maps_are_those_of_the_one_backbone_with_or_without_norms(family: str, norms: bool) -> None:
    ours = _shake(_build(family, feature_norms=norms)).eval()
    plain = timm.create_model(TINY[family], num_classes=0, feature_norms=norms).eval()
    missing = plain.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert all(name.startswith("norm.") for name in missing)  # of the classifier
    x = torch.randn(1, 3, 64, 64)
    expected = plain.forward_intermediates(x, norm=norms, intermediates_only=True)
    assert_close(list(ours(x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("variant", "options", "norms"),
    [
        ("replknet_31b", {}, 0),
        ("replknet_31l", {}, 0),
        ("replknet_xl", {}, 4),
        ("replknet_31b", {"feature_norms": True}, 4),
        ("replknet_xl", {"feature_norms": False}, 0),
        (None, {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, 0),
        ("unireplknet_t", {}, 4),
    ],
)
def test_norms_on_the_maps_are_those_of_the_published_detectors(
    variant: str | None, options: dict[str, Any], norms: int
) -> None:
    """The official ``norm_intermediate_features`` is False by default, and True in the configs of XL alone."""
    kind = "UniRepLKNet" if variant and variant.startswith("uni") else "RepLKNet"
    with torch.device("meta"):
        model = MODELS.build({"type": kind, "variant": variant} | options)
    names = {name.rsplit(".", 1)[0] for name in model.state_dict() if re.match(r"norm\d\.|stages\.\d\.norm\.", name)}
    assert len(names) == norms


@pytest.mark.parametrize("norms", [False, True])
def test_a_published_replknet_detector_loads_without_a_complaint(
    norms: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """31B's files have no ``stages.0.norm``, XL's have; both give what the official forward gives."""
    source = _shake(_build("RepLKNet", feature_norms=norms)).eval()
    tensors = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": tensors | {"neck.lateral_convs.0.conv.weight": torch.ones(1)}}, tmp_path / "det.pth")
    model = _build(
        "RepLKNet", feature_norms=norms, init_cfg={"type": "Pretrained", "checkpoint": f"{tmp_path}/det.pth"}
    )
    model.init_weights()
    assert caplog.text == ""
    x = torch.randn(1, 3, 64, 64)
    stages = source.forward_intermediates(x, intermediates_only=True)
    if norms:
        stages = [stage.norm(maps) for stage, maps in zip(source.stages, stages, strict=True)]
    assert_close(list(model.eval()(x)), stages, rtol=0, atol=0)


def test_norms_that_a_file_of_an_older_run_has_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = _shake(_build("RepLKNet", feature_norms=True))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "old.pth")
    options: dict[str, Any] = {"init_cfg": {"type": "Pretrained", "checkpoint": str(tmp_path / "old.pth")}}
    _build("RepLKNet", out_indices=(1, 2), **options).init_weights()
    assert re.search(r"norms on its maps \(stages.0.norm, .*stages.2.norm\), and .* feature_norms=True", caplog.text)
    caplog.clear()
    kept = _build("RepLKNet", feature_norms=True, **options)
    kept.init_weights()
    assert caplog.text == ""
    assert_close(dict(kept.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
    detector = nn.ModuleDict({"backbone": _build("RepLKNet"), "neck": nn.BatchNorm1d(1, affine=False)})
    torch.save(
        {f"backbone.{n}": t for n, t in source.state_dict().items()}
        | {n: t for n, t in detector.state_dict().items() if n.startswith("neck")},
        tmp_path / "whole.pth",
    )
    with pytest.raises(InputError, match=r"(?s)Unexpected: backbone\.stages\.0\.norm.*backbone with feature_norms"):
        core.load_weights(detector, tmp_path / "whole.pth")


@FAMILIES
def test_chosen_maps_are_the_same_and_what_they_do_not_need_is_gone(family: str) -> None:
    whole, part = _build(family).eval(), _build(family, out_indices=(0, 2)).eval()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    maps = whole(x)
    assert_close(part(x), (maps[0], maps[2]), rtol=0, atol=0)
    assert not [name for name in part.state_dict() if name.startswith(("stages.3", "norm1", "norm3", "stages.1.norm"))]
    part.train()
    sum(m.sum() for m in part(x)).backward()
    assert not [name for name, p in part.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "variant", ["unireplknet_a", "unireplknet_t", "unireplknet_xl", "replknet_31b", "replknet_31l"]
)
def test_tensor_names_and_shapes_are_the_official_ones(variant: str) -> None:
    """The recorded names are of the classifier; detectors have a norm for each map instead of its norm and head."""
    with gzip.open(GOLDEN, "rt") as file:
        recorded = json.load(file)[variant]["keys_train"]
    expected = {name: shape for name, shape in recorded.items() if not name.startswith(("norm.", "head."))}
    with torch.device("meta"):
        model = MODELS.build({"type": "UniRepLKNet" if variant.startswith("uni") else "RepLKNet", "variant": variant})
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    norms = {name for name in own if re.match(r"norm\d\.|stages\.\d\.norm\.", name)}
    assert {name: shape for name, shape in own.items() if name not in norms} == expected
    assert len({name.rsplit(".", 1)[0] for name in norms}) == (4 if variant.startswith("uni") else 0)
    model.load_state_dict({name: torch.empty(shape, device="meta") for name, shape in own.items()}, strict=True)


@FAMILIES
@pytest.mark.parametrize("frozen", [-1, 0, 1, 3])
def test_frozen_stages(family: str, frozen: int) -> None:
    model = _build(family, frozen_stages=frozen)
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    entries = ["downsample_layers.0", "downsample_layers.1", "downsample_layers.2", "downsample_layers.3"]
    if family == "RepLKNet":
        entries = ["stem.0", "transitions.0", "transitions.1", "transitions.2"]
    for stage, entry in enumerate(entries):
        assert (entry in names) == (stage >= max(frozen, 1) if frozen >= 0 else True)
    for stage in range(4):
        trains = [
            p.requires_grad
            for name, p in model.named_parameters()
            if name.startswith(f"stages.{stage}.") and not name.startswith(f"stages.{stage}.norm")
        ]
        assert set(trains) == {stage >= frozen}
    model.train()
    inside = [m for n, m in model.named_modules() if n.startswith("stages.1.") and not n.endswith("1.norm")]
    modes = {m.training for m in inside if isinstance(m, _BatchNorm)}
    assert modes == {frozen < 2}


def test_norm_eval_keeps_statistics_and_trains_weights() -> None:
    model = _build(norm_eval=True).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert model.training
    assert not any(m.training for m in norms)
    assert all(p.requires_grad for m in norms for p in m.parameters())
    assert all(m.training for m in _build().train().modules() if isinstance(m, _BatchNorm))


@FAMILIES
def test_recomputing_blocks_changes_no_gradient(family: str) -> None:
    plain, saving = _build(family).train(), _build(family, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x, gradients = torch.randn(2, 3, 64, 64), []
    for model in (plain, saving):
        sum(m.square().mean() for m in model(x)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(gradients[0], gradients[1])


def test_drop_path_rises_to_its_rate() -> None:
    model = _build(drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.06 * i for i in range(6)])


def _official(model: nn.Module, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path)
    return path


@FAMILIES
@pytest.mark.parametrize("options", [{}, {"out_indices": (1, 2)}])
def test_weights_of_an_official_file(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """A classifier's file has no norms for maps; they keep their initial weights, everything else is the file's."""
    classifier = _shake(timm.create_model(TINY[family], num_classes=7))
    file = _official(classifier, tmp_path / "official.pth")
    model = _build(family, init_cfg={"type": "Pretrained", "checkpoint": str(file)}, **options)
    model.init_weights()
    given = classifier.state_dict()
    shared = [name for name in model.state_dict() if name in given]
    assert len(shared) > 50
    assert_close({n: model.state_dict()[n] for n in shared}, {n: given[n] for n in shared}, rtol=0, atol=0)
    rest = [name for name in model.state_dict() if name not in given]
    assert {float(model.state_dict()[name].float().mean()) for name in rest} <= {0.0, 1.0}


@FAMILIES
def test_weights_of_a_checkpoint_of_our_own(family: str, tmp_path: Path) -> None:
    task = ImageClassifier(TINY[family], num_classes=3)
    _shake(task.backbone)
    torch.save({"state_dict": task.state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "best.ckpt")
    model = _build(family, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "best.ckpt")})
    model.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.eval().forward_intermediates(x, intermediates_only=True)
        expected = task.backbone.eval().forward_intermediates(x, intermediates_only=True)
    assert_close(maps, expected, rtol=0, atol=0)


def test_weights_of_a_detector_checkpoint_with_averages(tmp_path: Path) -> None:
    source = _shake(_build())
    tensors = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    tensors |= {f"ema_{name.replace('.', '_')}": value + 1 for name, value in tensors.items()}
    torch.save({"state_dict": tensors, "meta": {}}, tmp_path / "epoch_36.pth")
    model = _build(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "epoch_36.pth")})
    model.init_weights()
    assert_close(dict(model.state_dict()), dict(source.state_dict()), rtol=0, atol=0)


@FAMILIES
def test_inference_form(family: str, tmp_path: Path) -> None:
    trained = _shake(_build(family)).eval()
    folded = core.reparameterize(trained)
    form = {"inference_mode": True} if family == "UniRepLKNet" else {"small_kernel_merged": True}
    x = torch.randn(1, 3, 64, 64)
    assert_close(folded(x), trained(x), rtol=1e-4, atol=1e-4)
    if family == "UniRepLKNet":
        file = _official(folded, tmp_path / "folded.pth")
        model = _build(family, init_cfg={"type": "Pretrained", "checkpoint": str(file)}, **form)
        model.init_weights()
        assert_close(model.eval()(x), folded(x), rtol=0, atol=0)
    else:
        assert _build(family, **form)(x)[3].shape == folded(x)[3].shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "unireplknet_z"}, r"unknown variant 'unireplknet_z'; MMUniRepLKNet has unireplknet_a"),
        ({"wrong": 1}, r"does not take these arguments.*wrong"),
        ({"out_indices": (0, 4)}, r"out_indices=\(0, 4\); expected stages from 0 to 3 in rising order"),
        ({"out_indices": ()}, r"out_indices=\(\)"),
        ({"out_indices": (2, 1)}, r"out_indices=\(2, 1\)"),
        ({"frozen_stages": 5}, r"frozen_stages=5; expected -1 .* number of stages up to 4"),
        ({"out_indices": 3}, r"out_indices=3; expected a list of stages, such as \[3\] for one"),
        ({"feature_norms": False}, r"feature_norms=False; UniRepLKNet always has a norm on each map"),
        *(
            ({"init_cfg": wrong}, r"expected dict\(type='Pretrained', checkpoint='FILE'\)")
            for wrong in (
                {"type": "Kaiming"},
                {"type": "Pretrained", "checkpoint": None},
                [{"type": "Kaiming", "layer": "Conv2d"}],
                [{"type": "Pretrained", "checkpoint": "a.pth"}, {"type": "Kaiming", "layer": "Conv2d"}],
                "a.pth",
            )
        ),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        vision.openmmlab.MMUniRepLKNet(**{"variant": "test_unireplknet"} | options)


@pytest.mark.parametrize("wrapped", [False, True])
def test_missing_weights_are_named(wrapped: bool) -> None:
    named: Any = {"type": "Pretrained", "checkpoint": "nowhere/weights.pth"}
    model = _build(init_cfg=[named] if wrapped else named)
    with pytest.raises(MissingError, match=r"nowhere/weights\.pth"):
        model.init_weights()
