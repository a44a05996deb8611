"""Statistics without a map in Triton's interpreter; test_triton_depthwise.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from core.layers import DilatedReparamBlock
from core.ops import depthwise_statistics, triton_depthwise, triton_statistics
from core.ops.statistics import statistics

FORMATS = [torch.contiguous_format, torch.channels_last]
# Of the largest value: values are float32, gradients are rounded to the dtype of x (by the interpreter, cut off).
VALUES, TOLERANCE = 3e-6, {torch.float32: 1e-5, torch.float16: 2**-8, torch.bfloat16: 2**-6}


def _wanted(x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    z = F.conv2d(x, weight, None, 1, padding, dilation, groups=x.shape[1])
    return z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def _close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * wanted.abs().max().item())


def _compare(x: Tensor, weight: Tensor, dilation: int = 1) -> None:
    """Values and gradients against float64."""
    inputs = [value.detach().requires_grad_() for value in (x, weight)]
    got = depthwise_statistics(inputs[0], inputs[1], dilation=dilation, implementation="triton")
    wide = [value.detach().double().requires_grad_() for value in (x, weight)]
    exact = _wanted(wide[0], wide[1], dilation)
    slopes = torch.randn(2, x.shape[1])
    gradients = torch.autograd.grad((slopes * torch.stack(got)).sum(), inputs)
    for ours, wanted in zip(got, exact, strict=True):
        assert ours.dtype == torch.float32
        _close(ours, wanted, VALUES)
    wanted_gradients = torch.autograd.grad((slopes.double() * torch.stack(exact)).sum(), wide)
    for ours, wanted in zip(gradients, wanted_gradients, strict=True):
        assert ours.dtype == x.dtype
        _close(ours, wanted, TOLERANCE[x.dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("kernel", "size"), [((3, 3), (5, 9)), ((7, 7), (7, 7)), ((13, 13), (5, 9))])
def test_values_and_gradients(
    kernel: tuple[int, int], size: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = (torch.randn(2, 3, *size) + 0.5).to(dtype, memory_format=layout)
    _compare(x, torch.randn(3, 1, *kernel).to(dtype))


@pytest.mark.parametrize(
    ("kernel", "dilation", "dtype"),
    [((3, 3), 4, torch.float32), ((7, 7), 2, torch.bfloat16), ((5, 7), 3, torch.float16), ((3, 3), 5, torch.bfloat16)],
)
def test_dilated(kernel: tuple[int, int], dilation: int, dtype: torch.dtype) -> None:
    _compare(torch.randn(2, 2, 9, 15).to(dtype), torch.randn(2, 1, *kernel).to(dtype), dilation)


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation"),
    [
        ((3, 2, 14, 14), (13, 13), 1),  # blocks that end within the map and beyond it
        ((2, 1, 3, 149), (3, 13), 2),  # several blocks across
        ((1, 1, 1, 100), (1, 31), 1),  # a single row
        ((130, 1, 14, 9), (3, 5), 2),  # matrices from the bank, several programs, the last not full, empty slots
        ((13, 33, 3, 7), (1, 3), 1),  # more channels than lanes
    ],
)
def test_every_way_to_cut_a_map(shape: tuple[int, int, int, int], kernel: tuple[int, int], dilation: int) -> None:
    x, weight = torch.randn(shape) + 3, torch.randn(shape[1], 1, *kernel)
    exact = _wanted(x.double(), weight.double(), dilation)
    last = x.to(memory_format=torch.channels_last)
    for got in (
        triton_statistics.on_tensor_cores(x, weight, dilation),
        triton_statistics.direct(x, weight, dilation),
        triton_statistics.direct(last, weight, dilation),
    ):
        for ours, wanted in zip(got, exact, strict=True):
            _close(ours, wanted, VALUES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_large_mean_does_not_spoil_the_variance(dtype: torch.dtype) -> None:
    """Of 40 times as many squares as the variance has, in float16; of a million times as many in float32."""
    noise, weight = torch.randn(4, 2, 9, 12), torch.zeros(2, 1, 7, 7)
    weight[:, :, 3, 3] = 1
    x = (noise + (1000 if dtype == torch.float32 else 6)).to(dtype)
    exact = _wanted(x.double(), weight.double(), 1)
    mean, var = triton_depthwise.statistics(x, weight.to(dtype))
    _close(mean, exact[0], VALUES)
    _close(var, exact[1], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_every_time(dtype: torch.dtype) -> None:
    x, weight = torch.randn(7, 1, 14, 9).to(dtype), torch.randn(1, 1, 7, 7).to(dtype)
    first, second = (torch.stack(triton_depthwise.statistics(x, weight)) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


def test_one_pixel_and_no_batch() -> None:
    x = torch.randn(5, 2, 1, 1)
    weight = torch.randn(2, 1, 7, 7)
    assert_close(depthwise_statistics(x, weight, implementation="triton"), _wanted(x, weight, 1))
    assert depthwise_statistics(x[:0], weight, implementation="triton")[0].isnan().all()


@pytest.mark.parametrize(("kernel", "dtype"), [(3, torch.float32), (7, torch.bfloat16)])
def test_operator_keeps_its_promises(kernel: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(3, 1, kernel, kernel).to(dtype)
    torch.library.opcheck(statistics, (x.requires_grad_(), weight.requires_grad_(), 1, "triton"), rtol=0.02, atol=0.02)


def test_block_with_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARKIT_DEPTHWISE", "triton")
    block = DilatedReparamBlock(2, 7, training_form="merged")
    x, slopes = torch.randn(2, 2, 5, 6).requires_grad_(), torch.randn(2, 2, 5, 6)
    y = block(x)
    got = [y.detach(), *torch.autograd.grad(y, [x, *block.parameters()], slopes)]
    monkeypatch.delenv("LARKIT_DEPTHWISE")
    other = DilatedReparamBlock(2, 7, training_form="branches")
    fresh = {name: value for name, value in block.state_dict().items() if "running" not in name}
    other.load_state_dict(fresh, strict=False)
    other = other.double()
    wide = x.detach().double().requires_grad_()
    y = other(wide)
    wanted = [y.detach(), *torch.autograd.grad(y, [wide, *other.parameters()], slopes.double())]
    largest = max(value.abs().max().item() for value in wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * largest)
    for name, norm in block.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            twin = other.get_submodule(name)
            assert isinstance(twin, nn.BatchNorm2d)
            assert norm.running_var is not None
            assert twin.running_var is not None
            assert_close(norm.running_var.double(), twin.running_var, rtol=1e-5, atol=1e-6)
