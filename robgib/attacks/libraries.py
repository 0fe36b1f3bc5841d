"""Adapters for attacks of other libraries: the same budget, verification and records as for RobGIB's own attacks."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from robgib._absent import stand_in
from robgib._torchvision import load_torchvision
from robgib.attacks.base import Attack, reach_note, reaching
from robgib.attacks.threat_model import CONVEX_NORMS, NORMS, Norm, ThreatModel, distance, per_sample
from robgib.errors import RobGIBError, RobGIBWarning, first_line, unknown_name
from robgib.models.adapt import seeded
from robgib.models.inference import eval_mode
from robgib.runtime import SampleRNG, network_faults

__all__ = [
    "ADAPTERS",
    "ARTAttack",
    "AdvLibAttack",
    "FoolboxAttack",
    "TorchAttack",
    "advlib_norm",
    "art_norm",
    "foolbox_norm",
    "load_advlib",
    "takes",
    "torchattacks_norm",
]

_RADII = ("eps", "max_epsilon", "ε")  # names of the radius in the libraries
_STEPS = ("alpha", "eps_step", "lr")  # names of the step size, in units of the radius if a class has one
_ABSOLUTE = ("alpha", "eps_step", "abs_stepsize")
_COUNTS = ("steps", "max_iter", "nb_iter", "num_iter_set", "max_iterations", "n_queries")
_NORMS = cast(tuple[Norm, ...], CONVEX_NORMS)
_L0 = "counts changed pixels (L0)"


def _of(names: Iterable[str], parameters: Mapping[str, inspect.Parameter]) -> str | None:
    return next((n for n in names if n in parameters), None)


def _count(kind: type[Any], given: Mapping[str, Any]) -> int | None:
    """Return the number of steps of an attack, if it has such a parameter."""
    parameters = inspect.signature(kind).parameters
    name = _of(_COUNTS, parameters)
    count = None if name is None else given.get(name, parameters[name].default)
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def _stride(kind: type[Any], given: Mapping[str, Any], eps: float, single: bool) -> tuple[dict[str, float], str]:
    """Return a default step size, and a note if a given step size is too small.

    The default step size of a library is scaled with the radius, since it is chosen for the default radius. It is
    increased if the steps cannot reach the edge of the ball. ``single``: a class without a number of steps takes one.
    """
    parameters = inspect.signature(kind).parameters
    step, radius = _of(_STEPS, parameters), _of(_RADII, parameters)
    if step is None or radius is None:
        return {}, ""
    count = _count(kind, given) or (1 if single else None)
    if step in given:
        known = isinstance(given[step], int | float) and count
        return {}, reach_note(count, given[step], eps, step) if known and count else ""
    share = parameters[step].default / parameters[radius].default
    if count and count * share < 1:
        share = reaching(count)
    return {step: eps * share}, ""


@contextmanager
def _running(what: str, model: nn.Module, x: Tensor, rng: SampleRNG) -> Iterator[int]:
    """Run the code of a library on a frozen model with a seed, which is yielded; convert its errors."""
    seed = int(rng.generators()[0].integers(2**31))
    with eval_mode(model), seeded(seed, x.device), torch.enable_grad():
        try:
            with network_faults():
                yield seed
        except (RobGIBError, Warning, torch.OutOfMemoryError):
            raise
        except ImportError as error:
            raise RobGIBError(f"{what} needs a further package: {first_line(error)}.") from error
        except Exception as error:
            raise RobGIBError(f"{what} fails on images {tuple(x.shape)}: {first_line(error)}.") from error


def _warn(what: str, note: str) -> None:
    if note:
        warnings.warn(f"{what}: {note}", RobGIBWarning, stacklevel=3)


def _projected(what: str, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return images (N, …) inside the threat model unchanged, and project the others onto it.

    Rounding in a library may leave adversarial images slightly outside. Images that are not finite are replaced by the
    clean images, with a warning.
    """
    if x_adv.shape != x.shape:
        raise RobGIBError(f"{what} returned {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}.")
    x_adv = x_adv.detach().to(x)
    finite = torch.isfinite(x_adv).flatten(1).all(1)
    x_adv = torch.where(per_sample(finite, x), x_adv, x)
    low, high = threat.box
    far = distance(x_adv.double(), x.double(), threat.norm)
    inside = (far <= threat.eps) & ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        _warn(what, f"{bad} of {len(x)} images have NaN or infinite values and were replaced by the clean images.")
    if bool(inside.all()):
        return x_adv
    return torch.where(per_sample(inside, x), x_adv, threat.project(x_adv, x))


class _AdaptedModel(nn.Module):
    """A model as the libraries require it: with a parameter on its device, and outputs in the dtype of the images.

    Some libraries convert images to float32; the model receives its own dtype.
    """

    def __init__(self, model: nn.Module, x: Tensor, probabilities: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = x.dtype
        self.probabilities = probabilities
        self.where = nn.Parameter(torch.zeros((), device=x.device), requires_grad=False)
        self.train(model.training)  # the library restores this mode

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.to(self.dtype)).to(x.dtype)
        return logits.softmax(1) if self.probabilities else logits


def _library(name: str, package: str) -> Any:
    load_torchvision()  # the libraries may import it

    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = "--no-deps adv-lib tqdm" if package == "adv-lib" else f'"robgib[{package}]"'
        raise RobGIBError(f"{package} is not installed ({error}); `pip install {wanted}` adds it.") from error


def _class(names: Mapping[str, Any], base: type[Any], name: str, library: str) -> type[Any]:
    """Return the attack class of that name, a proper subclass of ``base``."""
    known = {n: c for n, c in names.items() if inspect.isclass(c) and issubclass(c, base) and c is not base}
    if name not in known:
        raise unknown_name(f"{library} attack", name, known)
    return known[name]


def _torchattacks_class(name: str) -> type[Any]:
    library = _library("torchattacks", "torchattacks")
    return _class(vars(library), library.attack.Attack, name, "torchattacks")


def _foolbox_class(name: str) -> type[Any]:
    attacks = _library("foolbox.attacks", "foolbox")
    return _class(vars(attacks), attacks.base.Attack, name, "foolbox")


def _art_class(name: str) -> type[Any]:
    evasion = _library("art.attacks.evasion", "art")
    return _class(vars(evasion), _library("art.attacks", "art").EvasionAttack, name, "ART")


_SET = (
    *("model", "self", "estimator", "classifier", *_RADII, "targeted", "verbose", "batch_size"),
    *("inputs", "labels", "callback", "penalty", "starting_points"),
)
"""Parameters that RobGIB sets: the model, the budget and the batch; every attack is untargeted."""


def takes(library: str, name: str) -> list[str]:
    """Return the parameters of a library's attack, besides ``eps``.

    Args:
        library: ``torchattacks``, ``foolbox``, ``art`` or ``advlib``.
        name: name of the class or function in the library.
    """
    find: Mapping[str, Callable[[str], Callable[..., Any]]] = {
        "torchattacks": _torchattacks_class,
        "foolbox": _foolbox_class,
        "art": _art_class,
        "advlib": _advlib_function,
    }
    find_it = find[library]
    return [p for p in inspect.signature(find_it(name)).parameters if p not in _SET]


def _accept(library: str, name: str, parameters: Mapping[str, Any]) -> None:
    accepted = takes(library, name)
    for key in parameters:
        if key in _RADII:
            raise RobGIBError(f"{library}:{name} uses the parameter eps for its radius; write eps={parameters[key]}.")
        if key == "targeted":
            raise RobGIBError(f"{library}:{name} runs untargeted here; leave 'targeted' out.")
        if key not in accepted:
            raise unknown_name(f"parameter of {library}:{name}:", key, accepted)


def _unbounded(library: str, name: str, why: str) -> RobGIBError:
    whose = library + ("'" if library.endswith("s") else "'s")
    return RobGIBError(f"{whose} {name} {why}, so no budget can be verified.")


def _named_norm(what: str, value: Any, known: tuple[Norm, ...]) -> Norm:
    """Return the norm that a parameter names: 2, inf, L2, Linf, ….

    Raises:
        RobGIBError: the norm is not one of ``known``.
    """
    wanted = "l" + str(value).lower().removeprefix("l").removesuffix(".0")
    for norm in known:
        if norm == wanted:
            return norm
    names = [n.replace("l", "L", 1) for n in known]
    raise RobGIBError(f"{what} has norm {value!r}; use {', '.join(names[:-1])} or {names[-1]}.")


def _construct(kind: type[Any], parameters: Mapping[str, Any], what: str, *first: Any) -> Any:
    try:
        return kind(*first, **parameters)
    except ImportError as error:
        raise RobGIBError(f"{what} needs a further package: {first_line(error)}.") from error
    except Exception as error:
        raise RobGIBError(f"{what} does not take these parameters: {first_line(error)}.") from error


@dataclass(frozen=True)
class _Adapter(Attack):
    """An attack of another library, by class name and keyword arguments; untargeted."""

    norms: ClassVar[tuple[str, ...]] = CONVEX_NORMS
    library: ClassVar[str]
    batch_independent: ClassVar[bool] = False  # the libraries draw for a whole batch at once
    name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _accept(self.library, self.name, self.parameters)

    @property
    def label(self) -> str:
        """The name of the attack in messages."""
        return f"{self.library}:{self.name}"

    @property
    def cost(self) -> int | None:
        """Gradients per sample, if a parameter gives the number of steps; see :attr:`Attack.cost`."""
        stated = [self.parameters[n] for n in _COUNTS if isinstance(self.parameters.get(n), int)]
        return max(1, stated[0]) if stated else None

    def at(self, eps: float) -> Attack:
        """See :meth:`Attack.at`."""
        scaled = {
            n: v * eps / self.threat.eps if n in _ABSOLUTE and isinstance(v, int | float) else v
            for n, v in self.parameters.items()
        }
        return replace(self, eps=eps, parameters=scaled)


_TORCHATTACKS_NORMS: Mapping[str, Norm] = {"EADEN": "l2"}  # its elastic net is L2 plus 0.001 L1
_TORCHATTACKS_REFUSED = {
    "GN": "adds noise of a given spread and has no radius",
    "VANILA": "changes nothing",
    "MultiAttack": "is made of other attacks, which a name cannot give",
    "LGV": "trains networks of its own on a data set",
}


def torchattacks_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm of a torchattacks attack, from its documentation and its parameter ``norm``."""
    kind = _torchattacks_class(name)
    measure = re.search(r"Distance Measure\s*:(.*)", kind.__doc__ or "")
    stated = [n.lower() for n in re.findall(r"\bL(?:inf|\d)", measure[1])] if measure else []
    known = tuple(n for n in _NORMS if n in stated)
    if name in _TORCHATTACKS_REFUSED or not known:
        why = _L0 if "l0" in stated else "does not document the norm of its bound"
        raise _unbounded("torchattacks", name, _TORCHATTACKS_REFUSED.get(name, why))
    _accept("torchattacks", name, parameters)
    norm = inspect.signature(kind).parameters.get("norm")
    if norm is None:
        return _TORCHATTACKS_NORMS.get(name, known[0])
    chosen = _named_norm(f"torchattacks:{name}", parameters.get("norm", norm.default), known)
    if name == "FAB" and chosen == "l1" and parameters.get("multi_targeted"):
        raise RobGIBError("torchattacks:FAB aims at single classes in Linf and L2 only; leave multi_targeted out.")
    return chosen


def _run_fab(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run torchattacks' FAB under L1, which its own restarts do not support; return images (N, …)."""
    best, near = x, torch.full((len(x),), float("inf"), device=x.device)
    with torch.no_grad():
        for restart in range(attack.n_restarts):
            x_adv = attack.attack_single_run(x, y, use_rand_start=restart > 0)
            far = (x_adv - x).abs().flatten(1).sum(1)
            better = (far > 0) & (far < near)  # the clean image means failure
            best, near = torch.where(per_sample(better, x), x_adv, best), torch.where(better, far, near)
    return best


@dataclass(frozen=True)
class TorchAttack(_Adapter):
    """An attack of the torchattacks library (Kim 2020), by class name and keyword arguments; untargeted.

    The default step size is scaled with the radius; see ``docs/adapters.md``.
    """

    library: ClassVar[str] = "torchattacks"
    name: str = "PGD"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        kind = _torchattacks_class(self.name)
        known = inspect.signature(kind).parameters
        steps, note = _stride(kind, self.parameters, self.threat.eps, single=True)
        _warn(self.label, note)
        arguments = {**steps, **self.parameters}
        radius = _of(_RADII, known)
        if radius:
            arguments[radius] = self.threat.eps
        if "norm" in known:
            arguments["norm"] = self.threat.norm.replace("l", "L", 1)
        with _running(self.label, model, x, rng) as seed:
            if "n_classes" in known and "n_classes" not in arguments:
                with torch.no_grad():
                    arguments["n_classes"] = model(x[:1]).shape[1]
            if "seed" in known:
                arguments.setdefault("seed", seed)  # the default is the clock
            attack = _construct(kind, arguments, self.label, _AdaptedModel(model, x))
            attack.set_device(x.device)
            images = x.float()  # some attacks of the library support float32 only
            l1 = self.name == "FAB" and self.threat.norm == "l1"
            x_adv = _run_fab(attack, images, y) if l1 else attack(images, y)
        return _projected(self.label, x_adv, x, self.threat)


_FOOLBOX_REFUSED = {
    "SpatialAttack": "turns and shifts the image",
    "GenAttack": "is targeted",
    "DatasetAttack": "needs a data set of its own",
    "BinarizationRefinementAttack": "refines what another attack found",
}


def _foolbox_arguments(kind: type[Any], parameters: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the parameters in the form of the class, where a distance is an object."""
    arguments = dict(parameters)
    if "distance" in inspect.signature(kind).parameters:
        if arguments.get("distance") is None:
            raise RobGIBError(f"{what} has no norm of its own; give distance=linf, l2 or l1.")
        norm = _named_norm(what, arguments["distance"], _NORMS)
        arguments["distance"] = getattr(_library("foolbox.distances", "foolbox"), norm)
    return arguments


def foolbox_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm of a Foolbox attack, from its ``distance``."""
    kind, what = _foolbox_class(name), f"foolbox:{name}"
    if name in _FOOLBOX_REFUSED:
        raise _unbounded("foolbox", name, _FOOLBOX_REFUSED[name])
    _accept("foolbox", name, parameters)
    attack = _construct(kind, _foolbox_arguments(kind, parameters, what), what)
    try:
        p = getattr(attack.distance, "p", None)
    except (AttributeError, ValueError):
        p = None
    norms: dict[float, Norm] = {float("inf"): "linf", 2: "l2", 1: "l1"}
    if p not in norms:
        raise _unbounded("foolbox", name, _L0 if p == 0 else "does not document the norm of its bound")
    return norms[p]


@dataclass(frozen=True)
class FoolboxAttack(_Adapter):
    """An attack of Foolbox (Rauber et al. 2020), by class name and keyword arguments; untargeted.

    The images of minimum-norm attacks are projected onto the threat model.
    """

    library: ClassVar[str] = "foolbox"
    name: str = "LinfPGD"

    def _steps(self, kind: type[Any]) -> tuple[dict[str, float], str]:
        """As :func:`_stride`, for step sizes relative to eps."""
        parameters, count = inspect.signature(kind).parameters, _count(kind, self.parameters)
        if "rel_stepsize" not in parameters or count is None:
            return {}, ""
        eps = self.threat.eps
        if (size := self.parameters.get("abs_stepsize")) is not None:
            return {}, reach_note(count, size, eps, "abs_stepsize")
        if (share := self.parameters.get("rel_stepsize")) is not None:
            return {}, reach_note(count, share * eps, eps, "abs_stepsize")
        return ({"rel_stepsize": reaching(count)} if count * parameters["rel_stepsize"].default < 1 else {}), ""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        foolbox, kind = _library("foolbox", "foolbox"), _foolbox_class(self.name)
        steps, note = self._steps(kind)
        _warn(self.label, note)
        arguments = {**steps, **_foolbox_arguments(kind, self.parameters, self.label)}
        with _running(self.label, model, x, rng):
            attack = _construct(kind, arguments, self.label)
            wrapped = foolbox.PyTorchModel(_AdaptedModel(model, x), bounds=self.threat.box, device=x.device)
            # Use the unclipped images: those clipped by Foolbox may lie outside by rounding.
            x_adv, _, _ = attack(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=self.threat.eps)
        return _projected(self.label, x_adv, x, self.threat)


_ART_FIXED: Mapping[str, Norm] = {
    "BasicIterativeMethod": "linf",
    "BoundaryAttack": "l2",
    "CarliniL2Method": "l2",
    "CarliniLInfMethod": "linf",
    "DeepFool": "l2",
    "NewtonFool": "l2",
    "SignOPTAttack": "l2",
    "SimBA": "l2",
    "ThresholdAttack": "linf",
    "VirtualAdversarialMethod": "l2",
    "ZooAttack": "l2",
}
_ART_NO_L1 = ("HopSkipJump", "UniversalPerturbation")
_ART_PROBABILITIES = ("SimBA", "VirtualAdversarialMethod")
_ART_REFUSED = {
    "AdversarialPatch": "pastes a patch",
    "AdversarialPatchNumpy": "pastes a patch",
    "AdversarialPatchPyTorch": "pastes a patch",
    "AdversarialPatchTensorFlowV2": "pastes a patch",
    "CarliniL0Method": _L0,
    "CompositeAdversarialAttackPyTorch": "also turns the image and changes its colours",
    "FeatureAdversariesNumpy": "needs a second image",
    "FeatureAdversariesPyTorch": "needs a second image",
    "FeatureAdversariesTensorFlowV2": "needs a second image",
    "FrameSaliencyAttack": "is made of another attack and a video's frames",
    "GRAPHITEBlackbox": "pastes a sticker",
    "GRAPHITEWhiteboxPyTorch": "pastes a sticker",
    "LaserAttack": "draws a beam of light",
    "LowProFool": "changes tables, weighted by column",
    "MalwareGDTensorFlow": "changes programs",
    "OverTheAirFlickeringPyTorch": "makes videos flicker",
    "OverloadPyTorch": "attacks object detectors",
    "PixelAttack": _L0,
    "ProjectedGradientDescentTensorFlowV2": "is for TensorFlow (use ProjectedGradientDescent)",
    "SNAL": "attacks object detectors",
    "SaliencyMapMethod": _L0,
    "ShadowAttack": "is bounded in smoothness and colour",
    "SpatialTransformation": "turns and shifts the image",
    "TargetedUniversalPerturbation": "is targeted",
    "Wasserstein": "is bounded in the Wasserstein distance",
}


def art_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm of an ART attack, from its class and its ``norm`` or ``decision_rule``."""
    kind, what = _art_class(name), f"art:{name}"
    classifier = _library("art.estimators.classification", "art").PyTorchClassifier
    missing = [r.__name__ for r in getattr(kind, "_estimator_requirements", ()) if not issubclass(classifier, r)]
    if missing:
        raise RobGIBError(f"ART's {name} requires a {missing[0]}; a PyTorch image classifier is not supported.")
    if name in _ART_REFUSED:
        raise _unbounded("ART", name, _ART_REFUSED[name])
    _accept("art", name, parameters)
    if name in _ART_FIXED:
        return _ART_FIXED[name]
    accepted = inspect.signature(kind).parameters
    if "decision_rule" in accepted:
        rule = parameters.get("decision_rule", accepted["decision_rule"].default)
        if rule not in ("EN", "L1", "L2"):
            raise RobGIBError(f"{what} has decision_rule {rule!r}; use EN, L1 or L2.")
        return "l2" if rule == "L2" else "l1"
    if "norm" not in accepted:
        raise _unbounded("ART", name, "does not document the norm of its bound")
    known = tuple(n for n in _NORMS if n != "l1" or name not in _ART_NO_L1)
    return _named_norm(what, parameters.get("norm", accepted["norm"].default), known)


@dataclass(frozen=True)
class ARTAttack(_Adapter):
    """An evasion attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018), by class name; untargeted.

    The default step size is scaled with the radius. The images of minimum-norm attacks are projected onto the threat
    model.
    """

    library: ClassVar[str] = "art"
    name: str = "ProjectedGradientDescent"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        kind, art = _art_class(self.name), _library("art.estimators.classification", "art")
        known = inspect.signature(kind).parameters
        steps, note = _stride(kind, self.parameters, self.threat.eps, single=False)
        _warn(self.label, note)
        ours = {
            "norm": {"linf": np.inf, "l2": 2, "l1": 1}[self.threat.norm],
            "eps": self.threat.eps,
            "targeted": False,  # some are targeted by default
            "verbose": False,
            "batch_size": 1 if self.name == "SimBA" else len(x),
        }
        arguments = {**steps, **self.parameters, **{k: v for k, v in ours.items() if k in known}}
        if "th" in known:
            arguments.setdefault("th", 255 * self.threat.eps / (self.threat.box[1] - self.threat.box[0]))
        with _running(self.label, model, x, rng):
            with torch.no_grad():
                classes = model(x[:1]).shape[1]
            classifier = art.PyTorchClassifier(
                _AdaptedModel(model, x, self.name in _ART_PROBABILITIES),
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=classes,
                clip_values=self.threat.box,
                device_type="gpu" if x.device.type == "cuda" else "cpu",
            )
            attack = _construct(kind, arguments, self.label, classifier)
            # One-hot labels: for two classes the library would assume a single output.
            labels = np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
            x_adv = torch.from_numpy(np.asarray(attack.generate(x.cpu().numpy(), labels)))
        return _projected(self.label, x_adv, x, self.threat)


def load_advlib() -> Any:
    """Import adv-lib's attacks.

    It imports visdom, a live plotter that no attack needs and that newer setuptools cannot build. A missing visdom is
    replaced by an empty module during the import.
    """
    with stand_in("visdom"):
        return _library("adv_lib.attacks", "adv-lib")


_ADVLIB_FIXED: Mapping[str, Norm] = {
    "carlini_wagner_l2": "l2",
    "carlini_wagner_linf": "linf",
    "ddn": "l2",
    "fga": "l0",
    "pdgd": "l2",
    "pgd_linf": "linf",
    "sdf": "l2",
    "sigma_zero": "l0",
    "vfga": "l0",
}
_ADVLIB_NORM: Mapping[str, tuple[str, tuple[Norm, ...]]] = {
    "alma": ("distance", ("l2", "l1")),
    "apgd": ("norm", ("linf", "l2", "l1")),
    "apgd_targeted": ("norm", ("linf", "l2", "l1")),
    "df": ("norm", ("linf", "l2")),
    "fab": ("norm", ("linf", "l2", "l1")),
    "fmn": ("norm", ("linf", "l2", "l1", "l0")),
    "pdpgd": ("norm", ("linf", "l2", "l1")),
    "tr": ("p", ("linf", "l2")),
}
_ADVLIB_REFUSED = {
    "perc_al": "measures how colours are seen",
    "str_attack": "measures groups of pixels",
}


def _advlib_function(name: str) -> Callable[..., Any]:
    known = [*_ADVLIB_FIXED, *_ADVLIB_NORM, *_ADVLIB_REFUSED]
    library = load_advlib()
    if name not in known or not hasattr(library, name):
        raise unknown_name("advlib attack", name, [n for n in known if hasattr(library, n)])
    return cast(Callable[..., Any], getattr(library, name))


def advlib_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm of an adv-lib attack, from its name or its ``norm``, ``p`` or ``distance``."""
    _advlib_function(name)
    if name in _ADVLIB_REFUSED:
        raise _unbounded("adv-lib", name, _ADVLIB_REFUSED[name])
    _accept("advlib", name, parameters)
    if name in _ADVLIB_FIXED:
        return _ADVLIB_FIXED[name]
    key, known = _ADVLIB_NORM[name]
    if key not in parameters:
        return "l2"
    return _named_norm(f"advlib:{name}", parameters[key], known)


@dataclass(frozen=True)
class AdvLibAttack(_Adapter):
    """An attack of adv-lib (Rony & Ben Ayed), by function name and keyword arguments; untargeted.

    The images of minimum-norm attacks are projected onto the threat model.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS
    library: ClassVar[str] = "advlib"
    name: str = "ddn"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """See :meth:`Attack.perturb`."""
        if not len(x):
            return x
        function = _advlib_function(self.name)
        arguments = dict(self.parameters)
        if self.name in _ADVLIB_NORM:
            key = _ADVLIB_NORM[self.name][0]
            order = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}[self.norm]
            arguments[key] = self.norm if key == "distance" else order
        known = inspect.signature(function).parameters
        if (radius := _of(("eps", "ε"), known)) and self.name != "tr":  # there it has another meaning
            arguments[radius] = self.threat.eps
        if "targeted" in known:
            arguments["targeted"] = False
        with _running(self.label, model, x, rng):
            x_adv = function(_AdaptedModel(model, x), x.clone(), y, **arguments)
        return _projected(self.label, x_adv, x, self.threat)


ADAPTERS: Mapping[str, tuple[type[Attack], Callable[[str, Mapping[str, Any]], Norm]]] = {
    "torchattacks": (TorchAttack, torchattacks_norm),
    "foolbox": (FoolboxAttack, foolbox_norm),
    "art": (ARTAttack, art_norm),
    "advlib": (AdvLibAttack, advlib_norm),
}
"""Adapters by prefix: the class that runs the attacks of a library, and the function that returns their norm."""
