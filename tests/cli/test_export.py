"""Exported files: from raw samples or maps, checked before they get their name, and run on other sizes."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from training.small_runs import command

import core
from core.errors import InputError
from core.export import export_model
from vision import ImageClassifier
from vision.feature_map import PixelMap


def _task(trained: dict[str, Path]) -> ImageClassifier:
    path = trained["folder"] / "checkpoints" / "best.ckpt"
    return ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()


def _export(trained: dict[str, Path], output: Path, *words: str) -> Path:
    best = str(trained["folder"] / "checkpoints" / "best.ckpt")
    command("export", trained["config"], output, "--ckpt_path", best, "--output", str(output / "files"), *words)
    (file,) = (output / "files").iterdir()
    return file


def _with_statistics(model: nn.Module) -> nn.Module:
    """The model in eval mode, with norms that have seen something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def _run_onnx(file: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def _run_pt2(file: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = torch.export.load(file).module()(x)
    return output


def _metadata(file: Path) -> dict[str, str]:
    """What a file says of itself, JSON texts by name."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found: dict[str, str] = session.get_modelmeta().custom_metadata_map
        return found
    extra = {"larkit.json": ""}
    torch.export.load(file, extra_files=extra)
    return {name: json.dumps(value) for name, value in json.loads(extra["larkit.json"]).items()}


@pytest.mark.parametrize(
    ("format", "suffix", "run"), [("onnx", ".onnx", _run_onnx), ("torch_export", ".pt2", _run_pt2)]
)
def test_exported_file_runs_on_another_batch_size(
    format: str, suffix: str, run: Any, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _export(trained, tmp_path, "--format", format)
    assert file.name == f"test_unireplknet{suffix}"
    printed = capsys.readouterr().out
    assert "folded against trained form: max relative difference" in printed
    assert "exported file against trained form: max relative difference" in printed
    assert "exporting from raw samples to the answer" in printed
    assert f"wrote {file}" in printed
    task = _task(trained)
    sizes = [(1, 3, 32, 32), (7, 3, 32, 32)] + [(2, 3, 96, 65)] * (format == "onnx")
    for pixels in map(torch.rand, sizes):  # in [0, 1], as a person has them
        with torch.no_grad():
            assert_close(run(file, pixels), task(pixels), rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.rglob("lightning_logs"))


def test_file_from_raw_pixels_predicts_what_the_command_predicts(trained: dict[str, Path], tmp_path: Path) -> None:
    file = _export(trained, tmp_path)
    task = _task(trained)
    folder = str(trained["photos"] / "test")
    rows = task.predict(folder)

    data = task.prediction_data(batch_size=len(rows), num_workers=0)
    data.use_sources(folder)
    pixels, _ = task.unpack(next(iter(data.predict_dataloader())))
    probabilities, labels = _run_onnx(file, pixels / 255).softmax(1).max(1)
    names = json.loads(_metadata(file)["classes"])
    assert [names[label] for label in labels.tolist()] == [row["class"] for row in rows]
    assert probabilities.tolist() == pytest.approx([row["probability"] for row in rows], abs=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize("source", ["raw", "map"])
def test_file_says_where_it_begins_and_what_it_knows(
    source: str, format: str, trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _export(trained, tmp_path, "--format", format, "--from", source)
    known = _metadata(file)
    assert json.loads(known["from"]) == source
    assert json.loads(known["task"]) == "ImageClassifier"
    assert json.loads(known["classes"]) == ["brick", "leaf", "sea"]
    spec = json.loads(known["spec"])
    assert (spec["size"], spec["mode"], len(spec["mean"]), len(spec["std"])) == (32, "RGB", 3, 3)
    assert f"exporting from {'raw samples' if source == 'raw' else 'the map'} to the answer" in capsys.readouterr().out


def test_file_from_the_map_takes_normalized_pixels(trained: dict[str, Path], tmp_path: Path) -> None:
    file = _export(trained, tmp_path, "--from", "map")
    task = _task(trained)
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(_run_onnx(file, task.feature_map(pixels)), task(pixels), rtol=1e-4, atol=1e-4)
        assert (_run_onnx(file, pixels) - task(pixels)).abs().max() > 1e-2


def test_way_from_raw_samples_that_cannot_be_followed(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = PixelMap.forward

    def by_content(self: PixelMap, pixels: Tensor) -> Tensor:
        return forward(self, pixels if pixels.float().mean() > 0.5 else pixels.clone())

    monkeypatch.setattr(PixelMap, "forward", by_content)
    file = _export(trained, tmp_path, "--format", "torch_export")
    assert json.loads(_metadata(file)["from"]) == "map"
    assert "The way from raw samples cannot be exported (" in caplog.text


def test_task_without_anything_to_export(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, raw: Any, source: str) -> Any:
        raise InputError("a detector is exported by MMDeploy")

    monkeypatch.setattr(ImageClassifier, "to_export", nothing)
    with pytest.raises(SystemExit, match="lightning: error: a detector is exported by MMDeploy"):
        _export(trained, tmp_path)


class _Waves(nn.Module):
    """Waveforms (B, T) with their lengths (B,) to two answers."""

    def forward(self, waves: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        place = torch.arange(waves.shape[1])
        kept = waves * (place < lengths[:, None])
        return {"mean": kept.sum(1) / lengths, "largest": kept.amax(1)}


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_several_inputs_of_any_length_and_several_outputs(
    format: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _Waves().eval()
    file = export_model(model, (torch.randn(3, 50), torch.tensor([50, 20, 30])), tmp_path / "waves", format=format)
    assert "input (batch, length), (batch)" in capsys.readouterr().out
    waves = torch.randn(2, 70)
    lengths = torch.tensor([70, 10])
    expected = model(waves, lengths)
    if format == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = {"input": waves.numpy(), "input_1": lengths.numpy()}
        outputs = list(map(torch.from_numpy, session.run(None, given)))
    else:
        outputs = list(torch.export.load(file).module()(waves, lengths).values())
    assert_close(outputs, list(expected.values()))


def test_exported_file_of_a_fixed_size(trained: dict[str, Path], tmp_path: Path) -> None:
    file = _export(trained, tmp_path, "--format", "onnx", "--fixed_size", "true")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [type(size) for size in session.get_inputs()[0].shape] == [str, int, int, int]  # a name for what is free
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(_run_onnx(file, x), _task(trained)(x), rtol=1e-4, atol=1e-4)


def test_export_of_larger_maps_leaves_their_size_free_and_the_model_as_it_was(tmp_path: Path) -> None:
    model = core.UniRepLKNet(depths=(1, 1), dims=(8, 16), num_classes=4).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = export_model(model, torch.randn(2, 3, 64, 64), tmp_path / "net", format="torch_export")
    x = torch.randn(3, 3, 96, 72)
    with torch.no_grad():
        assert_close(_run_pt2(file, x), model(x), rtol=1e-4, atol=1e-4)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("format", "run", "options"),
    [("onnx", _run_onnx, {}), ("onnx", _run_onnx, {"small_kernel_merged": True}), ("torch_export", _run_pt2, {})],
)
def test_replknet_of_any_size(format: Any, run: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = _with_statistics(timm.create_model("test_replknet", **options))
    file = export_model(model, torch.randn(2, 3, 64, 64), tmp_path / "net", format=format)
    assert file.suffix == (".onnx" if format == "onnx" else ".pt2")
    for x in map(torch.randn, [(1, 3, 64, 64), (3, 3, 96, 72), (2, 3, 33, 160)]):
        with torch.no_grad():
            assert_close(run(file, x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_replknet_from_an_example_smaller_than_its_kernels(
    format: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _with_statistics(timm.create_model("test_replknet"))
    file = export_model(model, torch.randn(2, 3, 32, 32), tmp_path / "net", format=format)
    assert f"input (batch, 3, {'height, width' if format == 'onnx' else '32, 32'})" in capsys.readouterr().out
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert_close((_run_onnx if format == "onnx" else _run_pt2)(file, x), model(x), rtol=1e-4, atol=1e-4)


def test_exported_file_holds_the_inference_form(tmp_path: Path) -> None:
    model = _with_statistics(timm.create_model("test_replknet", num_classes=5))
    file = export_model(model, torch.randn(2, 3, 32, 32), tmp_path / "net", format="torch_export")
    held = sum(tensor.numel() for tensor in torch.export.load(file).state_dict.values())
    assert held == sum(tensor.numel() for tensor in core.reparameterize(model).state_dict().values())
    assert held < sum(tensor.numel() for tensor in model.state_dict().values())


def test_file_that_differs_from_the_model_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = core.export._write_pt2
    monkeypatch.setattr(core.export, "_write_pt2", lambda *a, **options: [1.001 * x for x in right(*a, **options)])
    with pytest.raises(RuntimeError, match=r"differs from the model by 1\.0e-03, more than 1e-04"):
        export_model(
            core.UniRepLKNet(depths=(1, 1), dims=(8, 16), num_classes=4).eval(),
            torch.randn(2, 3, 64, 64),
            tmp_path / "net",
            format="torch_export",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_model_of_one_size(format: Any, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3, dynamic_img_size=False).eval()
    x = torch.randn(2, 3, 160, 160)
    with pytest.raises(InputError, match=r"takes images of 160 x 160 and not every other size; add --fixed_size true"):
        export_model(model, x, tmp_path / "net", format=format)
    assert not list(tmp_path.iterdir())
    if format == "torch_export":
        file = export_model(model, x, tmp_path / "net", format=format, fixed_size=True)
        with torch.no_grad():
            assert_close(_run_pt2(file, x), model(x), rtol=1e-4, atol=1e-4)


def test_a_file_that_was_there_is_said_to_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_unireplknet", num_classes=3).eval()
    for verb in ("wrote", "replaced"):
        path = export_model(model, torch.randn(2, 3, 40, 40), tmp_path / "net", format="torch_export")
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"{verb} {path} (")


def test_missing_packages_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs onnx, onnxscript, onnxruntime; type in LarKit's folder: pip install -e '\.\[export\]'"
    ):
        export_model(nn.Identity(), torch.zeros(1, 3, 32, 32), tmp_path / "net")


@pytest.mark.parametrize("format", ["ONNX", "pt2", ""])
def test_other_formats_are_refused(format: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"format='{format}'; expected 'onnx' or 'torch_export'"):
        export_model(nn.Identity(), torch.zeros(1, 3, 32, 32), tmp_path / "net", format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("unireplknet_s.in22k", "unireplknet_s.in22k.pt2"), ("net.onnx", "net.pt2"), ("net.pt2", "net.pt2")],
)
def test_tag_in_a_file_name_is_kept(name: str, wanted: str, tmp_path: Path) -> None:
    model = timm.create_model("test_unireplknet", num_classes=3).eval()
    path = export_model(model, torch.randn(2, 3, 40, 40), tmp_path / name, format="torch_export")
    assert path.name == wanted
    assert [file.name for file in tmp_path.iterdir()] == [wanted]
