"""What is said of a clean accuracy that is no better than chance."""

import pytest
import torch
from torch import nn

from robgib.models.inference import answers, prepare
from robgib.robustness.chance import chance_doubts


class Levels(nn.Module):
    """Tells dark, grey and bright apart around 0, as a network for normalised images does."""

    def __init__(self, edge):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([-mean, self.edge - mean.abs(), mean], 1) + 0 * x.flatten(1)[:, :1]


class Renamed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).roll(3, 1)


def doubts(model, data, count=300):
    x, y = data.test.x[:count], data.test.y[:count]
    prepared = prepare(model, x, classes=10)
    return chance_doubts(prepared, x, y, answers(prepared, x, y, classes=10).right)


def test_nothing_is_said_of_a_model_that_tells(digits, digits_cnn):
    assert doubts(digits_cnn, digits) == []


@pytest.mark.parametrize(
    ("levels", "edge", "words"),
    [
        ((0.1, 0.5, 0.9), 0.4, "with a normalisation to [−1, 1] it would be 100%"),
        ((0.9, 0.5, 0.1), 0.4, "with its classes in another order it would be 67%"),
        ((0.0001, 0.5, 0.7), 127, "or another order of the classes helps"),
    ],
)
def test_what_helps_is_named(levels, edge, words):
    y = torch.arange(90) % 3
    x = torch.tensor(levels)[y].view(-1, 1, 1, 1).expand(-1, 1, 4, 4) + 0.02 * torch.rand(90, 1, 4, 4)
    model = Levels(edge)
    prepared = prepare(model, x, classes=3)
    (told,) = chance_doubts(prepared, x, y, answers(prepared, x, y, classes=3).right)
    assert "no better than chance (33.3%, the largest class)" in told
    assert words in told


def test_another_order_of_the_classes_is_found(digits, digits_cnn):
    (told,) = doubts(Renamed(digits_cnn), digits)
    assert "with its classes in another order it would be" in told


def test_a_network_that_knows_nothing_is_said_to(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data.zero_()
    (told,) = doubts(model, digits)
    assert told.endswith("or another order of the classes helps")


def test_few_images_say_nothing(digits):
    assert doubts(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, count=10) == []
