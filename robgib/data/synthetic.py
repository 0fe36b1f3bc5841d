"""Functions of twelve inputs, small enough to compute their information exactly.

The inputs are either all 4,096 patterns of twelve bits, each once, or draws of twelve numbers uniform in [0, 1]. A
function uses some of the inputs; the others are distractors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robgib.errors import RobGIBError, unknown_name

__all__ = ["INPUTS", "Function", "function", "function_names", "patterns"]

INPUTS = 12
"""Inputs of every function."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Function:
    """A labelling of twelve inputs.

    Attributes:
        name: as it is called.
        label: maps inputs (N, 12) to class numbers (N,).
        real: whether the inputs are real numbers; else bits.
        closed_form: (I(X;Y), S(X;Y)) in bits of a real function; those of bits are counted.
        learnt: share of the patterns that is trained on; the others are held out.
    """

    name: str
    label: Callable[[Array], Array]
    real: bool = False
    closed_form: tuple[float, float] | None = None
    learnt: float = 0.8

    def draw(self, samples: int, seed: int) -> tuple[Array, Array]:
        """Return inputs (N, 12) and labels (N,): all patterns of bits once, or ``samples`` draws of real inputs."""
        x = np.random.default_rng(seed).random((samples, INPUTS)) if self.real else patterns()
        return x.astype(np.float32), self.label(x).astype(np.int64)


def patterns() -> Array:
    """All patterns of twelve bits, (4096, 12)."""
    return np.array(list(itertools.product((0, 1), repeat=INPUTS)))


def _icosahedron() -> Array:
    """Twelve points spread evenly over the sphere, (12, 3)."""
    golden = (1 + 5**0.5) / 2
    points = [np.roll((0, a, b * golden), shift) for shift in range(3) for a in (-1, 1) for b in (-1, 1)]
    return np.array(points) / np.hypot(1, golden)


def _sphere(x: Array) -> Array:
    """Whether a pattern on the sphere has more low-frequency power than the median pattern.

    The bits are points on a sphere and the rule does not change when it is turned or mirrored, as in the task of
    Shwartz-Ziv & Tishby (2017, section 3), whose own constants are not published: here the power in degree 1 plus half
    of that in degree 2 of the spherical harmonics. Ties at the median are broken by the number of bits.
    """
    cosine = _icosahedron() @ _icosahedron().T
    kernel = 3 * cosine + 0.5 * 5 * (3 * cosine**2 - 1) / 2
    every = patterns()

    def power(bits: Array) -> Array:
        return np.round(np.einsum("ni,ij,nj->n", bits, kernel, bits), 6) + 1e-3 * bits.sum(1)

    labels: Array = (power(x) > np.median(power(every))).astype(np.int64)
    return labels


def _multiplexer(x: Array) -> Array:
    """The one of four bits that two address bits select."""
    labels: Array = np.take_along_axis(x[:, 2:6], (2 * x[:, 0] + x[:, 1])[:, None].astype(int), 1)[:, 0]
    return labels


def _entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else float(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def _maximum(k: int) -> tuple[float, float]:
    """Information of ``max(x_1 … x_k) > 2^(-1/k)``, its median."""
    edge = 2 ** (-1 / k)
    others = edge ** (k - 1)  # probability that all others lie below
    single, rest = 1 - edge * _entropy(others), 1 - others * _entropy(edge)
    return 1.0, k / INPUTS * (1 - single - rest)


def _sum_of_two() -> tuple[float, float]:
    """Information of ``x_1 + x_2 > 1``: given x_1, the label is 1 with probability x_1."""
    single = 1 - 1 / (2 * np.log(2))
    return 1.0, 2 / INPUTS * float(1 - 2 * single)


def _random(number: int) -> Function:
    """Draw a polynomial threshold function: the sign of a few products of ±1 inputs, each with a weight.

    Products of one input alone give threshold functions, a single product of many a parity, and what lies between has
    every degree of synergy. About as many patterns have one label as the other. An eighth of the patterns is trained
    on, so that what was learnt need not hold elsewhere.
    """
    rng = np.random.default_rng([31, number])
    signs = 1 - 2 * patterns()
    while True:
        used = rng.permutation(INPUTS)[: rng.integers(3, 9)]
        highest = int(rng.integers(1, len(used) + 1))
        products = [
            rng.permutation(used)[: rng.integers(max(1, highest - 1), highest + 1)] for _ in range(rng.integers(1, 13))
        ]
        weights = rng.choice([-1, 1], len(products)) * rng.uniform(0.5, 1.5, len(products))
        value = sum(w * signs[:, p].prod(1) for w, p in zip(weights, products, strict=True))
        if 0.3 <= (value > 0).mean() <= 0.7:
            break

    def label(x: Array) -> Array:
        s = 1 - 2 * x
        weighted: Array = sum(w * s[:, p].prod(1) for w, p in zip(weights, products, strict=True))
        return (weighted > 0).astype(int)

    return Function(f"random-{number}", label, learnt=1 / 8)


def _numbered(kind: str, k: int) -> Function | None:
    """The function of the first ``k`` inputs, or the k-th that is drawn at random."""
    if kind == "random":
        return _random(k)
    if not 1 <= k <= INPUTS:
        return None
    if kind == "parity":
        return Function(f"parity-{k}", lambda x: x[:, :k].sum(1) % 2)
    if kind == "majority" and k % 2:
        return Function(f"majority-{k}", lambda x: (2 * x[:, :k].sum(1) > k).astype(int))
    if kind == "and":
        return Function(f"and-{k}", lambda x: x[:, :k].prod(1))
    if kind == "sum":
        return Function(f"sum-{k}", lambda x: x[:, :k].sum(1))
    if kind == "real-parity":
        synergy = k / INPUTS if k > 1 else 0.0
        return Function(f"real-parity-{k}", lambda x: (x[:, :k] > 0.5).sum(1) % 2, True, (1.0, synergy))
    if kind == "real-max" and k > 1:
        return Function(f"real-max-{k}", lambda x: (x[:, :k].max(1) > 2 ** (-1 / k)).astype(int), True, _maximum(k))
    return None


_NAMED = {
    "sphere": Function("sphere", _sphere),
    "multiplexer": Function("multiplexer", _multiplexer),
    "real-sum": Function("real-sum", lambda x: (x[:, 0] + x[:, 1] > 1).astype(int), True, _sum_of_two()),
}
_KINDS = ("parity", "majority", "and", "sum", "real-parity", "real-max", "random")


def function_names() -> list[str]:
    """Return the names; ``K`` is the number of inputs that the function uses, or the index of a random function."""
    return [*_NAMED, *(f"{kind}-K" for kind in _KINDS)]


def function(name: str) -> Function:
    """Return the function of this name.

    Raises:
        RobGIBError: there is no such function.
    """
    if name in _NAMED:
        return _NAMED[name]
    kind, _, number = name.rpartition("-")
    chosen = _numbered(kind, int(number)) if kind in _KINDS and number.isdigit() else None
    if chosen is None and kind in _KINDS:
        raise RobGIBError(
            f"function {name!r}: K must be a number of inputs from {2 if kind == 'real-max' else 1} to {INPUTS}"
            f"{', odd' if kind == 'majority' else ''}, as in {kind}-3."
        )
    if chosen is None:
        raise unknown_name("function", name, function_names())
    return chosen
