"""Every way to compute a depthwise convolution: values, first and second gradients, operators, the choice of one."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from core.errors import InputError
from core.layers import DepthwiseConv2d
from core.ops import IMPLEMENTATIONS, chosen_implementations, depthwise_conv2d
from core.ops.choose import ENVIRONMENT, MEASURE
from core.ops.implementations import Implementation
from core.ops.operators import depthwise, depthwise_weight_gradient
from core.ops.table import forget, key_of, table_file, write_table

HERE = [name for name in IMPLEMENTATIONS if name != "triton"]  # test_triton_depthwise.py runs that one
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No measurements of the machine that runs the tests."""
    monkeypatch.setenv("LARKIT_CACHE", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    forget()
    yield
    monkeypatch.undo()
    forget()


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    return F.conv2d(x, weight, bias, 1, padding, dilation, groups=x.shape[1])


odd = st.integers(0, 8).map(lambda half: 2 * half + 1)


@pytest.mark.parametrize("name", HERE)
@settings(max_examples=60)
@given(
    kernel=st.tuples(odd, odd),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    layout=st.sampled_from(FORMATS),
)
def test_values_and_gradients_in_float64(
    name: str, kernel: tuple[int, int], size: tuple[int, int], dilation: int, bias: bool, layout: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, *size), (3, 1, *kernel), (3,)][: 3 if bias else 2]
    inputs = [torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes]
    x, weight, offset = (*inputs, None)[:3]
    assert x is not None
    assert weight is not None
    stored = x.to(memory_format=layout)
    got = depthwise_conv2d(stored, weight, offset, dilation=dilation, implementation=name)
    wanted = _conv2d(x, weight, offset, dilation)
    assert got.stride() == stored.stride() or 1 in (*size, 3)
    slopes = torch.randn(wanted.shape, generator=random, dtype=torch.float64)
    assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    pairs = zip(torch.autograd.grad(got, inputs, slopes), torch.autograd.grad(wanted, inputs, slopes), strict=True)
    for ours, theirs in pairs:
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "size", "dilation"), [(13, 14, 1), (31, 20, 1), (7, 14, 2), (3, 28, 5), (13, 7, 1)])
def test_other_dtypes(
    kernel: int, size: int, dilation: int, dtype: torch.dtype, layout: torch.memory_format, name: str
) -> None:
    x = torch.randn(2, 5, size, size).to(dtype, memory_format=layout).requires_grad_()
    weight, bias = torch.randn(5, 1, kernel, kernel).to(dtype).requires_grad_(), torch.randn(5).to(dtype)
    y = depthwise_conv2d(x, weight, bias, dilation=dilation, implementation=name)
    slopes = torch.randn_like(x)
    got = [y, *torch.autograd.grad(y, (x, weight), slopes)]
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = _conv2d(wide[0], wide[1], bias.double(), dilation)
    wanted = [exact, *torch.autograd.grad(exact, wide, slopes.double())]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), theirs, rtol=0, atol=8 * torch.finfo(dtype).eps * theirs.abs().max().item())


@pytest.mark.parametrize("name", HERE)
def test_first_and_second_derivatives(name: str) -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((1, 2, 4, 5), (2, 1, 5, 3), (2,)))

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, implementation=name)

    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("layout", FORMATS)
def test_operators_keep_their_promises(name: str, layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 6, 5).to(memory_format=layout)
    weight, bias = torch.randn(3, 1, 7, 5), torch.randn(3)
    learned = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(depthwise, (*learned, 1, name))
    torch.library.opcheck(depthwise, (x, weight, None, 2, name))
    torch.library.opcheck(depthwise_weight_gradient, (x.requires_grad_(), torch.randn_like(x), 7, 5, 1, name))


@pytest.mark.parametrize(
    ("dtype", "kernel", "mode", "node"),
    [
        (torch.float64, 5, False, "ConvolutionBackward0"),  # no oneDNN: PyTorch's kernel as it is
        (torch.float64, 19, False, "_AtOnceBackward"),  # larger than the map
        (torch.float32, 5, False, "_AtOnceBackward"),
        (torch.float32, 5, True, "GeneratedBackwardFor_larkit_depthwise_conv2d_defaultBackward"),
    ],
)
def test_operators_are_left_out_where_nobody_looks(dtype: torch.dtype, kernel: int, mode: bool, node: str) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=dtype, requires_grad=True)
    with FlopCounterMode(display=False) if mode else nullcontext():
        y = depthwise_conv2d(x, weight)
    assert y.grad_fn is not None
    assert y.grad_fn.name() == node
    slopes = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, weight], slopes)
    assert_close(got, torch.autograd.grad(_conv2d(x, weight, None, 1), [x, weight], slopes))


def test_deterministic_algorithms() -> None:
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(3, 1, 7, 7).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        for name in HERE:
            gradients = [
                torch.autograd.grad(depthwise_conv2d(x, weight, implementation=name).square().sum(), weight)[0]
                for _ in range(2)
            ]
            assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_transforms_of_functions() -> None:
    x, weight = torch.randn(4, 2, 3, 6, 6), torch.randn(3, 1, 5, 5)
    batched = torch.func.vmap(lambda x: depthwise_conv2d(x, weight))(x)
    assert_close(batched, torch.stack([depthwise_conv2d(part, weight) for part in x]))
    tangent = torch.randn_like(weight)
    slope = torch.func.jvp(lambda w: depthwise_conv2d(x[0], w), (weight,), (tangent,))[1]
    assert_close(slope, depthwise_conv2d(x[0], tangent), rtol=1e-5, atol=1e-5)
    each = torch.func.grad(lambda w: depthwise_conv2d(x[0], w).square().sum())(weight)
    weight.requires_grad_()
    assert_close(each, torch.autograd.grad(depthwise_conv2d(x[0], weight).square().sum(), weight)[0])


def test_compiled_whole_for_any_batch_and_size() -> None:
    layer = DepthwiseConv2d(3, 13, bias=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 9, 11), (3, 3, 20, 7)):
        x = torch.randn(shape)
        got = torch.autograd.grad(compiled(x).square().sum(), layer.weight)[0]
        assert_close(got, torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])


def test_multiplications_are_those_of_taps_that_meet_the_map() -> None:
    x, weight = torch.randn(2, 3, 4, 6), torch.randn(3, 1, 13, 13).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        depthwise_conv2d(x, weight).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 2 * 3 * 4 * 6 * 7 * 11)  # forward, weight gradient


def test_what_was_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 7, 7)
    key = key_of("forward", x, (7, 7), 1)
    depthwise_conv2d(x, weight)
    assert chosen_implementations()[key] in IMPLEMENTATIONS
    write_table({key: "fft"})
    depthwise_conv2d(x, weight)
    assert chosen_implementations()[key] == "fft"
    monkeypatch.setenv(ENVIRONMENT, "matrix")
    depthwise_conv2d(x, weight)
    assert chosen_implementations()[key] == "matrix"
    for name in ("contiguous", "channels_last", "contiguous"):
        depthwise_conv2d(x, weight, implementation=name)
        assert chosen_implementations()[key] == name


def test_sizes_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to measure, the first call of each size times all ways; later ones and other runs read the table."""
    x, weight = torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(3, 1, 5, 5, requires_grad=True)
    monkeypatch.setenv(ENVIRONMENT, MEASURE)
    state = torch.get_rng_state()
    y = depthwise_conv2d(x, weight)
    y.square().sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(y, _conv2d(x, weight, None, 1))
    kept = json.loads(table_file().read_text())["fastest"]
    assert kept == {key: chosen_implementations()[key] for key in kept}
    assert [key.split(", ")[1] for key in kept] == ["forward", "weight_gradient"]

    measured = []
    monkeypatch.setattr("core.ops.choose.measure", lambda convolution, *args: measured.append(convolution))
    forget()
    depthwise_conv2d(x[:1], weight)  # a batch of another size takes the same
    assert measured == []


def test_an_implementation_that_breaks_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: object) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setitem(IMPLEMENTATIONS, "triton", Implementation(breaks, breaks))
    monkeypatch.setenv(ENVIRONMENT, MEASURE)
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 5, 5)
    with pytest.warns(UserWarning, match=r"'triton' failed and is not measured: out of resource"):
        depthwise_conv2d(x, weight)
    assert chosen_implementations()[key_of("forward", x, (5, 5), 1)] in HERE


def test_a_kernel_larger_than_the_map_has_the_key_of_its_centre() -> None:
    x = torch.randn(1, 2, 4, 9)
    assert key_of("forward", x, (13, 13), 1) == key_of("forward", x, (7, 13), 1)


@pytest.mark.parametrize("place", ["argument", "environment"])
def test_names_that_are_none(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "cudnn" if place == "argument" else ""
    if not asked:
        monkeypatch.setenv(ENVIRONMENT, "cudnn")
    with pytest.raises(InputError, match=rf"'cudnn' is no way to .*expected one of contiguous, .* {ENVIRONMENT}"):
        depthwise_conv2d(torch.randn(1, 2, 9, 9), torch.randn(2, 1, 7, 7), implementation=asked)


def test_table_of_another_release_and_broken_table() -> None:
    x, weight = torch.randn(1, 2, 10, 9), torch.randn(2, 1, 7, 7)
    key = key_of("forward", x, (7, 7), 1)
    write_table({key: "fft"})
    stored = json.loads(table_file().read_text())
    table_file().write_text(json.dumps(stored | {"torch": "0.4.1"}))
    forget()
    depthwise_conv2d(x, weight)
    assert chosen_implementations()[key] != "fft"
    table_file().write_text("{")
    forget()
    with pytest.raises(InputError, match=r"depthwise\.json cannot be read: .*delete it and tune again"):
        depthwise_conv2d(x, weight)


def test_slices_of_a_map() -> None:
    wide = torch.randn(2, 6, 9, 9).to(memory_format=torch.channels_last)
    weight = torch.randn(3, 1, 5, 5)
    for x in (wide[:, :3], wide[:, ::2, 1:, ::2], wide.contiguous()[:, 1:4]):
        y = nn.functional.conv2d(x, weight, padding=2, groups=3)
        assert_close(depthwise_conv2d(x, weight), y, rtol=1e-5, atol=1e-5)


def test_matrices_are_for_small_maps() -> None:
    with pytest.raises(InputError, match=r"'matrix' got a map of 40 x 30; expected at most 1024 pixels"):
        depthwise_conv2d(torch.randn(1, 2, 40, 30), torch.randn(2, 1, 5, 5), implementation="matrix")


@pytest.mark.parametrize("name", HERE)
def test_few_channels_wide_maps_and_kernels_in_bfloat16(name: str) -> None:
    """PyTorch's own channels_last convolution does not come back from this one on some processors."""
    x = torch.randn(1, 8, 4, 40).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(8, 1, 3, 15).bfloat16().requires_grad_()
    y = depthwise_conv2d(x, weight, implementation=name)
    slopes = torch.randn_like(x)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = _conv2d(wide[0], wide[1], None, 1)
    wanted = [exact, *torch.autograd.grad(exact, wide, slopes.double())]
    for ours, theirs in zip([y, *torch.autograd.grad(y, (x, weight), slopes)], wanted, strict=True):
        assert_close(ours.double(), theirs, rtol=0, atol=0.06 * theirs.abs().max().item())
