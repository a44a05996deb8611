"""The benchmarks of networks and of the depthwise convolution run, at tiny sizes, and write what they print."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import core
from core.layers import DepthwiseConv2d

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "naive.py"))["naive_twin"]


@pytest.mark.parametrize("name", ["test_unireplknet", "test_replknet"])
@pytest.mark.parametrize("folded", [False, True])
def test_twin_has_the_same_weights_and_outputs(name: str, folded: bool, naive: Any) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):
            nn.init.normal_(parameter)
    model = core.reparameterize(model) if folded else model
    twin, x = naive(model), torch.randn(2, 3, 64, 64)
    assert_close(dict(twin.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert any(type(module) is nn.Conv2d and module.groups > 1 for module in twin.modules())
    assert not any(isinstance(module, DepthwiseConv2d) for module in twin.modules())
    with torch.no_grad():
        assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, DepthwiseConv2d) for module in model.modules())


def _networks(monkeypatch: pytest.MonkeyPatch, output: Path, *options: str) -> dict[str, Any]:
    """Run the script on a tiny network, and return the entry that it writes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    size = ["--models", "test_unireplknet", "--dtypes", "float32", "--size", "32", "--batch", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["networks.py", *size, "--output", str(output), *options])
    runpy.run_path(str(BENCHMARKS / "networks.py"), run_name="__main__")
    (entry,) = json.loads(output.read_text())
    return dict(entry)


@pytest.mark.parametrize("mode", ["inference", "eval", "train"])
def test_networks(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "networks.json"
    for _ in range(2):  # the second run replaces the first one
        capsys.readouterr()
        entry = _networks(monkeypatch, output, "--mode", mode, "--no-compile")
    printed = capsys.readouterr().out
    assert list(entry["ways"]) == ["official order", "official order, channels_last", "LarKit"]
    assert entry["ways"]["official order"]["times_the_twin"] == 1
    for way, row in entry["ways"].items():
        assert f"| {way} | {row['images_per_second']['median']:.2f} (" in printed
        assert (row["error"] is None) == (mode == "train")
        assert row["error"] is None or row["error"] < 1e-5
    rates = [row["images_per_second"]["median"] for row in entry["ways"].values()]
    assert f"LarKit: {rates[2] / max(rates[:2]):.2f} times the faster twin\n" in printed


def test_ways_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _networks(monkeypatch, tmp_path / "networks.json", "--no-compile", "--ways", "LarKit")
    assert list(entry["ways"]) == ["official order", "LarKit"]
    refusal = "^--ways larkit: expected some of official order; official order, channels_last; LarKit$"
    with pytest.raises(SystemExit, match=refusal):
        _networks(monkeypatch, tmp_path / "networks.json", "--no-compile", "--ways", "larkit")


def test_one_command_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts that it runs know their options and end in time; scripts that do not finish are named."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    for script, *arguments in gpu["COMMANDS"].values():
        runpy.run_path(str(BENCHMARKS / script))["parser"]().parse_args(arguments)
    assert list(gpu["COMMANDS"]) == sorted(gpu["COMMANDS"])
    assert max(gpu["COMMANDS"]) == 1

    ended = list[tuple[str, float]]()

    def run(command: list[str], seconds: float) -> bool:
        ended.append((command[0], seconds))
        return command[0] != "networks.py"

    gpu["main"].__globals__["run"] = run
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--minutes", "2"])
    with pytest.raises(SystemExit, match=r"(?s)^not finished; .*:\nnetworks.py .* inference .* train .*compiled'$"):
        gpu["main"]()
    assert [name for name, _ in ended] == [command[0] for command in gpu["COMMANDS"].values()]
    assert all(seconds <= 120 for _, seconds in ended)


@pytest.mark.parametrize(("seconds", "well"), [(100, True), (0.01, False)])
def test_a_script_that_takes_too_long_is_stopped(
    seconds: float, well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run = runpy.run_path(str(BENCHMARKS / "gpu.py"))["run"]
    (tmp_path / "quick.py").write_text("import os; assert os.environ['LARKIT_TRITON'] == '1'")
    run.__globals__["FOLDER"] = tmp_path
    assert run(["quick.py"], seconds) == well


def test_depthwise_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = runpy.run_path(str(BENCHMARKS / "depthwise_cpu.py"))
    script["main"].__globals__.update(KERNELS=(3, 7), SIDES=(7, 28), CHANNELS=4)
    monkeypatch.setattr(sys, "argv", ["depthwise_cpu.py", "--rounds", "1", "--output", str(tmp_path)])
    script["main"]()
    content = json.loads((tmp_path / "depthwise_cpu_float32.json").read_text())
    assert len(content["rows"]) == 2 * 3
    assert all(row["ms"] for row in content["rows"])
    picture = tmp_path / "depthwise_cpu_float32.png"
    drawn = picture.read_bytes()
    assert len(drawn) > 10_000
    picture.unlink()
    script["main"].__globals__["sweep"] = None  # drawing again must not measure
    sys.argv.append("--draw")
    script["main"]()
    assert picture.read_bytes() == drawn
    sys.argv += ["--dtype", "bfloat16"]
    with pytest.raises(SystemExit, match="2"):
        script["main"]()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_legend_of_the_depthwise_figures_covers_no_point(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = json.loads((BENCHMARKS / "results" / f"depthwise_cpu_{dtype}.json").read_text())
    figure = runpy.run_path(str(BENCHMARKS / "depthwise_cpu.py"))["figure"](report)
    figure.canvas.draw()
    assert not any(axis.get_legend() for axis in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*report["rows"][0]["ms"], "memory once"]
    assert not any(legend.get_window_extent().overlaps(axis.get_tightbbox()) for axis in figure.axes)
    assert figure.bbox.containsx(legend.get_window_extent().x1)
