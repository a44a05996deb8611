"""``lightning cost --tune``: what is measured, printed and kept, and that later runs use it."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import core  # noqa: F401  # registers the models
from core.analysis.tuning import DTYPES, tune_model
from core.cli import main
from core.ops import IMPLEMENTATIONS, chosen_implementations, depthwise_conv2d
from core.ops.implementations import Implementation
from core.ops.measure import Convolution, measure
from core.ops.table import forget, key_of, table_file
from core.ops.tune import convolutions_of


@pytest.fixture(autouse=True)
def _own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LARKIT_CACHE", str(tmp_path / "cache"))
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_convolutions_of_a_training_step_and_a_prediction() -> None:
    net = timm.create_model("unireplknet_a", depths=(1, 1), dims=(8, 16), kernel_sizes=(3, (9,)), num_classes=2)
    found = convolutions_of(net, torch.randn(2, 3, 64, 48))
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert {(c.shape[1:], c.kernel, c.dilation) for c in found} == {
        ((8, 16, 12), (3, 3), 1),
        *(((16, 8, 6), (k, k), r) for k, r in ((9, 1), (5, 1), (5, 2), (3, 3), (3, 4))),
    }
    assert {c.kind for c in found} == {"forward", "weight_gradient"}


@pytest.mark.parametrize("kind", ["forward", "weight_gradient"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_implementations_of_this_machine_are_timed(kind: str, dtype: torch.dtype) -> None:
    convolution = Convolution((2, 4, 9, 8), (7, 7), 1, True, kind)  # type: ignore[arg-type]
    measured = measure(convolution, dtype, "cpu", rounds=2)
    assert set(measured.milliseconds) == set(IMPLEMENTATIONS) - {"triton"}
    assert min(measured.milliseconds.values()) == measured.milliseconds[measured.fastest] > 0


def test_what_takes_ten_times_as_long_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls, right = [0.0], Counter[str](), IMPLEMENTATIONS["fft"]

    def lasting(name: str, seconds: int) -> Implementation:
        def forward(*args: Any) -> torch.Tensor:
            clock[0] += seconds
            calls[name] += 1
            return right.forward(*args)

        return right._replace(forward=forward)

    seconds = {"slow": 11, "fft": 1, "near": 9, "very slow": 50}
    monkeypatch.setattr("core.ops.measure.IMPLEMENTATIONS", {name: lasting(name, s) for name, s in seconds.items()})
    monkeypatch.setattr("core.ops.measure.perf_counter", lambda: clock[0])
    measured = measure(Convolution((1, 2, 9, 9), (5, 5), 1, False, "forward"), torch.float32, "cpu", rounds=4)
    assert measured.milliseconds == {name: 1000 * s for name, s in seconds.items()}
    assert calls == {
        "slow": 2,
        "fft": 6,
        "near": 5,
        "very slow": 2,
    }  # once to compare values; fft gives those of float64


def test_wrong_values_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = IMPLEMENTATIONS["matrix"]._replace(forward=lambda x, *_: x)
    monkeypatch.setitem(IMPLEMENTATIONS, "matrix", wrong)
    measured = measure(Convolution((1, 2, 9, 9), (5, 5), 1, False, "forward"), torch.float32, "cpu", rounds=1)
    assert "matrix" not in measured.milliseconds


def test_the_command_keeps_a_table_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["cost", "test_unireplknet", "--size", "32", "--batch_size", "1", "--rounds", "0", "--tune"])
    printed = capsys.readouterr().out
    assert f"kept in {table_file()}; delete it to go back to the rules" in printed
    fastest = json.loads(table_file().read_text())["fastest"]
    assert fastest
    assert set(fastest.values()) <= set(IMPLEMENTATIONS)
    assert printed.count("float32") == printed.count("bfloat16") > 0
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 1, 5, 5)
    key = key_of("forward", x, (5, 5), 1)
    stored = json.loads(table_file().read_text())
    table_file().write_text(json.dumps(stored | {"fastest": {key: "fft"}}))
    forget()
    depthwise_conv2d(x, weight)
    assert chosen_implementations()[key] == "fft"


def test_a_model_without_our_convolutions(capsys: pytest.CaptureFixture[str]) -> None:
    tune_model(timm.create_model("test_convnext", num_classes=2).eval(), torch.randn(1, 3, 32, 32))
    assert "nothing to tune" in capsys.readouterr().out
    assert not table_file().exists()
