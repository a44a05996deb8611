"""The Triton operators: refusals, import without Triton, and all values in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.errors import InputError
from core.ops.triton import convolve, triton_available

HERE = Path(__file__).parent


def _run(*arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2], timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_values_in_the_interpreter() -> None:
    """A process of its own: Triton decides when a kernel is defined whether it is interpreted."""
    pytest.importorskip("triton", reason="not published for this platform")
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly")
    report = _run("-m", "pytest", *options, str(HERE / "interpreted.py"), TRITON_INTERPRET="1")
    assert "skipped" not in report


def test_importable_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, core.ops.depthwise\n"
        "from core.ops.triton import triton_available\n"
        "loaded = 'core.ops.triton.direct' in sys.modules\n"
        "print(core.ops.depthwise.USE_TRITON, triton_available(torch.zeros(1)), loaded)"
    )
    assert _run("-c", program, TRITON_INTERPRET="1", LARKIT_TRITON="1").split() == ["True", "False", "False"]


def test_off_by_default() -> None:
    program = "import sys, core.ops.depthwise as d; print(d.USE_TRITON, 'core.ops.triton' in sys.modules)"
    assert _run("-c", program, LARKIT_TRITON="").split() == ["False", "False"]


def test_map_and_kernel_of_two_dtypes() -> None:
    x, weight = torch.zeros(1, 2, 5, 5), torch.zeros(2, 1, 3, 3, dtype=torch.bfloat16)
    with pytest.raises(
        InputError, match=r"Triton's convolution got a map in torch\.float32 with torch\.bfloat16; expected"
    ):
        convolve(x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refused_on_a_plain_cpu(dtype: torch.dtype) -> None:
    x, weight = torch.zeros(1, 2, 5, 5, dtype=dtype), torch.zeros(2, 1, 3, 3, dtype=dtype)
    assert not triton_available(x)
    with pytest.raises(InputError, match=rf"Triton's convolution got {dtype} on cpu; expected .* on an NVIDIA GPU"):
        convolve(x, weight)
