"""Base classes of attacks, and projected gradient ascent."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from robgib.attacks.carried import carried, carry, masked
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import Norm, ThreatModel, per_sample, plain
from robgib.data.dataset import _as_tensor
from robgib.data.lazy import LazyImages
from robgib.errors import AttackContractError, RobGIBError, unknown_name
from robgib.models.adapt import CallOptions, Classifier, as_module, seeded
from robgib.models.inference import BatchedModel, check_logits, eval_mode, finite, gradient_of
from robgib.models.state import State, settings_kept
from robgib.options import Count, check
from robgib.registry import Registry, as_dataclass
from robgib.runtime import SampleRNG, faults_of

__all__ = [
    "ATTACKS",
    "Attack",
    "MinimumNormAttack",
    "TransformAttack",
    "aimed",
    "changed",
    "check_aim",
    "check_masks",
    "check_range",
    "classes_named",
    "cost_of",
    "given_to",
    "images_and_labels",
    "objective_gradient",
    "own_constructor",
    "projected_gradient_ascent",
    "reach_note",
    "reaching",
    "register_attack",
    "running",
    "unchanged",
    "verified",
    "with_fields",
]


def with_fields(kind: type[Attack]) -> type[Attack]:
    """Make a subclass of :class:`Attack` that was not decorated a frozen dataclass, in place; return it."""
    return kind if "__init__" in kind.__dict__ else as_dataclass(kind, "attack")


def own_constructor(kind: type[Attack]) -> RobGIBError:
    """The error for a class whose constructor does not take or does not set the fields of :class:`Attack`."""
    return RobGIBError(
        f"attack class {kind.__name__} has an __init__ or __post_init__ of its own that does not set up an attack: "
        "declare the parameters as fields, such as `steps: int = 10`, without an __init__, or call "
        "super().__init__(norm, eps) or super().__post_init__() in it and take norm and eps as parameters."
    )


def changed(attack: Attack, **fields: Any) -> Attack:
    """Return the attack with other values of some fields.

    Raises:
        RobGIBError: its class has a constructor of its own that does not take them.
    """
    try:
        return replace(attack, **fields)
    except TypeError as error:
        raise own_constructor(type(attack)) from error


def cost_of(attack: Attack, label: str) -> int | None:
    """Return the cost that an attack states (:attr:`Attack.cost`), or None.

    Raises:
        RobGIBError: it is no whole number of at least 1.
    """
    with faults_of(f"the cost of attack {label!r}"):
        stated: Any = attack.cost
    if stated is None:
        return None
    number = isinstance(stated, int | float | np.number) and not isinstance(stated, bool)
    if not number or not math.isfinite(stated) or stated < 1 or stated != int(stated):
        raise RobGIBError(f"the cost of attack {label!r} must be a whole number of at least 1 or None, not {stated!r}.")
    return int(stated)


class _Signature:
    """The signature of an attack class, which is that of its fields, and of an attack, which is that of its calls."""

    def __get__(self, attack: Attack | None, kind: type[Attack]) -> inspect.Signature:
        if attack is not None:
            return inspect.signature(attack.__call__)
        whole = inspect.signature(kind.__init__)
        return whole.replace(parameters=list(whole.parameters.values())[1:])


@dataclass(frozen=True)
class Attack(ABC):
    """An attack under a threat model. A subclass adds its parameters as dataclass fields.

    To write one: subclass, decorate with ``@dataclass(frozen=True)``, implement :meth:`perturb`, and set
    ``norms`` if it is not defined for all of them. A parameter's bounds are declared with its type
    (``steps: Annotated[int, Field(ge=1)] = 20``; :mod:`robgib.options` has the usual ones) and are checked here.
    An attack that ``aims`` reaches given targets, since its objective is :meth:`Objective.untargeted` or that of
    :func:`make_objective`. If ``batch_independent``, the result for a sample does not depend on its batch. A
    ``pooled`` attack receives several batches at once, so that the remaining samples fill batches, and a
    :class:`~robgib.models.inference.BatchedModel`, which may be a fused form of the model; it computes gradients with
    :func:`objective_gradient`. Other attacks receive the model itself, one batch at a time.

    Attributes:
        norm: ``linf``, ``l2``, ``l1`` or ``l0`` (eps is then the number of changed values).
        eps: radius of the ball around each image, pixel scale [0, 1].
        eot: number of draws over which gradients and logits of a stochastic model are averaged (expectation over
            transformation, Athalye et al. 2018); None is 1 for a deterministic model and 20 for a stochastic one.
            The caller of the attack does the averaging.

    Warnings of an attack (:class:`~robgib.RobGIBWarning`) become notes on its result.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> attack = robgib.attacks.PGD(norm="linf", eps=0.1, steps=20)
    >>> x, y = data.test.x[:8], data.test.y[:8]
    >>> images = attack(model, x, y, seed=0)
    >>> images.shape, bool(((images - x).abs() <= 0.1 + 1e-6).all())
    (torch.Size([8, 1, 8, 8]), True)
    """

    norm: Norm
    eps: float
    eot: Count | None = field(default=None, kw_only=True)
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    aims: ClassVar[bool] = False
    batch_independent: ClassVar[bool] = True
    pooled: ClassVar[bool] = False

    __signature__: ClassVar[Any] = _Signature()

    def __new__(cls, *arguments: Any, **options: Any) -> Attack:
        """Make the parameters of a class without ``@dataclass`` its fields."""
        with_fields(cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "eps", plain(self.eps))
        threat = ThreatModel(self.norm, self.eps)  # first, for its message about an invalid norm or radius
        if threat.norm not in self.norms:
            raise RobGIBError(
                f"attack {name} is not defined for the norm {threat.norm!r}; use {' or '.join(self.norms)}."
            )
        check(self, name)
        object.__setattr__(self, "_threat", threat)

    @property
    def threat(self) -> ThreatModel:
        """The ball of radius ``eps`` in ``norm``, in the box [0, 1]."""
        threat: ThreatModel | None = self.__dict__.get("_threat")
        if threat is None:
            raise own_constructor(type(self))
        return threat

    def __call__(
        self, model: nn.Module, x: Tensor | ArrayLike, y: Tensor | ArrayLike, *, seed: int = 0, batch_size: int = 256
    ) -> Tensor:
        """Return adversarial images (N, …) for the images ``x`` (N, …) in [0, 1] with labels ``y`` (N,).

        The model is attacked in eval mode, on its device; a stochastic one through the average over ``eot`` draws, if
        that is given. To measure robust accuracy, with checks for attack failure,
        use :func:`robgib.robustness.evaluate`.

        Args:
            model: callable from images (N, …) to logits (N, classes).
            x: images, a tensor or an array; it is not modified.
            y: true labels, class numbers from 0.
            seed: seed of the random numbers, which also depend on the index of a sample in ``x``.
            batch_size: number of images per batch.

        Raises:
            RobGIBError: images are outside [0, 1] or not floating-point, labels, masks or targets do not fit the images
                or the model, eps is larger than the box, or the model or the attack raised an error.
            AttackContractError: the attack returned a wrong shape, or images outside the ball or the box, or it changed
                the model (which is restored).
        """
        x, y = images_and_labels(x, y)
        x = x.read() if isinstance(x, LazyImages) else x
        if not len(x):
            return x.clone()
        self.threat.check(x[0].numel())
        check_range(x)
        net, name, parts = _in_its_type(as_module(model)), type(self).__name__, []
        attacked = BatchedModel(net, batch_size, random=True, draws=self.eot) if self.eot and self.eot > 1 else net
        check_aim(self, x, name)
        near = next((v.device for v in (*net.parameters(), *net.buffers())), x.device)
        with eval_mode(net), seeded(seed, near), unchanged([net], name, self.doubted):
            _check_labels(net, x[:batch_size].to(near), y, carried(x, "targets"))
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                images, labels = x[rows].to(near), y[rows].to(near)
                with running(name, net):
                    x_adv = self.perturb(
                        attacked, *given_to(self, images, labels), SampleRNG(seed, range(len(x))[rows])
                    )
                parts.append(verified(self, name, x_adv, images).to(x.device))
        return torch.cat(parts)

    @property
    def doubted(self) -> bool:
        """Whether it could change the model: it receives the model itself, or it is a plug-in."""
        return not self.pooled or not type(self).__module__.startswith("robgib.")

    @property
    def cost(self) -> int | None:
        """Approximate maximum number of gradients per sample; None if the attack does not state it.

        A gradient is a forward and a backward pass, which count as three forward passes. The cost determines the order
        of a cascade. If it is None, passes are counted on a few samples.
        """
        return None

    def at(self, eps: float) -> Attack:
        """Return the attack with another radius; an absolute step size is scaled accordingly."""
        changes: dict[str, Any] = {"eps": eps}
        step = getattr(self, "step_size", None)
        if isinstance(step, float):
            changes["step_size"] = step * eps / self.eps
        return changed(self, **changes)

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return adversarial images (N, …) for ``x`` (N, …) with true labels ``y`` (N,).

        The model is in eval mode and its parameters do not require gradients. Draw random numbers only from ``rng``, so
        that the result does not depend on the batch size.
        """


ATTACKS: Registry[type[Attack]] = Registry(
    "attack class",
    group="robgib.attacks",
    valid=lambda value: isinstance(value, type) and issubclass(value, Attack),
    wanted="a subclass of robgib.Attack",
    base=Attack,
    named=lambda value: value.__name__,
)
"""The attack classes by name."""
Kind = TypeVar("Kind", bound=type[Attack])


def register_attack(name: str) -> Callable[[Kind], Kind]:
    """Register a subclass of :class:`Attack` under ``name``.

    A plug-in file needs no decorator: its attacks are known by their hyphenated class names without one.

    Args:
        name: the name in specifications and catalogue files.

    >>> from dataclasses import dataclass
    >>> @register_attack("stay")
    ... @dataclass(frozen=True)
    ... class Stay(Attack):
    ...     def perturb(self, model, x, y, rng):
    ...         return x
    >>> ATTACKS["stay"] is Stay
    True
    >>> ATTACKS.remove("stay")
    """
    return ATTACKS.decorator(name, "register_attack")


@dataclass(frozen=True)
class MinimumNormAttack(Attack):
    """An attack that minimises the distance of the adversarial image; the ball is applied to its result.

    To write one: as for :class:`Attack`, with :meth:`find` instead of :meth:`perturb`.
    """

    @abstractmethod
    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the nearest adversarial images (N, …) found in the box, at any distance.

        The result is the clean image if none was found or if the clean image is misclassified. Otherwise as for
        :meth:`perturb`.
        """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the images of :meth:`find` that lie in the ball, and the clean image otherwise."""
        return self.kept(self.find(model, x, y, rng), x)

    def kept(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the images ``x_adv`` (N, …) that lie in the ball, and the clean image of ``x`` otherwise.

        Raises:
            AttackContractError: an image differs from the clean one outside its mask.
        """
        check_masks(type(self).__name__, x_adv, x)
        return torch.where(per_sample(self.threat.allows(x_adv, x), x), x_adv, x)


@dataclass(frozen=True)
class TransformAttack(Attack):
    """An attack that chooses the parameters of a transformation of each image, such as an angle.

    The parameters are judged: the image is made again from them. To write one: as for :class:`Attack`, with
    :meth:`find_parameters`, :meth:`transform` and :meth:`sizes` instead of :meth:`perturb`.
    """

    @abstractmethod
    def find_parameters(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the parameters (N, p) of the transformation of each image; otherwise as :meth:`perturb`."""

    @abstractmethod
    def transform(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Return the images ``x`` (N, …), transformed with ``parameters`` (N, p)."""

    @abstractmethod
    def sizes(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the size (N,) of each transformation, in the unit of eps, and whether its parameters are allowed."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the transformed images of :meth:`find_parameters`."""
        return self.made(type(self).__name__, self.find_parameters(model, x, y, rng), x)[0]

    def made(self, label: str, parameters: object, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (N, …) that the parameters make from ``x``, and the sizes (N,) of the transformations.

        Raises:
            AttackContractError: the parameters are not (N, p) numbers, or they are outside the threat model.
        """
        if not isinstance(parameters, Tensor) or parameters.ndim != 2 or len(parameters) != len(x):
            got = tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
            raise AttackContractError(f"attack {label!r} returned {got} as the parameters of {len(x)} images.")
        parameters = parameters.detach()
        size, allowed = self.sizes(parameters)
        if bool((~allowed).any()):
            row = int((~allowed).nonzero()[0, 0])
            values = ", ".join(f"{value:.6g}" for value in parameters[row].tolist())
            raise AttackContractError(
                f"attack {label!r} left its threat model on {int((~allowed).sum())} of {len(x)} images: the first has "
                f"the parameters {values} (eps {self.eps:g})."
            )
        with torch.no_grad():
            return self.transform(x, parameters).to(x.dtype).clamp(*self.threat.box), size


def check_masks(label: str, x_adv: Tensor, x: Tensor) -> None:
    """Raise if images ``x_adv`` (N, …) differ from ``x`` (N, …) outside the masks that these carry.

    Raises:
        AttackContractError: one does.
    """
    if carried(x, "mask") is None:
        return
    change = x_adv - x
    outside = ((masked(change, x) != change) & ~change.isnan()).flatten(1).any(1)
    if bool(outside.any()):
        raise AttackContractError(
            f"attack {label!r} left its threat model on {int(outside.sum())} of {len(x)} images: it changed pixels "
            "outside their mask; project with threat.project, and take gradients with objective_gradient."
        )


def check_aim(attack: Attack, x: Tensor, label: str) -> None:
    """Raise an error if the images ``x`` carry targets and the attack has no targeted form."""
    inner = getattr(attack, "attack", attack)  # of a transfer
    if carried(x, "targets") is not None and not inner.aims:
        raise RobGIBError(
            f"attack {label!r} cannot aim at given target classes; use pgd, apgd-ce, fgsm, square, patch or "
            "rotation-translation."
        )


def given_to(attack: Attack, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of images ``x`` (N, …) and labels ``y`` (N,) for an attack.

    The labels carry the masks and targets of the images, and rows. Attacks of other libraries receive plain
    tensors, which look at their type.
    """
    if not (attack.pooled or attack.aims or isinstance(attack, MinimumNormAttack)):
        return x.clone().as_subclass(Tensor), y.clone().as_subclass(Tensor)
    return x.clone(), aimed(x, y.clone(), torch.arange(len(y), device=y.device))


def aimed(x: Tensor, y: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return labels ``y`` (N,) that carry the masks and targets of images ``x`` (N, …), and ``rows`` (N,)."""
    mask, targets = carried(x, "mask"), carried(x, "targets")
    aims = None if targets is None else carry(targets.clone(), rows=rows, mask=mask)
    return carry(y, rows=rows, mask=mask, targets=aims)


def check_range(x: Tensor | LazyImages) -> None:
    """Raise an error if images (N, …) have values outside [0, 1], or NaN.

    Pictures that are read on demand are in [0, 1], and are not read for this.

    Raises:
        RobGIBError: one has.
    """
    if isinstance(x, Tensor) and not bool(((x >= -1e-6) & (x <= 1 + 1e-6)).all()):  # NaN compares false
        raise RobGIBError("the images have values outside [0, 1]; scale them to it (eps is too).")


def classes_named(x: Tensor, y: Tensor) -> int:
    """Return the number of classes that labels ``y`` (N,) and the targets that images ``x`` carry need at least.

    >>> classes_named(torch.zeros(2, 1), torch.tensor([0, 3]))
    4
    """
    targets = carried(x, "targets")
    return 1 + max((int(numbers.max()) for numbers in (y, targets) if numbers is not None and len(numbers)), default=0)


def _check_conditions(x: Tensor, y: Tensor) -> None:
    """Raise an error if the masks or targets that images ``x`` (N, …) carry do not fit them or their labels (N,)."""
    mask, targets = carried(x, "mask"), carried(x, "targets")
    if mask is not None and (mask.shape != x.shape or mask.dtype != torch.bool):
        raise RobGIBError(
            f"masks must be booleans of the images' shape {tuple(x.shape)}, true where a pixel may change, not "
            f"{_kind(mask)}; expand a mask of all images by torch.as_tensor(mask).bool().expand_as(images)."
        )
    if targets is None:
        return
    if targets.shape != y.shape or targets.dtype != torch.int64:
        raise RobGIBError(f"targets must be class numbers, int64 of shape {tuple(y.shape)}, not {_kind(targets)}.")
    if bool((targets == y).any()):
        row = int((targets == y).nonzero()[0, 0])
        raise RobGIBError(f"the target of image {row} is its label, {int(y[row])}; choose another class.")


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape)}"


def images_and_labels(x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    """Return images (N, …) and labels (N,) as tensors.

    Raises:
        RobGIBError: tensors are sparse or empty, images are not floating-point or in half precision, labels are not
            integers from 0, or the numbers of images, labels, masks or targets differ.

    >>> x, y = images_and_labels([[0.0, 0.5]], [1])
    >>> x.shape, y.dtype
    (torch.Size([1, 2]), torch.int64)
    """
    images: Any = x if isinstance(x, LazyImages) else _as_tensor(x, "images")
    labels = _as_tensor(y, "labels")
    if not images.is_floating_point() or images.ndim < 2:
        raise RobGIBError(f"images must be floating-point numbers in [0, 1] of shape (N, …), not {_kind(images)}.")
    if images.dtype in _HALF:
        raise RobGIBError(
            f"images in {_kind(images)} round to other balls; give images.float(). The model "
            "may compute in half precision."
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise RobGIBError(f"labels must be class numbers of shape (N,), not {_kind(labels)}.")
    if len(images) != len(labels):
        raise RobGIBError(f"{len(images)} images came with {len(labels)} labels; give one label an image.")
    if bool((labels < 0).any()):
        raise RobGIBError(f"label {int(labels.min())} is no class number, which count from 0; leave out its images.")
    _check_conditions(images, labels)
    if not isinstance(x, Tensor | LazyImages):
        images = images.to(torch.get_default_dtype())
    return images, labels.long()


_HALF = (torch.float16, torch.bfloat16)


def _in_its_type(net: nn.Module) -> nn.Module:
    """Return a network of half precision as one that takes and returns the images' own type."""
    kind = next((p.dtype for p in net.parameters() if p.dtype in _HALF), None)
    return net if kind is None else Classifier(net, CallOptions(dtype=kind))


def _check_labels(model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> None:
    """Raise an error if the model has no logit for a label or target, which on a GPU would end in a device error."""
    few = x[:1]
    with torch.no_grad(), faults_of("the model"):
        try:
            with faults_of("the model"):
                logits = model(few)
        except RobGIBError:  # the model may need more than one image
            few = x
            logits = model(few)
    check_logits(logits, few)
    classes = logits.shape[1]
    for name, numbers in (("label", y), ("target", targets)):
        if numbers is not None and not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
            low, high = int(numbers.min()), int(numbers.max())
            raise RobGIBError(
                f"{name} {low if low < 0 else high} is none of the model's {classes} classes, which count from 0 to "
                f"{classes - 1}."
            )


@contextmanager
def running(label: str, model: nn.Module) -> Iterator[None]:
    """Run the code of an attack; an exception becomes an error that names the attack or the model."""
    try:
        with settings_kept():
            yield
    except BaseException as error:
        with faults_of("the model" if _passed(error, model) else f"attack {label!r}"):
            raise


def _passed(error: BaseException, model: nn.Module) -> bool:
    """Whether a call of the model raised the exception."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_locals.get("self") is model:
            return True
        trace = trace.tb_next
    return False


@contextmanager
def unchanged(models: list[nn.Module], label: str, doubted: bool = True) -> Iterator[State]:
    """Restore models after an attack, and raise an error if it changed them. Modes and gradients are restored silently.

    Yields:
        The state of the models before the attack.

    Raises:
        AttackContractError: the attack changed weights or buffers, or left hooks.
    """
    before = State(models, weights=doubted, buffers=doubted)
    changed: list[str] = []
    try:
        yield before
    finally:
        changed = before.changed()
        before.restore()
    if changed:
        raise AttackContractError(f"attack {label!r} changed the model ({', '.join(changed[:3])}).")


def verified(attack: Attack, label: str, x_adv: object, x: Tensor) -> Tensor:
    """Check the images ``x_adv`` (N, …) of an attack on ``x``, and return them without gradient history.

    Raises:
        AttackContractError: the shape is wrong, or an image lies outside the ball or the box.
    """
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise AttackContractError(f"attack {label!r} returned {got} for images of shape {tuple(x.shape)}.")
    x_adv = x_adv.detach().to(x.dtype)
    bad = ~attack.threat.allows(x_adv, x)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        low, high = attack.threat.box
        check_masks(label, x_adv, x)
        raise AttackContractError(
            f"attack {label!r} left its threat model on {int(bad.sum())} of {len(x)} images: the first has "
            f"{attack.threat.norm} distance {float(attack.threat.distance(x_adv, x)[row]):.9g} (eps "
            f"{attack.threat.eps:.9g}) and values in [{float(x_adv[row].min()):.6g}, {float(x_adv[row].max()):.6g}] "
            f"(box [{low:g}, {high:g}])."
        )
    return x_adv


def reaching(steps: int) -> float:
    """Return the step size, as a share of the radius, with which ``steps`` steps cross the ball from a random start."""
    return min(1.0, 2.5 / max(1, steps))


def reach_note(steps: int, step_size: float, eps: float, name: str = "step_size") -> str:
    """Return a note if the steps cannot reach the edge of the ball, else an empty string.

    Args:
        steps: number of steps.
        step_size: length of a step, in the norm of the ball (pixel scale).
        eps: radius of the ball (pixel scale).
        name: name of the step size parameter.
    """
    reach = steps * step_size
    if reach >= eps * (1 - 1e-6):
        return ""
    return (
        f"{steps} step{'s' * (steps != 1)} of {step_size:.2g} move{'s' * (steps == 1)} at most {reach:.2g} and the "
        f"ball's radius is {eps:.3g}; give {name}={reaching(steps) * eps:.3g} or more steps."
    )


def projected_gradient_ascent(
    model: nn.Module,
    x: Tensor,
    goal: Objective,
    threat: ThreatModel,
    *,
    start: Tensor,
    steps: int,
    step_size: float,
    keep: str = "best",
) -> Tensor:
    """Run projected gradient ascent on an objective from ``start`` (images (N, …)).

    Args:
        model: classifier, frozen.
        x: clean images, the centres of the balls.
        goal: the objective to maximise.
        threat: ball, box and steepest direction.
        start: first iterate, inside the ball.
        steps: number of gradient steps.
        step_size: length of a step in the norm of the threat model.
        keep: ``last`` returns the last iterate. ``best`` returns the first adversarial iterate (the sample then leaves
            the batch), or otherwise the iterate with the highest objective, including the clean image.

    Steps of constant length often end in a cycle. If the iterate of a sample equals an earlier one, all further ones
    are known, and the sample leaves the batch: the result is the same. This applies to the models that evaluations hand
    to attacks (:class:`~robgib.models.inference.BatchedModel`), if they are not stochastic.
    """
    if keep not in ("best", "last"):
        raise unknown_name("value of keep:", keep, ("best", "last"))
    known = isinstance(model, BatchedModel) and not model.random
    cycles = _Cycles(start) if known else None
    if keep == "last":
        return _last_iterate(model, x, goal, threat, start, step_size, steps, cycles)

    best = x.clone()
    with torch.no_grad():
        clean = model(x)
        best_value = goal.value(clean)
        alive = (~goal.criterion(clean)).nonzero().squeeze(1)
    origin, current, aim = x[alive], start[alive], goal.select(alive)

    def settle(iterate: Tensor, logits: Tensor) -> Tensor:
        """Record the objective of ``iterate``; return the mask of the samples that continue."""
        value, done = aim.value(logits), aim.criterion(logits)
        better = (value > best_value[alive]) | done
        best[alive[better]] = iterate[better]
        best_value[alive[better]] = value[better]
        return ~done

    if cycles:
        cycles.keep(alive)
    for step in range(1, steps + 1):
        if not len(alive):
            break
        following, logits, iterate = _ascent_step(model, origin, current, aim, threat, step_size)
        go_on = settle(iterate, logits)
        if cycles:  # an iterate that came before was settled then, and so were those that follow
            go_on &= cycles.periods(step, following) == 0
        if bool(go_on.all()):
            current = following
        else:
            alive, origin, current = alive[go_on], origin[go_on], following[go_on]
            aim = aim.select(go_on)
            if cycles:
                cycles.keep(go_on)
    if len(alive):
        with torch.no_grad():
            settle(current, model(current))
    return best


class _Cycles:
    """Detects that iterates repeat, by comparison with one stored iterate per sample (Brent 1980).

    Args:
        start: first iterate (N, …).
    """

    def __init__(self, start: Tensor) -> None:
        self.stored, self.at, self.following = start, 0, 1

    def periods(self, step: int, iterate: Tensor) -> Tensor:
        """Return the length (N,) of the cycle that the iterates after ``step`` steps have closed, or 0."""
        same = (iterate == self.stored).flatten(1).all(1)
        periods = same * (step - self.at)
        if step == self.following:
            self.stored, self.at, self.following = iterate, step, 2 * step
        return periods

    def keep(self, which: Tensor) -> None:
        """Continue with some of the samples."""
        self.stored = self.stored[which]


def _last_iterate(
    model: nn.Module,
    x: Tensor,
    goal: Objective,
    threat: ThreatModel,
    start: Tensor,
    step_size: float,
    steps: int,
    cycles: _Cycles | None,
) -> Tensor:
    """Return the iterates (N, …) after ``steps`` steps."""
    result, alive = start.clone(), torch.arange(len(x), device=x.device)
    origin, current, aim = x, start, goal
    ends = torch.full((len(x),), steps, device=x.device)
    for step in range(1, steps + 1):
        if not len(alive):
            break
        current, _, _ = _ascent_step(model, origin, current, aim, threat, step_size)
        result[alive] = current
        if cycles is None:
            continue
        periods = cycles.periods(step, current)
        closed = periods > 0
        # The last iterate is the one that so many steps of the cycle lead to.
        rest = (steps - step) % periods.clamp_min(1)
        ends[alive[closed]] = torch.minimum(ends[alive[closed]], step + rest[closed])
        go_on = ends[alive] > step
        if not bool(go_on.all()):
            alive, origin, current, aim = alive[go_on], origin[go_on], current[go_on], aim.select(go_on)
            cycles.keep(go_on)
    return result


def _ascent_step(
    model: nn.Module, x: Tensor, current: Tensor, goal: Objective, threat: ThreatModel, step_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one projected step; return the next iterate, and the logits and images of the current one."""
    gradient, logits = objective_gradient(model, current, goal)
    current = current.detach()
    return threat.project(threat.step(current, gradient, step_size), x), logits, current


def objective_gradient(model: nn.Module, x: Tensor, goal: Objective) -> tuple[Tensor, Tensor]:
    """Return the gradient (N, …) of an objective at the images ``x``, and the logits (N, classes) there.

    Entries that are not finite, and those outside the masks that the labels carry, are set to 0.

    Raises:
        NoGradientError: the model has no gradient.
    """
    if isinstance(model, BatchedModel):
        gradient, logits = model.gradient(x, goal)
    else:
        with torch.enable_grad():
            leaf = x.detach().as_subclass(Tensor).requires_grad_(True)
            logits = model(leaf)
            gradient = finite(gradient_of(goal.value(logits).sum(), leaf))
        logits = logits.detach()
    mask = carried(goal.criterion.labels, "mask")
    return (gradient if mask is None else gradient * mask), logits
