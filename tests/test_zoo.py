import json

import pytest
import torch

from robgib import RobGIBError, make_attack
from robgib.attacks import attack_samples
from robgib.regimes import augment
from robgib.training import Training, accuracy, train
from robgib.zoo import find_recipe, load_checkpoint, load_model, recipes, train_recipe

RECIPE = """
data: digits
architecture: {name: mlp, hidden: [8]}
training: {epochs: 1, batch_size: 256}
"""


@pytest.fixture
def quick(tmp_path):
    (tmp_path / "quick.yaml").write_text(RECIPE)
    return find_recipe("quick", [tmp_path])


def test_the_recipes_that_are_promised():
    digits = {f"digits-{kind}" for kind in ("cnn", "cnn-at", "vit", "mlp-tanh", "mlp-relu")}
    promised = digits | {f"fashion-{kind}" for kind in ("cnn", "cnn-at", "vit")}
    assert promised <= set(recipes())


@pytest.mark.parametrize(("name", "least"), [("digits-cnn", 0.96), ("digits-vit", 0.93)])
def test_promised_accuracy(name, least, digits):
    model, record = load_model(find_recipe(name), digits)
    assert accuracy(model, digits.test) >= least
    assert record["test_accuracy"] == pytest.approx(accuracy(model, digits.test))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("fashion-cnn", 0.90), ("fashion-vit", 0.85)])
def test_promised_accuracy_on_fashion_mnist(name, least, fashion):
    model, _ = load_model(find_recipe(name), fashion)
    assert accuracy(model, fashion.test) >= least


def test_adversarial_training_makes_robust(digits, digits_cnn):
    model, record = load_model(find_recipe("digits-cnn-at"), digits)
    assert record["test_accuracy"] >= 0.96
    x, y = digits.test.x[:300], digits.test.y[:300]
    robust, plain = (
        (attack_samples(m, x, y, make_attack("pgd-linf:eps=0.1")).prediction == y.numpy()).mean()
        for m in (model, digits_cnn)
    )
    assert robust > 0.6 > 0.4 > plain


@pytest.mark.parametrize("adversary", [{"eps": 0.1, "steps": 1}, {"norm": "l2", "eps": 0.5, "steps": 2}])
def test_adversaries_of_each_norm(adversary, quick, digits, tmp_path):
    training = Training(epochs=1, batch_size=256, adversary=adversary)
    recipe = quick.model_copy(update={"training": training})
    assert recipe.digest != quick.digest
    one, two = (train_recipe(recipe, digits, tmp_path / f"{n}.safetensors")[0] for n in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    plain, _, _ = train_recipe(
        quick.model_copy(update={"training": Training(epochs=1, batch_size=256)}), digits, tmp_path / "c.safetensors"
    )
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), plain.parameters(), strict=True))


def test_cached_models_are_not_trained_again(quick, digits, cache):
    calls = []
    _, record = load_model(quick, digits, progress=lambda *a: calls.append(a))
    assert calls
    calls.clear()
    model, again = load_model(quick, digits, progress=lambda *a: calls.append(a))
    assert not calls
    assert not model.training
    assert again == record
    for key in ("recipe_digest", "data_digest", "seed", "test_accuracy", "environment"):
        assert key in record


def test_training_is_deterministic_and_leaves_the_global_generator(quick, digits, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, _, _ = train_recipe(quick, digits, tmp_path / "a.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    two, _, _ = train_recipe(quick, digits, tmp_path / "b.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_own_checkpoints_know_what_they_are(quick, digits, tmp_path):
    model, _, path = train_recipe(quick, digits, tmp_path / "mine.safetensors", epochs=2)
    assert json.loads(path.with_suffix(".json").read_text())["epochs"] == 2
    loaded, data = load_checkpoint(path, None, None, None)
    assert data.name == "digits"
    assert torch.equal(loaded(digits.test.x[:5]), model(digits.test.x[:5]))


def test_a_strangers_checkpoint_needs_arch_and_data(quick, digits, tmp_path):
    _, _, path = train_recipe(quick, digits, tmp_path / "mine.safetensors")
    path.with_suffix(".json").unlink()
    with pytest.raises(RobGIBError, match="give --arch"):
        load_checkpoint(path, None, "digits", None)
    with pytest.raises(RobGIBError, match="give --data"):
        load_checkpoint(path, "mlp", None, None)
    with pytest.raises(RobGIBError, match="does not fit the architecture"):
        load_checkpoint(path, "cnn", "digits", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECIPE.replace("epochs: 1", "epochs: -1"), r"training.epochs: input should be greater than 0 \(found -1\)"),
        (RECIPE.replace("epochs", "epoks"), "training.epoks: extra inputs are not permitted"),
        (RECIPE.replace("digits", "digit"), "did you mean 'digits'"),
        ("data: digits\narchitecture: {}\n", "architecture.name: field required"),
    ],
)
def test_bad_recipes(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(RobGIBError, match=message):
        find_recipe("bad", [tmp_path])


def test_unknown_model():
    with pytest.raises(RobGIBError, match="unknown model 'digits-cn'; did you mean 'digits-cnn'"):
        find_recipe("digits-cn")


def test_divergence_is_said(digits):
    from robgib.models import build

    config = Training(epochs=1, optimizer="sgd", learning_rate=1e30, clip=1e30)
    with pytest.raises(RobGIBError, match="training diverged in epoch 1"):
        train(lambda: build("mlp", (1, 8, 8), 10), digits, config)


def testaugmentation_shifts_whole_images():
    torch.manual_seed(0)
    x = torch.zeros(200, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    moved = augment(x, shift=1, flip=False)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = {tuple(p.tolist()) for p in moved.nonzero()[:, 2:]}
    assert places == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_plugin_architectures(tmp_path, digits):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom robgib import register_architecture\n\n"
        "@register_architecture('linear')\ndef linear(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
    )
    (tmp_path / "digits-linear.yaml").write_text(RECIPE.replace("mlp, hidden: [8]", "linear"))
    model, record = load_model(find_recipe("digits-linear", [tmp_path]), digits)
    assert model(digits.test.x[:2]).shape == (2, 10)
    assert record["name"] == "digits-linear"
