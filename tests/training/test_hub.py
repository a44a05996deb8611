"""Tasks in folders and on the Hub: what is written, that it gives the same outputs, and what it says was measured."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import ModelCard
from lightning import Trainer
from safetensors import safe_open
from training.small_runs import CLASSES, PLAIN, command, metric, nothing_drawn, runs, saved, write_config

import core
from audio import AudioClassifier
from core.cli import main
from core.training import Task
from core.training.hub import from_pretrained, push_to_hub, save_pretrained
from pointcloud import PointCloudClassifier
from timeseries import ForecastTask
from video import VideoClassifier
from vision import ImageClassifier, ImageFolder

pytest_plugins = ["training.shared_fixtures", "training.hub_cache"]

TINY = "test_unireplknet"
VIEWS: dict[str, Any] = {"num_views": 2, "obj_size": 32, "fusion": False}
NET: dict[str, Any] = {"depths": (1, 1), "dims": (8, 16), "kernel_sizes": (3, (5,))}
TASKS: dict[str, Callable[[], Task]] = {
    "image": lambda: ImageClassifier(TINY, 3, opt_args={"betas": (0.9, 0.99)}, backbone_args={"in_chans": 4}),
    "image, a net of timm": lambda: ImageClassifier("test_resnet", 3),
    "image, own branches": lambda: ImageClassifier(TINY, 3, backbone_args={"branches": {13: ((5, 1), (3, 2))}}),
    "image, folded": lambda: core.reparameterize(ImageClassifier(TINY, 3).eval()),
    "image, RepLKNet folded": lambda: core.reparameterize(ImageClassifier("test_replknet", 3).eval()),
    "image, large kernels": lambda: ImageClassifier("lk_mobilenetv2_050", 3, backbone_args={"kernel_size": 7}),
    "sound": lambda: AudioClassifier(TINY, 3, multi_label=True),
    "cloud": lambda: PointCloudClassifier(TINY, 3, **VIEWS),
    "cloud, frozen": lambda: PointCloudClassifier(TINY, 3, head="mean", frozen="but_norms", **VIEWS),
    "video": lambda: VideoClassifier(TINY, 3, layout="strip", rows=2),
    "series": lambda: ForecastTask("unireplknet_a", 3, seq_len=24, pred_len=12, period=6, backbone_args=NET),
    "series, quantiles": lambda: ForecastTask(
        "unireplknet_a", 2, seq_len=24, pred_len=6, period=6, quantiles=(0.1, 0.5), backbone_args=NET
    ),
}
TAGS = {
    "image": "image-classification",
    "sound": "audio-classification",
    "video": "video-classification",
    "series": "time-series-forecasting",
    "cloud": None,
}


def _stirred(task: Task) -> Task:
    """The task with weights that differ from the initial ones, and names that no argument gives."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in task.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.02 * torch.rand(tensor.shape, generator=generator)
    if hasattr(task, "class_names"):
        task.class_names = ["b", "a", "ü"]
        task.normalisation = {"mean": [0.25], "std": [0.5]}
    else:
        task.channel_names = ["rain", "wind"]
    return task.eval()


def _outputs(task: Task) -> torch.Tensor:
    shape = task.example_shape()
    assert shape is not None
    with torch.no_grad():
        result: torch.Tensor = task(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    return result


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.filterwarnings("ignore:the frozen backbone has random weights")
@pytest.mark.parametrize("name", TASKS)
def test_the_same_outputs_and_names(name: str, tmp_path: Path) -> None:
    task = _stirred(TASKS[name]())
    folder = save_pretrained(task, tmp_path / "shared")
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    loaded = from_pretrained(folder)
    assert type(loaded) is type(task)
    assert not loaded.training
    assert torch.equal(_outputs(loaded), _outputs(task))
    for attribute in ("class_names", "normalisation", "channel_names"):
        assert getattr(loaded, attribute, None) == getattr(task, attribute, None)
    again = from_pretrained(save_pretrained(loaded, tmp_path / "again"))  # what was loaded can be shared
    assert torch.equal(_outputs(again), _outputs(task))


@pytest.mark.parametrize("name", ["image", "sound", "cloud", "video", "series"])
def test_the_card_has_a_header_and_a_program_that_runs(name: str, tmp_path: Path) -> None:
    task = _stirred(TASKS[name]())
    card = ModelCard.load(save_pretrained(task, tmp_path / "shared", license="mit") / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "larkit")
    assert card.data.get("pipeline_tag") == TAGS[name]
    assert not card.data.eval_results
    program = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(program) == 1
    names: dict[str, Any] = {}
    exec(program[0], names)
    assert names["output"].shape == _outputs(task).shape


def test_the_card_of_a_forecast_names_its_error(tmp_path: Path) -> None:
    metrics = {"val_mse": 0.5, "val_mae": 0.25, "test_mse": 0.75}
    card = ModelCard.load(save_pretrained(TASKS["series"](), tmp_path / "shared", metrics=metrics) / "README.md")
    results = [(r.metric_name, r.metric_type, r.metric_value, r.dataset_split) for r in card.data.eval_results]
    assert results == [("val_mse", "mse", 0.5, "validation"), ("test_mse", "mse", 0.75, "test")]


def test_dtypes_stay(tmp_path: Path) -> None:
    task = _stirred(ImageClassifier(TINY, 3)).bfloat16()
    loaded = from_pretrained(save_pretrained(task, tmp_path / "shared"))
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == {n: t.dtype for n, t in task.state_dict().items()}
    assert all(torch.equal(t, task.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_what_is_loaded_trains(tmp_path: Path) -> None:
    loaded = from_pretrained(save_pretrained(ImageClassifier(TINY, 3), tmp_path / "shared")).train()
    loaded(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_channels_last_is_stored_in_order(tmp_path: Path) -> None:
    task = _stirred(ImageClassifier(TINY, 3)).to(memory_format=torch.channels_last)
    loaded = from_pretrained(save_pretrained(task, tmp_path / "shared"))
    assert all(torch.equal(t, task.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_a_checkpoint(trained: dict[str, Path], tmp_path: Path) -> None:
    path = trained["folder"] / "checkpoints" / "best.ckpt"
    folder = save_pretrained(path, tmp_path / "shared")
    loaded, task = from_pretrained(folder), ImageClassifier.load_from_checkpoint(path).eval()
    assert torch.equal(_outputs(loaded), _outputs(task))
    assert loaded.class_names == CLASSES
    assert loaded.normalisation == task.normalisation
    assert len(loaded.normalisation["mean"]) == 3
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


def test_a_checkpoint_away_from_its_run_still_knows_its_score(trained: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "checkpoints"
    place.mkdir(parents=True)
    for name in ("best", "last"):
        shutil.copy(trained["folder"] / "checkpoints" / f"{name}.ckpt", place)
    best = _config(save_pretrained(place / "best.ckpt", tmp_path / "a"))
    assert best["metrics"] == {"val_acc": pytest.approx(max(metric(trained["folder"], "val_acc")))}
    assert best["data_module"] is None
    assert _config(save_pretrained(place / "last.ckpt", tmp_path / "b"))["metrics"] == {}  # the score is the best one's


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
    data = ImageFolder(str(photos), size=32, batch_size=6, num_workers=0, **PLAIN)
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
    assert config["data"]["class_names"] == CLASSES
    assert config["data"]["mean"] == list(data.mean)
    assert config["data_module"]["class_path"].endswith("ImageFolder")


class _Api:
    """A stand-in for the Hub's client that records what it is asked."""

    existing: ClassVar[set[str]] = set()
    calls: ClassVar[list[tuple[str, dict[str, Any]]]]

    def __init__(self, **options: Any) -> None:
        type(self).calls = [("client", options)]

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return filename in self.existing

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        self.calls.append(("upload", {"repo_id": repo_id, "files": files, "message": commit_message}))
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[_Api]:
    monkeypatch.setattr("core.training.hub.HfApi", _Api)
    monkeypatch.setattr(_Api, "existing", set())
    return _Api


def test_push_and_load_by_name(api: type[_Api], repository: Path) -> None:
    task = _stirred(TASKS["image"]())
    assert push_to_hub(task, "org/name", private=True, token="t") == "https://huggingface.co/org/name/commit/1"
    (client, options), (create, made), (upload, sent) = api.calls
    assert (client, create, upload) == ("client", "create", "upload")
    assert (options["token"], options["library_name"]) == ("t", "larkit")
    assert made == {"repo_id": "org/name", "private": True, "exist_ok": True}
    assert sent["repo_id"] == "org/name"
    assert set(sent["files"]) == {"model.safetensors", "config.json", "README.md"}
    assert "from_pretrained('org/name')" in sent["files"]["README.md"].decode()
    for name, content in sent["files"].items():
        (repository / name).write_bytes(content)
    assert torch.equal(_outputs(from_pretrained("org/name")), _outputs(task))
    assert torch.equal(_outputs(from_pretrained("org/name", revision="main")), _outputs(task))
    backbone = core.load_weights(ImageClassifier(TINY, 3, backbone_args={"in_chans": 4}), "org/name").eval()
    assert torch.equal(_outputs(backbone), _outputs(task))


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    folder = save_pretrained(ImageClassifier(TINY, 3), tmp_path / "shared", metrics={"val_acc": float("nan")})
    assert _config(folder)["metrics"] == {}
    assert not ModelCard.load(folder / "README.md").data.eval_results


def test_push_leaves_a_card_that_is_there(api: type[_Api]) -> None:
    api.existing = {"README.md"}
    push_to_hub(ImageClassifier(TINY, 3), "org/name")
    assert set(api.calls[-1][1]["files"]) == {"model.safetensors", "config.json"}


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
    assert api.calls[1][1]["private"] is True
    main(["push", path, "org/name"])
    assert api.calls[1][1]["private"] is False
