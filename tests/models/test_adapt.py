"""Whatever a classifier looks like from outside, it is read as logits, or refused in a sentence."""

import collections
import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import robgib
from robgib import RobGIBError, make_attack
from robgib.information import collect_activations, default_layers
from robgib.models import build
from robgib.models.adapt import Classifier, adapt, as_module, finite_answers, network_of, seeded
from robgib.models.inference import prepare
from robgib.robustness.run_attack import run_attack
from tests import unusual


@pytest.fixture(scope="module")
def images(digits):
    return digits.test.x[:100], digits.test.y[:100]


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.rand(2, 1, 8, 8))


def exported(model):
    return torch.export.export(copy.deepcopy(model).eval(), (torch.rand(4, 1, 8, 8),))


def quantised(model):
    import logging

    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


FORMS = {
    "a dictionary": (unusual.Named, "'logits' is read", 1e-5),
    "a tuple": (unusual.Pair, "item 0 is read", 1e-5),
    "an object": (unusual.Record, "'logits' is read", 1e-5),
    "bfloat16 throughout": (lambda m: unusual.Low(m, torch.bfloat16), "computes in bfloat16", 0.3),
    "float16 throughout": (lambda m: unusual.Low(m, torch.float16), "computes in float16", 0.05),
    "float64 throughout": (lambda m: unusual.Low(m, torch.float64), "computes in float64", 1e-4),
    "bfloat16 logits": (unusual.LowLogits, "", 0.2),
    "TorchScript": (scripted, "", 1e-4),
    "an exported program": (exported, "batches of 4 only", 1e-4),
    "an exported program's module": (lambda m: exported(m).module(), "batches of 4 only", 1e-4),
    "a function": (lambda m: lambda x: m(x), "", 1e-5),
    "batches of 16 alone": (unusual.OfSixteen, "batches of 16 only", 1e-4),
    "batches of one alone": (unusual.OfOne, "batches of 1 only", 1e-4),
    "images overwritten": (unusual.Overwriting, "it gets copies", 10),
}


@pytest.fixture(scope="module")
def left_by_pgd(digits_cnn, images):
    """Share of the images that PGD leaves right on the network as it is."""
    return run_attack(digits_cnn, *images, make_attack("pgd-linf:eps=0.1")).right.mean()


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_read_and_attacked(form, digits_cnn, images, left_by_pgd):
    make, told, tolerance = FORMS[form]
    model = make(digits_cnn)
    x, y = images
    prepared = prepare(model, x, classes=10)
    with torch.no_grad(), seeded(0):
        logits = prepared.model(x[:10])
        gap = float((logits - digits_cnn(x[:10])).abs().max())
    assert logits.dtype == torch.float32
    assert logits.shape == (10, 10)
    assert gap <= tolerance
    if told:
        assert any(part in note for note in prepared.notes for part in told.split("|")), prepared.notes
    else:
        assert prepared.notes == ()
    assert not prepared.random
    outcome = run_attack(prepared, x, y, make_attack("pgd-linf:eps=0.1"))
    if form != "images overwritten":
        assert abs(outcome.right.mean() - left_by_pgd) <= 0.05
    assert outcome.right.mean() < 0.4


def test_ordinary_models_are_taken_as_they_are(digits_cnn, images):
    for model in (digits_cnn, build("vit", (1, 8, 8), 10, {"patch": 2}).eval()):
        adapted = adapt(model, images[0][:8])
        assert adapted.model is model
        assert adapted == type(adapted)(model)


@pytest.mark.parametrize("kind", [unusual.OneLogit, unusual.OneProbability])
def test_one_logit_is_two_classes(kind, digits_cnn, images):
    x, y = images[0], (images[1] > 4).long()
    prepared = prepare(kind(digits_cnn), x, classes=2)
    with torch.no_grad():
        logits = prepared.model(x)
        truth = unusual.OneLogit(digits_cnn)(x).squeeze(1)
    assert torch.allclose(logits[:, 1] - logits[:, 0], truth, atol=1e-3)
    assert any("[0, z]" in note for note in prepared.notes)
    assert prepared.probabilities == (kind is unusual.OneProbability)
    outcome = run_attack(prepared, x, y, make_attack("pgd-linf:eps=0.1"))
    assert outcome.right.mean() < 0.6
    with pytest.raises(RobGIBError, match="one number per image, but the data have 10 classes"):
        prepare(kind(digits_cnn), x, classes=10)


@pytest.mark.slow
def test_a_dynamically_quantised_network_is_evaluated_without_gradients(digits_cnn, digits):
    model = quantised(digits_cnn)
    run = robgib.evaluate(
        model, digits, attacks=["pgd-linf:eps=0.1", "square-linf:eps=0.1,queries=200"], estimators=[], samples=60,
        corruptions=False, curve=False,
    )  # fmt: skip
    table = run.robustness.set_index("attack")
    assert table.loc["square-linf:eps=0.1,queries=200", "status"] == "ok"
    assert table.loc["pgd-linf:eps=0.1", "status"] == "failed"
    assert "no gradient" in table.loc["pgd-linf:eps=0.1", "reason"]
    other = quantised(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    again = robgib.evaluate(other, digits, attacks=[], estimators=[], samples=20, corruptions=False)
    assert again.config["weights"] != run.config["weights"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda m: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "not initialised yet"),
        (lambda m: "digits-cnn", "must be a torch.nn.Module or a function"),
        (lambda m: lambda x: "seven", "does not take images of shape .1, 8, 8.: it returns str without logits"),
        (lambda m: lambda x: x, "not .N, classes."),
        (lambda m: lambda x: m(x).argmax(1), "of type int64, not logits"),
        (lambda m: nn.Linear(3, 2), "does not take images of shape"),
        (lambda m: lambda x: m(x[:7].repeat(10, 1, 1, 1)), "for 8 images"),
    ],
)
def test_what_is_no_classifier_is_refused_in_a_sentence(make, told, digits_cnn, images):
    with pytest.raises(RobGIBError, match=told):
        prepare(make(digits_cnn), images[0])


@pytest.mark.parametrize(
    ("kind", "random"),
    [
        (unusual.Noisy, True),
        (unusual.RarelyNoisy, True),
        (unusual.NoisyBetween, True),
        (unusual.Around, False),
        (unusual.Quantised, False),
    ],
)
def test_randomness_is_found(kind, random, digits_cnn, images):
    with torch.random.fork_rng(devices=[]):
        for seed in range(5):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            assert adapt(kind(digits_cnn), images[0][:8]).random == random
            assert torch.equal(torch.get_rng_state(), before)


def test_layers_keep_their_names_behind_what_reads_them(digits_cnn, images):
    x = images[0][:40]
    plain = prepare(digits_cnn, x).model
    names = default_layers(plain, x[:2])
    for make in (unusual.OfSixteen, unusual.Named):
        model = prepare(make(digits_cnn), x).model
        assert isinstance(model, Classifier)
        assert network_of(model) is not model
        layers = [f"model.{n}" if n != "logits" else n for n in names]
        for ours, theirs in zip(layers, names, strict=True):
            assert ours == theirs or ours in dict(network_of(model).named_modules())
        held = collect_activations(model, x, layers)
        wanted = collect_activations(plain, x, names)
        for ours, theirs in zip(layers, names, strict=True):
            assert held[ours] == pytest.approx(wanted[theirs], abs=1e-4)


@pytest.mark.slow
def test_a_whole_evaluation_of_a_function_of_fixed_batches(digits_cnn, digits):
    model = unusual.OfSixteen(digits_cnn)
    run = robgib.evaluate(model, digits, attacks=["pgd-linf"], estimators=["gaussian"], samples=50, curve=False)
    plain = robgib.evaluate(digits_cnn, digits, attacks=["pgd-linf"], estimators=["gaussian"], samples=50, curve=False)
    assert run.config["reading"] == ["the model takes batches of 16 only: smaller batches are padded"]
    assert "reading" not in plain.config
    assert run.robustness["clean_accuracy"][0] == plain.robustness["clean_accuracy"][0]
    assert abs(run.robustness["robust_accuracy"][0] - plain.robustness["robust_accuracy"][0]) <= 0.04


class Several(nn.Module):
    """Returns what ``put`` makes of its parts: maps, hidden units and logits."""

    def __init__(self, model, put):
        super().__init__()
        self.model, self.put = model, put

    def forward(self, x):
        maps = self.model.blocks(self.model.normalize(x))
        hidden = self.model.hidden(self.model.pool(maps))
        return self.put(maps, hidden, self.model.head(hidden))


Both = collections.namedtuple("Both", "hidden scores")


@dataclasses.dataclass
class Held:
    hidden: torch.Tensor
    out: torch.Tensor


class Output(collections.OrderedDict):
    """A mapping whose items are attributes, as transformers' ModelOutput is."""

    def __getattr__(self, name):
        return self[name]


SEVERAL = {
    "features first": (lambda m, h, o: (h, o), "item 1 is read"),
    "maps first": (lambda m, h, o: (m, o), "item 1 is read"),
    "logits first": (lambda m, h, o: [o, h, m], "item 0 is read"),
    "in each other": (lambda m, h, o: ((m, h), {"main": o}), "item [1]['main'] is read"),
    "a dictionary": (lambda m, h, o: {"hidden": h, "out": o}, "'out' is read"),
    "false logits": (lambda m, h, o: {"logits": h, "out": o}, "'out' is read"),
    "two of one width": (lambda m, h, o: {"aux": o.flip(1), "logits": o}, "'logits' is read"),
    "a ModelOutput": (lambda m, h, o: Output(loss=None, logits=o, hidden_states=(m, h)), "'logits' is read"),
    "a named tuple": (lambda m, h, o: Both(h, o), "'scores' is read"),
    "a dataclass": (lambda m, h, o: Held(h, o), "'out' is read"),
    "probabilities beside": (lambda m, h, o: (o.softmax(1), o, o.clone()), "item 1 is read"),
}


@pytest.mark.parametrize("form", SEVERAL)
def test_of_several_outputs_the_one_with_the_data_s_classes_is_read(form, digits_cnn, images):
    put, told = SEVERAL[form]
    model = Several(digits_cnn, put)
    prepared = prepare(model, images[0], classes=10)
    assert any(told in note for note in prepared.notes), prepared.notes
    with torch.no_grad():
        assert torch.allclose(prepared.model(images[0]), digits_cnn(images[0]), atol=1e-5)
    x, y = images
    run = run_attack(prepared, x[:20], y[:20], make_attack("fgsm-linf:eps=0.1"))
    assert np.array_equal(run.right, run_attack(digits_cnn, x[:20], y[:20], make_attack("fgsm-linf:eps=0.1")).right)


@pytest.mark.parametrize(
    ("put", "classes", "told"),
    [
        (lambda m, h, o: (o, o.flip(1)), 10, r"a tuple of which more than one .*item 0 \(8, 10\).*self.net\(x\)\[1\]"),
        (lambda m, h, o: (h, o), None, r"more than one could be its logits \(item 0 \(8, 64\), item 1 \(8, 10\)"),
        (lambda m, h, o: {"a": h[:, :3], "b": o}, 12, r"none has a column for each of the data's 12 classes"),
        (lambda m, h, o: (m, m), 10, r"returns tuple of \(8, 32, 2, 2\), .* none of which is logits \(N, classes\)"),
    ],
)
def test_outputs_that_leave_it_open_are_refused(put, classes, told, digits_cnn, images):
    with pytest.raises(RobGIBError, match=told):
        prepare(Several(digits_cnn, put), images[0], classes=classes)


def test_decided():
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[0.0, 1], [nan, 1], [inf, 1], [-inf, 1], [-inf, -inf], [nan, nan]])
    assert finite_answers(rows).tolist() == [True, False, False, True, False, False]


def test_as_module_leaves_modes(digits_cnn):
    model = nn.Sequential(copy.deepcopy(digits_cnn), nn.Dropout())
    model.train()
    model[0].eval()
    assert as_module(model) is model
    assert model.training
    assert not model[0].training
