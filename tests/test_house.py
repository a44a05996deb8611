"""The documents agree with the code: commands and programs of README and pages run, environments name the same."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from cli.small_sets import small_data
from PIL import Image

from core.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
FOUND = dict.fromkeys(re.findall(r"^    .*?(lightning (?:fit|test|predict|export|push) .*)$", TEXT, re.MULTILINE))
PARSED = [command for command in FOUND if "--model.pretrained true" in command]  # they would download
COMMANDS = [command for command in FOUND if command not in PARSED]
ANALYSES = list(dict.fromkeys(re.findall(r"^    (lightning (?:erf|shape-bias|cost) .*)$", TEXT, re.MULTILINE)))
NETS = {"resnet50": "test_resnet", "unireplknet_t": "test_unireplknet", "replknet_31b": "test_replknet"}
PROGRAMS = {
    f"{document.stem}-{i}": program
    for document in DOCUMENTS
    for i, program in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL))
}
SMALL = {
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--trainer.max_epochs": "1",
    "--trainer.limit_train_batches": "1",
    "--trainer.limit_val_batches": "1",
    "--trainer.limit_test_batches": "1",
    "--trainer.limit_predict_batches": "2",
    "--trainer.accelerator": "cpu",
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader would have it: photos of their own, ImageNet's layout, and no configurations."""
    for folder in ("photos", "data/imagenet"):
        for split in ("train", "val"):
            for label, color in enumerate(("red", "blue")):
                place = tmp_path / folder / split / color
                place.mkdir(parents=True)
                for i in range(4):
                    Image.new("RGB", (70 + i, 60), color).save(place / f"{label}{i}.jpg")
    _label(tmp_path)
    (tmp_path / "cue-conflict").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cue-conflict" / "cat1-knife2.png")
    for kind in ("audio.AudioFolder", "pointcloud.PointFolder", "video.VideoFolder", "timeseries.CSVSeries"):
        small_data({"class_path": kind}, tmp_path)
    for third in tmp_path.glob("sounds/*/c"):
        shutil.rmtree(third)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _label(folder: Path) -> None:
    """Write boxes and masks for the photos: ``annotations.json`` and ``masks/``."""
    images = []
    boxes = []
    for i, photo in enumerate(sorted((folder / "photos").rglob("*.jpg"))):
        name = photo.relative_to(folder / "photos")
        images.append({"id": i, "file_name": name.as_posix()})
        boxes.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [5, 5, 40, 30]})
        mask = folder / "masks" / name.with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", Image.open(photo).size, i % 3).save(mask)
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def _small(command: str) -> list[str]:
    words = shlex.split(command.partition("&&")[0])[1:]
    if command in ANALYSES:
        return [NETS.get(word, word) for word in words] + ["--pretrained", "false"] * (words[0] != "cost")
    if words[0] == "push":
        return words
    extra = dict(SMALL) if words[0] != "export" else {}
    if "-c" not in words:  # a checkpoint says everything
        return words + [word for pair in extra.items() for word in pair]

    if "timeseries/" in command:
        words = ["16" if previous == "--pred_len" else word for previous, word in pairwise(["", *words])]
        extra["--seq_len"] = "16"
    elif "multimodal/" in command:
        small = small_data({"class_path": "multimodal.JointDataModule"}, Path.cwd())
        extra |= {f"--{name}": value for name, value in small.items()}
        extra |= {"--model.backbone": "test_unireplknet", "--model.backbone_args": "{}"}
    elif "audio/" in command or "pointcloud/" in command or "video/" in command:
        sizes = {"audio": {}, "pointcloud": {"load_points": "64", "num_points": "40"}, "video": {"size": "32"}}
        modality = command.split(" -c ")[1].partition("/")[0]
        extra |= {f"--data.{name}": value for name, value in (sizes[modality] | {"batch_size": "2"}).items()}
        extra |= {"--model.backbone": "test_unireplknet", "--data.num_workers": "0"}
    else:
        extra |= _small_images(command)
    return words + [word for pair in extra.items() for word in pair]


def _small_images(command: str) -> dict[str, str]:
    if "det.yaml" in command or "seg.yaml" in command:
        return {}

    extra = {"--data.num_workers": "0"}
    if not any(word in command for word in ("Digits", "cls.yaml", "ablation.yaml")):
        extra |= {"--data.size": "64", "--data.batch_size": "2"}
    if "fit" in command.split() and "--ckpt_path" not in command:
        extra |= {"--model.backbone": "test_unireplknet", "--model.backbone_args": "{}"}
    return extra


def test_documents_have_commands_and_programs() -> None:
    assert len(COMMANDS) >= 6
    assert PARSED
    assert {command.split()[1] for command in ANALYSES} == {"erf", "shape-bias", "cost"}
    assert any(name.startswith("README") for name in PROGRAMS)
    assert len(PROGRAMS) >= 10


def test_the_readme_is_short_and_has_both_commands() -> None:
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert "    pip install -e . && lightning fit -c vision/configs/cls.yaml\n" in readme
    assert "    pip install -e '.[test]' && pytest -n logical\n" in readme


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_commands_of_the_documents() -> None:
    for command in COMMANDS:  # the README's first: later ones use the checkpoints of earlier ones
        if "devices 2" in command:  # processes that start themselves again by their program's name
            subprocess.run([Path(sys.executable).with_name("lightning"), *_small(command)], check=True, timeout=300)
        else:
            main(_small(command))
    runs = Path("lightning_logs")
    assert len(list(runs.glob("*/*/checkpoints/best.ckpt"))) == sum(c.split()[1] == "fit" for c in COMMANDS)
    assert len(list(runs.glob("*/*/predictions.csv"))) == sum(c.split()[1] == "predict" for c in COMMANDS)
    assert list(Path("exports/ImageClassifier").glob("*.onnx"))
    assert {path.name for path in Path("shared").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    for command in ANALYSES:
        main(_small(command))
        name = command.split()[1].replace("-", "_")
        assert {path.name for path in Path(name).iterdir()} == {f"{name}.png", f"{name}.json"}


def test_the_command_for_a_cluster_is_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"^srun .*?(lightning .*?)\n```", TEXT, re.MULTILINE | re.DOTALL)
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*shlex.split(command.replace("\\\n", " "))[1:], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["num_nodes"] * config["trainer"]["devices"] == 16
    assert config["trainer"]["strategy"]["class_path"].endswith("FSDPStrategy")
    assert config["trainer"]["plugins"][0]["class_path"].endswith("SLURMEnvironment")


@pytest.mark.parametrize("command", PARSED)
def test_commands_that_download_are_understood(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*shlex.split(command)[1:], "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["pretrained"] is True


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_programs_of_the_documents(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = program.replace("Trainer(max_epochs=1)", "Trainer(max_epochs=1, limit_train_batches=2)")
    exec(compile(program, "a page", "exec"), {"__name__": "page"})


def test_environment_names_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = (
        project["dependencies"]
        + extras["export"]
        + extras["parquet"]
        + extras["tune"]
        + extras["holidays"]
        + extras["speech"]
        + extras["openmmlab"]
        + [d for d in extras["test"] if not d.startswith("larkit")]
    )
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(item["pip"] for item in environment if isinstance(item, dict))
    assert sorted(pip) == sorted([*named, "-e ."])
    assert f"python={project['requires-python'].removeprefix('>=')}" <= environment[0]


def test_the_lint_hooks_are_those_of_the_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    lint = [line for line in check if line.split()[:1] in (["ruff"], ["mypy"], ["mkdocs"])]
    assert [hook["entry"] for hook in hooks] == lint
    assert all(hook["language"] == "system" for hook in hooks)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version
    assert f"version = {{{version}}}" in (ROOT / "docs" / "citation.md").read_text(encoding="utf-8")


def test_the_workflows_run_what_pyproject_supports() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = [line.rpartition(" ")[2] for line in project["classifiers"] if line.startswith("Programming Language")]
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == supported
    assert {"lint", "tests", "docs", "wheel"} == set(workflow["jobs"])


def test_every_dependency_has_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("dependencies = [")[2].partition("\n]")[0]
    assert all("#" in line for line in lines.strip().splitlines())


def test_every_configuration_is_in_a_readme() -> None:
    for file in ROOT.glob("*/configs/**/*.yaml"):
        package = file.relative_to(ROOT).parts[0]
        readme = ROOT / "docs" / "how_to" / "scale_out.md" if package == "core" else ROOT / package / "README.md"
        text = readme.read_text(encoding="utf-8")
        family, _, variant = file.stem.partition("_")
        assert file.name in text or (f"{family}_" in text and f"`_{variant}`" in text), file


def test_the_modalities_are_described_in_one_order() -> None:
    for modality in ("audio", "pointcloud", "timeseries", "video", "vision"):
        text = (ROOT / modality / "README.md").read_text(encoding="utf-8")
        sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert text.index("| config | data | metric |") < text.index("## ")
        assert sections[0] == "The built-in data"
        assert sections[1].startswith("Your own ")
        assert sections[-1] == "Differences from the published code"
        assert sections.index("Speed") == len(sections) - 2 if "Speed" in sections else modality == "vision"
