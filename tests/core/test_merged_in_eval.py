"""The Dilated Reparam Block in eval mode: one convolution, equal to its branches, unless somebody looks at them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from core.backbones.unireplknet import BranchType, DilatedReparamBlock

FORMATS = [torch.contiguous_format, torch.channels_last]


def _block(kernel: int, channels: int = 3, **options: Any) -> DilatedReparamBlock:
    """Return a block in eval mode and float64 whose norms differ from identities."""
    block = DilatedReparamBlock(channels, kernel, **options).double()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return block.eval()


def _by_branches(block: DilatedReparamBlock, x: Tensor) -> Tensor:
    y = block.origin_bn(block.lk_origin(x))
    for conv, norm in block._parallel():
        y = y + norm(conv(x))
    return y


def _runs_as_one(block: DilatedReparamBlock, x: Tensor) -> bool:
    """Return whether the block merges its branches, so that its largest convolution is not called as a module."""
    calls: list[Any] = []
    run = block.lk_origin.forward
    block.lk_origin.forward = lambda x: (calls.append(x), run(x))[1]  # type: ignore[method-assign]
    try:
        block(x)
    finally:
        del block.lk_origin.forward
    return not calls


def _gradients(y: Tensor, x: Tensor, block: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(y.sin().sum(), [x, *block.parameters()]))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(5, 9), (16, 11), (33, 35)])
@pytest.mark.parametrize("kernel", [7, 13, 31])
def test_values_and_gradients(kernel: int, size: tuple[int, int], memory_format: torch.memory_format) -> None:
    block = _block(kernel)
    x = (torch.randn(2, 3, *size, dtype=torch.float64) + 1).to(memory_format=memory_format).requires_grad_()
    assert _runs_as_one(block, x)
    got, wanted = block(x), _by_branches(block, x)
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(_gradients(got, x, block), _gradients(wanted, x, block), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["dilated", "none", "same_kernel", "same_equivalent_kernel"])
def test_other_branches_and_output_stride(kind: BranchType) -> None:
    block = _block(9, branches=kind)
    for conv in block.modules():
        if isinstance(conv, nn.Conv2d):  # as output_stride does
            conv.dilation = tuple(2 * r for r in conv.dilation)
            conv.padding = tuple(r * (k - 1) // 2 for k, r in zip(conv.kernel_size, conv.dilation, strict=True))
    x = torch.randn(2, 3, 20, 13, dtype=torch.float64)
    assert _runs_as_one(block, x)
    assert_close(block(x), _by_branches(block, x), rtol=1e-10, atol=1e-10)


def test_training_mode_has_branches() -> None:
    block, x = _block(7).train(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert not _runs_as_one(block, x)
    block.eval().get_submodule("dil_bn_k5_1").train()
    assert not _runs_as_one(block, x)


def test_autocast() -> None:
    block, x = _block(13, 20).float(), torch.randn(2, 20, 14, 14)
    wanted = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = block(x)
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), wanted, rtol=0, atol=0.03 * wanted.abs().max().item())


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _replace(block: DilatedReparamBlock, name: str, module: nn.Module) -> None:
    block.set_submodule(name, module.eval().double())


OTHERS: dict[str, Any] = {
    "hook": lambda block: block.lk_origin.register_forward_hook(lambda *args: None),
    "hook before": lambda block: block.origin_bn.register_forward_pre_hook(lambda *args: None),
    "hook of gradients": lambda block: block.origin_bn.register_full_backward_hook(lambda *args: None),
    "synchronized norm": lambda block: _replace(block, "origin_bn", nn.SyncBatchNorm(3)),
    "no affine": lambda block: _replace(block, "dil_bn_k5_1", nn.BatchNorm2d(3, affine=False)),
    "no running statistics": lambda block: _replace(block, "dil_bn_k5_1", nn.BatchNorm2d(3, track_running_stats=False)),
    "group norm": lambda block: _replace(block, "origin_bn", nn.GroupNorm(1, 3)),
    "plain convolution": lambda block: _replace(
        block, "lk_origin", nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=False)
    ),
    "parametrized": lambda block: parametrize.register_parametrization(block.lk_origin, "weight", _Doubled()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_parts_that_are_not_plain_run_one_by_one(kind: str) -> None:
    block, x = _block(7), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert _runs_as_one(block, x)
    OTHERS[kind](block)
    assert not _runs_as_one(block, x)
    assert_close(block(x), _by_branches(block, x))


def test_maps_of_another_dtype_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"same|type"):
        _block(7)(torch.randn(1, 3, 5, 5))  # float32 for weights in float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # expected: torch.jit is deprecated and still in use
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # expected: the checks of shapes become constants
def test_exported_files_have_the_branches() -> None:
    block, x = _block(7), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    wanted = block(x)
    exported = torch.export.export(block, (x,))
    assert sum("conv2d" in str(node.target) for node in exported.graph.nodes) == 4
    traced = torch.jit.trace(block, x)
    mapped = torch.func.vmap(lambda x: block(x))(x[None])[0]
    for got in (exported.module()(x), traced(x), mapped):
        assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_compiled_whole() -> None:
    block, x = _block(7), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), block(x), rtol=1e-10, atol=1e-10)
