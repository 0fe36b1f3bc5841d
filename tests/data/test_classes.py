"""Which of a model's classes a folder's are."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from robgib import RobGIBError, evaluate
from robgib.data import class_indices, load_data, map_classes, read_classes
from robgib.training.loop import accuracy
from robgib.zoo import load

NAMES = ["tench", "goldfish", "great white shark", "tiger shark"]


@pytest.fixture
def pictures(tmp_path):
    """Forty pictures of goldfish (dark) and tiger sharks (bright)."""
    for name, grey in (("goldfish", 40), ("tiger_shark", 220)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8), (grey + i % 5, grey, grey)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


class Stand(nn.Module):
    """Of so many classes, bright is number 3 and dark number 1."""

    def __init__(self, classes=1000):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        bright = x.flatten(1).mean(1, keepdim=True) - 0.5
        logits = self.weight.expand(len(x), -1).clone()
        logits[:, 3:4] += 9 * bright
        logits[:, 1:2] -= 9 * bright
        return logits + 0 * bright


def test_imagenet_by_id_name_and_number():
    classes = read_classes("imagenet")
    assert len(classes) == 1000
    assert class_indices(["n01443537", "n01491361_tiger-shark", "Tiger Shark "][:2], classes) == [1, 3]
    assert class_indices(["tiger_shark", "7", "golden retriever"], classes) == [3, 7, 207]
    with pytest.raises(RobGIBError, match="unknown class 'goldfis'; did you mean 'goldfish'"):
        class_indices(["goldfis"], classes)
    with pytest.raises(RobGIBError, match="two classes of the data are the same"):
        class_indices(["goldfish", "1"], classes)
    with pytest.raises(RobGIBError, match="2 of the model's classes are called 'crane'"):
        class_indices(["crane"], [("a", "crane"), ("b", "crane")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "\n".join(NAMES)),
        ("ids.txt", "\n".join(f"n0{i}\t{n}" for i, n in enumerate(NAMES))),
        ("list.json", json.dumps(NAMES)),
        ("index.json", json.dumps({str(i): [f"n0{i}", n] for i, n in enumerate(NAMES)})),
        ("config.json", json.dumps({"id2label": {str(i): n for i, n in enumerate(NAMES)}, "other": 1})),
    ],
)
def test_files_of_classes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert [c[-1] for c in read_classes(tmp_path / name)] == NAMES


@pytest.mark.parametrize("text", ["", "one", '{"0": "a", "2": "b"}', "[1", '{"0": []}'])
def test_files_that_say_something_else(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(RobGIBError, match=r"x\.json"):
        read_classes(file)


def test_more_classes_than_the_data_have_must_be_mapped(pictures):
    """An ImageNet network on a folder of two classes said 0.0% without a word."""
    data = load_data(f"folder:{pictures}")
    asked = {"attacks": ["fgsm-linf:eps=0.01"], "estimators": [], "curve": False, "signs": False, "corruptions": False}
    with pytest.raises(RobGIBError, match="has 1000 classes, but folder:pictures has 2"):
        evaluate(Stand(), data, **asked)
    run = evaluate(Stand(), map_classes(data, read_classes("imagenet")), **asked)
    assert run.robustness["clean_accuracy"][0] == 1
    assert "reading" not in run.config


def test_from_the_command_line(cli, pictures, tmp_path):
    (tmp_path / "stand.py").write_text("from tests.data.test_classes import Stand\n\ndef make():\n    return Stand()\n")
    torch.save(Stand().state_dict(), tmp_path / "net.pt")
    asked = [
        "evaluate", "net.pt", "--arch", "stand:make", "--data", f"folder:{pictures}", "--attack", "fgsm-linf:eps=0.01",
        "--estimator", "binned", "--features", "channels", "--layer", "logits", "--information-samples", "20",
        "--no-curve", "--no-signs", "--no-corruptions", "--quiet",
    ]  # fmt: skip
    refused = cli(*asked)
    assert refused.returncode == 2
    assert "--classes imagenet" in refused.stderr.replace("\n", " ")
    for more in ([], ["--class-subset"]):
        done = cli(*asked, "--classes", "imagenet", *more)
        assert done.returncode == 0, done.stderr
        assert "100.0%" in done.stdout
    assert cli(*asked, "--class-subset").returncode == 2
    assert "no such file" in cli(*asked, "--classes", "nothing.txt").stderr
    zoo = cli("evaluate", "digits-cnn", "--data", f"folder:{pictures}")  # it was ignored
    assert zoo.returncode == 2
    assert "takes images of shape (1, 8, 8), but those of folder:pictures have shape (3, 8, 8)" in zoo.stderr.replace(
        "\n", " "
    )
    assert "--arch applies to checkpoint files" in cli("evaluate", "digits-cnn", "--arch", "mlp").stderr


def test_a_model_of_more_classes_chooses_among_those_of_the_data(pictures, tmp_path):
    """By synset, with --classes imagenet, a network that likes a class that is not there showed 0.0%."""
    for name, synset in (("goldfish", "n01443537"), ("tiger_shark", "n01491361")):
        (pictures / name).rename(pictures / synset)
    net = Stand()
    with torch.no_grad():
        net.weight[500] = 50.0
    torch.save(net.state_dict(), tmp_path / "net.pt")
    asked = {"arch": "tests.data.test_classes:Stand", "data": f"folder:{pictures}", "classes": "imagenet"}
    shares = {}
    for subset in (None, True, False):
        found = load(tmp_path / "net.pt", class_subset=subset, **asked)
        shares[subset] = accuracy(found.model, found.data.test)
        notes = [n for n in found.notes if "restricted to the 2 classes of the data, out of 1000" in n]
        assert len(notes) == (subset is not False)
        assert [n.endswith("(--no-class-subset allows all)") for n in notes] == [subset is None] * len(notes)
    assert shares == {None: 1.0, True: 1.0, False: 0.0}
    (tmp_path / "names.txt").write_text("goldfish\ntiger shark\n")
    for synset, name in (("n01443537", "goldfish"), ("n01491361", "tiger shark")):
        (pictures / synset).rename(pictures / name)
    whole = load(tmp_path / "net.pt", **{**asked, "classes": str(tmp_path / "names.txt")})
    assert not any("are restricted" in note for note in whole.notes)  # none is left out
