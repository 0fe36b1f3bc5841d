import numpy as np
import pytest

from robgib import RobGIBError
from robgib.data.lazy import LazyImages
from robgib.information import group_inputs, group_units, reduce

RNG = np.random.default_rng(0)


def test_reduce_is_fitted_on_the_reference():
    fit = RNG.standard_normal((200, 3)) @ np.diag([5, 1, 0.1])
    values, reference = reduce(fit[:50] + 7, fit, 2)
    assert values.shape == (50, 2)
    assert reference.mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert reference.std(0)[0] > 4 > reference.std(0)[1] > 0.8
    assert (values - reference[:50]).std(0) == pytest.approx([0, 0], abs=1e-9)  # one shift for all


def test_reduce_with_fewer_samples_than_columns_and_without_variance():
    values, _ = reduce(RNG.standard_normal((5, 40)), RNG.standard_normal((6, 40)), 4)
    assert values.shape == (5, 4)
    constant, _ = reduce(np.ones((5, 3)), np.ones((6, 3)), 2)
    assert constant.shape == (5, 1)
    assert not constant.any()


@pytest.mark.parametrize(
    ("spec", "count", "width"), [("patches:4", 16, 4), ("patches:3", 9, 4), ("pca:5", 5, 1), ("channels", 2, 4)]
)
def test_groups(spec, count, width):
    x, fit = RNG.random((30, 2, 28, 28)), RNG.random((40, 2, 28, 28))
    found = group_inputs(spec, x, fit, dims=4)
    assert len(found.names) == len(found.values) == len(found.fit) == count
    assert all(v.shape == (30, width) for v in found.values)
    assert all(v.shape == (40, width) for v in found.fit)


def test_patches_cover_every_pixel_once():
    x = np.arange(49.0).reshape(1, 1, 7, 7).repeat(2, 0)
    fit = RNG.random((300, 1, 7, 7))
    found = group_inputs("patches:3", x, fit, dims=99)
    assert sum(v.shape[1] for v in found.values) == 49


def test_pixels_leave_constant_ones_out():
    fit = RNG.random((50, 1, 2, 2))
    fit[:, 0, 0, 0] = 0
    assert group_inputs("pixels", fit, fit).names == ("pixel 1", "pixel 2", "pixel 3")


def test_units():
    z = RNG.standard_normal((20, 10, 2, 2))
    found = group_units(z, z, groups=4, dims=3)
    assert len(found.values) == 4
    assert found.names[0] == "units 0-1"
    assert group_units(z[:, :3], z[:, :3], groups=8).names == ("units 0-0", "units 1-1", "units 2-2")


class Pictures:
    """Pictures of 96 x 96 pixels, of which a few directions hold most."""

    shape = (3, 96, 96)

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        held = rng.standard_normal((60, 3)) * [1.0, 0.7, 0.5]
        smooth = np.stack([np.sin(np.linspace(0, k, 3 * 96 * 96)) for k in (3, 11, 24)])
        pictures = 0.5 + 0.1 * held @ smooth + rng.normal(0, 0.02, (60, 3 * 96 * 96))
        self.pictures = pictures.reshape(60, *self.shape).clip(0, 1).astype(np.float32)

    def read(self, row: int) -> np.ndarray:
        return self.pictures[row]

    def content(self, row: int) -> bytes:
        return self.pictures[row].tobytes()


def test_wide_pieces_keep_their_components_and_pictures_are_read_a_batch_at_a_time(monkeypatch):
    source, read = Pictures(), []
    lazy = LazyImages(source, range(60))
    told = LazyImages.read
    monkeypatch.setattr(LazyImages, "read", lambda self: read.append(len(self)) or told(self))
    monkeypatch.setattr("robgib.information.features._READ", 10 * 3 * 96 * 96)
    found = group_inputs("patches:2", lazy, lazy, dims=3)
    assert max(read) == 10
    eager = group_inputs("patches:2", source.pictures, source.pictures, dims=3)
    for cell, ours, theirs in zip(found.cells, found.values, eager.values, strict=True):
        assert np.array_equal(ours, theirs)
        right, _ = reduce(source.pictures[cell], source.pictures[cell], 3)  # by all pixels
        for column in range(3):
            assert abs(np.corrcoef(ours[:, column], right[:, column])[0, 1]) > 0.98


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("patch:4", "did you mean 'patches'"),
        ("patches", "whole number"),
        ("patches:x", "whole number"),
        ("patches:99", "no such grid; give a smaller number"),
        ("channels:2", "takes no number"),
    ],
)
def test_bad_specifications(spec, message):
    x = RNG.random((20, 1, 8, 8))
    with pytest.raises(RobGIBError, match=message):
        group_inputs(spec, x, x)
