"""What the command refuses, with one message that says what to change and leaves nothing behind."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training.small_runs import command, runs, write_config

from core.cli import ANALYSES, VERBS, main
from core.errors import InputError

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs words that must be refused and gives the message; nothing may have been written."""

    def files() -> list[Path]:
        return sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())

    def run(*words: str) -> str:
        before = files()
        with pytest.raises(SystemExit) as stopped:
            main([*words])
        assert isinstance(stopped.value.code, str), "a refusal exits with its message, which is status 1"
        message = stopped.value.code
        printed = capsys.readouterr()
        assert "Traceback" not in message + printed.err + printed.out
        assert message.startswith("lightning: error: ")
        assert files() == before
        return message

    return run


def _words(verb: str, config: Path, out: Path, *more: str) -> list[str]:
    return [verb, "-c", str(config), "--trainer.default_root_dir", str(out), *more]


@pytest.mark.parametrize("verb", ["train", "--fit", "Fit", "shape_bias", "ERF", "-c"])
def test_unknown_verb(verb: str, refusal: Refusal) -> None:
    message = refusal(verb, "-c", "whatever.yaml")
    assert repr(verb) in message
    assert f"expected one of {', '.join([*VERBS, 'tune', 'configs', 'push', *ANALYSES])}. Type: " in message
    assert "lightning --help" in message


@pytest.mark.parametrize("analysis", ANALYSES)
def test_analyses_take_names_and_not_configurations(analysis: str, refusal: Refusal) -> None:
    images = [] if analysis == "cost" else ["--images", "photos"]
    message = refusal(analysis, "test_replknet", *images, "-c", "vision/configs/cls.yaml")
    assert message.endswith(f"arguments: -c vision/configs/cls.yaml. Type: lightning {analysis} --help")


@pytest.mark.parametrize("flag", ["-c", "--config"])
def test_missing_configuration_names_the_nearest(flag: str, refusal: Refusal) -> None:
    message = refusal("fit", flag, "vision/configs/clss.yaml")
    assert "there is no configuration vision/configs/clss.yaml; did you mean vision/configs/cls.yaml" in message


def test_missing_configuration_with_an_equals_sign(refusal: Refusal) -> None:
    assert "nowhere.yaml" in refusal("fit", "--config=nowhere.yaml")


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("modle: {class_path: ImageClassifier}\n", "modle"),
        ("model: {init_args: {learning_rate: 0.1}}\n", "learning_rate"),
        ("data: {init_args: {rot: here}}\n", "rot"),
        ("trainer: {max_epoch: 3}\n", "max_epoch"),
    ],
)
def test_unknown_key_is_named(addition: str, key: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config, second = write_config(tmp_path / "a.yaml", photos), tmp_path / "b.yaml"
    second.write_text(addition)
    assert key in refusal(*_words("fit", config, tmp_path / "out", "-c", str(second)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--model.num_classes", "many"),
        ("--trainer.max_epochs", "x"),
        ("--model.opt_name", "sgd"),
        ("--data", "Nothing"),
    ],
)
def test_value_that_does_not_fit(option: str, value: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words("fit", config, tmp_path / "out", option, value))
    assert option.split(".")[-1].strip("-") in message


def test_broken_yaml(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "a.yaml").write_text("model: [1, 2\n")
    assert "a.yaml" in refusal(*_words("fit", tmp_path / "a.yaml", tmp_path / "out"))


def test_no_task_at_all(refusal: Refusal) -> None:
    assert "model" in refusal("fit")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--model.backbone", "unireplknet_tt", "unireplknet_t"),
        ("--model.lr", "-1", "lr=-1"),
        ("--model.backbone_args", "{depths: [1, 1, 1, 1], kernel_sizes: [3, 7, [9, 9], 13]}", "kernel_sizes[2]"),
        ("--data.root", "nowhere/at/all", "nowhere/at/all"),
        ("--data.batch_size", "0", "batch_size=0"),
        ("--data.mode", "L", "1 channel"),
        ("--model.weights", "absent.pth", "absent.pth"),
        ("--trainer.max_epochs", "-1", "max_epochs"),
    ],
)
def test_setting_that_cannot_be_used(
    option: str, value: str, text: str, photos: Path, tmp_path: Path, refusal: Refusal
) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    assert text in refusal(*_words("fit", config, tmp_path / "out", option, value))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--seed_everything", "-5"], r"seed_everything=-5; expected a number from 0 to 4294967295"),
        (["--trainer.accumulate_grad_batches", "0"], r"--trainer\.accumulate_grad_batches 0; expected 1 or more"),
        (["--trainer.check_val_every_n_epoch", "0"], r"--trainer\.check_val_every_n_epoch 0; expected 1 or more"),
        (["--trainer.devices", "-3"], r"devices|processes"),
        (["--trainer.strategy", "nope"], r"strategy='nope'"),
        (["--trainer.val_check_interval", "100"], r"`val_check_interval` \(100\) must be less than or equal to"),
        (["--trainer.val_check_interval", "0"], r"--trainer\.val_check_interval 0; expected a share of an epoch"),
        (["--checkpoint.mode", "x"], r"checkpoint\.mode.*Got value: x"),
        (["--model.num_classes", "99999999999999999999"], r"num_classes=9+; expected a number from 2 to 1,000,000"),
        (["--data.batch_size", "99999999999999999999"], r"batch_size=9+, .* expected 1 to 1,000,000 samples"),
        (["--data.num_workers", "99999999999999999999"], r"num_workers=9+, .* 0 to 1,000 workers"),
        (["--data.min_epoch_steps", "99999999999999999999"], r"min_epoch_steps=9+; .* 1 to 1,000,000 steps"),
        (["--data.size", "99999999999999999999"], r"size=9+; expected a number of pixels, 1 to 65,535"),
        (["--trainer.default_root_dir", "a" * 300], r"below which runs are written, cannot be created"),
        (["--trainer.default_root_dir", "/proc/nowhere"], r"/proc/nowhere.*cannot be created"),
    ],
)
def test_setting_that_lightning_does_not_refuse_itself(
    words: list[str], text: str, photos: Path, tmp_path: Path, refusal: Refusal
) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words("fit", config, tmp_path / "out", *words))
    assert re.search(text, message)
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "text"), [("", "is empty"), ("# later\n", "is empty"), ("3\n", "holds int")])
def test_file_without_settings_is_named(
    content: str, text: str, photos: Path, tmp_path: Path, refusal: Refusal
) -> None:
    second = tmp_path / "b.yaml"
    second.write_text(content)
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words("fit", config, tmp_path / "out", "-c", str(second)))
    assert f"{second} {text}; expected settings by their names" in message


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_refused_command_removes_the_folders_that_it_made(
    verb: str, photos: Path, tmp_path: Path, refusal: Refusal, trained: dict[str, Path]
) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    words = ["--model.num_classes", "7"]
    if verb == "validate":
        words = ["--data.batch_size", "0", "--ckpt_path", str(trained["folder"])]
    for present in (False, True):
        if present:
            (tmp_path / "out" / "lightning_logs" / "ImageClassifier").mkdir(parents=True)
        refusal(*_words(verb, config, tmp_path / "out", *words))
        assert (tmp_path / "out").exists() == present
    assert not list((tmp_path / "out").rglob("version_*"))


def test_barebones_with_what_it_leaves_out(photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    words = _words("fit", config, tmp_path / "out", "--trainer.barebones", "true", "--trainer.logger", "true")
    assert "Logging can impact raw speed so it is disabled in barebones mode" in refusal(*words)


def test_other_number_of_classes_says_what_to_type(photos: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    with pytest.raises(SystemExit, match=r"model has 7 classes and the data 3 .*or set it to 3"):
        command("fit", config, tmp_path, "--model.num_classes", "7")


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "export"])
def test_random_weights_are_not_evaluated(verb: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words(verb, config, tmp_path / "out"))
    assert f"lightning {verb} -c {config}" in message
    assert message.endswith("--ckpt_path best")


@pytest.mark.parametrize("verb", ["fit", "validate", "export"])
def test_best_without_a_run(verb: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words(verb, config, tmp_path / "out", "--ckpt_path", "best"))
    assert "no best.ckpt" in message
    assert "train first" in message


def test_best_is_not_that_of_an_older_run(photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    folder = tmp_path / "out" / "lightning_logs" / "ImageClassifier"
    for time, name in enumerate(["version_0/checkpoints/best.ckpt", "version_1/checkpoints/last.ckpt"]):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
        os.utime(folder / name, (time, time))
    (folder / "version_2").mkdir()  # of an evaluation
    message = refusal(*_words("test", config, tmp_path / "out", "--ckpt_path", "best"))
    assert f"the newest run, {folder / 'version_1'}, has no best.ckpt, only last.ckpt; give the path" in message


@pytest.mark.parametrize("verb", ["fit", "test", "export"])
def test_checkpoint_that_is_not_there(verb: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    config = write_config(tmp_path / "a.yaml", photos)
    assert "no checkpoint gone.ckpt" in refusal(*_words(verb, config, tmp_path / "out", "--ckpt_path", "gone.ckpt"))


@pytest.mark.parametrize("content", ["text", "weights"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_file_that_is_no_checkpoint(verb: str, content: str, photos: Path, tmp_path: Path, refusal: Refusal) -> None:
    file = tmp_path / "some.ckpt"
    torch.save({"weight": torch.zeros(2)}, file)
    if content == "text":
        file.write_text("no checkpoint")
    config = write_config(tmp_path / "a.yaml", photos)
    message = refusal(*_words(verb, config, tmp_path / "out", "--ckpt_path", str(file)))
    assert f"{file} is not a checkpoint" in message
    assert ("--model.weights FILE" in message) == (content == "weights")


def test_checkpoint_of_another_architecture(trained: dict[str, Path], tmp_path: Path, refusal: Refusal) -> None:
    other = tmp_path / "other.pth"
    torch.save({"stem.weight": torch.zeros(2, 2)}, other)
    message = refusal(*_words("fit", trained["config"], tmp_path / "out", "--model.weights", str(other)))
    assert "does not fit the model" in message


def test_checkpoint_decides_about_the_model_and_says_so(
    trained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(trained["folder"] / "checkpoints" / "best.ckpt")
    command("validate", trained["config"], tmp_path, "--ckpt_path", path, "--model.backbone", "unireplknet_a")
    assert "backbone is 'unireplknet_a' here and 'test_unireplknet' in the checkpoint" in caplog.text
    assert len(runs(tmp_path)) == 1


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARKIT_TRACEBACK", "1")
    with pytest.raises(InputError, match="unknown verb"):
        main(["train"])
    with pytest.raises(InputError, match="unknown model 'resnet5'; did you mean"):
        main(["cost", "resnet5"])


@pytest.mark.slow
@pytest.mark.parametrize("words", [["fit", "-c", "gone.yaml"], ["erf", "test_replknet", "--images", "gone"]])
def test_message_is_all_that_a_shell_sees(words: list[str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "core.cli", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if line.startswith("lightning: error")
    ]
    assert len(done.stderr.splitlines()) == 1
