"""Large kernels in networks with small ones: which convolutions change, what they compute, folding, shortcuts."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden_values import difference, filled, golden_input
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import core
from core.backbones.enlarged import remove_shortcuts
from core.backbones.replknet import ReparamLargeKernelConv

NAMES = ["lk_mobilenetv2_050", "lk_resnet18", "lk_resnet50"]
BLOCKS = {0: 1, 1: 2, 2: 3, 3: 4, 4: 3, 5: 3, 6: 1}  # of MobileNetV2, by stage
MOBILENET = [f"blocks.{stage}.{i}.conv_dw" for stage, count in BLOCKS.items() for i in range(count)]
HALVING = {f"blocks.{stage}.0.conv_dw" for stage in (1, 2, 3, 5)}
CHANGES_WIDTH = {"layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"}
RESNET18 = [f"layer{s}.{i}.conv{c}" for s in range(1, 5) for i in range(2) for c in (1, 2)]
RESNET50 = [f"layer{s}.{i}.conv2" for s, count in zip(range(1, 5), (3, 4, 6, 3), strict=True) for i in range(count)]
CHANGED = {
    "lk_mobilenetv2_050": MOBILENET,
    "lk_resnet18": [name for name in RESNET18 if name not in CHANGES_WIDTH],
    "lk_resnet50": RESNET50,
}


def _large(model: nn.Module) -> dict[str, ReparamLargeKernelConv]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ReparamLargeKernelConv)}


def _depthwise(channels: int = 8, size: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, **options))


@pytest.mark.parametrize("name", NAMES)
def test_which_convolutions_grow(name: str) -> None:
    model, small = timm.create_model(name, kernel_size=9), timm.create_model(name.removeprefix("lk_"))
    large = _large(model)
    assert list(large) == CHANGED[name]
    for path, layer in large.items():
        old = small.get_submodule(path)
        assert layer.lkb_origin.conv.weight.shape == (old.out_channels, 1, 9, 9)
        assert layer.small_conv.conv.weight.shape == (old.out_channels, 1, 3, 3)
        assert layer.lkb_origin.conv.stride == layer.small_conv.conv.stride == old.stride
        assert not layer.identity
    others = {name for name in model.state_dict() if not name.startswith(tuple(f"{path}." for path in large))}
    assert others == {n for n in small.state_dict() if n.removesuffix(".weight") not in large}


def test_strides_of_mobilenet() -> None:
    large = _large(timm.create_model("lk_mobilenetv2_050"))
    assert {name for name, layer in large.items() if layer.lkb_origin.conv.stride == (2, 2)} == HALVING
    assert {layer.lkb_origin.conv.kernel_size for layer in large.values()} == {(13, 13)}


@pytest.mark.parametrize("where", [r"^blocks\.[56]", r"\.1\.conv_dw$"])
def test_where(where: str) -> None:
    model = timm.create_model("lk_mobilenetv2_050", kernel_size=7, where=where)
    assert list(_large(model)) == [name for name in MOBILENET if re.search(where, name)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [64, 75])
def test_maps_keep_their_sizes(name: str, size: int) -> None:
    small, large = (timm.create_model(n, num_classes=5).eval() for n in (name.removeprefix("lk_"), name))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert large.forward_features(x).shape == small.forward_features(x).shape
        assert large(x).shape == (2, 5)


def test_the_old_model_stays_and_its_weights_go_into_the_small_branch() -> None:
    old = filled(timm.create_model("mobilenetv2_050"))
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    new = core.enlarge_kernels(old, 13)
    assert_close(dict(old.state_dict()), before, rtol=0, atol=0)
    assert not _large(old)
    for name, layer in _large(new).items():
        assert_close(layer.small_conv.conv.weight, before[f"{name}.weight"], rtol=0, atol=0)
    kept = {name: tensor for name, tensor in new.state_dict().items() if name in before}
    assert_close(kept, {name: before[name] for name in kept}, rtol=0, atol=0)
    nn.init.zeros_(new.conv_stem.weight)
    assert_close(old.conv_stem.weight, before["conv_stem.weight"], rtol=0, atol=0)


def test_a_layer_is_the_sum_of_its_branches() -> None:
    old, x = _depthwise(stride=2, bias=False), golden_input(2, 8, 11, 14)
    layer = core.enlarge_kernels(old, 7).eval()[0]
    big = F.conv2d(x, layer.lkb_origin.conv.weight, padding=3, stride=2, groups=8)
    small = F.conv2d(x, old[0].weight, padding=1, stride=2, groups=8)
    assert_close(layer(x), (big + small) / (1 + 1e-5) ** 0.5)  # both norms are new


def test_bias_of_the_old_layer_is_added() -> None:
    old, x = filled(_depthwise()), golden_input(2, 8, 11, 14)
    layer = core.enlarge_kernels(old, 7)[0]
    big = F.conv2d(x, layer.lkb_origin.conv.weight, padding=3, groups=8)
    small = F.conv2d(x, old[0].weight, padding=1, groups=8)
    assert old[0].bias.abs().min() > 0
    assert_close(layer(x), (big + small) / (1 + 1e-5) ** 0.5 + old[0].bias.view(-1, 1, 1))


def test_identity_beside_a_layer_that_was_dense() -> None:
    layer = core.enlarge_kernels(nn.Conv2d(8, 8, 3, padding=1), 7, identity=True, dense=True).eval()
    x = golden_input(2, 8, 11, 14)
    assert_close(layer(x), layer.lkb_origin(x) + layer.small_conv(x) + x)


@pytest.mark.parametrize("small_kernel", [0, 3, 5])
def test_small_branch(small_kernel: int) -> None:
    (layer,) = _large(core.enlarge_kernels(_depthwise(), 9, small_kernel=small_kernel)).values()
    sizes = {name: part.conv.kernel_size[0] for name, part in layer.named_children()}
    assert sizes == {"lkb_origin": 9} | ({"small_conv": small_kernel} if small_kernel else {})


def test_identity_adds_the_input_where_the_stride_is_1() -> None:
    model = filled(timm.create_model("lk_mobilenetv2_050", identity=True))
    assert {name for name, layer in _large(model).items() if not layer.identity} == HALVING
    layer = model.blocks[1][1].conv_dw
    x = golden_input(1, layer.lkb_origin.conv.in_channels, 7, 7)
    assert_close(layer(x), layer.lkb_origin(x) + layer.small_conv(x) + x)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"identity": True, "shortcut": False}, {"small_kernel": 0, "in_chans": 1}])
def test_fold_is_exact(name: str, options: dict[str, Any]) -> None:
    model = filled(timm.create_model(name, kernel_size=9, num_classes=7, **options)).double()
    folded, x = core.reparameterize(model), golden_input(1, options.get("in_chans", 3), 64, 64).double()
    assert difference(model, folded, x) < 1e-11
    assert all(layer.merged for layer in _large(folded).values())
    assert not any(layer.merged for layer in _large(model).values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_have_the_dtype_and_mode_of_the_old_ones(dtype: torch.dtype) -> None:
    model = core.enlarge_kernels(timm.create_model("mobilenetv2_050").to(dtype).eval(), 7)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(module.training for module in model.modules())


def test_kernels_of_3_are_the_network_to_compare_with() -> None:
    mobilenet = timm.create_model("lk_mobilenetv2_050", kernel_size=3)
    assert list(mobilenet.state_dict()) == list(timm.create_model("mobilenetv2_050").state_dict())
    resnet = timm.create_model("lk_resnet18", kernel_size=3)
    assert list(_large(resnet)) == CHANGED["lk_resnet18"]
    for layer in _large(resnet).values():
        assert layer.lkb_origin.conv.kernel_size == (3, 3)
        assert not hasattr(layer, "small_conv")


def test_kernels_of_that_size_and_larger_stay() -> None:
    net = nn.Sequential(*(_depthwise(8, size) for size in (3, 5, 7, 9)))
    assert list(_large(core.enlarge_kernels(net, 7))) == ["0.0", "1.0"]


def test_other_convolutions_stay() -> None:
    kept = [
        nn.Conv2d(8, 8, 3, padding=1, dilation=2, groups=8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="circular"),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=(1, 2)),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1, groups=8),
        nn.Conv2d(8, 8, 4, padding=2, groups=8),
    ]
    net = nn.Sequential(*kept, nn.Conv2d(8, 8, 3, padding=1), *_depthwise())
    assert list(_large(core.enlarge_kernels(net, 7))) == ["9"]
    assert list(_large(core.enlarge_kernels(net, 7, dense=True))) == ["8", "9"]


def test_pretrained_takes_the_weights_of_the_small_network(tmp_path: Path) -> None:
    old = filled(timm.create_model("mobilenetv2_050"))
    torch.save(old.state_dict(), tmp_path / "old.pth")
    overlay = {"file": str(tmp_path / "old.pth")}
    new = timm.create_model("lk_mobilenetv2_050", pretrained=True, pretrained_cfg_overlay=overlay)
    assert_close(new.conv_head.weight, old.conv_head.weight, rtol=0, atol=0)
    assert_close(new.blocks[3][1].conv_dw.small_conv.conv.weight, old.blocks[3][1].conv_dw.weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES[:2])
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True, kernel_size=7, shortcut=False).eval()
    assert list(_large(model)) == CHANGED[name]
    maps = model(torch.randn(1, 3, 64, 64))
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4, 2]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    model.train()(torch.randn(4, 3, 64, 64)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lk_mobilenetv2_050", {}),
        ("lk_mobilenetv2_050", {"identity": True, "shortcut": False}),
        ("lk_mobilenetv2_050", {"kernel_size": 3, "shortcut": False}),
        ("lk_resnet18", {"zero_init_last": False}),
        ("lk_resnet18", {"zero_init_last": False, "shortcut": False}),
        ("lk_resnet50", {"zero_init_last": False, "identity": True}),
    ],
)
def test_every_parameter_trains(name: str, options: dict[str, Any]) -> None:
    gradients = _gradients(timm.create_model(name, num_classes=4, **options))
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


@pytest.mark.parametrize("name", NAMES[1:])
def test_resnets_without_shortcuts_train_from_their_initial_weights(name: str) -> None:
    gradients = _gradients(timm.create_model(name, num_classes=4, shortcut=False))
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_mobilenet_without_shortcuts() -> None:
    old = filled(timm.create_model("mobilenetv2_050"))
    new = remove_shortcuts(old)
    for stage, parts in enumerate(zip(old.blocks, new.blocks, strict=True)):
        for i, (block, bare) in enumerate(zip(*parts, strict=True)):
            assert not bare.has_skip
            shortcut = i > 0 and isinstance(block, InvertedResidual)
            assert block.has_skip == shortcut, (stage, i)
    block, bare = old.blocks[3][1], new.blocks[3][1]
    x = golden_input(2, block.conv_pw.in_channels, 9, 9)
    y = bare.bn1(F.conv2d(x, block.conv_pw.weight))
    y = bare.bn2(F.conv2d(y, block.conv_dw.weight, padding=1, groups=y.shape[1]))
    assert_close(bare(x), bare.bn3(F.conv2d(y, block.conv_pwl.weight)))
    assert_close(block(x), bare(x) + x)
    assert_close(old.blocks[3][0](x[:, :16]), new.blocks[3][0](x[:, :16]), rtol=0, atol=0)  # had no shortcut


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_without_shortcuts(name: str) -> None:
    old = filled(timm.create_model(name))
    new = remove_shortcuts(old)
    for stage in ("layer1", "layer2"):
        projected = stage == "layer2" or name == "resnet50"
        for i, (block, bare) in enumerate(zip(old.get_submodule(stage), new.get_submodule(stage), strict=True)):
            x = golden_input(1, block.conv1.in_channels, 8, 8)
            y = block.act1(block.bn1(block.conv1(x)))
            y = block.bn2(block.conv2(y))
            y = y if isinstance(block, BasicBlock) else block.bn3(block.conv3(block.act2(y)))
            shortcut = block.downsample(x) if i == 0 and projected else 0
            assert_close(bare(x), F.relu(y + shortcut))
    assert old.layer1[1].downsample is None


def test_shortcuts_and_kernels_go_together() -> None:
    bare = timm.create_model("lk_mobilenetv2_050", kernel_size=7, shortcut=False)
    assert list(_large(bare)) == MOBILENET
    assert not any(block.has_skip for stage in bare.blocks for block in stage)
    assert any(block.has_skip for stage in timm.create_model("lk_mobilenetv2_050").blocks for block in stage)


@pytest.mark.parametrize(
    ("kernel_size", "small_kernel"), [(8, 3), (7, 7), (7, 9), (7, 2), (7, -1), (-3, 0), (0, 0), (3, 3)]
)
def test_sizes_that_do_not_fit(kernel_size: int, small_kernel: int) -> None:
    message = (
        f"kernel_size={kernel_size}, small_kernel={small_kernel}; both must be odd and the small one smaller, or 0"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        core.enlarge_kernels(_depthwise(), kernel_size, small_kernel=small_kernel)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet18",
            {},
            "ResNet has no plain depthwise nn.Conv2d smaller than 7x7 at where='', dense=False; dense=True also",
        ),
        ("mobilenetv2_050", {"where": "^stages"}, "EfficientNet has no plain depthwise nn.Conv2d smaller than 7x7 at"),
        ("convnext_atto", {}, "ConvNeXt has no plain depthwise nn.Conv2d smaller than 7x7"),
    ],
)
def test_nothing_to_enlarge(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        core.enlarge_kernels(timm.create_model(name), 7, **options)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), timm.create_model("test_convnext")])
def test_no_shortcuts_to_take_away(model: nn.Module) -> None:
    message = f"{type(model).__name__} has no identity shortcuts to remove; only those of timm's"
    with pytest.raises(ValueError, match=message):
        remove_shortcuts(model)


def test_a_convolution_alone() -> None:
    assert isinstance(core.enlarge_kernels(_depthwise()[0], 7), ReparamLargeKernelConv)
