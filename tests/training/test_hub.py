"""Tasks in folders and on the Hub: what is written, that it gives the same outputs, and what it says was measured."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from lightning import Trainer
from PIL import Image
from safetensors import safe_open
from training.small_runs import CLASSES, PLAIN, command, metric, nothing_drawn, runs, saved, write_config

import core
from audio import AudioClassifier
from audio.data import AudioSpec
from core.cli import main
from core.errors import InputError
from core.training.hub import from_pretrained, push_to_hub, save_pretrained
from core.training.task import Task
from pointcloud import PointCloudClassifier
from pointcloud.data import PointSpec
from timeseries import ForecastTask, SeriesSpec
from video import VideoClassifier
from video.data import VideoSpec
from vision import ImageClassifier, ImageFolder, ImageSpec

TINY = "test_unireplknet"
NAMES = ("b", "a", "ü")
IMAGES = ImageSpec(classes=NAMES, size=32, mean=(0.25, 0.5, 0.75), std=(0.5, 0.5, 0.5))
SOUNDS = AudioSpec(classes=NAMES, mean=-4.5, std=4.0, multi_label=True)
CLOUDS = PointSpec(classes=NAMES, load_points=128, num_points=64)
CLIPS = VideoSpec(classes=NAMES, size=32, num_frames=4)
SERIES = SeriesSpec(channels=("rain", "wind"), seq_len=24, pred_len=12, period=6, mean=(1.0, 2.0), std=(3.0, 4.0))
VIEWS: dict[str, Any] = {"num_views": 2, "obj_size": 32, "fusion": False}
NET: dict[str, Any] = {"depths": (1, 1), "dims": (8, 16), "kernel_sizes": (3, (5,))}
TASKS: dict[str, Callable[[], Task]] = {
    "image": lambda: ImageClassifier(TINY, spec=IMAGES, opt_args={"betas": (0.9, 0.99)}),
    "image, gray": lambda: ImageClassifier(TINY, spec=replace(IMAGES, mode="L", mean=(0.5,), std=(0.5,))),
    "image, a net of timm": lambda: ImageClassifier("test_resnet", spec=IMAGES),
    "image, own branches": lambda: ImageClassifier(
        TINY, spec=IMAGES, backbone_args={"branches": {13: ((5, 1), (3, 2))}}
    ),
    "image, folded": lambda: core.reparameterize(ImageClassifier(TINY, spec=IMAGES).eval()),
    "image, RepLKNet folded": lambda: core.reparameterize(ImageClassifier("test_replknet", spec=IMAGES).eval()),
    "image, large kernels": lambda: ImageClassifier("lk_mobilenetv2_050", 3, backbone_args={"kernel_size": 7}),
    "sound": lambda: AudioClassifier(TINY, spec=SOUNDS),
    "cloud": lambda: PointCloudClassifier(TINY, spec=CLOUDS, **VIEWS),
    "cloud, frozen": lambda: PointCloudClassifier(TINY, spec=CLOUDS, head="mean", frozen="but_norms", **VIEWS),
    "video": lambda: VideoClassifier(TINY, spec=CLIPS, layout="strip", rows=2),
    "series": lambda: ForecastTask("unireplknet_a", spec=SERIES, backbone_args=NET),
    "series, quantiles": lambda: ForecastTask("unireplknet_a", spec=SERIES, quantiles=(0.1, 0.5), backbone_args=NET),
}
RAW: dict[str, Callable[[], torch.Tensor]] = {
    "image": lambda: torch.rand(2, 3, 64, 64),
    "image, gray": lambda: torch.rand(2, 1, 64, 64),
    "sound": lambda: torch.rand(2, 16000) - 0.5,
    "cloud": lambda: torch.rand(2, 128, 3),
    "video": lambda: torch.rand(2, 4, 3, 32, 32),
    "series": lambda: torch.rand(2, 24, 2),
}
TAGS = {
    "image": "image-classification",
    "sound": "audio-classification",
    "video": "video-classification",
    "series": "time-series-forecasting",
    "cloud": None,
}


def _changed(task: Task) -> Task:
    """The task with weights and statistics that differ from the initial ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in task.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator)
    return task.eval()


def _outputs(task: Task, name: str = "image") -> torch.Tensor:
    """The outputs for some raw batch."""
    torch.manual_seed(1)
    raw = RAW.get(name) or RAW[name.partition(",")[0]]
    with torch.no_grad():
        result: torch.Tensor = task(raw())
    return result


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.filterwarnings("ignore:the frozen backbone has random weights")
@pytest.mark.parametrize("name", TASKS)
def test_the_same_outputs_and_names(name: str, tmp_path: Path) -> None:
    task = _changed(TASKS[name]())
    folder = save_pretrained(task, tmp_path / "shared")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    loaded = from_pretrained(folder)
    assert type(loaded) is type(task)
    assert not loaded.training
    assert torch.equal(_outputs(loaded, name), _outputs(task, name))
    assert loaded.spec == task.spec
    again = from_pretrained(save_pretrained(loaded, tmp_path / "again"))  # what was loaded can be shared
    assert torch.equal(_outputs(again, name), _outputs(task, name))


def test_the_methods_of_a_task(tmp_path: Path) -> None:
    """Those of huggingface_hub's mixin do what the functions do."""
    task = _changed(TASKS["image"]())
    task.save_pretrained(tmp_path / "shared")
    loaded = ImageClassifier.from_pretrained(tmp_path / "shared")
    assert torch.equal(_outputs(loaded), _outputs(task))
    with pytest.raises(InputError, match="holds a ImageClassifier, not a VideoClassifier"):
        VideoClassifier.from_pretrained(tmp_path / "shared")
    with pytest.raises(InputError, match="exists and is not empty"):
        task.save_pretrained(tmp_path / "shared")


@pytest.mark.parametrize("name", ["image", "sound", "cloud", "video", "series"])
def test_the_card_has_a_header(name: str, tmp_path: Path) -> None:
    task = _changed(TASKS[name]())
    card = ModelCard.load(save_pretrained(task, tmp_path / "shared", license="mit") / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "larkit")
    assert card.data.get("pipeline_tag") == TAGS[name]
    assert not card.data.eval_results
    if task.spec.classes:
        assert "3 classes: b, a, ü." in card.text


def test_the_program_of_the_card_predicts_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = _changed(TASKS["image"]())
    card = ModelCard.load(save_pretrained(task, tmp_path / "shared") / "README.md")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(photo)
    (program,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(program.replace("FILE", str(photo)), {})
    assert capsys.readouterr().out == f"{task.predict(photo)[0]}\n"
    assert "| mean | [0.25, 0.5, 0.75] |" in card.text


def test_the_card_of_a_forecast_names_its_error(tmp_path: Path) -> None:
    metrics = {"val_mse": 0.5, "val_mae": 0.25, "test_mse": 0.75}
    card = ModelCard.load(save_pretrained(TASKS["series"](), tmp_path / "shared", metrics=metrics) / "README.md")
    results = [(r.metric_name, r.metric_type, r.metric_value, r.dataset_split) for r in card.data.eval_results]
    assert results == [("val_mse", "mse", 0.5, "validation"), ("test_mse", "mse", 0.75, "test")]


def test_the_card_of_sounds_with_several_labels_names_their_metric(tmp_path: Path) -> None:
    metrics = {"val_mAP": 0.5, "val_loss": 0.25}
    card = ModelCard.load(save_pretrained(TASKS["sound"](), tmp_path / "shared", metrics=metrics) / "README.md")
    assert [result.metric_name for result in card.data.eval_results] == ["val_mAP"]


def test_dtypes_stay(tmp_path: Path) -> None:
    task = _changed(ImageClassifier(TINY, 3)).bfloat16()
    loaded = from_pretrained(save_pretrained(task, tmp_path / "shared"))
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == {n: t.dtype for n, t in task.state_dict().items()}
    assert all(torch.equal(t, task.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_what_is_loaded_trains(tmp_path: Path) -> None:
    loaded = from_pretrained(save_pretrained(ImageClassifier(TINY, 3), tmp_path / "shared")).train()
    loaded(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_channels_last_is_stored_in_order(tmp_path: Path) -> None:
    task = _changed(ImageClassifier(TINY, 3)).to(memory_format=torch.channels_last)
    loaded = from_pretrained(save_pretrained(task, tmp_path / "shared"))
    assert all(torch.equal(t, task.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_a_checkpoint(trained: dict[str, Path], tmp_path: Path) -> None:
    path = trained["folder"] / "checkpoints" / "best.ckpt"
    folder = save_pretrained(path, tmp_path / "shared")
    loaded, task = from_pretrained(folder), ImageClassifier.load_from_checkpoint(path).eval()
    assert torch.equal(_outputs(loaded), _outputs(task))
    assert loaded.class_names == CLASSES
    assert loaded.spec == task.spec
    assert torch.equal(_outputs(from_pretrained(trained["folder"])), _outputs(task))  # the folder of a run
    config = _config(folder)
    assert config["class_path"] == "vision.ImageClassifier"
    assert config["hyperparameters"]["lr"] == 0.02
    assert config["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert config["data_module"]["init_args"]["size"] == 32
    assert str(trained["photos"]) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(task.state_dict())


def test_the_card_of_a_checkpoint_says_what_validation_gave(trained: dict[str, Path], tmp_path: Path) -> None:
    scores, losses = metric(trained["folder"], "val_acc"), metric(trained["folder"], "val_loss")
    assert saved(trained["folder"], "best")["epoch"] < saved(trained["folder"])["epoch"] == len(scores) - 1
    assert len(set(losses)) == len(losses)
    for name, expected in (("best", max(scores)), ("last", scores[-1])):
        path = trained["folder"] / "checkpoints" / f"{name}.ckpt"
        folder = save_pretrained(path, tmp_path / name, metrics={"test_acc": 0.25})
        results = {r.metric_name: r for r in ModelCard.load(folder / "README.md").data.eval_results}
        assert set(results) == {"val_acc", "test_acc"}
        assert results["val_acc"].metric_value == pytest.approx(expected)
        assert (results["val_acc"].metric_type, results["val_acc"].dataset_name) == ("accuracy", "ImageFolder")
        assert (results["test_acc"].metric_value, results["test_acc"].dataset_split) == (0.25, "test")
        assert set(_config(folder)["metrics"]) == {"val_loss", "val_acc", "test_acc"}
        assert _config(folder)["metrics"]["val_loss"] == losses[saved(trained["folder"], name)["epoch"]]


def test_a_checkpoint_away_from_its_run_knows_its_metrics_and_its_data(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("best", "last"):
        shutil.copy(trained["folder"] / "checkpoints" / f"{name}.ckpt", tmp_path)
        config = _config(save_pretrained(tmp_path / f"{name}.ckpt", tmp_path / name))
        epoch = saved(trained["folder"], name)["epoch"]
        assert config["metrics"]["val_loss"] == metric(trained["folder"], "val_loss")[epoch]
        assert config["data_module"]["init_args"]["size"] == 32


def test_a_checkpoint_of_a_plain_trainer_knows_the_score_that_chose_it(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """Without what the command writes into it; the score is not that of the last checkpoint."""
    for name in ("best", "last"):
        content = torch.load(trained["folder"] / "checkpoints" / f"{name}.ckpt", weights_only=True)
        del content["metrics"], content["config"]
        torch.save(content, tmp_path / f"{name}.ckpt")
    best = _config(save_pretrained(tmp_path / "best.ckpt", tmp_path / "a"))
    assert best["metrics"] == {"val_acc": pytest.approx(max(metric(trained["folder"], "val_acc")))}
    assert best["data_module"] is None
    assert _config(save_pretrained(tmp_path / "last.ckpt", tmp_path / "b"))["metrics"] == {}


@pytest.mark.parametrize(("accumulate", "steps"), [(1, {2, 4, 6}), (3, {1, 2})])
def test_metrics_are_those_of_the_weights(accumulate: int, steps: set[int], photos: Path, tmp_path: Path) -> None:
    """Where validation runs several times an epoch, also between two steps that accumulate gradients."""
    words = ["--trainer.accumulate_grad_batches", str(accumulate), "--trainer.val_check_interval", "2"]
    words += ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "-1"]
    config = write_config(tmp_path / "photos.yaml", photos, batch_size=3, **PLAIN)
    with nothing_drawn():
        command("fit", config, tmp_path, *words, "--trainer.max_epochs", "1")
    (run,) = runs(tmp_path)
    losses = dict[int, float]()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(**options, enable_progress_bar=False, enable_model_summary=False)
    plain: dict[str, Any] = PLAIN
    data = ImageFolder(str(photos), size=32, batch_size=6, num_workers=0, **plain)
    for file in (run / "checkpoints").glob("epoch=*.ckpt"):
        step = saved(run, file.stem)["global_step"]
        losses[step] = trainer.validate(ImageClassifier.load_from_checkpoint(file), data, verbose=False)[0]["val_loss"]
        metrics = _config(save_pretrained(file, tmp_path / file.stem))["metrics"]
        assert metrics["val_loss"] == pytest.approx(losses[step], rel=1e-4)
    assert set(losses) == steps
    assert len({round(loss, 3) for loss in losses.values()}) == len(steps)


def test_a_task_knows_what_its_trainer_measured(photos: Path, tmp_path: Path) -> None:
    task, data = ImageClassifier(TINY, 3), ImageFolder(str(photos), size=32, batch_size=6, num_workers=0)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False, **options)
    measured = trainer.validate(task, data, verbose=False)[0]
    config = _config(save_pretrained(task, tmp_path / "shared"))
    assert config["metrics"] == pytest.approx(measured)
    assert config["hyperparameters"]["spec"]["classes"] == CLASSES
    assert config["hyperparameters"]["spec"]["mean"] == data.spec().to_dict()["mean"]
    assert config["data_module"]["class_path"].endswith("ImageFolder")


class _Api:
    """A stand-in for the Hub's client that records what it is asked."""

    existing: ClassVar[set[str]] = set()
    calls: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, **options: Any) -> None:
        self.calls["client"] = options

    def create_repo(self, **options: Any) -> Any:
        self.calls["create"] = options
        return type("Url", (), {"repo_id": options["repo_id"]})

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return filename in self.existing

    def upload_folder(self, *, folder_path: Path, **options: Any) -> str:
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        files = {name: content for name, content in files.items() if name != options["ignore_patterns"]}
        self.calls["upload"] = {"files": files, **options}
        return f"https://huggingface.co/{options['repo_id']}/commit/1"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[_Api]:
    monkeypatch.setattr("core.training.hub.HfApi", _Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", _Api)
    monkeypatch.setattr(_Api, "existing", set())
    monkeypatch.setattr(_Api, "calls", {})
    return _Api


def test_push_and_load_by_name(api: type[_Api], repository: Path) -> None:
    task = _changed(TASKS["image"]())
    assert push_to_hub(task, "org/name", private=True, token="t") == "https://huggingface.co/org/name/commit/1"
    sent = api.calls["upload"]
    assert api.calls["client"]["token"] == "t"
    assert api.calls["create"] == {"repo_id": "org/name", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "org/name"
    assert set(sent["files"]) == {"model.safetensors", "config.json", "README.md"}
    assert "from_pretrained('org/name')" in sent["files"]["README.md"].decode()
    for name, content in sent["files"].items():
        (repository / name).write_bytes(content)
    assert torch.equal(_outputs(from_pretrained("org/name")), _outputs(task))
    assert torch.equal(_outputs(from_pretrained("org/name", revision="main")), _outputs(task))
    backbone = core.load_weights(TASKS["image"](), "org/name").backbone
    assert all(torch.equal(tensor, task.backbone.state_dict()[n]) for n, tensor in backbone.state_dict().items())


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = save_pretrained(ImageClassifier(TINY, 3), tmp_path / "shared", metrics={"val_acc": float("nan")})
    assert _config(folder)["metrics"] == {}
    assert not ModelCard.load(folder / "README.md").data.eval_results


def test_push_leaves_a_card_that_is_there(api: type[_Api]) -> None:
    api.existing = {"README.md"}
    push_to_hub(ImageClassifier(TINY, 3), "org/name")
    assert set(api.calls["upload"]["files"]) == {"model.safetensors", "config.json"}


def test_the_verb(
    trained: dict[str, Path], tmp_path: Path, api: type[_Api], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(trained["folder"] / "checkpoints" / "best.ckpt")
    main(["push", path, "--folder", str(tmp_path / "shared"), "--license", "mit"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'shared'}\n"
    assert from_pretrained(tmp_path / "shared").class_names == CLASSES
    assert ModelCard.load(tmp_path / "shared" / "README.md").data.license == "mit"
    main(["push", path, "org/name", "--private"])
    assert capsys.readouterr().out == "pushed https://huggingface.co/org/name/commit/1\n"
    assert api.calls["create"]["private"] is True
    main(["push", path, "org/name"])
    assert api.calls["create"]["private"] is False
