"""What timm expects of a backbone, for every registered UniRepLKNet."""

import copy
from typing import Any

import pytest
import timm
import torch
from golden_values import NAMES, TINY, golden_input, shapes_only, tiny
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.testing import assert_close

import core


def _blocks(model: core.UniRepLKNet) -> list[Any]:
    return [block for stage in model.stages for block in stage]


def test_registry_has_every_published_variant() -> None:
    assert set(NAMES) == {f"unireplknet_{v}" for v in ("a", "f", "p", "n", "t", "s", "b", "l", "xl")} | {TINY}


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_all_outputs_and_drop_path_rates(name: str) -> None:
    model = shapes_only(name)
    last = model.forward_features(torch.empty(2, 3, 64, 96, device="meta"))
    assert last.shape == (2, model.num_features, 2, 3)
    assert model.forward_head(last).shape == (2, 1000)
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size == model.feature_info[-1]["num_chs"]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in _blocks(model)]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())


@pytest.mark.parametrize("name", NAMES)
def test_features_only_matches_feature_info(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True, in_chans=4).eval()
    maps = model(torch.empty(1, 4, 64, 128, device="meta"))
    expected = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    assert [m.shape for m in maps] == [(1, channels, 64 // r, 128 // r) for channels, r in expected]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("out_indices", "channels"), [((0, 1, 2, 3), [8, 16, 24, 32]), ((1, 2), [16, 24]), ((-1,), [32]), (2, [24, 32])]
)
def test_features_only_keeps_what_was_asked_for(out_indices: Any, channels: list[int]) -> None:
    x, whole = golden_input(1, 3, 64, 64), tiny()
    model = timm.create_model(TINY, features_only=True, out_indices=out_indices).eval()
    model.model.load_state_dict(whole.state_dict(), strict=False)
    assert model.feature_info.channels() == channels
    for got, expected in zip(
        model(x), whole.forward_intermediates(x, out_indices, intermediates_only=True), strict=True
    ):
        assert_close(got, expected)
    assert len(model.model.stages) == (3 if out_indices == (1, 2) else 4)
    assert not any(name.startswith(("head", "norm")) for name in model.model.state_dict())


@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_channels_in_and_classes_out(in_chans: int, num_classes: int) -> None:
    model, x = tiny(in_chans=in_chans, num_classes=num_classes), golden_input(2, in_chans, 48, 32)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, 32)
    expected = features @ model.head.weight.T + model.head.bias if num_classes else features
    assert_close(model(x), expected)
    assert model(x).shape == (2, num_classes or 32)


def test_pooled_vector_is_normed_mean_of_the_map() -> None:
    model, x = tiny(), golden_input(2, 3, 64, 96)
    mean = model.forward_features(x).mean((2, 3))
    expected = nn.functional.layer_norm(mean, (32,), model.norm.weight, model.norm.bias, eps=1e-6)
    assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)


@pytest.mark.parametrize("pool", ["max", "avgmax", ""])
def test_global_pool(pool: str) -> None:
    model, x = tiny(num_classes=0, global_pool=pool), golden_input(2, 3, 64, 96)
    last = model.forward_features(x)
    if not pool:
        assert_close(model(x), last)
        return
    pooled = last.amax((2, 3)) if pool == "max" else (last.amax((2, 3)) + last.mean((2, 3))) / 2
    assert_close(model(x), model.norm(pooled))


def test_reset_classifier() -> None:
    model, x = tiny().double(), golden_input(2, 3, 32, 32).double()
    assert model.get_classifier() is model.head
    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model(x).shape == (2, 5)
    assert model.get_classifier().weight.dtype == torch.float64
    assert 0.01 < model.head.weight.std() < 0.03
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 1, 1)
    with pytest.raises(ValueError, match="num_classes=3 needs a pooling"):
        model.reset_classifier(3)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("indices", [None, 2, [0, 2], [-3], (1,)])
@pytest.mark.parametrize("norm", [False, True])
def test_forward_intermediates(indices: Any, norm: bool) -> None:
    model, x = tiny(feature_norms=True), golden_input(1, 3, 64, 96)
    final, maps = model.forward_intermediates(x, indices, norm=norm)
    assert_close(final, model.forward_features(x))
    taken = [
        s % 4 for s in ({None: range(4), 2: (2, 3)}.get(indices) if not isinstance(indices, list | tuple) else indices)
    ]
    assert [m.shape[1:] for m in maps] == [(8 * (s + 1), 16 >> s, 24 >> s) for s in taken]
    raw = model.forward_intermediates(x, indices, intermediates_only=True)
    layers = [model.get_submodule(f"norm{s}") if norm else nn.Identity() for s in taken]
    for got, layer, plain in zip(maps, layers, raw, strict=True):
        assert_close(got, layer(plain))
        assert isinstance(layer, LayerNorm2d if norm else nn.Identity)


def test_stop_early_skips_later_stages() -> None:
    model, x = tiny(), golden_input(1, 3, 64, 64)
    seen: list[int] = []
    for stage, blocks in enumerate(model.stages):
        blocks.register_forward_hook(lambda *_, stage=stage: seen.append(stage))
    final, maps = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert seen == [0, 1]
    assert_close(final, maps[-1])


def test_forward_intermediates_refuses() -> None:
    x = golden_input(1, 3, 32, 32)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC'"):
        tiny().forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(ValueError, match="feature_norms=True"):
        tiny().forward_intermediates(x, norm=True)


def _train_step(model: core.UniRepLKNet, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(7)
    output = model(x)
    output.square().mean().backward()
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach()} | gradients | dict(model.named_buffers())


@pytest.mark.parametrize("frozen_norms", [False, True])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_nothing(drop_path_rate: float, frozen_norms: bool) -> None:
    plain, x = tiny(drop_path_rate=drop_path_rate).double().train(), golden_input(4, 3, 64, 96).double()
    if frozen_norms:
        for module in plain.stages[:2].modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    runs: list[int] = []
    checkpointed.stages[3][0].dwconv.register_forward_hook(lambda *_: runs.append(1))
    expected, got = _train_step(plain, x), _train_step(checkpointed, x)
    assert len(runs) == 2  # it does recompute
    assert len(expected) == 1 + len(list(plain.parameters())) + len(list(plain.buffers()))
    assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert got["stages.3.0.norm.num_batches_tracked"] == 1
    checkpointed.set_grad_checkpointing(False)
    _train_step(checkpointed, x)
    assert len(runs) == 3


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 97, 131), (1, 3, 33, 300)])
def test_any_size_and_a_gradient_for_every_parameter(shape: tuple[int, ...]) -> None:
    model = tiny()
    output = model(golden_input(*shape))
    assert model.forward_features(golden_input(*shape)).shape[2:] == (-(-shape[2] // 32), -(-shape[3] // 32))
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]


@pytest.mark.parametrize("side", [1, 32])
def test_training_on_maps_of_one_pixel(side: int) -> None:
    model = tiny().train()
    output = model(golden_input(4, 3, side, side))
    output.square().sum().backward()
    assert output.isfinite().all()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_configuration(name: str) -> None:
    for tag in timm.list_pretrained(f"{name}.*"):
        cfg = timm.get_pretrained_cfg(tag)
        assert cfg is not None
        assert cfg.hf_hub_id == "DingXiaoH/UniRepLKNet"
        assert cfg.hf_hub_filename.startswith(f"{name}_in" if "in22k" not in tag else f"{name}_in22k")
        assert cfg.hf_hub_filename.endswith(".pth")
        assert cfg.license == "apache-2.0"
        rule = (1.0, "squash") if cfg.input_size[-1] >= 384 else (0.875, "center")
        assert (cfg.crop_pct, cfg.crop_mode) == rule
        assert cfg.input_size[-1] == (
            384 if tag.endswith("384") else 192 if tag[12:] in ("l.in22k", "xl.in22k") else 224
        )
        assert cfg.num_classes == (21841 if tag.endswith("in22k") else 1000)
        model = shapes_only(name)
        assert model.get_submodule(cfg.first_conv).in_channels == 3
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert len(timm.list_pretrained(f"{name}.*")) == {TINY: 0, "unireplknet_s": 3}.get(
        name, 2 if name.split("_")[1] in ("b", "l", "xl") else 1
    )
