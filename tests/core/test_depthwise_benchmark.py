"""The benchmark of the depthwise convolutions, as far as it goes without a GPU: ratios, table, refusal."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "depthwise_gpu.py"
TIMES = {
    "ours nchw": [0.5, 0.25, 1.0],
    "ours nhwc": [2.0, 2.0, 4.0],
    "torch nchw": [3.0, 2.0, 1.0],
    "torch nhwc": [1.0, 1.0, 8.0],
}
ERRORS = {"ours nchw": 0.002, "ours nhwc": 0.003, "torch nchw": 0.005, "torch nhwc": 0.004}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT))


def test_table_of_made_up_times(script: dict[str, Any]) -> None:
    row = script["row"](("Net", 8, 14, 13), "forward", TIMES, ERRORS, 0.125)
    assert row["ms"]["ours nchw"] == {"median": 0.5, "least": 0.25, "greatest": 1.0}
    assert row["ratio"] == {"nchw": 2.0, "nhwc": 0.5}  # against 1 ms, the better of PyTorch's medians
    assert row["bandwidth_share"] == {"nchw": 0.25, "nhwc": 0.0625}
    assert json.loads(json.dumps(row)) == row
    head, _, line = (
        [cell.strip() for cell in text.strip("|").split("|")] for text in script["table"]([row]).splitlines()
    )
    cells = dict(zip(head, line, strict=True))
    assert cells["C, side, K"] == "8, 14, 13"
    assert cells["ours nchw ms (range)"] == "0.5000 (0.2500 to 1.0000)"
    assert (cells["ratio nchw"], cells["ratio nhwc"], cells["bandwidth nchw"]) == ("2.00", "0.50", "25%")
    assert (cells["error ours"], cells["error torch"]) == ("3.0e-03", "5.0e-03")


def test_sizes_are_those_of_the_nets_without_repeats(script: dict[str, Any]) -> None:
    sizes = [case[1:] for case in script["NETS"] + script["SWEEP"]]
    assert {(128, 56, 31), (1024, 7, 13), (80, 56, 3), (640, 7, 13)} < set(sizes)
    assert len(set(sizes)) == len(sizes)
    assert {kernel for _, _, kernel in sizes} >= {7, 9, 13, 27, 31}


def test_pytorchs_ways_are_the_derivatives(script: dict[str, Any]) -> None:
    x, weight, grad = torch.randn(2, 3, 6, 6), torch.randn(3, 1, 5, 5), torch.randn(2, 3, 6, 6)
    inputs = [x.double().requires_grad_(), weight.double().requires_grad_()]
    y = torch.nn.functional.conv2d(*inputs, padding=2, groups=3)
    wanted = [y.detach(), *torch.autograd.grad(y, inputs, grad.double())]
    for direction, value in zip(script["DIRECTIONS"], wanted, strict=True):
        assert_close(script["exact"](direction, x, weight, grad), value)
        ways = script["calls"](direction, x, weight, grad)
        assert set(ways) == set(TIMES)
        for name in ("torch nchw", "torch nhwc"):
            assert_close(ways[name]().double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("depthwise_gpu.py needs an NVIDIA GPU")
    assert not output.exists()
