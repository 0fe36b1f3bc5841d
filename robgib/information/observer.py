"""The one way from a network to estimates of its layers: capture activations, view them, estimate."""

from __future__ import annotations

import copy
import itertools
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robgib.errors import RobGIBError, RobGIBWarning
from robgib.information.activations import LOGITS, collect_activations
from robgib.information.base import Estimator
from robgib.information.decomposition import Decomposition, Prepared
from robgib.information.exact import Exact
from robgib.information.features import Features
from robgib.information.views import NOISE, RATE, Bins, Codebook, FittedView, Network, NoisyLayer, Target, View
from robgib.models.adapt import seeded
from robgib.models.inference import PreparedModel
from robgib.models.state import State, settings_kept
from robgib.options import Context
from robgib.runtime import faults_of

__all__ = [
    "LABEL",
    "PREDICTION",
    "Activations",
    "Inputs",
    "LayerView",
    "Observation",
    "Resolution",
    "about",
    "capture",
]

Array = npt.NDArray[Any]
Activations = Mapping[str, npt.NDArray[np.float32]]
"""Activations (N, U, …) by layer."""
PREDICTION, LABEL = "Ŷ", "Y"
"""The predicted and the true label, which are targets beside the layers."""


@dataclass(frozen=True)
class Resolution:
    """How finely layers are viewed.

    Attributes:
        dims: principal components of a layer.
        codes: symbols of a layer's code in the ``rate`` view.
        sigma: noise of the ``noise`` view, as a share of a layer's total standard deviation.
        bins: bins of the ``exact`` view.
        seed: of k-means and of the noise.
    """

    dims: int
    codes: int
    sigma: float
    bins: int = Exact.bins
    seed: int = 0

    def fit(self, view: View, z: Array) -> FittedView:
        """Fit a view of one layer on activations (N, …)."""
        if view == RATE:
            return Codebook.fit(z, self.dims, self.codes, self.seed)
        if view == NOISE:
            return NoisyLayer.fit(z, self.dims, self.sigma, self.seed)
        return Bins.fit(z, self.bins)


@dataclass(frozen=True)
class LayerView:
    """A fitted view of one layer.

    Attributes:
        layer: name of the layer.
        fitted: the view.
        variant: what distinguishes it from other views of the layer, such as another number of symbols; empty for the
            main one.
    """

    layer: str
    fitted: FittedView
    variant: str = ""

    @property
    def name(self) -> str:
        """Name of the target that it makes."""
        return f"{self.layer}\n{self.variant}" if self.variant else self.layer  # no module has such a name


@dataclass(frozen=True)
class Inputs:
    """Images that a network's layers are observed on.

    Attributes:
        x: images (N, …) to estimate on.
        x_fit: images (M, …) to fit codes, components and scales on.
        y: labels (N,).
        y_fit: labels (M,).
        donors: images (P, …) whose content may replace that of others.
        enumerated: whether ``x`` are all images there are.
    """

    x: Tensor
    x_fit: Tensor
    y: Array
    y_fit: Array
    donors: Tensor
    enumerated: bool = False


def capture(
    model: PreparedModel,
    x: Tensor,
    layers: Sequence[str],
    context: Context,
    *,
    reduced: bool = False,
    check: bool = True,
) -> Activations:
    """Return the activations of a prepared model's layers on images (N, …).

    Args:
        model: on the context's device.
        x: images (N, …).
        layers: names of layers.
        context: device and progress.
        reduced: whether wide layers are projected on random directions
            (:func:`~robgib.information.activations.collect_activations`).
        check: whether a layer that is constant over the images is refused.
    """
    return collect_activations(
        model.model,
        x,
        layers,
        batch_size=model.batch_size,
        device=context.device,
        progress=context.progress if check else None,
        reduced=reduced,
        check=check,
    )


@dataclass(frozen=True)
class Observation:
    """The layers of one network: their activations, the targets in any view, and estimates of these.

    Attributes:
        model: the network.
        inputs: the images.
        context: seed, device and progress.
        values: activations on ``inputs.x``.
        fit: activations on ``inputs.x_fit``.
        reduced: whether wide layers are on random directions.
    """

    model: PreparedModel
    inputs: Inputs
    context: Context
    values: Activations
    fit: Activations
    reduced: bool = False

    @classmethod
    def of(
        cls,
        model: PreparedModel,
        layers: Sequence[str],
        inputs: Inputs,
        context: Context,
        *,
        reduced: bool = False,
        check: bool = True,
    ) -> Observation:
        """Capture the layers on both sets of images (:func:`capture`)."""
        values, fit = (
            capture(model, x, layers, context, reduced=reduced, check=check) for x in (inputs.x, inputs.x_fit)
        )
        return cls(model, inputs, context, values, fit, reduced)

    def targets(self, views: Sequence[LayerView], weights: Array | None = None) -> list[Target]:
        """The layers as targets, one per view; I(X;T) and I(T;Y) are counted with the samples' ``weights`` (N,)."""
        return [v.fitted.target(v.name, self.values[v.layer], self.fit[v.layer], self.inputs.y, weights) for v in views]

    def codes(self, views: Sequence[LayerView]) -> Callable[[Tensor], dict[str, Array]]:
        """A function from images to the codes of every target, the predicted class, and the classes' probabilities."""
        layers = tuple(dict.fromkeys([*(v.layer for v in views), LOGITS]))
        network = _faster(self.model.model, layers, self.context.device)

        def codes(x: Tensor) -> dict[str, Array]:
            if network is not self.model.model and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            activations = collect_activations(
                network,
                x,
                layers,
                batch_size=self.model.batch_size,
                device=self.context.device,
                check=False,
                reduced=self.reduced,
            )
            logits = activations[LOGITS]
            return {
                **_viewed(views, activations),
                PREDICTION: logits.argmax(1).astype(np.int64),
                LABEL: softmax(logits, axis=1),
            }

        return codes

    def estimate(
        self,
        estimator: Estimator,
        features: Features,
        views: Sequence[LayerView],
        targets: Sequence[Target],
        *,
        prepared: Prepared | None = None,
        weights: Array | None = None,
    ) -> list[Decomposition]:
        """Estimate the information of the input's features about each target.

        Args:
            estimator: the estimator.
            features: of the images.
            views: of the layers among the targets, for estimators that run the network.
            targets: layers in the estimator's view, or the label.
            prepared: what the estimator made of the features (:meth:`Estimator.prepare`); None prepares them.
            weights: (N,) of the samples.

        Raises:
            RobGIBError: samples that the estimator cannot use, or a plug-in that changes the model or the samples.
        """
        network = None
        inputs, context = self.inputs, self.context
        if estimator.runs_network:
            network = Network(inputs.x, inputs.donors, inputs.enumerated, features, self.codes(views))
        samples = (inputs.x, inputs.x_fit, torch.from_numpy(inputs.y))
        with (
            _unchanged(self.model.model, estimator, samples, features, targets),
            seeded(context.seed, context.device),
        ):
            prepared = prepared or estimator.prepare(features.values, features.fit)
            return estimator.of_network(prepared, targets, network, weights, context.progress)


def _viewed(views: Sequence[LayerView], activations: Activations) -> dict[str, Array]:
    """Every view of the layers; a layer's codebooks of several sizes share the scores that they code."""
    scores: dict[int, Array] = {}
    viewed = {}
    for view in views:
        book, z = view.fitted, activations[view.layer]
        if not isinstance(book, Codebook):
            viewed[view.name] = book(z)
            continue
        if id(book.projection) not in scores:
            scores[id(book.projection)] = book.scores(z)
        viewed[view.name] = book.nearest(scores[id(book.projection)])
    return viewed


def _faster(network: nn.Module, layers: Sequence[str], device: torch.device | str) -> nn.Module:
    """A copy of a convolutional network that a CPU runs two to three times as fast, with the same layers.

    The channels are last in memory, and a batch norm after a convolution is part of it, unless the convolution itself
    is one of the layers.
    """
    modules = list(network.modules())
    maps = any(isinstance(m, nn.Conv2d) for m in modules)
    if not maps or torch.device(device).type != "cpu" or any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        return network
    copied: nn.Module = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, sequence in list(copied.named_modules()):
        if type(sequence) is not nn.Sequential:
            continue
        for (one, first), (two, second) in itertools.pairwise(list(sequence.named_children())):
            path = f"{name}.{one}" if name else one
            watched = any(re.match(rf"{re.escape(path)}($|[\[(])", layer) for layer in layers)
            if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d and not watched and _plain(first, second):
                setattr(sequence, one, fuse_conv_bn_eval(first, second))
                setattr(sequence, two, nn.Identity())
    return copied


def _plain(convolution: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Whether nothing but the two operations happens: running statistics, no hooks, no parametrisation."""
    hooked = any(
        m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations") for m in (convolution, norm)
    )
    return norm.track_running_stats and not norm.training and not hooked


@contextmanager
def about(estimator: Estimator, what: str) -> Iterator[None]:
    """Name the estimator in its errors, and silence its warnings, which are in the notes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RobGIBWarning)
            with faults_of("it"):
                yield
    except RobGIBError as error:
        raise RobGIBError(f"estimator {estimator.name!r}, {what}: {error}") from error


@contextmanager
def _unchanged(
    model: nn.Module, estimator: Estimator, samples: Sequence[Tensor], features: Features, targets: Sequence[Target]
) -> Iterator[None]:
    """Refuse a plug-in estimator that changes the model, which is restored, or the samples."""
    if type(estimator).__module__.startswith("robgib."):
        yield
        return

    def checksums() -> list[int]:
        arrays = [*(s.numpy() for s in samples), *features.values, *features.fit]
        arrays += [a for t in targets for a in (t.values, t.fit)]
        return [zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in arrays]

    state, before = State([model]), checksums()
    try:
        with settings_kept():
            yield
    finally:
        changed = [*state.changed(), *(f"mode of {name or type(model).__name__}" for name in state.modes())]
        state.restore()
    if changed:
        raise RobGIBError(f"it changed the model ({', '.join(changed[:3])}), which was restored; work on a copy.")
    if checksums() != before:
        raise RobGIBError("it changed the samples that it was given, which others estimate on too; work on copies.")
