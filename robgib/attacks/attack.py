"""What an attack is, and the one gradient loop that the gradient attacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robgib.attacks.passes import InBatches, finite, gradient_of
from robgib.attacks.threat import SampleRNG, ThreatModel
from robgib.errors import RobGIBError, unknown_name
from robgib.models.inference import decided

__all__ = [
    "Attack",
    "Goal",
    "MinimalNorm",
    "answers_at_random",
    "ascend",
    "ascent_gradient",
    "frozen",
    "make_goal",
    "misled",
    "reach_note",
    "reaching",
    "wrong_by",
]


@dataclass(frozen=True)
class Attack(ABC):
    """An attack under a threat model. A subclass adds its parameters as dataclass fields.

    To write one: subclass, decorate with ``@dataclass(frozen=True)``, implement :meth:`perturb`, and set
    ``norms`` if it is not defined for all of them. ``batch_independent`` promises the same image for a sample
    whatever batch it comes in. A ``pooled`` attack is given many batches at once, so that survivors fill batches, and
    an :class:`~robgib.attacks.InBatches` as its model, perhaps a faster form of the same function; it takes gradients
    through :func:`ascent_gradient`. Others get the model itself, a batch at a time.

    ``eot`` is the number of draws over which the gradients and logits of a model that answers at random are averaged
    (expectation over transformation, Athalye et al. 2018); None is 1 for a model that does not, and 20 for one that
    does. Whoever runs the attack sees to it. What an attack warns of (:class:`~robgib.RobGIBWarning`) while it runs is
    kept as a note beside its figure.
    """

    threat: ThreatModel
    eot: int | None = field(default=None, kw_only=True)
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    batch_independent: ClassVar[bool] = True
    pooled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.threat.norm not in self.norms:
            raise RobGIBError(
                f"attack {type(self).__name__} is not defined for the norm {self.threat.norm!r}; "
                f"use {' or '.join(self.norms)}."
            )
        if self.eot is not None and self.eot < 1:
            raise RobGIBError(f"{type(self).__name__}'s eot must be at least 1, not {self.eot}.")

    @property
    def cost(self) -> int:
        """About how many gradients a sample costs at most: what a cascade is ordered by."""
        whole = 1
        for name in ("steps", "restarts", "targets", "binary_steps"):
            value = getattr(self, name, 1)
            whole *= max(1, value) if isinstance(value, int) else 1
        return whole

    def at(self, eps: float) -> Attack:
        """The same attack with another radius; a step size given in absolute terms scales along."""
        changes: dict[str, object] = {"threat": replace(self.threat, eps=eps)}
        step = getattr(self, "step_size", None)
        if isinstance(step, float):
            changes["step_size"] = step * eps / self.threat.eps
        return replace(self, **changes)  # type: ignore[arg-type]

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return adversarial images (N, …) for ``x`` (N, …) with true labels ``y`` (N,).

        The model is in eval mode and its parameters take no gradients. Draw random numbers from ``rng``
        only, so that the result does not depend on the batch size.
        """


@dataclass(frozen=True)
class MinimalNorm(Attack):
    """An attack that looks for the nearest adversarial image; the threat's ball only judges what it found.

    To write one: as for :class:`Attack`, with :meth:`find` in the place of :meth:`perturb`.
    """

    @abstractmethod
    def find(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return the nearest adversarial images (N, …) found in the box, at whatever distance.

        The clean image comes back where none was found and where it is misclassified already. The rest is as
        for :meth:`perturb`.
        """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRNG) -> Tensor:
        """Return what :meth:`find` found inside the ball, and the clean image elsewhere."""
        found = self.find(model, x, y, rng)
        return torch.where(self.threat.allows(found, x).view(-1, *([1] * (x.ndim - 1))), found, x)


def reaching(steps: int) -> float:
    """Step, as a share of the radius, by which so many steps cross the ball from a random start."""
    return min(1.0, 2.5 / max(1, steps))


def reach_note(steps: int, step_size: float, eps: float, name: str = "step_size") -> str:
    """Return a sentence that says so when steps cannot reach the ball's edge, else an empty string.

    Args:
        steps: how many.
        step_size: length of one, in the ball's norm (pixel scale).
        eps: the ball's radius (pixel scale).
        name: what the attack calls ``step_size``.
    """
    reach = steps * step_size
    if reach >= eps * (1 - 1e-6):
        return ""
    return (
        f"{steps} step{'s' * (steps != 1)} of {step_size:.2g} move{'s' * (steps == 1)} at most {reach:.2g} and the "
        f"ball's radius is {eps:.3g}; give {name}={reaching(steps) * eps:.3g} or more steps."
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with parameters that take no gradients; restore both afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for p, _ in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for p, flag in wanted:
            p.requires_grad_(flag)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def misled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each answer (N,) in logits (N, classes) is another than ``y`` (N,), or none at all.

    An answer that is not finite is none: whoever finds such an image has done with the model.
    """
    return (logits.argmax(1) != y) | ~decided(logits)


def wrong_by(logits: Tensor, y: Tensor) -> Tensor:
    """By how much (N,) a wrong class leads the true one, less what rounding could explain.

    An image on the boundary is right in one batch and wrong in another; above 0 it is wrong in both. Where there is no
    answer at all it is infinite.
    """
    scale = torch.where(torch.isfinite(logits), logits.abs(), 0).amax(1)
    return torch.where(decided(logits), _margin(logits, y) - 1e-5 * scale, float("inf"))


def _largest(logits: Tensor, count: int) -> Tensor:
    if logits.shape[1] < count:
        raise RobGIBError(
            f"the loss dlr{' towards targets' if count > 3 else ''} needs {count} classes and the model has "
            f"{logits.shape[1]}; use loss=margin."
        )
    return logits.topk(count, 1).values


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin over the spread of the three largest logits (Croce & Hein 2020, equation 6): no scale saturates it."""
    top = _largest(logits, 3)
    return _margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(_TINY)


def _towards(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted form of :func:`_dlr` (Croce & Hein 2020, equation 7)."""
    top = _largest(logits, 4)
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


_TINY = 1e-12
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "margin": _margin,  # Carlini & Wagner 2017, f_6 without its floor
    "dlr": _dlr,
}
Loss = Literal["ce", "margin", "dlr"]
Target = Literal["none", "random", "least-likely", "second"]


@dataclass(frozen=True)
class Goal:
    """What an attack is after: away from the true labels, or towards target labels (both (N,)).

    With ``truth`` (N,), the true labels beside targets, any wrong class will do on the way to the target. A ``patient``
    goal is never reached on the way: against a model that answers at random one success is a lucky draw.
    """

    labels: Tensor
    targeted: bool
    loss: str
    truth: Tensor | None = None
    patient: bool = False

    def objective(self, logits: Tensor) -> Tensor:
        """Per-sample value (N,) that the attack increases."""
        if self.truth is not None and self.loss == "dlr":
            return _towards(logits, self.truth, self.labels)
        value = _LOSSES[self.loss](logits, self.labels)
        return -value if self.targeted else value

    def reached(self, logits: Tensor) -> Tensor:
        """Whether each sample (N,) is where the attack wants it, or where the model has no answer."""
        if self.patient:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if self.truth is not None:
            return misled(logits, self.truth)
        if not self.targeted:
            return misled(logits, self.labels)
        return (logits.argmax(1) == self.labels) | ~decided(logits)

    def select(self, mask: Tensor | slice) -> Goal:
        """Return the goal of a subset of the samples."""
        return replace(self, labels=self.labels[mask], truth=None if self.truth is None else self.truth[mask])


def answers_at_random(model: nn.Module) -> bool:
    """Whether the model that an attack was given is known to answer at random."""
    return isinstance(model, InBatches) and model.random


def make_goal(model: nn.Module, x: Tensor, y: Tensor, target: str, loss: str, rng: SampleRNG) -> Goal:
    """Return the untargeted goal (``target="none"``), or one with target classes chosen by the rule.

    Rules: ``random`` (uniform over the wrong classes), ``least-likely`` and ``second`` (most likely wrong
    class), by the model's logits on the clean images.
    """
    if loss not in _LOSSES:
        raise unknown_name("loss", loss, _LOSSES)
    patient = answers_at_random(model)
    if target == "none":
        return Goal(y, False, loss, patient=patient)
    with torch.no_grad():
        logits = model(x)
    classes = logits.shape[1]
    own = F.one_hot(y, classes).bool()
    if target == "random":
        labels = (y + 1 + rng.integers(classes - 1, (1,), y.device).squeeze(1)) % classes
    elif target == "least-likely":
        labels = logits.masked_fill(own, float("inf")).argmin(1)
    elif target == "second":
        labels = logits.masked_fill(own, float("-inf")).argmax(1)
    else:
        raise unknown_name("target rule", target, ("none", "random", "least-likely", "second"))
    return Goal(labels, True, loss, patient=patient)


def ascend(
    model: nn.Module,
    x: Tensor,
    goal: Goal,
    threat: ThreatModel,
    *,
    start: Tensor,
    steps: int,
    step_size: float,
    keep: str = "best",
) -> Tensor:
    """Projected gradient ascent on the goal's objective from ``start`` (both images (N, …)).

    Args:
        model: classifier, frozen.
        x: clean images, the centres of the balls.
        goal: what to increase.
        threat: ball, box and steepest direction.
        start: first iterate, inside the ball.
        steps: gradient steps.
        step_size: length of a step in the threat's norm.
        keep: ``last`` returns the last iterate. ``best`` returns the first iterate that reaches the goal
            (that sample then leaves the batch) and otherwise the one with the highest objective, the clean
            image included.
    """
    if keep not in ("best", "last"):
        raise unknown_name("value of keep:", keep, ("best", "last"))
    if keep == "last":
        current = start
        for _ in range(steps):
            current, _, _ = _ascent_step(model, x, current, goal, threat, step_size)
        return current

    best = x.clone()
    with torch.no_grad():
        clean = model(x)
        best_value = goal.objective(clean)
        alive = (~goal.reached(clean)).nonzero().squeeze(1)
    origin, current, aim = x[alive], start[alive], goal.select(alive)

    def settle(iterate: Tensor, logits: Tensor) -> Tensor:
        """Record what ``iterate`` reached; return the mask of the samples that go on."""
        value, done = aim.objective(logits), aim.reached(logits)
        better = (value > best_value[alive]) | done
        best[alive[better]] = iterate[better]
        best_value[alive[better]] = value[better]
        return ~done

    for _ in range(steps):
        if not len(alive):
            break
        following, logits, iterate = _ascent_step(model, origin, current, aim, threat, step_size)
        go_on = settle(iterate, logits)
        if bool(go_on.all()):
            current = following
        else:
            alive, origin, current = alive[go_on], origin[go_on], following[go_on]
            aim = aim.select(go_on)
    if len(alive):
        with torch.no_grad():
            settle(current, model(current))
    return best


def _ascent_step(
    model: nn.Module, x: Tensor, current: Tensor, goal: Goal, threat: ThreatModel, step_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One projected step; returns the next iterate, and the logits at the present one with it."""
    gradient, logits = ascent_gradient(model, current, goal)
    current = current.detach()
    return threat.project(threat.step(current, gradient, step_size), x), logits, current


def ascent_gradient(model: nn.Module, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Gradient (N, …) of the goal's objective at the images ``x``, and the logits (N, classes) there.

    Entries that are not finite are 0.

    Raises:
        NoGradientError: the model gives none.
    """
    if isinstance(model, InBatches):
        return model.gradient(x, goal)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        gradient = gradient_of(goal.objective(logits).sum(), leaf)
    return finite(gradient), logits.detach()
