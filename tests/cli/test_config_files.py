"""Configurations by name from any folder, what is meant by a wrong name, and files that add up by key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from training.small_runs import write_config

from core.cli import main
from core.config_files import find_config, installed_configs, list_configs
from core.errors import InputError, MissingError

REPOSITORY = Path(__file__).parents[2]


def printed_config(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The configuration that the command would run with."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words, "--print_config"])
    assert stopped.value.code in (None, 0)
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


def test_every_configuration_of_the_repository_is_installed() -> None:
    files = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("*/configs/**/*.yaml")}
    assert set(installed_configs()) == files
    assert {"vision/configs/folder.yaml", "core/configs/engine/fsdp.yaml"} <= files


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("vision/configs/folder.yaml", "vision/configs/folder.yaml"),
        ("./vision/configs/folder.yaml", "vision/configs/folder.yaml"),
        ("configs/engine/slurm.yaml", "core/configs/engine/slurm.yaml"),
        ("in1k_t.yaml", "vision/configs/recipes/in1k_t.yaml"),
    ],
)
def test_installed_configuration_is_found_from_any_folder(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == (REPOSITORY / meant, True)


def test_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("vision/configs/folder.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("model: {}\n")
    assert find_config(str(own)) == (own, False)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("vision/configs/floder.yaml", "vision/configs/folder.yaml"),
        ("vision/config/cls.yaml", "vision/configs/cls.yaml"),
        ("folder.yaml", "audio/configs/folder.yaml or pointcloud/configs/folder.yaml"),
        ("mine/settigns.yaml", "mine/settings.yaml"),
    ],
)
def test_near_miss_is_answered_with_a_few_names(
    given: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/settings.yaml").touch()
    with pytest.raises(MissingError) as refused:
        find_config(given)
    message = str(refused.value)
    assert message.startswith(f"there is no configuration {given}; did you mean ")
    assert near in message
    assert message.endswith("lightning configs lists those that are installed")
    assert message.count(".yaml") <= 5


def test_name_like_no_other_is_answered_with_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"^there is no configuration qqqqqq; lightning configs lists those"):
        find_config("qqqqqq")


def test_text_that_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: [1, 2\n")
    with pytest.raises(InputError, match="is not YAML"):
        find_config(str(file))


def test_list_has_each_name_once_with_its_first_comment_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines) == list_configs()
    files = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(files) == sorted(path.name for path in installed_configs().values())
    folders = [line for line in lines if line.endswith("/")]
    assert len(folders) == len(set(folders))
    assert {"vision/configs/", "core/configs/engine/"} <= set(folders)
    (line,) = [line for line in lines if line.split()[:1] == ["fsdp.yaml"]]
    assert "Shard parameters, gradients and optimizer state" in line
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines if line.startswith("  "))
    assert max(map(len, lines)) <= 120


def test_command_says_which_installed_configuration_it_uses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = printed_config(["-c", "vision/configs/folder.yaml", "--config=fsdp.yaml"], capsys)
    assert config["data"]["class_path"] == "vision.ImageFolder"
    assert config["trainer"]["accelerator"] == "gpu"
    for name in ("vision/configs/folder.yaml", "core/configs/engine/fsdp.yaml"):
        assert f"Using the installed configuration {REPOSITORY / name}" in caplog.text


# Files that add up


@pytest.fixture
def layered(tmp_path: Path) -> Path:
    """A configuration whose backbone has two arguments."""
    path = write_config(tmp_path / "a.yaml", tmp_path)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["backbone_args"] = {"depths": [1, 1, 1, 1], "drop_path_rate": 0.2}
    path.write_text(yaml.safe_dump(content))
    return path


def _upper(layered: Path, **args: Any) -> str:
    path = layered.with_name("b.yaml")
    path.write_text(yaml.safe_dump({"model": {"init_args": args}}))
    return str(path)


def _backbone_args(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    return printed_config(words, capsys)["model"]["init_args"]["backbone_args"]


def test_later_file_changes_single_arguments_of_the_backbone(layered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upper = _upper(layered, backbone_args={"drop_path_rate": 0.5, "in_chans": 1})
    args = _backbone_args(["-c", str(layered), "-c", upper], capsys)
    assert args == {"depths": [1, 1, 1, 1], "drop_path_rate": 0.5, "in_chans": 1}


def test_three_files_and_an_option_add_up(layered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upper = _upper(layered, backbone_args={"in_chans": 1})
    third = layered.with_name("c.yaml")
    third.write_text("model: {init_args: {backbone_args: {drop_path_rate: 0.1}}}\n")
    words = ["-c", str(layered), "-c", upper, "-c", str(third), "--model.backbone_args.depths", "[2,2,2,2]"]
    assert _backbone_args(words, capsys) == {"depths": [2, 2, 2, 2], "drop_path_rate": 0.1, "in_chans": 1}


def test_other_values_of_the_later_file_leave_them_alone(layered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", str(layered), "-c", _upper(layered, lr=0.5)]
    assert _backbone_args(words, capsys) == {"depths": [1, 1, 1, 1], "drop_path_rate": 0.2}


def test_another_backbone_begins_anew(layered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", str(layered), "-c", _upper(layered, backbone="mobilenetv2_100", backbone_args={"in_chans": 1})]
    assert _backbone_args(words, capsys) == {"in_chans": 1}
