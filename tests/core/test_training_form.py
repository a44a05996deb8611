"""The Dilated Reparam Block as one convolution before it is folded: equal to its branches, and when it is used."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.testing import assert_close

from core.errors import InputError
from core.layers import DilatedReparamBlock
from core.layers.training_form import ENVIRONMENT, goes_as_one

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def _block(kernel: int, channels: int = 3, **options: Any) -> DilatedReparamBlock:
    """With norms that matter, in training mode, float64."""
    block = DilatedReparamBlock(channels, kernel, **options).double()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return block


def _both(block: DilatedReparamBlock) -> tuple[DilatedReparamBlock, DilatedReparamBlock]:
    """Equal blocks, computed by branches and as one convolution."""
    branches, merged = copy.deepcopy(block), copy.deepcopy(block)
    branches.training_form, merged.training_form = "branches", "merged"
    return branches, merged


def _goes_as_one(block: DilatedReparamBlock, x: Tensor) -> bool:
    """By what the block calls: its largest convolution runs as a module only for the branches."""
    calls: list[Any] = []
    run = block.lk_origin.forward
    block.lk_origin.forward = lambda x: (calls.append(x), run(x))[1]  # type: ignore[method-assign]
    try:
        block(x)
    finally:
        del block.lk_origin.forward
    return not calls


def _step(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    block.zero_grad()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = block(x)
    slopes = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    (y * slopes).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *[p.grad for p in block.parameters() if p.grad is not None]]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("size", [(5, 9), (16, 11), (33, 35)])
@pytest.mark.parametrize("kernel", [7, 13, 31])
def test_steps_are_those_of_the_branches(kernel: int, size: tuple[int, int], layout: torch.memory_format) -> None:
    branches, merged = _both(_block(kernel))
    for _ in range(3):
        x = (torch.randn(2, 3, *size, dtype=torch.float64) + 1).to(memory_format=layout)
        assert _goes_as_one(copy.deepcopy(merged), x)
        got, wanted = _step(merged, x), _step(branches, x)
        assert len(got) == 2 + len(list(branches.parameters()))
        assert got[0].stride() == wanted[0].stride()
        for ours, theirs in zip(got, wanted, strict=True):
            assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert_close(merged.state_dict(), branches.state_dict(), rtol=1e-12, atol=1e-12)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_close(merged.eval()(x), branches.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("momentum", [None, 0.0, 0.3])
def test_momentum_and_frozen_norms(momentum: float | None) -> None:
    block = _block(7)
    block.origin_bn.momentum = momentum
    block.get_submodule("dil_bn_k5_1").eval()
    for name in ("origin_bn", "dil_bn_k3_2"):
        block.get_submodule(name).weight.requires_grad_(False)
    branches, merged = _both(block)
    for _ in range(3):
        x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
        assert _goes_as_one(copy.deepcopy(merged), x)
        for ours, theirs in zip(_step(merged, x), _step(branches, x), strict=True):
            assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert_close(merged.state_dict(), branches.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dilated", "none", "same_kernel", "same_equivalent_kernel"])
def test_other_branches_and_output_stride(kind: Any) -> None:
    branches, merged = _both(_block(9, branches=kind))
    for block in (branches, merged):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d):  # as core.backbones.staged does for output_stride
                conv.dilation = tuple(2 * r for r in conv.dilation)
                conv.padding = tuple(r * (k - 1) // 2 for k, r in zip(conv.kernel_size, conv.dilation, strict=True))
    x = torch.randn(2, 3, 20, 13, dtype=torch.float64)
    assert _goes_as_one(copy.deepcopy(merged), x)
    for ours, theirs in zip(_step(merged, x), _step(branches, x), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_gradient() -> None:
    branches, merged = _both(_block(7, 2))
    results = []
    for block in (branches, merged):
        x = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(block(x).sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, *block.parameters()], allow_unused=True))
    for theirs, ours in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_one_map_is_kept_instead_of_one_for_each_branch_and_norm() -> None:
    x = torch.randn(2, 3, 14, 14, dtype=torch.float64).requires_grad_()
    kept = {}
    for block in _both(_block(13)):
        maps: dict[int, Tensor] = {}

        def pack(tensor: Tensor, maps: dict[int, Tensor] = maps) -> Tensor:
            if tensor.numel() == x.numel():
                maps[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x).sum().backward()
        kept[block.training_form] = len(maps)
    assert kept == {"branches": 7, "merged": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_in_16_bits_no_further_from_float64_than_the_branches(autocast: bool, dtype: torch.dtype) -> None:
    """The norm after the block, as in a network, takes the mean out of the slopes."""
    torch.manual_seed(0)
    net = nn.Sequential(_block(13, 8), nn.BatchNorm2d(8).double())
    x = (torch.randn(16, 8, 14, 14) + 1).to(dtype)
    errors, exact = {}, _step(net, x.double())
    for form in ("branches", "merged"):
        other = copy.deepcopy(net).float() if autocast else copy.deepcopy(net).to(dtype)
        other[0].training_form = form
        with torch.autocast("cpu", dtype, enabled=autocast):
            got = _step(other, x.float() if autocast else x)
        errors[form] = [((a - b).norm() / b.norm()).item() for a, b in zip(got, exact, strict=True)][:8]
    for ours, theirs in zip(errors["merged"], errors["branches"], strict=True):
        assert ours < 2 * theirs + torch.finfo(dtype).eps


def test_default_is_branches_in_training_and_one_convolution_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = _block(7).float(), torch.randn(2, 3, 9, 9)
    assert not _goes_as_one(block, x)
    assert _goes_as_one(block.eval(), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not _goes_as_one(block, x)
    branches, _ = _both(block)
    assert not _goes_as_one(branches, x)
    assert_close(block(x), branches(x), rtol=1e-5, atol=1e-5)
    monkeypatch.setenv(ENVIRONMENT, "branches")
    assert not _goes_as_one(block, x)
    monkeypatch.setenv(ENVIRONMENT, "merged")
    assert _goes_as_one(block.train(), x)
    assert not _goes_as_one(branches, x)  # what the block says comes first


@pytest.mark.parametrize("where", ["argument", "attribute", "environment"])
def test_unknown_forms(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"training form 'folded'; expected 'branches' or 'merged'.*LARKIT_TRAINING_FORM"
    if where == "argument":
        with pytest.raises(InputError, match=message):
            DilatedReparamBlock(3, 7, training_form="folded")  # type: ignore[arg-type]
        return
    block = DilatedReparamBlock(3, 7)
    if where == "attribute":
        block.training_form = "folded"  # type: ignore[assignment]
    else:
        monkeypatch.setenv(ENVIRONMENT, "folded")
    with pytest.raises(InputError, match=message):
        block(torch.randn(1, 3, 5, 5))


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _replaced(block: DilatedReparamBlock, name: str, module: nn.Module) -> None:
    block.set_submodule(name, module.train(block.training).double())


OTHERS: dict[str, Any] = {
    "hook": lambda block: block.lk_origin.register_forward_hook(lambda *args: None),
    "hook before": lambda block: block.origin_bn.register_forward_pre_hook(lambda *args: None),
    "hook of gradients": lambda block: block.origin_bn.register_full_backward_hook(lambda *args: None),
    "synchronised norm": lambda block: _replaced(block, "origin_bn", nn.SyncBatchNorm(3)),
    "no affine": lambda block: _replaced(block, "dil_bn_k5_1", nn.BatchNorm2d(3, affine=False)),
    "no running statistics": lambda block: _replaced(
        block, "dil_bn_k5_1", nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "another eps": lambda block: setattr(block.origin_bn, "eps", 0.1),
    "group norm": lambda block: _replaced(block, "origin_bn", nn.GroupNorm(1, 3)),
    "plain convolution": lambda block: _replaced(
        block, "lk_origin", nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=False)
    ),
    "parametrised": lambda block: parametrize.register_parametrization(block.lk_origin, "weight", _Doubled()),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("training", [True, False])
def test_parts_that_are_not_plain_are_computed_one_by_one(kind: str, training: bool) -> None:
    block, x = _both(_block(7))[1].train(training), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert _goes_as_one(block, x)
    OTHERS[kind](block)
    if not (kind == "synchronised norm" and training):  # needs a GPU
        assert not _goes_as_one(block, x)
    assert not goes_as_one([(block.lk_origin, block.origin_bn), *block._parallel()], x, "merged")


def test_maps_that_norms_or_convolutions_refuse() -> None:
    block = _both(_block(7))[1]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        block(torch.randn(1, 3, 1, 1, dtype=torch.float64))
    for form in _both(block.eval()):
        with pytest.raises(RuntimeError, match=r"same|type"):
            form(torch.randn(1, 3, 5, 5))  # float32 for weights in float64


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # expected: torch.jit is deprecated and still in use
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # expected: the checks of shapes become constants
def test_tracers_exporters_and_transforms_see_the_branches() -> None:
    block, x = _both(_block(7).float())[1].eval(), torch.randn(2, 3, 9, 9)
    wanted = block(x)
    graph = torch.fx.GraphModule(block, _Tracer().trace(block))
    assert {node.target for node in graph.graph.nodes if node.op == "call_module"} >= {"lk_origin", "origin_bn"}
    exported = torch.export.export(block, (x,))
    assert sum("conv2d" in str(node.target) for node in exported.graph.nodes) == 4
    traced = torch.jit.trace(block, x)
    mapped = torch.func.vmap(lambda x: block(x))(x[None])[0]
    for got in (graph(x), exported.module()(x), traced(x), mapped):
        assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_whole(training: bool) -> None:
    block, x = _both(_block(7))[1].train(training), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    other = copy.deepcopy(block)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(_step(compiled, x), _step(block, x), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert_close(other.state_dict(), block.state_dict())


def _losses(form: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setenv(ENVIRONMENT, form)
    torch.manual_seed(0)
    net = timm.create_model("test_unireplknet", num_classes=4).double().train()
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, 0.3, 0.1)
    assert sum(isinstance(module, DilatedReparamBlock) for module in net.modules()) > 1
    x, labels = torch.randn(8, 3, 64, 64, dtype=torch.float64), torch.arange(8) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return [*losses, F.cross_entropy(net.eval()(x), labels).item()]


def test_a_net_learns_the_same_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _losses("branches", monkeypatch)
    assert wanted[3] < wanted[0]
    assert _losses("merged", monkeypatch) == pytest.approx(wanted, rel=1e-6)


def test_a_net_with_checkpointing_counts_its_batches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "merged")
    net = timm.create_model("test_unireplknet", num_classes=4).train()
    again = copy.deepcopy(net)
    again.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    for each in (net, again):
        torch.manual_seed(0)
        each(x).sum().backward()
    assert_close(again.state_dict(), net.state_dict())
    assert_close([p.grad for p in again.parameters()], [p.grad for p in net.parameters()])
