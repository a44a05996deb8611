"""What only UniRepLKNet has: free depths, widths and kernels, refusals, parameter groups, published files."""

import re
from typing import Any

import pytest
import timm
import torch
from golden_values import TINY, UNIREPLKNETS, difference, filled, golden_input, shapes_only, tiny
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.testing import assert_close

import core
from core.backbones.unireplknet import DilatedReparamBlock, default_kernel_sizes, dilated_branches
from core.layers import DepthwiseConv2d

FREE: dict[str, Any] = {
    "depths": (1, 2, 3, 1),
    "dims": (8, 12, 16, 20),
    "kernel_sizes": ((5,), (17, 0), (15, 11, 9), (7,)),
}


def _model(name: str = "unireplknet_a", **options: Any) -> core.UniRepLKNet:
    return filled(timm.create_model(name, **options))


def _sizes(model: core.UniRepLKNet) -> list[list[int]]:
    def size(conv: nn.Module) -> int:
        conv = conv.lk_origin if isinstance(conv, DilatedReparamBlock) else conv
        return conv.kernel_size[0] if isinstance(conv, DepthwiseConv2d) else 0

    return [[size(block.dwconv) for block in stage] for stage in model.stages]


@pytest.mark.parametrize(
    ("depth", "third"),
    [(2, "13 13"), (8, "13 " * 8), (18, "13 3 " * 9), (20, "13 3 3 " * 6 + "13 3"), (27, "13 3 3 " * 9)],
)
def test_default_kernel_sizes(depth: int, third: str) -> None:
    sizes = default_kernel_sizes((3, 2, depth, 1))
    assert sizes == ((3, 3, 3), (13, 13), tuple(map(int, third.split())), (13,))


def test_default_kernel_sizes_of_other_numbers_of_stages() -> None:
    assert default_kernel_sizes((2,)) == ((3, 3),)
    assert default_kernel_sizes((1, 2, 1, 1, 2)) == ((3,), (13, 13), (13,), (13,), (13, 13))


@pytest.mark.parametrize("inference_mode", [False, True])
def test_free_configuration(inference_mode: bool) -> None:
    model, x = _model(**FREE, inference_mode=inference_mode), golden_input(2, 3, 64, 96)
    assert _sizes(model) == [[5], [17, 0], [15, 11, 9], [7]]
    assert isinstance(model.stages[1][1].norm, nn.Identity)
    assert [m.shape[1] for m in model.forward_intermediates(x, intermediates_only=True)] == [8, 12, 16, 20]
    assert model(x).shape == (2, 1000)


def test_one_size_for_a_stage_and_defaults_for_given_depths() -> None:
    assert _sizes(_model(**FREE | {"kernel_sizes": (3, 7, (9, 9, 3), 5)})) == [[3], [7, 7], [9, 9, 3], [5]]
    assert _sizes(_model("test_unireplknet", depths=(1, 1, 2, 1))) == [[3], [13], [13, 13], [13]]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_other_numbers_of_stages(stages: int) -> None:
    model = _model(depths=(1,) * stages, dims=tuple(8 + 4 * i for i in range(stages)), num_classes=3)
    maps = model.forward_intermediates(golden_input(1, 3, 128, 128), intermediates_only=True)
    assert [m.shape[1:] for m in maps] == [(8 + 4 * i, 32 >> i, 32 >> i) for i in range(stages)]
    assert model(golden_input(1, 3, 128, 128)).shape == (1, 3)


@pytest.mark.parametrize("size", [19, 31])
def test_kernels_beyond_the_published_table(size: int) -> None:
    sizes = ((size,), (size, 3), (3, 3, size), (size,))
    model, x = _model(**FREE | {"kernel_sizes": sizes}), golden_input(1, 3, 96, 70)
    block = model.stages[0][0].dwconv
    assert block.branches == dilated_branches(size)
    assert all((k - 1) * r + 1 <= size for k, r in block.branches)
    assert difference(model, core.reparameterize(model), x) < 1e-5


@pytest.mark.parametrize("size", [5, *range(7, 64, 2)])
def test_default_branches_fit_and_fill_the_kernel(size: int) -> None:
    branches = dilated_branches(size)
    reach = [(k - 1) * r + 1 for k, r in branches]
    assert max(reach) <= size
    assert max(reach) >= size - 2
    assert len(set(branches)) == len(branches)
    DilatedReparamBlock(2, size)


def test_explicit_branches() -> None:
    model, x = _model(**FREE, branches={17: [(3, 8), (5, 2)], 7: []}), golden_input(1, 3, 64, 64)
    names = {name.split(".")[4] for name in model.state_dict() if name.startswith("stages.1.0.dwconv.")}
    assert names == {"lk_origin", "origin_bn", "dil_conv_k3_8", "dil_bn_k3_8", "dil_conv_k5_2", "dil_bn_k5_2"}
    assert model.stages[3][0].dwconv.branches == ()
    assert model.stages[2][0].dwconv.branches == dilated_branches(15)
    assert difference(model, core.reparameterize(model), x) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": (3, 13, 13)}, "kernel_sizes describes 3 stages but depths=(1, 2, 3, 1) has 4"),
        ({"kernel_sizes": ((3,), (13,), 13, 13)}, "kernel_sizes[1]=(13,) has 1 entries but depths[1] is 2"),
        ({"kernel_sizes": (3, 8, 13, 13)}, "kernel_size is 8; use 0 (none), 3, 5, or an odd size of 7 and more"),
        ({"kernel_sizes": (3, 1, 13, 13)}, "kernel_size is 1; use"),
        ({"kernel_sizes": (3, -3, 13, 13)}, "kernel_size is -3; use"),
        ({"kernel_sizes": None, "branches": {13: [(7, 3)]}}, "branch (k=7, r=3) does not fit a 13x13 kernel"),
        ({"kernel_sizes": None, "branches": {13: [(4, 1)]}}, "branch (k=4, r=1) does not fit a 13x13 kernel"),
        ({"kernel_sizes": None, "branches": {13: [(3, 0)]}}, "branch (k=3, r=0) does not fit a 13x13 kernel"),
        ({"branches": {21: [(3, 1)]}}, "branches are given for kernel sizes [21]"),
        ({"branches": {5: [(3, 1)]}}, "branches are given for kernel sizes [5]"),
        ({"dims": (8, 16, 24)}, "dims=(8, 16, 24): give both for every stage"),
        ({"depths": (1, 0, 3, 1)}, "and depths of 1 or more"),
        ({"dims": (9, 12, 16, 20)}, "the first must be even"),
        ({"dims": (8, 2, 16, 20)}, "all must be at least 4"),
        ({"global_pool": ""}, "num_classes=1000 needs a pooling"),
    ],
)
def test_bad_arguments_say_what_to_change(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        timm.create_model("unireplknet_a", **FREE | options)


def _official_layer(name: str, depths: tuple[int, ...]) -> int:
    """Return the group by the official code's rule for depth 27; for other depths, groups after stage 3 are shifted."""
    last = 3 + -(-depths[2] // 3)
    stage = re.match(r"(stages|downsample_layers)\.(\d+)\.(\d+)", name)
    if stage is None:
        return last + 1
    part, index, block = stage[1], int(stage[2]), int(stage[3])
    if part == "downsample_layers":
        return (0, 2, 3, last)[index]
    return (1, 2, 3 + block // 3, last)[index]


@pytest.mark.parametrize("name", UNIREPLKNETS)
def test_layer_groups_are_the_official_ones(name: str) -> None:
    model = shapes_only(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {n: _official_layer(n, model.depths) for n, _ in model.named_parameters()}
    if model.depths == (3, 3, 27, 3):
        assert max(layers.values()) == 13
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["stages.2.0.norm.weight"] == coarse["downsample_layers.2.0.weight"] == 3
    assert (coarse["downsample_layers.0.3.bias"], coarse["stages.0.0.gamma"], coarse["head.bias"]) == (0, 1, 5)


@pytest.mark.parametrize("frozen_stem", [False, True])
def test_learning_rates_decay_from_the_head_down(frozen_stem: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model("unireplknet_s")
    model.downsample_layers[0].requires_grad_(not frozen_stem)
    names = {p: n for n, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    scales = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    expected = {
        n: 0.8 ** (13 - _official_layer(n, model.depths)) for n, p in model.named_parameters() if p.requires_grad
    }
    assert scales == pytest.approx(expected)
    assert any(n.startswith("downsample_layers.0.") for n in scales) != frozen_stem


def test_weight_decay_spares_what_has_one_dimension_and_nothing_else() -> None:
    model = timm.create_model("test_unireplknet")
    assert model.no_weight_decay() == set()
    kept, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert (kept["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    grn = model.stages[0][0].act[1]
    # GRN's parameters have four dimensions, so they decay in the papers' recipes.
    assert {id(grn.gamma), id(grn.beta)} < {id(p) for p in decayed["params"]}
    assert all(p.ndim == 1 for p in kept["params"])


def test_pooled_vector_is_normed_mean_of_the_map() -> None:
    model, x = tiny(), golden_input(2, 3, 64, 96)
    mean = model.forward_features(x).mean((2, 3))
    expected = nn.functional.layer_norm(mean, (32,), model.norm.weight, model.norm.bias, eps=1e-6)
    assert_close(model.forward_head(model.forward_features(x), pre_logits=True), expected)


def test_initial_weights_are_the_official_ones() -> None:
    model = timm.create_model("unireplknet_a", depths=(1, 1, 1, 1), head_init_scale=0.5)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.weight.numel() > 2000:
            expected = 0.01 if layer is model.head else 0.02
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert layer.weight.mean().item() == pytest.approx(0, abs=0.1 * expected)
        assert layer.bias is None or not layer.bias.any()
    assert sum(layer.weight.numel() > 2000 for layer in layers) > 20
    assert model.stages[0][0].gamma.eq(1e-6).all()


def test_a_new_classifier_starts_as_the_official_one() -> None:
    model = tiny()
    model.reset_classifier(50)
    assert 0.018 < model.head.weight.std() < 0.022
    assert not model.head.bias.any()


@pytest.mark.parametrize("name", UNIREPLKNETS)
def test_published_files(name: str) -> None:
    tags = timm.list_pretrained(f"{name}.*")
    for tag in tags:
        cfg = timm.get_pretrained_cfg(tag)
        assert (cfg.hf_hub_id, cfg.license) == ("DingXiaoH/UniRepLKNet", "apache-2.0")
        assert cfg.hf_hub_filename.startswith(f"{name}_in" if "in22k" not in tag else f"{name}_in22k")
        assert cfg.hf_hub_filename.endswith(".pth")
        pretrained_at = 192 if tag[12:] in ("l.in22k", "xl.in22k") else 224
        assert cfg.input_size[-1] == (384 if tag.endswith("384") else pretrained_at)
    expected = {TINY: 0, "unireplknet_s": 3, "unireplknet_b": 2, "unireplknet_l": 2, "unireplknet_xl": 2}
    assert len(tags) == expected.get(name, 1)


def test_weight_init_sets_the_spread_of_the_weights_and_leaves_the_classifier() -> None:
    torch.manual_seed(0)
    published = timm.create_model("unireplknet_a", depths=(1, 1, 1, 1))
    kaiming = timm.create_model("unireplknet_a", depths=(1, 1, 1, 1), weight_init="kaiming")

    for name, module in kaiming.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module.weight.numel() < 1000:
            continue
        inputs = module.weight[0].numel()
        expected = 0.02 if name == "head" else (2 / inputs) ** 0.5
        assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name
        assert published.get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.1), name

    # What enters GELU: the published rule keeps it in the linear part of GELU in narrow nets.
    spreads = []
    for model in (published, kaiming):
        entering: list[torch.Tensor] = []
        model.stages[0][0].act.register_forward_pre_hook(lambda _, args, to=entering: to.append(args[0].std()))
        model(torch.randn(2, 3, 64, 64))
        spreads.append(entering[0].item())
    assert spreads[0] < 0.15
    assert spreads[1] > 0.4


def test_an_unknown_weight_init_is_refused() -> None:
    with pytest.raises(core.errors.InputError, match="expected one of trunc_normal, kaiming"):
        timm.create_model("unireplknet_a", weight_init="xavier")
