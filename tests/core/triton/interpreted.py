"""The Triton convolutions in Triton's interpreter; test_triton_depthwise.py runs this file with TRITON_INTERPRET=1."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import core.ops.depthwise
from core.ops import depthwise_conv2d
from core.ops.triton import (
    convolve,
    direct,
    tensor_cores,
    triton_available,
    triton_depthwise_conv2d,
    triton_weight_gradient,
    weight_gradient,
)

core.ops.depthwise.USE_TRITON = True

FORMATS = [torch.contiguous_format, torch.channels_last]
# Of the largest value: float32 in another order of summing; one step of the 16-bit formats (the interpreter cuts off
# what bfloat16 cannot hold, where a GPU rounds to the nearest).
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def depthwise_triton(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    return depthwise_conv2d(x, weight, bias, dilation=dilation)


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def _close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert_close(got.double(), wanted.double(), rtol=0, atol=TOLERANCE[dtype] * wanted.abs().max().item())


def _expected(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, grad: Tensor) -> list[Tensor]:
    """Output and gradients of x, weight and bias by PyTorch in float64."""
    inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    y = F.conv2d(inputs[0], inputs[1], inputs[2] if bias is not None else None, 1, padding, dilation, x.shape[1])
    return [y.detach(), *torch.autograd.grad((y * grad.double()).sum(), inputs)]


def _compare(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    inputs = [t.requires_grad_() for t in (x.detach(), weight, bias) if t is not None]
    grad = torch.randn_like(x)
    y = depthwise_triton(inputs[0], weight, bias, dilation)
    assert y.dtype == x.dtype
    got = [y.detach(), *torch.autograd.grad(y, inputs, grad)]
    for ours, wanted in zip(got, _expected(x, weight, bias, dilation, grad), strict=True):
        assert ours.dtype == x.dtype
        _close(ours, wanted, x.dtype)
    return y


@pytest.mark.parametrize(
    ("dtype", "memory_format", "size"),
    [
        (torch.float16, FORMATS[0], (5, 9)),
        (torch.float16, FORMATS[1], (7, 7)),
        (torch.bfloat16, FORMATS[0], (7, 7)),
        (torch.bfloat16, FORMATS[1], (5, 9)),
    ],
)
@pytest.mark.parametrize("kernel", [3, 7, 13, 31])
def test_16_bits(kernel: int, size: tuple[int, int], memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    x = _random(2, 3, *size, dtype=dtype).to(memory_format=memory_format)
    y = _compare(x, _random(3, 1, kernel, kernel, dtype=dtype), _random(3, dtype=dtype), 1)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    ("kernel", "memory_format"),
    [(3, FORMATS[0]), (3, FORMATS[1]), (7, FORMATS[0]), (7, FORMATS[1]), (13, FORMATS[1]), (31, FORMATS[1])],
)
def test_float32(kernel: int, memory_format: torch.memory_format) -> None:
    x = _random(1, 2, 5, 9).to(memory_format=memory_format)
    y = _compare(x, _random(2, 1, kernel, kernel), _random(2), 1)
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "dilation", "dtype"),
    [
        ((3, 3), 2, torch.float32),
        ((7, 7), 2, torch.bfloat16),
        ((13, 13), 2, torch.float16),
        ((5, 7), 3, torch.float16),
        ((1, 31), 1, torch.float16),
        ((27, 1), 1, torch.bfloat16),
    ],
)
def test_dilated_and_oblong(kernel: tuple[int, int], dilation: int, dtype: torch.dtype, bias: bool) -> None:
    x = _random(1, 2, 9, 14, dtype=dtype)
    _compare(x, _random(2, 1, *kernel, dtype=dtype), _random(2, dtype=dtype) if bias else None, dilation)


@pytest.mark.parametrize(
    ("shape", "kernel", "dilation"),
    [
        ((3, 2, 14, 14), (13, 13), 1),  # blocks of 4 rows
        ((1, 1, 9, 30), (13, 13), 1),  # blocks of 4 rows, as wide as the map
        ((2, 1, 5, 56), (7, 31), 1),  # input blocks of half as many rows
        ((150, 1, 3, 70), (3, 7), 1),  # matrices from the bank, several a row of taps
        ((2, 1, 3, 149), (3, 13), 2),  # several blocks across, blocks of input half as wide
        ((1, 1, 1, 100), (1, 31), 1),  # a single row
        ((1, 1, 40, 5), (7, 7), 3),  # several blocks down
        ((130, 1, 14, 9), (7, 7), 2),  # matrices from the bank, several programs, weight gradient in parts
    ],
)
def test_every_way_to_cut_a_map(shape: tuple[int, int, int, int], kernel: tuple[int, int], dilation: int) -> None:
    """The tensor-core kernels in float32, where a wrong tap shows in the last digits."""
    x, weight, bias, grad = _random(*shape), _random(shape[1], 1, *kernel), _random(shape[1]), _random(*shape)
    y, dx, dw, _ = _expected(x, weight, bias, dilation, grad)
    _close(tensor_cores.convolve(x, weight, bias, dilation), y, x.dtype)
    _close(tensor_cores.convolve(grad, weight.flip(2, 3), None, dilation), dx, x.dtype)
    _close(tensor_cores.weight_gradient(x, grad, kernel, dilation), dw, x.dtype)


def test_parts_of_the_batch_that_end_within_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cores, "SPLITS_FROM", 6)  # 3 steps in 2 parts of 192 blocks, in tiles of 128
    x, grad = _random(90, 1, 14, 9), _random(90, 1, 14, 9)
    wanted = _expected(x, _random(1, 1, 7, 7), None, 1, grad)[2]
    _close(tensor_cores.weight_gradient(x, grad, (7, 7), 1), wanted, x.dtype)


@pytest.mark.parametrize("shape", [(40, 1, 9, 17), (1, 33, 3, 4)])
def test_tap_by_tap_with_many_programs(shape: tuple[int, int, int, int]) -> None:
    for memory_format in FORMATS:
        x, weight, grad = _random(*shape).to(memory_format=memory_format), _random(shape[1], 1, 3, 3), _random(*shape)
        y, dx, dw = _expected(x, weight, None, 1, grad)
        got = torch.empty_like(x)
        direct.convolve(x, weight, None, got, 1)
        _close(got, y, x.dtype)
        direct.convolve(grad, weight.flip(2, 3), None, got, 1)
        _close(got, dx, x.dtype)
        _close(direct.weight_gradient(x, grad, (3, 3), 1), dw, x.dtype)


@pytest.mark.parametrize(("kernel", "dtype"), [(3, torch.float32), (7, torch.bfloat16)])
def test_slices_and_a_constant_output_gradient(kernel: int, dtype: torch.dtype) -> None:
    weight = _random(2, 1, kernel, kernel, dtype=dtype)
    wide = _random(2, 5, 6, 16, dtype=dtype)
    _compare(wide[:, 1:4:2, 1:, ::2], weight, None, 1)
    last = _compare(wide.to(memory_format=torch.channels_last)[:, :2], weight, None, 1)
    assert last.is_contiguous(memory_format=torch.channels_last)
    x = wide[:, :2].clone().requires_grad_()
    (dx,) = torch.autograd.grad(depthwise_triton(x, weight).sum(), x)  # the output gradient has strides of 0
    _close(dx, _expected(x, weight, None, 1, torch.ones_like(x))[1], dtype)


@pytest.mark.parametrize(("kernel", "dtype"), [(3, torch.float32), (7, torch.bfloat16)])
def test_an_empty_batch(kernel: int, dtype: torch.dtype) -> None:
    x, weight = _random(0, 2, 5, 5, dtype=dtype).requires_grad_(), _random(2, 1, kernel, kernel, dtype=dtype)
    y = depthwise_triton(x, weight.requires_grad_())
    assert y.shape == x.shape
    y.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "dtype"), [(3, torch.float32), (7, torch.bfloat16)])
def test_operators_keep_their_promises(kernel: int, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = _random(2, 3, 4, 5, dtype=dtype).to(memory_format=memory_format)
    weight, bias = _random(3, 1, kernel, kernel, dtype=dtype), _random(3, dtype=dtype)
    learned = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(triton_depthwise_conv2d, (*learned, 1))
    torch.library.opcheck(triton_depthwise_conv2d, (x, weight, None, 2))
    torch.library.opcheck(triton_weight_gradient, (x, x, kernel, kernel, 1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(_random(3, 1, 7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_triton(x, self.weight)


def test_compiled_whole() -> None:
    layer, x, grad = Layer(), _random(2, 3, 4, 5).requires_grad_(), _random(2, 3, 4, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    wanted = _expected(x, layer.weight, None, 1, grad)
    for ours, theirs in zip((got, *torch.autograd.grad(got, (x, layer.weight), grad)), wanted, strict=True):
        _close(ours, theirs, torch.float32)


def test_autocast() -> None:
    x, weight = _random(1, 2, 5, 5).requires_grad_(), _random(2, 1, 7, 7).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_triton(x, weight, torch.zeros(2))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    _close(x.grad, _expected(x, weight, None, 1, torch.ones_like(x))[1], torch.bfloat16)


def test_second_derivatives() -> None:
    x, weight = _random(1, 2, 4, 4).requires_grad_(), _random(2, 1, 3, 3).requires_grad_()
    (first,) = torch.autograd.grad((depthwise_triton(x, weight) ** 2).sum(), x, create_graph=True)
    got = torch.autograd.grad((first**2).sum(), (x, weight))
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    (first,) = torch.autograd.grad((F.conv2d(*wide, padding=1, groups=2) ** 2).sum(), wide[0], create_graph=True)
    for ours, wanted in zip(got, torch.autograd.grad((first**2).sum(), wide), strict=True):
        _close(ours, wanted, torch.float32)


def test_kernels_larger_than_the_map_without_trimming() -> None:
    x, weight, grad = _random(1, 2, 3, 5), _random(2, 1, 15, 15), _random(1, 2, 3, 5)
    y, _, dw = _expected(x, weight, None, 1, grad)
    _close(convolve(x, weight), y, x.dtype)
    _close(weight_gradient(x, grad, (15, 15)), dw, x.dtype)


def test_where_it_is_available() -> None:
    assert triton_available(torch.zeros(1))
    assert not triton_available(torch.zeros(1, dtype=torch.float64))
    assert not triton_available(torch.zeros(1, device="meta"))
