"""Mean and variance of a depthwise convolution as an operator: values, derivatives, promises, 16 bits, large means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from core.errors import InputError
from core.ops import depthwise_conv2d, depthwise_statistics
from core.ops.statistics import statistics

FORMATS = [torch.contiguous_format, torch.channels_last]


def _wanted(x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    z = F.conv2d(x, weight, None, 1, padding, dilation, groups=x.shape[1])
    return z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def _with_gradients(both: tuple[Tensor, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    mean, var = (value.double() for value in both)
    slopes = torch.randn(2, len(mean), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [mean, var, *torch.autograd.grad((slopes[0] * mean + slopes[1] * var).sum(), inputs)]


odd = st.integers(0, 7).map(lambda half: 2 * half + 1)


@settings(max_examples=60)
@given(
    kernel=st.tuples(odd, odd),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dilation=st.integers(1, 4),
    layout=st.sampled_from(FORMATS),
)
def test_values_and_gradients(
    kernel: tuple[int, int], size: tuple[int, int], dilation: int, layout: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=random, dtype=torch.float64) for s in ((2, 3, *size), (3, 1, *kernel))]
    x, weight = (value.requires_grad_() for value in inputs)
    got = depthwise_statistics(x.to(memory_format=layout), weight, dilation=dilation)
    assert got[0].dtype == got[1].dtype == torch.float64
    pairs = zip(
        _with_gradients(got, [x, weight]), _with_gradients(_wanted(x, weight, dilation), [x, weight]), strict=True
    )
    for ours, wanted in pairs:
        assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 5), 1), ((3, 3), 2), ((9, 9), 1), ((1, 1), 1)])
def test_first_and_second_derivatives(kernel: tuple[int, int], dilation: int) -> None:
    x, weight = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((2, 2, 4, 5), (2, 1, *kernel)))

    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return depthwise_statistics(x, weight, dilation=dilation)

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
def test_operator_keeps_its_promises(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 6, 5).to(dtype, memory_format=layout).requires_grad_()
    weight = torch.randn(3, 1, 7, 5).to(dtype).requires_grad_()
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": None, "atol": None}
    torch.library.opcheck(statistics, (x, weight, 1, ""), **tolerances)
    torch.library.opcheck(statistics, (x.detach(), weight.detach(), 2, "fft"), **tolerances)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Results in float32, gradients in the dtype of what they belong to, also where slopes are tiny."""
    x = (torch.randn(8, 5, 28, 28) + 1).to(dtype, memory_format=layout).requires_grad_()
    weight = torch.randn(5, 1, 7, 7).div(50).to(dtype).requires_grad_()
    got = depthwise_statistics(x, weight)
    assert got[0].dtype == got[1].dtype == torch.float32
    gradients = torch.autograd.grad((got[0] + got[1]).sum(), (x, weight))
    wide = [value.detach().double().requires_grad_() for value in (x, weight)]
    mean, var = _wanted(wide[0], wide[1], 1)
    wanted = torch.autograd.grad((mean + var).sum(), wide)
    eps = torch.finfo(dtype).eps
    for ours, exact in zip((*got, *gradients), (mean, var, *wanted), strict=True):
        floor = (
            2**-22 if dtype == torch.float16 and ours is gradients[0] else 0
        )  # values of 1e-5: float16 has few digits
        assert_close(ours.double(), exact, rtol=0, atol=max(floor, 8 * eps * exact.abs().max().item()))
    assert gradients[0].dtype == gradients[1].dtype == dtype


def test_a_large_mean_does_not_spoil_the_variance() -> None:
    """Mean of squares minus square of the mean would be off by 0.1 and more here."""
    noise, weight = torch.randn(4, 3, 9, 11), torch.zeros(3, 1, 7, 7)
    weight[:, :, 3, 3] = 1
    x = noise + 1000
    mean, var = depthwise_statistics(x, weight)
    exact = _wanted(x.double(), weight.double(), 1)
    assert_close(mean.double(), exact[0], rtol=1e-6, atol=0)
    assert_close(var.double(), exact[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_mean_does_not_spoil_gradients_in_16_bits(dtype: torch.dtype) -> None:
    """A z that is rounded before its mean is taken away is off by 3 steps of the dtype here, ours by half a one."""
    torch.manual_seed(0)
    x = (torch.randn(2, 3, 40, 40) + 30).to(dtype).requires_grad_()
    weight = (1 + torch.rand(3, 1, 3, 3)).to(dtype)
    (got,) = torch.autograd.grad(depthwise_statistics(x, weight)[1].sum(), x)
    wide = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(_wanted(wide, weight.double(), 1)[1].sum(), wide)
    got, exact = (slopes[:, :, 2:-2, 2:-2].double() for slopes in (got, exact))  # at the edge z is another
    assert_close(got, exact, rtol=0, atol=2 * torch.finfo(dtype).eps * exact.abs().max().item())


def test_autocast_and_transforms() -> None:
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(3, 1, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = depthwise_statistics(x, weight)
    z = depthwise_conv2d(x.bfloat16(), weight.bfloat16()).float()
    assert_close(got, (z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)))
    for ours, wanted in zip(
        torch.func.vmap(depthwise_statistics)(x[:, None], weight[None].expand(2, -1, -1, -1, -1)),
        zip(*(depthwise_statistics(part[None], weight) for part in x), strict=True),
        strict=True,
    ):
        assert_close(ours, torch.stack(wanted))


def test_multiplications_are_those_of_the_convolution() -> None:
    x, weight = torch.randn(2, 3, 4, 6), torch.randn(3, 1, 13, 13).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        depthwise_statistics(x, weight)[1].sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 3 * 4 * 6 * 7 * 11)  # forward, again, weight gradient


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"weight of shape \(4, 1, 2, 3\) for an input with 4 channels"):
        depthwise_statistics(torch.randn(1, 4, 8, 8), torch.randn(4, 1, 2, 3))
    with pytest.raises(InputError, match="'cudnn' is no way to compute"):
        depthwise_statistics(torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3), implementation="cudnn")
