"""What the verbs erf, shape-bias and cost refuse, with one line that says what to change and no file written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training.small_runs import picture

from core.cli import main
from vision import ImageClassifier

Refusal = Callable[..., str]

ERF = ["erf", "test_replknet", "--images", "photos", "--size", "64", "--pretrained", "false"]
BIAS = ["shape-bias", "test_resnet", "--images", "conflicts", "--pretrained", "false"]
COST = ["cost", "test_replknet", "--size", "64", "--rounds", "0"]
VERBS = pytest.mark.parametrize("words", [ERF, BIAS, COST], ids=["erf", "shape-bias", "cost"])


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs words that must be refused, in a folder with images and weights, and gives the message."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/0", "conflicts/cat1-dog1", "agreements/cat1-cat2"):
        Path(name).parent.mkdir()
        picture(0, 0).save(f"{name}.png")
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/bear1-bird1.png").write_text("no image")
    torch.save({"stem.weight": torch.zeros(2)}, "other.pth")
    torch.save({"stem.weight": torch.zeros(2)}, "plain.ckpt")
    torch.save({"hyper_parameters": {"config": "mask_rcnn.py"}, "state_dict": {}}, "detector.ckpt")

    def run(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            main([*words])
        message = stopped.value.code
        assert isinstance(message, str), "a refusal exits with its message, which is status 1"
        printed = capsys.readouterr()
        assert "Traceback" not in message + printed.err + printed.out
        assert message.startswith("lightning: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return run


@VERBS
def test_unknown_option(words: list[str], refusal: Refusal) -> None:
    message = refusal(*words, "--sise", "64")
    assert message == f"lightning: error: unrecognized arguments: --sise 64. Type: lightning {words[0]} --help"


@pytest.mark.parametrize("words", [ERF, BIAS], ids=["erf", "shape-bias"])
def test_images_that_are_not_given(words: list[str], refusal: Refusal) -> None:
    assert "the following arguments are required: images. Type: lightning" in refusal(*words[:2])


@VERBS
def test_no_model(words: list[str], refusal: Refusal) -> None:
    assert "arguments are required: models" in refusal(words[0], *words[2:])


@VERBS
def test_unknown_model_suggests_others(words: list[str], refusal: Refusal) -> None:
    message = refusal(words[0], "test_replkne", *words[2:])
    assert "unknown model 'test_replkne'; did you mean test_replknet or" in message
    assert "\n" not in message


@VERBS
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("test_replknet=gone.pth", "no weights at 'gone.pth' (it is not there); give a .pth, .ckpt or .safetensors"),
        ("test_replknet=empty", "no weights at 'empty' (it is a folder)"),
        ("test_replknet=other.pth", "other.pth does not fit the model"),
        ("test_replknet=broken/bear1-bird1.png", "bear1-bird1.png is not a checkpoint that torch or safetensors can"),
        ("gone.ckpt", "there is no checkpoint gone.ckpt; give a file that lightning fit wrote, or the folder of a run"),
        (
            "detector.ckpt",
            "detector.ckpt holds a detector or segmentor, and the analyses take other tasks' checkpoints",
        ),
        (
            "plain.ckpt",
            "plain.ckpt is not a checkpoint that lightning fit wrote: it has no 'state_dict'. Weights alone",
        ),
        ("empty", "empty has no checkpoints/best.ckpt and no checkpoints/last.ckpt; give the folder of a run"),
    ],
)
def test_weights_that_cannot_be_used(words: list[str], model: str, text: str, refusal: Refusal) -> None:
    assert text in refusal(words[0], model, *words[2:])


@pytest.mark.parametrize("words", [ERF, BIAS], ids=["erf", "shape-bias"])
def test_published_weights_are_the_default(words: list[str], refusal: Refusal) -> None:
    message = refusal(words[0], "test_replknet", *words[2:-2])
    assert "test_replknet cannot be built: No pretrained weights exist for test_replknet" in message
    assert "test_replknet=FILE in an analysis" in message


@VERBS
@pytest.mark.parametrize(
    "device",
    ["tpu9", "", pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"))],
)
def test_bad_device(words: list[str], device: str, refusal: Refusal) -> None:
    message = refusal(*words, "--device", device)
    assert f"device {device!r} cannot be used: " in message
    assert message.endswith("; type --device cpu")
    assert "\n" not in message


@pytest.mark.parametrize("words", [ERF, BIAS], ids=["erf", "shape-bias"])
@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("nowhere", "nowhere is neither a file nor a folder; give images, or a folder that holds some"),
        ("empty", "empty holds no images; expected files ending in .bmp, .jpeg, .jpg, .png"),
        ("broken", "broken/bear1-bird1.png cannot be decoded as an image: "),
    ],
)
def test_images_that_cannot_be_used(words: list[str], folder: str, text: str, refusal: Refusal) -> None:
    message = refusal(*words[:3], folder, *words[4:])
    assert text in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        *((ERF, option, value) for option in ("size", "num_images", "batch_size") for value in ("0", "-3")),
        (BIAS, "batch_size", "0"),
        *((COST, option, "0") for option in ("size", "width", "batch_size")),
    ],
)
def test_numbers_below_1(words: list[str], option: str, value: str, refusal: Refusal) -> None:
    assert refusal(*words, f"--{option}", value) == f"lightning: error: --{option} is {value}; give 1 or more"


@pytest.mark.parametrize("words", [ERF, COST], ids=["erf", "cost"])
def test_size_that_is_no_number(words: list[str], refusal: Refusal) -> None:
    message = refusal(*words, "--size", "large")
    assert "size" in message
    assert message.endswith(f"Got value: large. Type: lightning {words[0]} --help")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--mean", "[0.5, 0.5, 0.5]"], "give both --mean and --std, or neither for each model's own"),
        (["--std", "[0.5, 0.5, 0.5]"], "give both --mean and --std, or neither for each model's own"),
        (["--mean", "[0.5]", "--std", "[1]"], "--mean has 1 and --std 1 values; the model takes 3"),
        (["--mean", "[0, 0, 0]", "--std", "[1]"], "--mean has 3 and --std 1 values; the model takes 3"),
    ],
)
def test_normalization_that_does_not_fit(options: list[str], text: str, refusal: Refusal) -> None:
    assert refusal(*ERF, *options) == f"lightning: error: {text}"


def test_receptive_field_of_tokens(refusal: Refusal) -> None:
    message = refusal("erf", "test_vit", *ERF[2:])
    assert (
        "the last map of VisionTransformer is (1, 17, 64), not (B, C, H, W): its positions do not form a grid"
        in message
    )


def test_images_without_a_conflict(refusal: Refusal) -> None:
    assert "in all 1 images of agreements shape and texture agree" in refusal(*BIAS[:3], "agreements", *BIAS[4:])


def test_images_named_otherwise(refusal: Refusal) -> None:
    message = refusal(*BIAS[:3], "photos", *BIAS[4:])
    assert "photos/0.png is not named after a shape and a texture; expected names such as cat3-knife1.png" in message


def test_classes_other_than_those_of_imagenet(refusal: Refusal) -> None:
    task = ImageClassifier(backbone="test_replknet", num_classes=10)
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, "ten.ckpt")
    assert "the model gives (1, 10); shape bias needs the 1000 classes of ImageNet-1K" in refusal(
        "shape-bias", "ten.ckpt", *BIAS[2:]
    )


def test_size_that_the_model_does_not_take(refusal: Refusal) -> None:
    message = refusal("cost", "test_vit", "--size", "50", "--rounds", "0")
    assert "VisionTransformer does not take an input of (3, 50, 50) (" in message
    assert message.endswith("; choose another size or number of channels")


@VERBS
@pytest.mark.parametrize("output", ["results", "results/more", "results/more/still"])
def test_output_that_is_a_file_or_below_one(words: list[str], output: str, refusal: Refusal) -> None:
    Path("results").write_text("mine")
    message = refusal(*words, "--output", output)
    assert message == f"lightning: error: --output {output} is a file, or below one; give a folder"
    assert Path("results").read_text() == "mine"


@pytest.mark.parametrize("name", ["test_coatnet", "swin_tiny_patch4_window7_224"])
def test_receptive_field_at_a_size_that_the_model_does_not_take(name: str, refusal: Refusal) -> None:
    message = refusal("erf", name, *ERF[2:])
    assert "does not take an input of (3, 64, 64) (" in message
    assert message.endswith("); choose another size")


def test_channels_that_images_do_not_have(refusal: Refusal) -> None:
    task = ImageClassifier(backbone="test_replknet", num_classes=1000, backbone_args={"in_chans": 4})
    torch.save({"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, "four.ckpt")
    for words in (ERF, BIAS):
        assert "RepLKNet takes 4 channels; images have 1 or 3" in refusal(words[0], "four.ckpt", *words[2:])


@pytest.mark.parametrize("std", ["[1.0, 0.0, 1.0]", "[-1.0, 1.0, 1.0]"])
def test_deviations_that_nothing_can_be_divided_by(std: str, refusal: Refusal) -> None:
    message = refusal(*ERF, "--mean", "[0, 0, 0]", "--std", std)
    assert message == f"lightning: error: --std is {std}; give numbers above 0"


def test_rounds_below_0(refusal: Refusal) -> None:
    message = refusal(*COST[:-2], "--rounds", "-1")
    assert message == "lightning: error: --rounds is -1; give 0 for no timing, or more"


@pytest.mark.parametrize("option", ["mean", "std"])
def test_mean_without_brackets(option: str, refusal: Refusal) -> None:
    message = refusal(*ERF, f"--{option}", "0.5")
    assert message == (
        f'lightning: error: Parser key "{option}": write lists as [0.5, 0.5, 0.5]. Type: lightning erf --help'
    )
