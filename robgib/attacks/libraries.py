"""Other libraries' attacks behind the same door: same budget, same verification, same record."""

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
    "DOORS",
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

_RADII = ("eps", "max_epsilon", "ε")  # what the libraries call the ball's radius
_STEPS = ("alpha", "eps_step", "lr")  # and the length of a step, in its units where a class has a radius
_ABSOLUTE = ("alpha", "eps_step", "abs_stepsize")
_COUNTS = ("steps", "max_iter", "nb_iter", "num_iter_set", "max_iterations", "n_queries")
_NORMS = cast(tuple[Norm, ...], CONVEX_NORMS)
_L0 = "counts changed pixels (L0)"


def _of(names: Iterable[str], parameters: Mapping[str, inspect.Parameter]) -> str | None:
    return next((n for n in names if n in parameters), None)


def _count(kind: type[Any], given: Mapping[str, Any]) -> int | None:
    """How many steps an attack takes, where its parameters tell."""
    parameters = inspect.signature(kind).parameters
    name = _of(_COUNTS, parameters)
    count = None if name is None else given.get(name, parameters[name].default)
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None


def _stride(kind: type[Any], given: Mapping[str, Any], eps: float, single: bool) -> tuple[dict[str, float], str]:
    """Return the step size that an attack needs beside what is given, and a note on a given one that falls short.

    A step made for the library's own radius keeps its share of the radius: fixed, it could not cross a larger ball and
    would jump about in a smaller one. Where the steps are too few for that, they are longer. ``single``: a class that
    tells no number of steps takes one.
    """
    parameters = inspect.signature(kind).parameters
    step, radius = _of(_STEPS, parameters), _of(_RADII, parameters)
    if step is None or radius is None:
        return {}, ""
    count = _count(kind, given) or (1 if single else None)
    if step in given:
        told = isinstance(given[step], int | float) and count
        return {}, reach_note(count, given[step], eps, step) if told and count else ""
    share = parameters[step].default / parameters[radius].default
    if count and count * share < 1:
        share = reaching(count)
    return {step: eps * share}, ""


@contextmanager
def _running(what: str, model: nn.Module, x: Tensor, rng: SampleRNG) -> Iterator[int]:
    """Run a library's code on a frozen model under a seed, which is given; its errors become one sentence."""
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


def _held(what: str, found: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Return the images found (N, …) as they are where they lie in the threat model, else projected onto it.

    Libraries round: an image a hair outside is no less adversarial for it, and must not be taken for the clean one.
    What is not finite becomes the clean image, and is warned of.
    """
    if found.shape != x.shape:
        raise RobGIBError(f"{what} returned {tuple(found.shape)} for images of shape {tuple(x.shape)}.")
    found = found.detach().to(x)
    finite = torch.isfinite(found).flatten(1).all(1)
    found = torch.where(per_sample(finite, x), found, x)
    low, high = threat.box
    far = distance(found.double(), x.double(), threat.norm)
    inside = (far <= threat.eps) & ((found >= low) & (found <= high)).flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        _warn(what, f"{bad} of {len(x)} images came back with NaN or infinite values; the clean image stands for each.")
    if bool(inside.all()):
        return found
    return torch.where(per_sample(inside, x), found, threat.project(found, x))


class _Housed(nn.Module):
    """A model as the libraries need it: with a parameter, which tells them the device, and answers in the images' type.

    Some work in float32 whatever they are given: the model gets the type it knows.
    """

    def __init__(self, model: nn.Module, x: Tensor, probabilities: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = x.dtype
        self.probabilities = probabilities
        self.where = nn.Parameter(torch.zeros((), device=x.device), requires_grad=False)
        self.train(model.training)  # the library restores the mode that it finds here

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x.to(self.dtype)).to(x.dtype)
        return logits.softmax(1) if self.probabilities else logits


def _library(name: str, package: str) -> Any:
    load_torchvision()  # the libraries may ask for it: mend it first

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
"""What RobGIB itself passes to a library's class: the model, the budget, the batch; every attack is untargeted."""


def takes(library: str, name: str) -> list[str]:
    """Return the parameters that may be given to a library's attack, beside ``eps``.

    Args:
        library: ``torchattacks``, ``foolbox``, ``art`` or ``advlib``.
        name: class name in the library, or a function's.
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
            raise RobGIBError(f"{library}:{name} takes its radius as eps; write eps={parameters[key]}.")
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
        RobGIBError: not one of ``known``.
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
class _Door(Attack):
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
        """The attack as messages name it."""
        return f"{self.library}:{self.name}"

    @property
    def cost(self) -> int | None:
        """Gradients a sample, where a parameter states the number of steps; see :attr:`Attack.cost`."""
        stated = [self.parameters[n] for n in _COUNTS if isinstance(self.parameters.get(n), int)]
        return max(1, stated[0]) if stated else None

    def at(self, eps: float) -> Attack:
        """See :meth:`Attack.at`."""
        scaled = {
            n: v * eps / self.threat.eps if n in _ABSOLUTE and isinstance(v, int | float) else v
            for n, v in self.parameters.items()
        }
        return replace(self, eps=eps, parameters=scaled)


_TORCHATTACKS_NORMS: Mapping[str, Norm] = {"EADEN": "l2"}  # its elastic net is L2 but for a thousandth of L1
_TORCHATTACKS_REFUSED = {
    "GN": "adds noise of a given spread and has no radius",
    "VANILA": "changes nothing",
    "MultiAttack": "is made of other attacks, which a name cannot give",
    "LGV": "trains networks of its own on a data set",
}


def torchattacks_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which a torchattacks attack is bounded: its documentation tells, and its ``norm``."""
    kind = _torchattacks_class(name)
    measure = re.search(r"Distance Measure\s*:(.*)", kind.__doc__ or "")
    stated = [n.lower() for n in re.findall(r"\bL(?:inf|\d)", measure[1])] if measure else []
    known = tuple(n for n in _NORMS if n in stated)
    if name in _TORCHATTACKS_REFUSED or not known:
        why = _L0 if "l0" in stated else "does not say in which norm it is bounded"
        raise _unbounded("torchattacks", name, _TORCHATTACKS_REFUSED.get(name, why))
    _accept("torchattacks", name, parameters)
    norm = inspect.signature(kind).parameters.get("norm")
    if norm is None:
        return _TORCHATTACKS_NORMS.get(name, known[0])
    found = _named_norm(f"torchattacks:{name}", parameters.get("norm", norm.default), known)
    if name == "FAB" and found == "l1" and parameters.get("multi_targeted"):
        raise RobGIBError("torchattacks:FAB aims at single classes in Linf and L2 only; leave multi_targeted out.")
    return found


def _run_fab(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """Nearest adversarial images (N, …) of torchattacks' FAB under L1: its own loop over restarts knows no L1."""
    best, near = x, torch.full((len(x),), float("inf"), device=x.device)
    with torch.no_grad():
        for restart in range(attack.n_restarts):
            found = attack.attack_single_run(x, y, use_rand_start=restart > 0)
            far = (found - x).abs().flatten(1).sum(1)
            better = (far > 0) & (far < near)  # the clean image comes back where nothing was found
            best, near = torch.where(per_sample(better, x), found, best), torch.where(better, far, near)
    return best


@dataclass(frozen=True)
class TorchAttack(_Door):
    """An attack of the torchattacks library (Kim 2020), by class name and keyword arguments; untargeted.

    A step size that is not given keeps its share of the radius; see ``docs/doors.md``.
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
                arguments.setdefault("seed", seed)  # unset, it is the clock
            attack = _construct(kind, arguments, self.label, _Housed(model, x))
            attack.set_device(x.device)
            images = x.float()  # some of the library's attacks know no other type
            l1 = self.name == "FAB" and self.threat.norm == "l1"
            found = _run_fab(attack, images, y) if l1 else attack(images, y)
        return _held(self.label, found, x, self.threat)


_FOOLBOX_REFUSED = {
    "SpatialAttack": "turns and shifts the image",
    "GenAttack": "looks for one given class",
    "DatasetAttack": "takes its images from a data set that it must be fed",
    "BinarizationRefinementAttack": "refines what another attack found",
}


def _foolbox_arguments(kind: type[Any], parameters: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Parameters as the class wants them: a distance is an object there."""
    arguments = dict(parameters)
    if "distance" in inspect.signature(kind).parameters:
        if arguments.get("distance") is None:
            raise RobGIBError(f"{what} has no norm of its own; give distance=linf, l2 or l1.")
        norm = _named_norm(what, arguments["distance"], _NORMS)
        arguments["distance"] = getattr(_library("foolbox.distances", "foolbox"), norm)
    return arguments


def foolbox_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which a Foolbox attack is bounded, from its ``distance``."""
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
        raise _unbounded("foolbox", name, _L0 if p == 0 else "does not say in which norm it is bounded")
    return norms[p]


@dataclass(frozen=True)
class FoolboxAttack(_Door):
    """An attack of Foolbox (Rauber et al. 2020), by class name and keyword arguments; untargeted.

    What an attack that looks for the nearest adversarial image finds is projected onto the threat model.
    """

    library: ClassVar[str] = "foolbox"
    name: str = "LinfPGD"

    def _steps(self, kind: type[Any]) -> tuple[dict[str, float], str]:
        """As :func:`_stride`, for steps that are given as a share of eps."""
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
            housed = foolbox.PyTorchModel(_Housed(model, x), bounds=self.threat.box, device=x.device)
            # Of the images as found and as Foolbox clips them the first: its clipping ends outside by rounding.
            found, _, _ = attack(housed, x, foolbox.criteria.Misclassification(y), epsilons=self.threat.eps)
        return _held(self.label, found, x, self.threat)


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
    "FeatureAdversariesNumpy": "pulls the image towards another, which it must be given",
    "FeatureAdversariesPyTorch": "pulls the image towards another, which it must be given",
    "FeatureAdversariesTensorFlowV2": "pulls the image towards another, which it must be given",
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
    "ShadowAttack": "is held by the image's smoothness and colour",
    "SpatialTransformation": "turns and shifts the image",
    "TargetedUniversalPerturbation": "looks for one given class",
    "Wasserstein": "is bounded in the Wasserstein distance",
}


def art_norm(name: str, parameters: Mapping[str, Any]) -> Norm:
    """Return the norm in which an attack of ART is bounded, from its class and its ``norm`` or ``decision_rule``."""
    kind, what = _art_class(name), f"art:{name}"
    classifier = _library("art.estimators.classification", "art").PyTorchClassifier
    missing = [r.__name__ for r in getattr(kind, "_estimator_requirements", ()) if not issubclass(classifier, r)]
    if missing:
        raise RobGIBError(f"ART's {name} attacks a {missing[0]}, and a PyTorch classifier of images is none.")
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
        raise _unbounded("ART", name, "does not say in which norm it is bounded")
    known = tuple(n for n in _NORMS if n != "l1" or name not in _ART_NO_L1)
    return _named_norm(what, parameters.get("norm", accepted["norm"].default), known)


@dataclass(frozen=True)
class ARTAttack(_Door):
    """An evasion attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018), by class name; untargeted.

    A step size that is not given keeps its share of the radius. What an attack that looks for the nearest adversarial
    image finds is projected onto the threat model.
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
            "targeted": False,  # some are targeted if not told
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
                _Housed(model, x, self.name in _ART_PROBABILITIES),
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=classes,
                clip_values=self.threat.box,
                device_type="gpu" if x.device.type == "cuda" else "cpu",
            )
            attack = _construct(kind, arguments, self.label, classifier)
            # One-hot: of two classes the library takes labels for a single output.
            labels = np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
            found = torch.from_numpy(np.asarray(attack.generate(x.cpu().numpy(), labels)))
        return _held(self.label, found, x, self.threat)


def load_advlib() -> Any:
    """Import adv-lib's attacks.

    It imports visdom, a live plotter that no attack needs and that newer setuptools cannot build: where it is missing
    an empty module stands for it meanwhile.
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
    """Return the norm in which an attack of adv-lib is bounded, from its name or its ``norm``, ``p``, ``distance``."""
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
class AdvLibAttack(_Door):
    """An attack of adv-lib (Rony & Ben Ayed), by its function's name and keyword arguments; untargeted.

    What an attack that looks for the nearest adversarial image finds is projected onto the threat model.
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
        if (radius := _of(("eps", "ε"), known)) and self.name != "tr":  # there it is another thing
            arguments[radius] = self.threat.eps
        if "targeted" in known:
            arguments["targeted"] = False
        with _running(self.label, model, x, rng):
            found = function(_Housed(model, x), x.clone(), y, **arguments)
        return _held(self.label, found, x, self.threat)


DOORS: Mapping[str, tuple[type[Attack], Callable[[str, Mapping[str, Any]], Norm]]] = {
    "torchattacks": (TorchAttack, torchattacks_norm),
    "foolbox": (FoolboxAttack, foolbox_norm),
    "art": (ARTAttack, art_norm),
    "advlib": (AdvLibAttack, advlib_norm),
}
"""Other libraries by prefix: the class that runs their attacks, and how an attack's norm is found."""
