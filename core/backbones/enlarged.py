"""Large kernels for networks that were designed with small ones, as in the papers' first studies.

:func:`enlarge_kernels` and :func:`remove_shortcuts` change any model. The ``lk_*`` models are timm's MobileNetV2 and
ResNets with both, by name: ``timm.create_model("lk_mobilenetv2_100", kernel_size=13, shortcut=False)`` takes the
arguments of :func:`enlarge_kernels` beside those of the network itself, and ``shortcut=False`` for
:func:`remove_shortcuts`. ``kernel_size=3`` is the network to compare with, without small branches: MobileNetV2 as it
is, a ResNet with depthwise 3x3 convolutions where they have as many outputs as inputs. The papers' files of these
studies were never published, so there are no weights; ``pretrained=True`` loads the small network's own.
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
    r"""A new model whose depthwise kernels are large, each with a small branch that merges into it after training.

    This is how the papers compare kernel sizes in MobileNetV2, with and without small branches ('Scaling Up Your
    Kernels', table 2), and large with small kernels in ResNets (figure 2). Weights of the original kernels go into the
    small branch if that has their size; large kernels start as torch starts them.

    Args:
        model: any module with ``nn.Conv2d`` layers of odd size and 'same' padding, such as timm's ``mobilenetv2_100``;
            layers of derived classes, as in timm's ``tf_`` models, stay as they are.
        kernel_size: K, odd; depthwise kernels of this size and larger stay as they are.
        small_kernel: size of the branch beside each large kernel, odd; 0 for none.
        identity: add the input of each stride-1 convolution to its output as well; merges into the kernel.
        dense: also replace dense convolutions that have as many outputs as inputs by depthwise ones of the large size;
            a ResNet has no others.
        where: regular expression that the names of the convolutions to change must match, as in ``^blocks\.[56]``.

    Raises:
        InputError: if a size is even, the small one is not smaller, or there is nothing to enlarge.

    Example:
        >>> import timm
        >>> net = enlarge_kernels(timm.create_model("mobilenetv2_050"), 13, where=r"^blocks\.[56]")
        >>> net.blocks[6][0].conv_dw.lkb_origin.conv.kernel_size
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
            f"where={where!r}, dense={dense}; dense=True also takes dense convolutions, of which a ResNet consists"
        )
    for name, conv in chosen.items():
        enlarged = _enlarged(conv, kernel_size, small_kernel, identity)
        if name == "":  # the model is the convolution
            return cast(Model, enlarged)
        model.set_submodule(name, enlarged)
    return model


def remove_shortcuts(model: Model) -> Model:
    """A new model without the identity shortcuts of timm's inverted residuals and ResNet blocks; projections stay.

    The papers show with it that large kernels need shortcuts ('Scaling Up Your Kernels', table 2).

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
            _wake_last_norm(module)
            if module.downsample is None:
                module.downsample = _NoShortcut()
                removed += 1
    if not removed:
        raise InputError(
            f"{type(model).__name__} has no identity shortcuts to remove; known are those of timm's inverted residuals "
            "and ResNet blocks"
        )
    return model


def _can_grow(conv: nn.Module, kernel_size: int, dense: bool) -> bool:
    """Whether a module is a convolution that :func:`enlarge_kernels` replaces."""
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


def _wake_last_norm(block: BasicBlock | Bottleneck) -> None:
    """Set the weight of a block's last norm to 1 where it is 0.

    timm starts it at 0, which leaves the shortcut alone; without a shortcut nothing would be left.
    """
    norm = block.bn2 if isinstance(block, BasicBlock) else block.bn3
    if not norm.weight.any():
        nn.init.ones_(norm.weight)


class _NoShortcut(nn.Module):
    """Stands where a ResNet block looks for its projection, and gives nothing to add."""

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
    """A network of timm with large kernels.

    A configuration is of the small network, unless it was saved beside a file of an enlarged one: then ``enlarged``
    is in it.
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
    elif dense:  # the network to compare with
        model = enlarge_kernels(model, kernel_size, small_kernel=0, identity=identity, dense=True, where=where)
    if not shortcut:
        model = remove_shortcuts(model)

    # timm writes this beside a shared file, and reads it to build the network again.
    cfg = model.pretrained_cfg | {"architecture": f"lk_{name}", "enlarged": True}
    model.pretrained_cfg = cfg
    model.default_cfg = cfg
    if pretrained and saved_enlarged:
        load_pretrained(model, cfg, num_classes=model.num_classes)
    return cast(nn.Module, model)


@register_model
def lk_mobilenetv2_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of half the width with large depthwise kernels."""
    return _create_enlarged("mobilenetv2_050", pretrained, **kwargs)


@register_model
def lk_mobilenetv2_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of three quarters of the width, that of the paper's study of the last stage (by its parameters)."""
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
