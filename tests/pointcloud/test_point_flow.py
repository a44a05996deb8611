"""``task(points)`` answers as ``lightning predict`` does, from the task alone, however it was stored."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from lightning import Trainer

from core.errors import InputError
from core.training.hub import from_pretrained
from pointcloud import PointCloudClassifier, PointDataModule, PointFolder, PointSpec
from pointcloud.files import read_cloud

MakeTask = Callable[..., PointCloudClassifier]
SPEC = PointSpec(("ball", "disc", "rod"), load_points=60, num_points=40)


def _trainer(folder: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **kwargs},
    )


def _write_questions(folder: Path) -> list[Path]:
    """More points than are read, a mesh, a cloud with the coordinates of a map, and one in single precision."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    cloud = generator.standard_normal((90, 3))
    np.save(folder / "a_larger.npy", cloud)
    trimesh.creation.box((4.0, 1.0, 1.0)).export(folder / "b_mesh.off")
    np.savetxt(folder / "c_map.txt", cloud[:60] + np.array([500_000, 4_500_000, 120]), fmt="%.9f")
    np.save(folder / "d_single.npy", (25 * cloud[20:80]).astype(np.float32))
    return sorted(folder.iterdir())


def _probabilities(task: PointCloudClassifier, points: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return task.probabilities(task(torch.from_numpy(points)[None]))[0]


def test_task_of_points_equals_prediction_of_files(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task(num_classes=None, spec=SPEC)
    trainer = _trainer(tmp_path)
    files = _write_questions(tmp_path / "files")
    data = PointDataModule(load_points=60, num_points=40, predict_path=str(tmp_path / "files"), num_workers=0)
    (rows,) = trainer.predict(task, datamodule=data)  # type: ignore[misc]
    assert [Path(name).name for name in rows["file"]] == [file.name for file in files]

    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    task.eval().save_pretrained(tmp_path / "shared")
    loaded = {
        "itself": task,
        "checkpoint": PointCloudClassifier.load_from_checkpoint(tmp_path / "task.ckpt", map_location="cpu").eval(),
        "shared": from_pretrained(tmp_path / "shared").eval(),
    }
    for name, again in loaded.items():
        assert again.spec == SPEC, name
        assert again.class_names == ["ball", "disc", "rod"]
        for file, label, expected in zip(files, rows["class"], rows["probability"], strict=True):
            probability = _probabilities(again, read_cloud(file, 60))  # type: ignore[arg-type]
            assert again.class_names[int(probability.argmax())] == label, (name, file)
            assert float(probability.max()) == pytest.approx(expected, abs=1e-5), (name, file)
        answers = again.predict(tmp_path / "files")
        assert [row["class"] for row in answers] == rows["class"]
        assert [row["probability"] for row in answers] == pytest.approx(rows["probability"], abs=1e-5)


def test_prediction_of_paths_and_arrays(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task(num_classes=None, spec=SPEC)
    files = _write_questions(tmp_path / "files")
    clouds = [read_cloud(file, 60) for file in files]
    expected = [row["probability"] for row in task.predict(tmp_path / "files")]
    for source in (files, [str(file) for file in files], clouds, [torch.from_numpy(cloud) for cloud in clouds]):
        assert [row["probability"] for row in task.predict(source)] == pytest.approx(expected, abs=1e-5)
    for source in (files[1], clouds[1]):
        (row,) = task.predict(source)
        assert row["probability"] == pytest.approx(expected[1], abs=1e-5)
        assert row["class"] in SPEC.classes
    assert task.predict(clouds)[2]["file"] == "array 2"
    assert task.training  # as it was before


def test_small_clouds_are_drawn_with_repetition_and_one_is_named(
    make_task: MakeTask, make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    """Once in a run with data-loading processes, and once in each call of ``predict``."""
    root = make_shapes(train=4, val=2)
    for file in sorted(root.rglob("*.npy")):
        np.save(file, np.load(file)[:25])
    said = r"\.npy has 25 points, and --data\.load_points is 60: clouds with fewer points are drawn with repetition"

    data = PointFolder(str(root), load_points=60, num_points=40, y_up=False, batch_size=4, num_workers=0)
    data.setup("fit")
    points, _ = data.train_set[0]  # type: ignore[index]
    assert points.shape == (60, 3)
    assert sorted(points.unique(dim=0, return_counts=True)[1].tolist()) == [2] * 15 + [3] * 10
    assert torch.equal(data.val_set[0][0], data.val_set[0][0])  # type: ignore[index]

    task = make_task(num_classes=None, spec=SPEC)
    files = sorted(root.rglob("*.npy"))[:3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = task.predict(files)
    assert [bool(re.search(said, str(warning.message))) for warning in caught] == [True]
    assert len(rows) == 3


def test_repeated_points_are_sampled_alike(make_task: MakeTask) -> None:
    cloud = torch.randn(1, 25, 3)
    feature_map = make_task(num_classes=None, spec=SPEC).feature_map.eval()
    feature_map.load_points, feature_map.num_points = 60, 40
    repeated = cloud[:, torch.arange(60) % 25]
    sampled = feature_map.sample(repeated)
    assert sorted(sampled[0].unique(dim=0, return_counts=True)[1].tolist()) == [1] * 10 + [2] * 15
    many = feature_map.sample(torch.cat([repeated, torch.randn(1, 60, 3)]))  # beside a cloud of distinct points
    assert torch.equal(many[:1], sampled)
    assert len(many[1].unique(dim=0)) == 40


def test_the_data_say_the_classes_and_how_points_are_read(
    make_task: MakeTask, make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_shapes(train=3, val=2)
    data = PointFolder(str(root), load_points=50, num_points=30, y_up=False, batch_size=4, num_workers=0)
    spec = data.spec()
    assert spec == PointSpec(("ball", "disc", "rod"), load_points=50, num_points=30, y_up=False)
    task = make_task(num_classes=None, spec=spec)
    assert (task.num_classes, task.feature_map.num_points, task.feature_map.y_up) == (3, 30, False)
    _trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(task, datamodule=data)
    assert task.hparams["spec"]["classes"] == ["ball", "disc", "rod"]

    with pytest.raises(InputError, match="the model has 4 classes and the data 3"):
        make_task(num_classes=4, spec=spec)
    with pytest.raises(InputError, match="the model has 4 classes and the data 3"):
        _trainer(tmp_path).validate(make_task(num_classes=4), datamodule=data, verbose=False)


def test_a_trained_model_reads_other_files_with_other_options(tmp_path: Path, make_task: MakeTask) -> None:
    task = make_task(num_classes=None, spec=SPEC)
    cloud = np.random.default_rng(3).standard_normal((60, 3))
    np.savetxt(tmp_path / "y_up.txt", cloud)
    np.savetxt(tmp_path / "z_up.txt", np.stack([-cloud[:, 2], -cloud[:, 0], cloud[:, 1]], axis=1))
    answers = []
    for name, y_up in (("y_up.txt", True), ("z_up.txt", False), ("z_up.txt", True)):
        path = str(tmp_path / name)
        data = PointDataModule(load_points=60, num_points=40, y_up=y_up, predict_path=path, num_workers=0)
        (rows,) = _trainer(tmp_path).predict(task, datamodule=data)  # type: ignore[misc]
        answers.append(rows["probability"][0])
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)
    assert answers[0] != pytest.approx(answers[2], abs=1e-5)
    assert task.class_names == ["ball", "disc", "rod"]


def test_batches_hold_raw_points(make_shapes: Callable[..., Path]) -> None:
    root = make_shapes(train=2, val=1)
    file = root / "val" / "ball" / "0.npy"
    np.save(file, 1000 * np.load(file))
    data = PointFolder(str(root), load_points=64, num_points=30, batch_size=2, num_workers=0)
    data.setup("fit")
    points, y = next(iter(data.val_dataloader()))
    assert (points.shape, y.tolist()) == ((2, 64, 3), [0, 1])
    assert torch.equal(points[0].double(), torch.from_numpy(np.load(file)).float().double())


def test_statistics_of_a_task_stay_exact_in_half_precision(make_task: MakeTask) -> None:
    task = make_task().eval()
    cloud = torch.randn(2, 60, 3)
    with torch.no_grad():
        whole, half = task(cloud), task.to(torch.bfloat16)(cloud)
    assert task.feature_map.std.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert torch.allclose(whole, half.float(), atol=0.1)


def test_one_of_everything(make_task: MakeTask, make_shapes: Callable[..., Path], tmp_path: Path) -> None:
    """One view, one pose, one cloud in a batch, one batch in a split, and one point with itself as its neighbor."""
    root = make_shapes(train=2, val=1, test=1)
    poses = {"val_theta": [0.1], "val_phi": [-0.35], "test_theta": [0.0], "test_phi": [-0.4]}
    one: dict[str, Any] = {"num_views": 1, "obj_size": 64, "neighbors": 1, "poses": poses}
    for points in (64, 1):
        data = PointFolder(str(root), load_points=points, num_points=points, batch_size=1, shots=1, num_workers=0)
        for head in ("concat", "mean"):
            task = make_task(num_classes=None, spec=data.spec(), head=head, **one)
            trainer = _trainer(tmp_path, max_epochs=1, limit_val_batches=1, limit_test_batches=1)
            trainer.fit(task, datamodule=data)
            trainer.test(task, datamodule=data, verbose=False)
            assert 0 <= float(trainer.callback_metrics["test_macc"]) <= 1
            (row,) = task.predict(root / "test" / "rod" / "0.npy")
            assert row["class"] in ("ball", "disc", "rod")
    with pytest.raises(InputError, match="num_classes=1; "):
        make_task(num_classes=1)


def test_half_precision_draws_and_turns_in_single_precision(tmp_path: Path, make_task: MakeTask) -> None:
    """Lightning makes bfloat16 the default type of new tensors with this precision."""
    np.save(tmp_path / "a.npy", np.random.default_rng(3).standard_normal((60, 3)))
    task = make_task(num_classes=None, spec=SPEC)
    data = PointDataModule(load_points=60, num_points=40, predict_path=str(tmp_path / "a.npy"), num_workers=0)
    single = _trainer(tmp_path).predict(task, datamodule=data)
    half = _trainer(tmp_path, precision="bf16-true").predict(task, datamodule=data)
    assert half[0]["probability"] == pytest.approx(single[0]["probability"], abs=0.05)  # type: ignore[index]

    grid = task.poses.grid(test=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(task.poses.grid(test=True), grid)
        assert task.poses.draw(2)[0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("head", ["concat", "mean"])
def test_embedding_is_the_mean_over_views_and_poses(head: str, tmp_path: Path, make_task: MakeTask) -> None:
    task: Any = make_task(num_classes=None, spec=SPEC, head=head).eval()
    _write_questions(tmp_path / "files")
    (tmp_path / "files" / "broken.npy").write_bytes(b"no cloud")
    rows = task.predict(tmp_path / "files", all=True)
    assert [bool(row["error"]) for row in rows] == [Path(row["file"]).stem == "broken" for row in rows]
    for row in rows:
        if not row["error"]:
            assert sum(row[f"p_{name}"] for name in task.class_names) == pytest.approx(1, abs=1e-6)

    vectors = task.embed([tmp_path / "files" / "a_larger.npy", tmp_path / "files" / "b_mesh.off"])
    assert vectors.shape == (2, task.backbone.num_features)
    assert float((vectors[0] - vectors[1]).abs().max()) > 1e-4
    if head == "mean":  # then the classifier reads each view, and is linear
        points = torch.from_numpy(read_cloud(tmp_path / "files" / "a_larger.npy", 60))
        with torch.no_grad():
            logits, again = task(points[None]), task.backbone.get_classifier()(vectors[:1])
        torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-4)
