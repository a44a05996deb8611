"""What timm expects of a backbone, for every registered net of both families."""

import copy
from typing import Any

import pytest
import timm
import torch
from golden_values import NAMES, REPLKNETS, TINIES, UNIREPLKNETS, golden_input, shapes_only, tiny
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.testing import assert_close

import core
from core.backbones import LargeKernelNet
from core.backbones.replknet import ConvFFN, RepLKBlock
from core.backbones.unireplknet import UniRepLKNetBlock

POOLS = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.amax((2, 3)) + x.mean((2, 3))) / 2,
}
both = pytest.mark.parametrize("net", TINIES)


def _feature_norm(model: nn.Module, stage: int) -> nn.Module:
    place = f"norm{stage}" if isinstance(model, core.UniRepLKNet) else f"stages.{stage}.norm"
    return model.get_submodule(place)


def _blocks(model: nn.Module) -> list[Any]:
    return [block for block in model.modules() if isinstance(block, UniRepLKNetBlock | RepLKBlock | ConvFFN)]


def test_registry_has_every_published_variant() -> None:
    published = {f"unireplknet_{v}" for v in ("a", "f", "p", "n", "t", "s", "b", "l", "xl")}
    assert set(UNIREPLKNETS) == published | {"test_unireplknet"}
    assert set(REPLKNETS) == {"replknet_13", "replknet_31b", "replknet_31l", "replknet_xl", "test_replknet"}
    assert all(isinstance(shapes_only(name), core.UniRepLKNet) for name in UNIREPLKNETS)
    assert all(isinstance(shapes_only(name), core.RepLKNet) for name in REPLKNETS)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_all_outputs_and_drop_path_rates(name: str) -> None:
    model = shapes_only(name)
    last = model.forward_features(torch.empty(2, 3, 64, 96, device="meta"))
    assert last.shape == (2, model.num_features, 2, 3)
    assert model.forward_head(last).shape == (2, 1000)
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size == model.feature_info[-1]["num_chs"]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in _blocks(model)]
    expected = torch.linspace(0, 0.3, sum(model.depths))
    repeats = 1 if name in UNIREPLKNETS else 2  # the two blocks of a pair share a rate
    assert rates == pytest.approx(expected.repeat_interleave(repeats).tolist())


@pytest.mark.parametrize("name", NAMES)
def test_features_only_matches_feature_info(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True, in_chans=4).eval()
    maps = model(torch.empty(1, 4, 64, 128, device="meta"))
    expected = zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    assert [m.shape for m in maps] == [(1, channels, 64 // r, 128 // r) for channels, r in expected]
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@both
@pytest.mark.parametrize("feature_norms", [False, True])
@pytest.mark.parametrize(
    ("out_indices", "channels"), [((0, 1, 2, 3), [8, 16, 24, 32]), ((1, 2), [16, 24]), ((-1,), [32]), (2, [24, 32])]
)
def test_features_only_keeps_what_was_asked_for(
    net: str, out_indices: Any, channels: list[int], feature_norms: bool
) -> None:
    x, whole = golden_input(1, 3, 64, 64), tiny(net)
    model = timm.create_model(net, features_only=True, out_indices=out_indices, feature_norms=feature_norms).eval()
    assert not model.model.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert model.feature_info.channels() == channels
    maps = model(x)
    assert_close(maps, whole.forward_intermediates(x, out_indices, intermediates_only=True))
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())  # layers that the maps do not need were removed


@both
def test_pruning_can_keep_the_norms_of_the_maps(net: str) -> None:
    model, x = tiny(net, feature_norms=True), golden_input(1, 3, 64, 64)
    expected = model.forward_intermediates(x, [0, 2], norm=True, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert_close(model.forward_intermediates(x, [0, 2], norm=True, intermediates_only=True), expected)
    with pytest.raises(AttributeError):
        _feature_norm(model, 1)
    assert (model.num_features, model(x).shape) == (24, (1, 24, 4, 4))
    without = tiny(net, feature_norms=True)
    without.prune_intermediate_layers([0], prune_norm=True)
    assert_close(without.forward_intermediates(x, norm=True), without.forward_intermediates(x))


@both
def test_features_from_the_graph(net: str) -> None:
    model = timm.create_model(net, features_only=True, feature_cls="fx", out_indices=(0, 2)).eval()
    x, whole = golden_input(1, 3, 64, 64), tiny(net)
    assert not model.graph_module.load_state_dict(whole.state_dict(), strict=False).missing_keys
    assert_close(model(x), whole.forward_intermediates(x, [0, 2], intermediates_only=True))


@both
@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_channels_in_and_classes_out(net: str, in_chans: int, num_classes: int) -> None:
    model, x = tiny(net, in_chans=in_chans, num_classes=num_classes), golden_input(2, in_chans, 48, 32)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape == (2, 32)
    expected = features @ model.head.weight.T + model.head.bias if num_classes else features
    assert_close(model(x), expected)
    assert model(x).shape == (2, num_classes or 32)


@both
@pytest.mark.parametrize("pool", [*POOLS, ""])
def test_global_pool(net: str, pool: str) -> None:
    model, x = tiny(net, num_classes=0, global_pool=pool), golden_input(2, 3, 64, 96)
    last = model.forward_features(x)
    if not pool:
        assert_close(model(x), last)
    elif isinstance(model, core.UniRepLKNet):
        assert_close(model(x), model.norm(POOLS[pool](last)))
    else:
        assert_close(model(x), POOLS[pool](model.norm(last)))


@both
def test_reset_classifier(net: str) -> None:
    model, x = tiny(net).double(), golden_input(2, 3, 32, 32).double()
    assert model.get_classifier() is model.head
    model.reset_classifier(5)
    assert (model.num_classes, model(x).shape) == (5, (2, 5))
    assert model.get_classifier().weight.dtype == torch.float64
    model.reset_classifier(0)
    assert model(x).shape == (2, 32)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 32, 1, 1)
    with pytest.raises(ValueError, match="num_classes=3 needs a pooling"):
        model.reset_classifier(3)
    with pytest.raises(ValueError, match="global_pool='catavgmax' changes the number of features"):
        model.reset_classifier(3, "catavgmax")
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


@both
@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-3], [1]), ((1,), [1])]
)
@pytest.mark.parametrize("norm", [False, True])
def test_forward_intermediates(net: str, indices: Any, taken: list[int], norm: bool) -> None:
    model, x = tiny(net, feature_norms=True), golden_input(1, 3, 64, 96)
    final, maps = model.forward_intermediates(x, indices, norm=norm)
    assert_close(final, model.forward_features(x))
    assert [m.shape[1:] for m in maps] == [(8 * (s + 1), 16 >> s, 24 >> s) for s in taken]
    raw = model.forward_intermediates(x, indices, intermediates_only=True)
    layers = [_feature_norm(model, stage) for stage in taken]
    assert all(isinstance(layer, LayerNorm2d if net == "test_unireplknet" else nn.BatchNorm2d) for layer in layers)
    assert_close(maps, [layer(plain) for layer, plain in zip(layers, raw, strict=True)] if norm else raw)


@both
def test_stop_early_skips_later_stages(net: str) -> None:
    model, x = tiny(net), golden_input(1, 3, 64, 64)
    runs: list[nn.Module] = []
    for block in _blocks(model):
        block.register_forward_hook(lambda block, *_: runs.append(block))
    final, maps = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert runs == [block for stage in model.stages[:2] for block in _blocks(stage)]
    assert_close(final, maps[-1])


@both
def test_forward_intermediates_refuses_other_layouts(net: str) -> None:
    with pytest.raises(ValueError, match=r"output_fmt is 'NHWC'; \w+LKNet gives 'NCHW'"):
        tiny(net).forward_intermediates(golden_input(1, 3, 32, 32), output_fmt="NHWC")


@both
def test_maps_of_a_net_without_feature_norms_stay_as_they_are(net: str) -> None:
    model, x = tiny(net), golden_input(1, 3, 32, 32)
    assert_close(model.forward_intermediates(x, norm=True), model.forward_intermediates(x), rtol=0, atol=0)


def _train_step(model: LargeKernelNet, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(7)
    output = model(x)
    output.square().mean().backward()
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach()} | gradients | dict(model.named_buffers())


@both
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the format is chosen for oneDNN")
def test_maps_are_channels_last_from_the_stem_on_in_eval_mode_only(net: str) -> None:
    model, x, formats = tiny(net), golden_input(2, 3, 64, 96), []
    for stage in range(len(model.stages)):
        model.entry(stage).register_forward_pre_hook(
            lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    model(x)
    assert formats == [True] * len(model.stages)
    formats.clear()
    model.train()(x)
    assert not formats[0]


@both
@pytest.mark.parametrize("frozen_norms", [False, True])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_nothing(net: str, drop_path_rate: float, frozen_norms: bool) -> None:
    plain, x = tiny(net, drop_path_rate=drop_path_rate).double().train(), golden_input(4, 3, 64, 96).double()
    if frozen_norms:
        for module in plain.stages[:2].modules():
            module.train(not isinstance(module, nn.BatchNorm2d))
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    runs: list[int] = []
    _blocks(checkpointed)[-1].register_forward_pre_hook(lambda *_: runs.append(1))
    expected, got = _train_step(plain, x), _train_step(checkpointed, x)
    assert len(runs) == 2  # the second run is that of the backward pass
    assert len(expected) == 1 + len(list(plain.parameters())) + len(list(plain.buffers()))
    assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert {int(n) for name, n in got.items() if name.startswith("stages.3") and name.endswith("tracked")} == {1}
    checkpointed.set_grad_checkpointing(False)
    _train_step(checkpointed, x)
    assert len(runs) == 3


@both
@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 97, 131), (1, 3, 33, 300)])
def test_any_size_and_a_gradient_for_every_parameter(net: str, shape: tuple[int, ...]) -> None:
    model, x = tiny(net), golden_input(*shape)
    output = model(x)
    assert model.forward_features(x).shape[2:] == (-(-shape[2] // 32), -(-shape[3] // 32))
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]


@both
@pytest.mark.parametrize("side", [1, 32])
def test_training_on_maps_of_one_pixel(net: str, side: int) -> None:
    model = tiny(net).train()
    output = model(golden_input(4, 3, side, side))
    output.square().sum().backward()
    assert output.isfinite().all()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_configuration(name: str) -> None:
    for tag in timm.list_models(f"{name}.*", include_tags=True):
        cfg = timm.get_pretrained_cfg(tag)
        assert cfg is not None
        assert cfg.num_classes == (21841 if tag.endswith("in22k") else 1000)
        assert (cfg.crop_pct, cfg.crop_mode) == ((1.0, "squash") if tag.endswith("384") else (0.875, "center"))
        size = tag.rpartition("_")[2]
        assert size not in ("320", "384") or cfg.input_size == (3, int(size), int(size))
        model = shapes_only(name)
        assert model.get_submodule(cfg.first_conv).in_channels == 3
        assert model.get_submodule(cfg.classifier) is model.get_classifier()
