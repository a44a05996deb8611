"""The Triton operators: refusals, import without Triton, and all values in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.errors import InputError
from core.ops.triton_depthwise import depthwise_triton, triton_available

HERE = Path(__file__).parent


def _run(*arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1], timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_values_in_the_interpreter() -> None:
    """A process of its own: Triton decides when a kernel is defined whether it is interpreted."""
    pytest.importorskip("triton", reason="not published for this platform")
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly")
    report = _run("-m", "pytest", *options, str(HERE / "interpreted_triton.py"), TRITON_INTERPRET="1")
    assert "skipped" not in report


def test_importable_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, core.ops\n"
        "from core.ops.triton_depthwise import triton_available\n"
        "print(triton_available(torch.zeros(1)), any(n.startswith('core.ops.triton_k') for n in sys.modules))"
    )
    assert _run("-c", program, TRITON_INTERPRET="1").split() == ["False", "False"]


def test_refused_on_a_plain_cpu() -> None:
    assert not triton_available(torch.zeros(1))
    with pytest.raises(InputError, match=r"a tensor on cpu; expected an NVIDIA GPU .* Use F\.conv2d"):
        depthwise_triton(torch.zeros(1, 2, 5, 5), torch.zeros(2, 1, 3, 3))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "dilation"),
    [
        ((2, 5, 5), (2, 1, 3, 3), None, 1),
        ((1, 2, 5, 5), (2, 1, 4, 3), None, 1),
        ((1, 2, 5, 5), (2, 1, 3, 4), None, 1),
        ((1, 2, 5, 5), (2, 2, 3, 3), None, 1),
        ((1, 2, 5, 5), (3, 1, 3, 3), None, 1),
        ((1, 2, 5, 5), (2, 3, 3), None, 1),
        ((1, 2, 5, 5), (2, 1, 3, 3), (1,), 1),
        ((1, 2, 5, 5), (2, 1, 3, 3), None, 0),
    ],
)
def test_shapes_that_do_not_fit(
    x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None, dilation: int
) -> None:
    with pytest.raises(InputError, match=r"shapes .* and dilation .*; expected \(B, C, H, W\), \(C, 1, KH, KW\)"):
        depthwise_triton(torch.zeros(x), torch.zeros(weight), torch.zeros(bias) if bias else None, dilation)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_dtypes_that_do_not_fit(dtypes: tuple[torch.dtype, torch.dtype], device: str) -> None:
    x, weight = torch.zeros(1, 2, 5, 5, dtype=dtypes[0]), torch.zeros(2, 1, 3, 3, dtype=dtypes[1])
    with pytest.raises(InputError, match=rf"{dtypes[1]} on {device}; expected one device and one dtype"):
        depthwise_triton(x.to(device), weight.to(device))


def test_shape_and_format_on_the_meta_device() -> None:
    x = torch.zeros(2, 4, 6, 5, device="meta").to(memory_format=torch.channels_last)
    y = depthwise_triton(x, torch.zeros(4, 1, 3, 3, device="meta"))
    assert y.shape == x.shape
    assert y.stride() == x.stride()
