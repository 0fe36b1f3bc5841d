"""Networks of known information: the true value of every figure of their layers.

Inputs are Gaussian or listed, so that the features that a subset leaves out can be drawn given those that it holds, by
the true conditional law. The terms of a layer's code, or of a layer in noise, then follow by Monte Carlo or in closed
form, to any accuracy, for the very code or noise that an estimator is asked about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from robgib.files import cache_folder, digest, read_json, write_file
from robgib.information.discrete import entropy
from robgib.information.donors import places
from robgib.information.exact import Exact
from robgib.information.features import group_inputs
from robgib.information.preprocessing import relabel
from robgib.information.views import RATE, Codebook, FittedView, NoisyLayer, count_information, mixture_information
from robgib.validation.known_variables import Vector, gaussian_information, spiral, subset_terms
from robgib.validation.laws import Law

__all__ = [
    "KnownNetwork",
    "each_layer",
    "known_networks",
]

Layers = Mapping[str, Callable[[Vector], Vector]]
Drawn = tuple[Vector, npt.NDArray[np.int64]]
"""Inputs (N, d) and labels (N,)."""
_POPULATION = 200_000  # draws for what is counted of a code
_OUTER, _INNER = 300, 4000  # draws of a single feature, and of the rest given it
_OUTER_REST, _INNER_REST = 3000, 400  # the other way round
_OUTER_NOISE, _INNER_NOISE = 60, 1500  # of mixtures, whose density takes the square of the draws
_MIXED = 10_000
_DRAWN: dict[str, Any] = {
    "population": 20_000,
    "parts": 10,
    "alone": (200, 600),  # points over all features, and draws of each, where one feature is held
    "rest": (640, 150),  # and where all but one are
}


_COUNTED = 200_000  # draws for H(T) and what a code tells of the label


@dataclass(frozen=True, eq=False)
class KnownNetwork:
    """A network on inputs whose law is known.

    Attributes:
        name: name of the network.
        what: its description in a few words.
        layers: functions of the input (N, d), by name; each returns a layer (N, d').
        covariance: (d, d) of Gaussian inputs with mean 0; None for inputs that are ±1 with equal probability.
        linear: the matrices (d, d') of the layers, if they are linear.
        classes: means (K, d) of classes that share the covariance; None: the label is the sign of the first input.
        terms: whether the terms of the input's features are known; otherwise only counted figures are.
        samples: number of samples for the estimate.
        dims: dimensions of the input.
        spread: whether layers in noise have a closed form although they are not linear: each is N(0, I).
        another: makes another network of the family from a number; each repeat uses a new one.
        shape: shape of the inputs if they are pictures; the layers take them flattened or not.
        features: how the input is divided.
        sampled: draws inputs (N, d) and labels (N,) if they are neither Gaussian nor signs.
        known_terms: the 2n+1 terms of every layer in bits, if they are known in advance.
        law: returns the fitted law of the inputs, in place of a covariance.
        at_once: returns all layers of inputs (N, d) from one pass, if that is cheaper.
        pair: draws inputs and labels, and others for donors, each sample once.
        donors: number of donors; 0 takes ``samples``.
        bounds: computes the terms of all layers if only bounds are known: lower bounds of single-feature and
            leave-one-out terms.
        kept: key of the truth on disk, if it is stored there.
        needs: the data set on which the network is trained, if it needs one.
        symbols: symbols of the code of a layer; 0 takes as many as an evaluation with as many classes.
    """

    name: str
    what: str
    layers: Layers
    covariance: Vector | None
    linear: Mapping[str, Vector] | None = None
    classes: Vector | None = None
    terms: bool = True
    samples: int = 2000
    dims: int = 8
    spread: bool = False
    another: Callable[[int], KnownNetwork] | None = None
    shape: tuple[int, ...] | None = None
    features: str = "pixels"
    sampled: Callable[[int, np.random.Generator], tuple[Vector, npt.NDArray[np.int64]]] | None = None
    known_terms: Vector | None = None
    law: Callable[[], Law] | None = None
    at_once: Callable[[Vector], Mapping[str, Vector]] | None = None
    pair: Callable[[int, int, np.random.Generator], tuple[Drawn, Drawn]] | None = None
    donors: int = 0
    bounds: Callable[[Mapping[str, FittedView]], Mapping[str, Vector]] | None = None
    kept: str = ""
    needs: str = ""
    symbols: int = 0

    def all_layers(self, x: Vector) -> Mapping[str, Vector]:
        """Every layer of inputs (N, d)."""
        return {n: of(x) for n, of in self.layers.items()} if self.at_once is None else self.at_once(x)

    def both(self, rng: np.random.Generator) -> tuple[Drawn, Drawn]:
        """Draw inputs and labels that are estimated on, and others."""
        others = self.donors or self.samples
        if self.pair is not None:
            return self.pair(self.samples, others, rng)
        return self.draw(self.samples, rng), self.draw(others, rng)

    def draw(self, samples: int, rng: np.random.Generator) -> tuple[Vector, npt.NDArray[np.int64]]:
        """Inputs (N, d) and labels (N,)."""
        if self.sampled is not None:
            return self.sampled(samples, rng)
        if self.law is not None:
            return self.law().draw(samples, rng)
        if self.covariance is None:
            x = rng.choice([-1.0, 1.0], size=(samples, self.dims))
        else:
            x = rng.standard_normal((samples, len(self.covariance))) @ np.linalg.cholesky(self.covariance).T
        if self.classes is None:
            return x, (x[:, 0] > 0).astype(np.int64)
        y = rng.integers(len(self.classes), size=samples)
        return x + self.classes[y], y

    def truths(self, views: Mapping[str, FittedView]) -> dict[str, tuple[Vector, float]]:
        """The 2n+1 terms of every layer in its view, and its information about the label; see :meth:`truth`.

        If one pass through the network gives all layers, each draw serves all of them, and the result is stored on
        disk.
        """
        if self.law is None and self.bounds is None:
            return {name: self.truth(name, view) for name, view in views.items()}
        seen = {n: [view.view, _marks(view)] for n, view in views.items()}

        def drawn(what: str, key: list[Any], compute: Callable[[], Any]) -> Any:
            place = cache_folder() / "validation" / f"{self.name}{what}-{digest(key)[:16]}.json"
            if self.kept and place.is_file():
                return read_json(place)
            computed = compute()
            if self.kept:
                write_file(place, json.dumps(computed).encode())
            return computed

        terms = drawn("", [self.kept, seen, _DRAWN], lambda: self._drawn_truths(views))
        if self.bounds is not None:
            return {n: (np.array(terms[n][0]), float(terms[n][1])) for n in views}
        counts = drawn("-counts", [self.kept, seen, _COUNTED], lambda: self._drawn_counts(views))
        shift = {n: counts[n][0] - terms[n][0][0] for n in views}  # every term is the total less what is left
        return {n: (np.array(terms[n][0]) + shift[n], float(counts[n][1])) for n in views}

    def _drawn_counts(self, views: Mapping[str, FittedView]) -> dict[str, tuple[float, float]]:
        """H(T) of all layers and what they tell of the label, in bits, counted on a population of their own.

        A small one would leave these truths nearly as uncertain as the figures that are held against them.
        """
        rng = np.random.default_rng([7, len(self.name), 1])
        codes: dict[str, list[npt.NDArray[Any]]] = {n: [] for n in views}
        labels: list[npt.NDArray[np.int64]] = []
        for _ in range(100):  # a part at a time: the pictures of all would take gigabytes
            x, y = self.draw(_COUNTED // 100, rng)
            labels.append(y)
            for n, z in self.all_layers(x).items():
                codes[n].append(views[n](z))
        whole, y = {n: np.concatenate(c) for n, c in codes.items()}, np.concatenate(labels)
        return {n: (_entropy(code), count_information(code, y)[0].value) for n, code in whole.items()}

    def _drawn_truths(self, views: Mapping[str, FittedView]) -> dict[str, tuple[list[float], float]]:
        """Terms of the codes of all layers, and what they tell of the label; the total is counted, the others draw
        the features that are left out."""
        rng = np.random.default_rng([7, len(self.name)])
        codes, labels = [], []
        for _ in range(_DRAWN["parts"]):
            x, y = self.draw(_DRAWN["population"] // _DRAWN["parts"], rng)
            codes.append({n: views[n](z) for n, z in self.all_layers(x).items()})
            labels.append(y)
        whole = {n: np.concatenate([c[n] for c in codes]) for n in views}
        about_label = {n: count_information(whole[n], np.concatenate(labels))[0].value for n in views}
        totals = {n: _entropy(whole[n]) for n in views}
        if self.bounds is not None:
            return {n: (terms.tolist(), about_label[n]) for n, terms in self.bounds(views).items()}
        places = [np.array(p) for p in self._places()]
        parts: list[dict[str, float]] = []
        for alone in (True, False):
            outer, inner = _DRAWN["alone" if alone else "rest"]
            for feature in places:
                fixed = feature if alone else np.concatenate([p for p in places if p is not feature])
                parts.append(self._left_open(views, fixed, -(-outer // len(places)), inner, rng))
        return {n: ([totals[n], *(totals[n] - p[n] for p in parts)], about_label[n]) for n in views}

    def _left_open(
        self,
        views: Mapping[str, FittedView],
        fixed: npt.NDArray[np.int64],
        outer: int,
        inner: int,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """I(X;T|X_S) of every layer: the mean over X_S of the entropy of its code, what is left out drawn given X_S."""
        assert self.law is not None
        conditional = self.law().given(fixed, inner, rng)
        bits: dict[str, list[float]] = {n: [] for n in views}
        for point in self.draw(outer, rng)[0]:
            for n, z in self.all_layers(conditional(point, rng)).items():
                bits[n].append(_entropy(views[n](z)))
        return {n: float(np.mean(b)) for n, b in bits.items()}

    def truth(self, layer: str, view: FittedView) -> tuple[Vector, float]:
        """The 2n+1 terms of a layer in a view (NaN where not known), and what it tells of the label, in bits.

        Args:
            layer: its name.
            view: the view, fitted.
        """
        of = self.layers[layer]
        rng = np.random.default_rng([7, len(self.name)])
        if self.known_terms is not None:
            x, y = self.draw(_POPULATION // 10, rng)
            return self.known_terms, count_information(view(of(x)), y)[0].value if view.view == RATE else float("nan")
        if view.view == RATE:
            x, y = self.draw(_POPULATION * (5 if self.classes is not None else 1), rng)
            codes = np.concatenate([view(of(part)) for part in np.array_split(x, 20)])
            label = count_information(codes, y)[0].value
            if self.covariance is None:
                return self._listed(of, view), label
            total = _entropy(codes)
        else:
            assert isinstance(view, NoisyLayer)
            total, label = self._in_noise(layer, view), float("nan")
            if self.linear is not None and self.classes is None:
                return self._closed(layer, view), label
        features = self._places()
        if not self.terms or self.covariance is None:
            return np.array([total, *[np.nan] * (2 * len(features))]), label
        single_feature, leave_one_out = [], []
        alone, without = self._draws(view.view == RATE)
        for feature in features:
            rest = [j for other in features if other is not feature for j in other]
            single_feature.append(total - self._left(of, view, feature, *alone, rng))
            leave_one_out.append(total - self._left(of, view, rest, *without, rng))
        return np.array([total, *single_feature, *leave_one_out]), label

    def _places(self) -> list[list[int]]:
        """Where in a flattened input each feature lies."""
        if self.shape is None:
            return [[i] for i in range(self.dims if self.covariance is None else len(self.covariance))]
        x = np.random.default_rng(0).standard_normal((2, *self.shape))
        return [p.tolist() for p in places(group_inputs(self.features, x, x).cells, self.shape)]

    def _draws(self, coded: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """Outer and inner draws where one feature is held, and where all but one are."""
        if coded:
            return (_OUTER, _INNER), (_OUTER_REST, _INNER_REST)
        return (_OUTER_NOISE, _INNER_NOISE), (10 * _OUTER_NOISE, _INNER_REST)

    def _left(
        self,
        of: Callable[[Vector], Vector],
        view: FittedView,
        fixed: list[int],
        outer: int,
        inner: int,
        rng: np.random.Generator,
    ) -> float:
        """I(X;T|X_S): the mean over X_S of what the features that are left out tell, drawn given them."""
        assert self.covariance is not None
        start = self.draw(outer, rng)[0]
        free = [j for j in range(start.shape[1]) if j not in fixed]
        gain = np.linalg.solve(self.covariance[np.ix_(fixed, fixed)], self.covariance[np.ix_(fixed, free)])
        spread = self.covariance[np.ix_(free, free)] - self.covariance[np.ix_(free, fixed)] @ gain
        root = np.linalg.cholesky(spread)
        bits = []
        for point in start:
            x = np.repeat(point[None], inner, 0)
            x[:, free] = point[fixed] @ gain + rng.standard_normal((inner, len(free))) @ root.T
            z = of(x)
            if view.view == RATE:
                bits.append(_entropy(view(z)))
            else:
                assert isinstance(view, NoisyLayer)
                bits.append(float(mixture_information(view.projection(z), view.sigma * view.scale, rng).mean()))
        return float(np.mean(bits))

    def _listed(self, of: Callable[[Vector], Vector], view: FittedView) -> Vector:
        """Counted over all inputs there are."""
        x = np.array(np.meshgrid(*[[-1.0, 1.0]] * self.dims)).reshape(self.dims, -1).T
        counted = Exact().estimate([relabel(c) for c in x.T], np.asarray(view(of(x))).astype(np.int64))
        return np.array(
            [counted.total.value, *(e.value for e in counted.single_feature), *(e.value for e in counted.leave_one_out)]
        )

    def _in_noise(self, layer: str, view: NoisyLayer) -> float:
        """I(X;T) of Gaussian inputs: in closed form, or that of a mixture of many of them."""
        if self.covariance is None or self.classes is not None:
            return float("nan")
        if not self.spread and self.linear is None:
            rng = np.random.default_rng([8, len(self.name)])
            z = view.projection(self.layers[layer](self.draw(_MIXED, rng)[0]))
            return float(mixture_information(z, view.sigma * view.scale, rng).mean())
        if self.linear is not None:
            return float(self._closed(layer, view)[0])
        gains = view.projection.axes
        joint = gains.T @ gains + (view.sigma * view.scale) ** 2 * np.eye(view.projection.dims)
        noise = view.projection.dims * math.log2(view.sigma * view.scale)
        return float(np.linalg.slogdet(joint)[1] / math.log(2) / 2 - noise)

    def _closed(self, layer: str, view: NoisyLayer) -> Vector:
        """The terms of a linear layer in noise, all Gaussian."""
        assert self.covariance is not None
        assert self.linear is not None
        gains = self.linear[layer] @ view.projection.axes
        n, d = gains.shape
        noise = (view.sigma * view.scale) ** 2 * np.eye(d)
        mixed = self.covariance @ gains
        joint = np.block([[self.covariance, mixed], [mixed.T, gains.T @ mixed + noise]])
        return subset_terms((1,) * n, lambda columns: gaussian_information(joint, columns, list(range(n, n + d))))


def each_layer(at_once: Callable[[Vector], Mapping[str, Vector]], names: Sequence[str]) -> Layers:
    """One function of the input per layer, of one that gives them all."""

    def only(name: str, x: Vector) -> Vector:
        return at_once(x)[name]

    return {name: partial(only, name) for name in names}


def _marks(codebook: FittedView) -> list[float]:
    """What tells one fitted view from another, to six digits."""
    assert isinstance(codebook, Codebook)
    return [float(f"{c:.5e}") for c in np.sort(codebook.centres.reshape(-1))]


def _entropy(codes: npt.NDArray[Any]) -> float:
    """Entropy in bits of codes (N,), corrected after Miller and Madow."""
    counts = np.bincount(codes).astype(float)
    return entropy(counts) + (np.count_nonzero(counts) - 1) / (2 * len(codes) * math.log(2))


def _rotation(dims: int, seed: int) -> Vector:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dims, dims)))
    return np.asarray(q * np.sign(np.diag(r)))


def _bijection(depth: int) -> Callable[[Vector], Vector]:
    """Rotations and radius-dependent spirals: they keep volumes and radii, so that N(0, I) stays N(0, I)."""

    def forward(x: Vector) -> Vector:
        for i in range(depth):
            x = spiral(x @ _rotation(x.shape[1], i), 0.3)
        return x

    return forward


def _times(matrix: Vector) -> Callable[[Vector], Vector]:
    return lambda x: x @ matrix


def _linear(name: str, what: str, covariance: Vector, matrices: Mapping[str, Vector], **more: Any) -> KnownNetwork:
    return KnownNetwork(name, what, {k: _times(m) for k, m in matrices.items()}, covariance, matrices, **more)


def _classes(count: int) -> KnownNetwork:
    rng = np.random.default_rng(count)
    matrices = {"first": _rotation(8, 1), "second": _rotation(8, 1) @ np.diag([1.0] * 4 + [0.3] * 4)}
    return _linear(
        f"classes-{count}",
        f"{count} Gaussian classes in 8 dimensions",
        np.eye(8),
        matrices,
        classes=3.0 * rng.standard_normal((count, 8)),
        terms=False,
        samples=5000,
    )


def _correlated(rng: np.random.Generator) -> Vector:
    """Correlations (d, d) of 5 to 8 inputs, drawn at random, from weak to strong."""
    dims = int(rng.integers(5, 9))
    factors = rng.standard_normal((dims, dims + int(rng.integers(1, 9))))
    covariance = factors @ factors.T
    scale = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(scale, scale))


def _random_relu(number: int) -> KnownNetwork:
    """Draw a network of two ReLU layers, of random width, on correlated Gaussian inputs."""
    rng = np.random.default_rng([20, number])
    covariance = _correlated(rng)
    wide, narrow = int(rng.integers(6, 17)), int(rng.integers(2, 7))
    first = rng.standard_normal((len(covariance), wide)) * np.sqrt(2 / len(covariance))
    second = rng.standard_normal((wide, narrow)) * np.sqrt(2 / wide)
    bias = [0.5 * rng.standard_normal(width) for width in (wide, narrow)]

    def one(x: Vector) -> Vector:
        return np.maximum(x @ first + bias[0], 0)

    def two(x: Vector) -> Vector:
        return np.maximum(one(x) @ second + bias[1], 0)

    return KnownNetwork(
        "random-relu",
        "ReLU layers of random weights on correlated inputs, another network each time",
        {"first": one, "second": two},
        covariance,
        dims=len(covariance),
        another=_random_relu,
    )


def _random_bits(number: int) -> KnownNetwork:
    """Draw a network on ten bits that are all listed; tanh or ReLU, its gain from all but linear to all but binary."""
    rng = np.random.default_rng([21, number])
    gain, smooth = float(np.exp(rng.uniform(-1, 1.5))), bool(rng.integers(2))
    first = gain * rng.standard_normal((10, int(rng.integers(3, 9)))) / 3
    second = gain * rng.standard_normal((first.shape[1], int(rng.integers(2, 5)))) / 2

    def act(z: Vector) -> Vector:
        return np.tanh(z) if smooth else np.maximum(z, 0)

    return KnownNetwork(
        "random-bits",
        "a network of random weights on all ten-bit inputs, counted, another one each time",
        {"first": lambda x: act(x @ first), "second": lambda x: act(act(x @ first) @ second)},
        None,
        dims=10,
        another=_random_bits,
    )


def _random_linear(number: int) -> KnownNetwork:
    """Draw linear layers of correlated inputs, the second of fewer units and some all but shut."""
    rng = np.random.default_rng([22, number])
    covariance = _correlated(rng)
    dims = len(covariance)
    first = rng.standard_normal((dims, dims)) / np.sqrt(dims)
    second = first @ np.diag(np.exp(rng.uniform(-4, 0, dims))) @ _rotation(dims, int(rng.integers(1 << 30)))
    return _linear(
        "random-linear",
        "linear layers of random weights on correlated inputs, another network each time",
        covariance,
        {"first": first, "second": second[:, : max(2, dims // 2)]},
        dims=dims,
        another=_random_linear,
    )


@cache
def known_networks() -> Mapping[str, KnownNetwork]:
    """Return the networks of known information by name.

    >>> known_networks()["contraction"].what
    'seven of eight units shrink to 1e-4'
    """
    rng = np.random.default_rng(12)
    first, second = rng.standard_normal((12, 8)) / 3, rng.standard_normal((8, 4)) / 2
    correlated = 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    pixels = np.ones((9, 9)) + 0.05 * np.eye(9)
    w = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in ((6, 6), (6, 3))]
    listed = [
        KnownNetwork(
            "bijection",
            "rotations and spirals that keep volumes: every layer is N(0, I), nothing is lost",
            {"first": _bijection(1), "third": _bijection(3)},
            np.eye(8),
            spread=True,
        ),
        _linear(
            "contraction",
            "seven of eight units shrink to 1e-4",
            np.eye(8),
            {"before": np.eye(8), "after": np.diag([1.0] + [1e-4] * 7)},
        ),
        _linear(
            "linear", "linear layers of correlated inputs", correlated, {"first": w[0], "second": w[0] @ w[1]}, dims=6
        ),
        _linear(
            "image-like",
            "nine pixels of one factor and noise of their own; the layer is their mean",
            pixels,
            {"mean": np.full((9, 1), 1 / 9)},
            dims=9,
        ),
        KnownNetwork(
            "twelve-bits",
            "a small tanh network on all twelve-bit inputs, counted",
            {
                "first": lambda x: np.tanh(x @ first),
                "second": lambda x: np.tanh(np.tanh(x @ first) @ second),
            },
            None,
            dims=12,
        ),
        _classes(100),
        _classes(1000),
        _random_relu(0),
        _random_bits(0),
        _random_linear(0),
    ]
    return {network.name: network for network in listed}
