"""Large kernels in networks that were designed with small ones, as in the papers' first studies.

:func:`enlarge_kernels` and :func:`remove_shortcuts` change models of timm and others. timm's MobileNetV2 and ResNets
with these changes are registered as ``lk_*``. ``timm.create_model("lk_mobilenetv2_100", kernel_size=13,
shortcut=False)`` takes the arguments of the small network, those of :func:`enlarge_kernels`, and ``shortcut=False`` for
:func:`remove_shortcuts`.

``kernel_size=3`` builds the baseline, without small branches: MobileNetV2 itself, or a ResNet whose 3x3 convolutions
are depthwise where they have as many outputs as inputs. No weights of these studies were published;
``pretrained=True`` loads those of the small network.
"""

import copy
import re
from typing import Any, TypeVar, cast

import timm
import torch
from timm.models import load_pretrained, register_model
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from core.backbones.replknet import ReparamLargeKernelConv
from core.errors import InputError

__all__ = ["enlarge_kernels", "remove_shortcuts"]

Model = TypeVar("Model", bound=nn.Module)


def enlarge_kernels(
    model: Model,
    kernel_size: int,
    *,
    small_kernel: int = 3,
    identity: bool = False,
    dense: bool = False,
    where: str = "",
) -> Model:
    r"""Return a new model with large depthwise kernels, each with a small branch that merges into it after training.

    In this way, the papers compare kernel sizes in MobileNetV2 with and without small branches ('Scaling Up Your
    Kernels', table 2), and large with small kernels in ResNets (figure 2). If the small branch has the size of the
    original kernel, it gets the original weights. Large kernels have PyTorch's initial weights.

    Args:
        model: any module with ``nn.Conv2d`` layers of odd size and 'same' padding, such as timm's ``mobilenetv2_100``.
            Layers of derived classes, as in timm's ``tf_`` models, stay as they are.
        kernel_size: K, odd. Depthwise kernels of this size and larger stay as they are.
        small_kernel: size of the branch beside each large kernel, odd; 0 for none.
        identity: also add the input of each convolution of stride 1 to its output, as a branch that can be merged.
        dense: also replace dense convolutions that have as many outputs as inputs, by large depthwise ones; ResNets
            need this, since they have no depthwise convolutions.
        where: regular expression for the names of the convolutions to replace, such as ``^blocks\.[56]``.

    Raises:
        InputError: if a size is even, ``small_kernel`` is not smaller than ``kernel_size``, or no convolution can be
            replaced.

    Example:
        >>> import timm
        >>> net = enlarge_kernels(timm.create_model("mobilenetv2_050"), 13, where=r"^blocks\.[56]")
        >>> net.get_submodule("blocks.6.0.conv_dw.lkb_origin.conv").kernel_size
        (13, 13)
    """
    if kernel_size % 2 == 0 or not 0 <= small_kernel < kernel_size or (small_kernel > 0 and small_kernel % 2 == 0):
        raise InputError(
            f"kernel_size={kernel_size}, small_kernel={small_kernel}; both must be odd and the small one smaller, or 0"
        )
    model = copy.deepcopy(model)
    chosen: dict[str, nn.Conv2d] = {}
    for name, module in model.named_modules():
        if re.search(where, name) and _can_grow(module, kernel_size, dense):
            chosen[name] = cast(nn.Conv2d, module)
    if not chosen:
        raise InputError(
            f"{type(model).__name__} has no plain depthwise nn.Conv2d smaller than {kernel_size}x{kernel_size} at "
            f"where={where!r}, dense={dense}; dense=True also replaces dense convolutions, which ResNets have"
        )
    for name, conv in chosen.items():
        enlarged = _enlarged(conv, kernel_size, small_kernel, identity)
        if name == "":  # the model itself is a convolution
            return cast(Model, enlarged)
        model.set_submodule(name, enlarged)
    return model


def remove_shortcuts(model: Model) -> Model:
    """Return a new model without the identity shortcuts of timm's inverted residuals and ResNet blocks.

    Shortcuts with a projection stay. The papers use this to show that large kernels need shortcuts ('Scaling Up Your
    Kernels', table 2).

    Raises:
        InputError: if the model has none of these shortcuts.
    """
    model = copy.deepcopy(model)
    removed = 0
    for module in model.modules():
        if isinstance(module, InvertedResidual | DepthwiseSeparableConv) and module.has_skip:
            module.has_skip = False
            removed += 1
        elif isinstance(module, BasicBlock | Bottleneck):
            _reset_zero_norm(module)
            if module.downsample is None:
                module.downsample = _NoShortcut()
                removed += 1
    if not removed:
        raise InputError(
            f"{type(model).__name__} has no identity shortcuts to remove; only those of timm's inverted residuals and "
            "ResNet blocks can be removed"
        )
    return model


def _can_grow(conv: nn.Module, kernel_size: int, dense: bool) -> bool:
    """Return whether a module is a convolution that :func:`enlarge_kernels` can replace."""
    if type(conv) is not nn.Conv2d or conv.in_channels != conv.out_channels or conv.dilation != (1, 1):
        return False
    size = conv.kernel_size[0]
    if conv.kernel_size != (size, size) or size % 2 == 0 or not 1 < size <= kernel_size:
        return False
    if conv.padding != (size // 2, size // 2) or conv.padding_mode != "zeros" or conv.stride[0] != conv.stride[1]:
        return False
    depthwise = conv.groups == conv.in_channels
    return size < kernel_size if depthwise else dense


def _enlarged(conv: nn.Conv2d, kernel_size: int, small_kernel: int, identity: bool) -> ReparamLargeKernelConv:
    """Make the large convolution that replaces a small one, with its weights if the small branch has their size."""
    large = ReparamLargeKernelConv(
        conv.in_channels,
        kernel_size,
        small_kernel=small_kernel,
        stride=conv.stride[0],
        identity=identity and conv.stride[0] == 1,
    )
    with torch.no_grad():
        if conv.kernel_size[0] == small_kernel and conv.groups == conv.in_channels:
            large.small_conv.conv.weight.copy_(conv.weight)
        if conv.bias is not None:
            cast(nn.BatchNorm2d, large.lkb_origin.bn).bias.copy_(conv.bias)
    return large.to(conv.weight).train(conv.training)


def _reset_zero_norm(block: BasicBlock | Bottleneck) -> None:
    """Set the weight of a block's last norm to 1 if it is 0.

    With timm's initial value of 0, a new block returns its shortcut alone. Without a shortcut, it would return 0.
    """
    norm = block.bn2 if isinstance(block, BasicBlock) else block.bn3
    if not norm.weight.any():
        nn.init.ones_(norm.weight)


class _NoShortcut(nn.Module):
    """A layer that returns 0; it replaces the projection of a ResNet block, to which the block adds its output."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def _create_enlarged(
    name: str,
    pretrained: bool,
    *,
    kernel_size: int = 13,
    small_kernel: int = 3,
    identity: bool = False,
    shortcut: bool = True,
    dense: bool = False,
    where: str = "",
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network of timm with large kernels.

    The pretrained configuration usually belongs to the small network. One that was saved with the weights of an
    enlarged network has an entry ``enlarged``.
    """
    saved_enlarged = False
    if isinstance(pretrained_cfg, dict):
        pretrained_cfg = dict(pretrained_cfg)
        saved_enlarged = pretrained_cfg.pop("enlarged", False)
    model: Any = timm.create_model(
        name,
        pretrained=pretrained and not saved_enlarged,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs,
    )

    if kernel_size != 3:
        model = enlarge_kernels(
            model, kernel_size, small_kernel=small_kernel, identity=identity, dense=dense, where=where
        )
    elif dense:  # the baseline
        model = enlarge_kernels(model, kernel_size, small_kernel=0, identity=identity, dense=True, where=where)
    if not shortcut:
        model = remove_shortcuts(model)

    # timm saves this configuration with shared weights, and builds the network from it.
    cfg = model.pretrained_cfg | {"architecture": f"lk_{name}", "enlarged": True}
    model.pretrained_cfg = cfg
    model.default_cfg = cfg
    if pretrained and saved_enlarged:
        load_pretrained(model, cfg, num_classes=model.num_classes)
    return cast(nn.Module, model)


@register_model
def lk_mobilenetv2_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of width 0.5 with large depthwise kernels."""
    return _create_enlarged("mobilenetv2_050", pretrained, **kwargs)


@register_model
def lk_mobilenetv2_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of width 0.75 with large depthwise kernels.

    By its number of parameters, this is the network of the paper's study of the last stage.
    """
    return _create_enlarged("mobilenetv2_075", pretrained, **kwargs)


@register_model
def lk_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 with large depthwise kernels ('Scaling Up Your Kernels', table 2)."""
    return _create_enlarged("mobilenetv2_100", pretrained, **kwargs)


@register_model
def lk_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with large depthwise kernels."""
    return _create_enlarged("resnet18", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create_enlarged("resnet50", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create_enlarged("resnet101", pretrained, **{"dense": True} | kwargs)


@register_model
def lk_resnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 with large depthwise kernels ('Scaling Up Your Kernels', figure 2)."""
    return _create_enlarged("resnet152", pretrained, **{"dense": True} | kwargs)
