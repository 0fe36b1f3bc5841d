"""What an attack is, and the one gradient loop that the gradient attacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import ThreatModel
from robgib.errors import RobGIBError, unknown_name
from robgib.models.inference import BatchedModel, finite, gradient_of
from robgib.runtime import SampleRNG

__all__ = [
    "Attack",
    "MinimumNormAttack",
    "objective_gradient",
    "projected_gradient_ascent",
    "reach_note",
    "reaching",
]


@dataclass(frozen=True)
class Attack(ABC):
    """An attack under a threat model. A subclass adds its parameters as dataclass fields.

    To write one: subclass, decorate with ``@dataclass(frozen=True)``, implement :meth:`perturb`, and set
    ``norms`` if it is not defined for all of them. ``batch_independent`` promises the same image for a sample
    whatever batch it comes in. A ``pooled`` attack is given many batches at once, so that survivors fill batches, and
    a :class:`~robgib.models.inference.BatchedModel` as its model, perhaps a faster form of the same function; it takes
    gradients through :func:`objective_gradient`. Others get the model itself, a batch at a time.

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
class MinimumNormAttack(Attack):
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
        best_value = goal.value(clean)
        alive = (~goal.is_adversarial(clean)).nonzero().squeeze(1)
    origin, current, aim = x[alive], start[alive], goal.select(alive)

    def settle(iterate: Tensor, logits: Tensor) -> Tensor:
        """Record what ``iterate`` reached; return the mask of the samples that go on."""
        value, done = aim.value(logits), aim.is_adversarial(logits)
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
    model: nn.Module, x: Tensor, current: Tensor, goal: Objective, threat: ThreatModel, step_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One projected step; returns the next iterate, and the logits at the present one with it."""
    gradient, logits = objective_gradient(model, current, goal)
    current = current.detach()
    return threat.project(threat.step(current, gradient, step_size), x), logits, current


def objective_gradient(model: nn.Module, x: Tensor, goal: Objective) -> tuple[Tensor, Tensor]:
    """Gradient (N, …) of the goal's objective at the images ``x``, and the logits (N, classes) there.

    Entries that are not finite are 0.

    Raises:
        NoGradientError: the model gives none.
    """
    if isinstance(model, BatchedModel):
        return model.gradient(x, goal)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        logits = model(leaf)
        gradient = gradient_of(goal.value(logits).sum(), leaf)
    return finite(gradient), logits.detach()
