"""A twin of a LarKit backbone that computes in the order of the official code: the thing to beat."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from core.backbones import LargeKernelNet
from core.backbones.replknet import ConvFFN, RepLKBlock
from core.backbones.unireplknet import DilatedReparamBlock, GlobalResponseNorm, UniRepLKNetBlock
from core.layers import DepthwiseConv2d

__all__ = ["naive_twin"]


class _UniRepLKNetBlock(UniRepLKNetBlock):
    """Every step makes a map of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = self.pwconv2(self.act(self.pwconv1(self.se(self.norm(self.dwconv(x))))))
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(y)


class _RepLKBlock(RepLKBlock):
    """Every step makes a map of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(x))))
        return x + self.drop_path(self.pw2(y))


class _ConvFFN(ConvFFN):
    """Every step makes a map of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x)))))


class _DilatedReparamBlock(DilatedReparamBlock):
    """The branches one by one, in eval mode too."""

    def _merges_in_forward(self, x: Tensor) -> bool:
        return False


class _ResponseNorm(GlobalResponseNorm):
    """``torch.norm`` over the map, as in the official code."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        norm = torch.norm(x_BHWC, p=2, dim=(1, 2), keepdim=True)
        y = (self.gamma * (norm / (norm.mean(dim=-1, keepdim=True) + self.eps)) + 1) * x_BHWC
        return y if self.beta is None else y + self.beta


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    DepthwiseConv2d: nn.Conv2d,
    DilatedReparamBlock: _DilatedReparamBlock,
    GlobalResponseNorm: _ResponseNorm,
    UniRepLKNetBlock: _UniRepLKNetBlock,
    RepLKBlock: _RepLKBlock,
    ConvFFN: _ConvFFN,
}


def naive_twin(model: nn.Module) -> nn.Module:
    """A copy with the same weights under the same names, made of plain ``nn.Conv2d``.

    The map stays in the memory format of the input.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module.__class__ = _TWINS.get(type(module), type(module))
    if isinstance(twin, LargeKernelNet):
        family = type(twin)
        twin.__class__ = type(f"Naive{family.__name__}", (family,), {"_forward_stage": _forward_stage})
    return twin


def _forward_stage(self: LargeKernelNet, x: Tensor, stage: int) -> Tensor:
    return cast(Tensor, self.blocks(stage)(self.entry(stage)(x)))
