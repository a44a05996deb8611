"""The verbs shape-bias and cost: what they print and write is what the functions give; every verb's help."""

import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from training.small_runs import picture
from verb_files import read, saved_net, saved_task, table_rows

import core.analysis.cost_verb
from core.analysis import model_cost, shape_bias
from core.cli import main


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def conflicts() -> str:
    """Four conflicts and an agreement."""
    names = ["cat/cat1-knife2", "cat/cat2-dog1", "knife/knife1-dog2", "bear/bear1-knife1", "bear/bear1-bear2"]
    for i, name in enumerate(names):
        file = Path(f"conflicts/{name}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i, i, (60, 50)).save(file)
    return "conflicts"


def test_shape_bias_prints_and_writes_what_the_function_gives(
    conflicts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, random = saved_net("test_resnet"), saved_net("test_resnet")
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = 30 * nn.functional.one_hot(torch.tensor(499), 1000).float()  # every image shows a knife
    torch.save(model.state_dict(), "knives.pth")
    names = ["test_resnet=knives.pth", "test_resnet=test_resnet.pth"]
    main(["shape-bias", *names, "--images", conflicts, "--batch_size", "3"])
    rows, content = table_rows(capsys.readouterr().out), read("shape_bias/shape_bias.json")
    assert list(content) == names
    for column, (name, net) in enumerate(zip(names, (model, random), strict=True)):
        transform = create_transform(**resolve_model_data_config(net), is_training=False)
        result = shape_bias(net, conflicts, transform)
        kinds = {"shape": result.shape, "texture": result.texture, "other": result.other}
        assert content[name] == {**kinds, "overall": result.overall, "by_category": result.by_category}
        assert [int(rows[f"decided by {kind}"][column]) for kind in kinds] == [sum(n.values()) for n in kinds.values()]
    assert (content[names[0]]["overall"], rows["overall"][0]) == (1 / 3, "0.333")
    assert [rows[name][0] for name in ("bear", "cat", "knife", "dog")] == ["0.000", "0.000", "1.000", "none"]
    with Image.open("shape_bias/shape_bias.png") as image:
        assert image.size == (960, 780)


def test_shape_bias_of_a_model_for_gray_images(conflicts: str) -> None:
    task = saved_task("gray.ckpt", in_chans=1)
    main(["shape-bias", "gray.ckpt", "--images", conflicts])
    options = resolve_model_data_config(task.backbone) | {"mean": (0.449,), "std": (0.226,)}  # of ImageNet in gray
    transform = create_transform(**options, is_training=False)
    result = shape_bias(task.backbone, conflicts, transform, mode="L")
    assert read("shape_bias/shape_bias.json")["gray.ckpt"] == {
        **vars(result),
        "overall": result.overall,
        "by_category": result.by_category,
    }


def test_cost_prints_and_writes_what_the_function_gives(capsys: pytest.CaptureFixture[str]) -> None:
    main(["cost", "test_replknet", "test_resnet", "--size", "64", "--width", "96", "--rounds", "0"])
    printed, content = capsys.readouterr().out, read("cost/cost.json")
    expected = [
        *model_cost(timm.create_model("test_replknet").eval(), (3, 64, 96), name="test_replknet", rounds=0),
        *model_cost(timm.create_model("test_resnet").eval(), (3, 64, 96), name="test_resnet", rounds=0),
    ]
    assert content["costs"] == [{**vars(cost), "input_size": [3, 64, 96]} for cost in expected]
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if line.startswith("test_")]
    assert [line[:4] for line in lines] == [
        [cost.model, cost.form, f"{cost.parameters / 1e6:.2f} M", f"{cost.macs / 1e9:.3f}"] for cost in expected
    ]
    assert "one image of 64 x 96" in printed
    assert [path.name for path in Path("cost").iterdir()] == ["cost.json"]


def test_cost_measures_speed_and_draws_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    titles, verb = [], core.analysis.cost_verb
    draw = verb.cost_figure
    monkeypatch.setattr(verb, "cost_figure", lambda c, title: (titles.append(title), draw(c, title))[1])
    main(["cost", "test_replknet", "--size", "32", "--rounds", "1", "--batch_size", "2", "--output", "here"])
    content = read("here/cost.json")
    assert all(cost["images_per_second"] > 0 for cost in content["costs"])
    assert (content["batch_size"], content["threads"], content["torch"]) == (2, 1, torch.__version__)
    assert titles == [f"input 32 x 32, batch 2, {content['device']}, torch {torch.__version__}"]
    shown = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("test_")]
    assert shown == [pytest.approx(cost["images_per_second"], abs=0.06) for cost in content["costs"]]
    with Image.open("here/cost.png") as image:
        assert image.size == (900, 600)


def test_cost_of_a_checkpoint_and_of_a_model_for_gray_images(trained: dict[str, Path]) -> None:
    saved_task("gray.ckpt", in_chans=1)
    best = str(trained["folder"] / "checkpoints" / "best.ckpt")
    main(["cost", best, "gray.ckpt", "--size", "32", "--rounds", "0"])
    costs = read("cost/cost.json")["costs"]
    assert [(cost["model"], cost["form"]) for cost in costs] == [
        *((best, form) for form in ("train", "inference")),
        *(("gray.ckpt", form) for form in ("train", "inference")),
    ]
    assert [cost["input_size"][0] for cost in costs] == [3, 3, 1, 1]
    backbone = timm.create_model("test_unireplknet", num_classes=3, layer_scale_init_value=0.5)
    assert costs[0]["parameters"] == sum(p.numel() for p in backbone.parameters())


def test_cost_does_not_claim_an_older_picture(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cost").mkdir()
    Path("cost/cost.png").write_text("older")
    main(["cost", "test_replknet", "--size", "32", "--rounds", "0"])
    assert "\nwrote cost/cost.json\n" in capsys.readouterr().out


def test_checkpoint_in_a_folder_with_an_equals_sign() -> None:
    Path("lr=0.1").mkdir()
    saved_task("lr=0.1/best.ckpt")
    main(["cost", "lr=0.1/best.ckpt", "test_unireplknet=lr=0.1/best.ckpt", "--size", "32", "--rounds", "0"])
    costs = read("cost/cost.json")["costs"]
    assert costs[0] == {**costs[2], "model": "lr=0.1/best.ckpt"}


def test_cost_of_a_model_with_other_channels() -> None:
    saved_task("four.ckpt", in_chans=4)
    main(["cost", "four.ckpt", "--size", "32", "--rounds", "0"])
    assert read("cost/cost.json")["costs"][0]["input_size"] == [4, 32, 32]


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("erf", ["images", "size", "num_images", "batch_size", "pretrained", "mean", "std", "device", "output"]),
        ("shape-bias", ["images", "batch_size", "pretrained", "device", "output"]),
        ("cost", ["size", "width", "batch_size", "rounds", "device", "output"]),
    ],
)
def test_help_of_a_verb_describes_every_option(
    verb: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lightning {verb} ")
    assert set(re.findall(r"^  --(\w+)", shown, flags=re.MULTILINE)) == set(options)
    for option in options:
        described = re.search(rf"^  --{option}\b.*\n?\s+(\w.*)", shown, flags=re.MULTILINE)
        assert described is not None
        assert not described[1].startswith("(type")
