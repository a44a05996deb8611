"""Every Triton kernel becomes machine code for compute capability 9.0 without a GPU, and fits the processor.

The launches are those of the nets' sizes at batch 64, recorded from tensors without values.
"""

import re
import subprocess
import tempfile
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="not published for this platform")

import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from core.ops.triton import direct, tensor_cores

if "nvidia" not in backends:
    pytest.skip("this Triton has no CUDA backend", allow_module_level=True)

SHARED = 227 * 1024  # bytes a program may have on compute capability 9.0
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SIZES = [  # channels, side of the map, side of the kernel: one for every way to cut a map
    (128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13), (64, 75, 13)
]  # fmt: skip


class Recorder:
    """Stands for a kernel: keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel.fn if hasattr(kernel, "configs") else kernel
        self.configs = getattr(kernel, "configs", None)
        self.arguments: dict[str, Any] = {}

    def __getitem__(self, grid: Any) -> "Recorder":
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = dict(zip(self.kernel.arg_names, arguments, strict=False)) | keywords


def _compile(launch: Recorder, config: triton.Config) -> tuple[Any, int]:
    """The compiled kernel, and the bytes a thread has spilt, as ptxas would count them: its stack."""
    given = launch.arguments | config.kwargs
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif parameter.is_constexpr or value == 1:  # Triton makes a kernel of its own for 1
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32"
        if isinstance(value, torch.Tensor) or (signature[parameter.name] == "i32" and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", report)
    assert stack is not None
    return compiled, int(stack[1])


def _tensors(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    channels, side, kernel = size
    x = torch.empty(64, channels, side, side, dtype=dtype, device="meta")
    return x, torch.empty(channels, 1, kernel, kernel, dtype=dtype, device="meta")


def _recorded(monkeypatch: pytest.MonkeyPatch, module: Any, names: list[str]) -> list[Recorder]:
    launches = [Recorder(getattr(module, name)) for name in names]
    for name, launch in zip(names, launches, strict=True):
        monkeypatch.setattr(module, name, launch)
    return launches


@pytest.mark.parametrize(
    ("size", "dtype"), [*[(size, torch.bfloat16) for size in SIZES], ((512, 14, 27), torch.float16)]
)
def test_tensor_core_kernels(size: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    _recorded(monkeypatch, tensor_cores, ["bank_kernel"])
    launches = _recorded(monkeypatch, tensor_cores, ["forward_kernel", "weight_gradient_kernel"])
    x, weight = _tensors(size, dtype)
    tensor_cores.convolve(x, weight, weight[:, 0, 0, 0], 1)
    tensor_cores.weight_gradient(x, x, (size[2], size[2]), 1)
    for launch in launches:
        configs = tensor_cores.prune_configs(launch.configs, launch.arguments)
        assert configs
        for config in configs if dtype == torch.bfloat16 else configs[:1]:
            compiled, spilt = _compile(launch, config)
            assert "wgmma.mma_async" in compiled.asm["ptx"], config
            assert compiled.metadata.shared <= SHARED, config
            assert spilt == 0, (launch.kernel.__name__, config)
            if size[1] % 2 == 0:  # rows of an even number of pixels come in 4 bytes or more, while products are made
                assert "cp.async" in compiled.asm["ptx"], config


def test_bank_of_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = _recorded(monkeypatch, tensor_cores, ["bank_kernel"])
    _recorded(monkeypatch, tensor_cores, ["forward_kernel"])
    tensor_cores.convolve(*_tensors((128, 56, 31), torch.bfloat16), None, 1)
    compiled, spilt = _compile(launches[0], triton.Config({}, num_warps=4, num_stages=1))
    assert spilt == 0
    assert "st.global.v4" in compiled.asm["ptx"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((80, 56, 3), torch.bfloat16), ((320, 14, 3), torch.float16), ((128, 56, 31), torch.float32)],
)
def test_tap_by_tap_kernels(
    size: tuple[int, int, int], dtype: torch.dtype, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = _recorded(monkeypatch, direct, ["forward_kernel", "weight_gradient_kernel"])
    x, weight = _tensors(size, dtype)
    x = x.to(memory_format=memory_format)
    direct.convolve(x, weight, weight[:, 0, 0, 0], torch.empty_like(x), 1)
    direct.weight_gradient(x, x, (size[2], size[2]), 1)
    for launch in launches:
        compiled, spilt = _compile(launch, triton.Config({}, num_warps=4, num_stages=3))
        assert spilt == 0, launch.kernel.__name__
        assert compiled.metadata.shared <= SHARED
        assert "tf32" not in compiled.asm["ptx"]
