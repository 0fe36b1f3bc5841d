"""Attack-failure indicators: evidence that an attack failed, rather than that the model is robust."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD, SCHEDULE_START
from robgib.attacks.base import (
    Attack,
    MinimumNormAttack,
    aimed,
    cost_of,
    given_to,
    objective_gradient,
    projected_gradient_ascent,
)
from robgib.attacks.carried import carried
from robgib.attacks.fab import FAB
from robgib.attacks.fast import FastEnsemble
from robgib.attacks.fgsm import FGSM
from robgib.attacks.objective import Objective
from robgib.attacks.pgd import PGD
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel
from robgib.attacks.transfer import Transfer
from robgib.errors import NoGradientError
from robgib.models.adapt import differ, finite_answers, half_perturbed, seeded
from robgib.models.inference import BatchedModel, PreparedModel, eval_mode, prepare
from robgib.options import Context, gather, or_default
from robgib.results import NOT_RUN
from robgib.robustness.active_test import PASSES, PLANTED, planted_found
from robgib.robustness.gradient_check import gradient_error
from robgib.runtime import SampleRNG, faults_of
from robgib.statistics import detectable_share, share_test, sign_test

__all__ = [
    "CHECKS",
    "SAMPLES",
    "Done",
    "Examination",
    "FailureIndicator",
    "examine",
    "failure_indicators",
    "gradient_indicator",
    "weaker_than_reference",
]

GRADIENT = "the gradient is not the function's"
"""The name of the gradient check."""
PLANTED_NAME = "planted images are missed"
"""The name of the active test."""
UNBOUNDED = "unbounded eps does not reach 0"
BOUNDARY = "boundary steps beat ascent"
SHIFT = "others fool what ascent leaves"
WEAKER = "weaker than a short attack"
CHECKS = (
    GRADIENT,
    "random outputs",
    "outputs depend on the batch",
    "outputs are probabilities",
    "test-time optimisation",
    "zero gradients",
    "loss does not grow",
    "one step beats many",
    UNBOUNDED,
    "black box beats gradients",
    BOUNDARY,
    "large-to-small eps beats ascent",
    "more effort still helps",
    SHIFT,
    PLANTED_NAME,
    WEAKER,
)
"""The names of the checks, in order."""
SAMPLES = 100
"""Maximum number of images."""
_POWERFUL = 50  # images on which a check has its stated power: it shows an effect on 20% of them four times out of five
_FEWEST = 25  # images below which checks that run attacks are left out: they would show effects from 30% on
_SHIFT = 0.1  # share of what ascent leaves, above which others that fool it show that ascent fails
_SHARE = 0.05  # share of the samples above which an effect counts
_RARE = 0.01  # the same for an attack with an unbounded eps
_LEVEL = 0.01  # significance level of each check
_QUERIES = 200
_TARGETS = 3  # target classes of FAB-T
_CALLS = 60  # calls on the same images: they detect randomness in one call of twenty with 95% probability
_CALLED = 2  # images per call
_DRAWS = 5  # draws over which a stochastic model is averaged here
_LEAST_PLANTED = 6  # planted images; fewer show nothing
_MISSED = 0.2  # share of them that an attack may miss
_PGD = 20  # steps of the short attack
_OF_TRANSFERS = ("random outputs", "outputs depend on the batch")
"""Checks of the model that say something of attacks on a surrogate, beside the gradient check of the surrogate."""
_TOO_DEAR = "left out: it would take more than half of the attacks' passes (--signs runs it)"
_STALLED = (
    "gradient attacks stall: use a loss that does not saturate (margin, dlr), replace the operation without gradient "
    "by a smooth approximation (BPDA), or use a black-box attack"
)


@dataclass(frozen=True)
class FailureIndicator:
    """The result of one check: its name, whether it was seen, the measurement, and the meaning."""

    name: str
    seen: bool
    detail: str
    meaning: str


@dataclass(frozen=True)
class Examination:
    """The results of all checks of one threat model, and adversarial images that they found.

    Attributes:
        indicators: the results, in the order of :data:`CHECKS`.
        fooled: adversarial images in the ball, by row of the examined images.
        notes: as for :func:`weaker_than_reference`.
    """

    indicators: Sequence[FailureIndicator]
    fooled: Mapping[int, Tensor]
    notes: Mapping[str, str]


_NamedCheck = tuple[str, Callable[[], "FailureIndicator | None"]]


@dataclass(frozen=True)
class _Check:
    """A check that runs attacks.

    Attributes:
        name: its name.
        run: returns its result, or None if it does not apply.
        passes: passes per image, at most.
        inside: whether the fast ensemble contains its attack.
    """

    name: str
    run: Callable[[], FailureIndicator | None]
    passes: int
    inside: bool = False


def failure_indicators(
    model: object,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    attacks: Mapping[str, tuple[Attack, np.ndarray]] | None = None,
    costs: Mapping[str, int] | None = None,
    samples: int = SAMPLES,
    passes: int | None = None,
    context: Context | None = None,
    **fields: Any,
) -> list[FailureIndicator]:
    """Check whether gradient attacks fail on a model that is not robust.

    After Athalye, Carlini & Wagner (2018), Carlini et al. (2019), Pintor et al. (2022) and AutoAttack's flags (Croce &
    Hein 2020). An indicator is a reason to investigate. The absence of indicators proves nothing.

    Each check is an exact test at the 1% level. It compares a share of samples with 5% (1% for an unbounded eps), or
    the samples that one attack alone fooled with those that another attack alone fooled.

    Args:
        model: classifier on ``device``, or the result of :func:`~robgib.models.inference.prepare`.
        x: correctly classified images (N, …) in [0, 1]; the first ``samples`` are used. If they carry masks or targets,
            the checks change pixels of the mask only, and count the targets only.
        y: their labels (N,).
        threat: the threat model of the attacks.
        attacks: the attacks that ran, by name, each with the shares (N,) of right answers that it left on ``x``. The
            last checks evaluate them; without attacks they evaluate their own PGD. If an attack left no sample right,
            the checks that run attacks are skipped, since a failed attack leaves some right.
        costs: gradients per sample of an attack, by name, if the attack does not state them.
        samples: number of images.
        passes: number of passes that the checks that run attacks may take; None does not limit them.
        context: seed, device (by default the CPU) and progress (:class:`~robgib.options.Context`).
        fields: fields of ``context`` by name, such as ``seed=1``.

    Returns:
        The checks of :data:`CHECKS`, in order. A check is left out if it runs attacks under L0, if it needs a gradient
        and the model has none ("zero gradients" is then seen), or if it needs ``attacks`` and there are none. Without
        images the list is empty. A check that says nothing with masks, targets or a surrogate is in the list with the
        reason.

    >>> import robgib
    >>> model, data = robgib.load_model("digits-cnn")
    >>> found = failure_indicators(model, data.test.x[:8], data.test.y[:8], ThreatModel("linf", 0.1), passes=0)
    >>> found[0].name, found[0].seen
    ("the gradient is not the function's", False)
    """
    (context,) = gather("failure_indicators", fields, or_default("context", context, Context(device="cpu")))
    done = Done(attacks or {}, costs or {}, samples=samples, passes=passes)
    return list(examine(model, x, y, threat, done, context).indicators)


@dataclass(frozen=True)
class Done:
    """What was done before the checks, and what they may do.

    Attributes:
        attacks: the attacks that ran, by name, each with the shares (N,) of right answers that it left.
        costs: gradients per sample of an attack, by name, if the attack does not state them.
        ran_on: of each attack of a cascade, by name, which samples (N,) the attacks before it left; else all.
        gradient: the result of :func:`gradient_indicator`, if known.
        samples: number of images.
        passes: number of passes; None does not limit them. Checks that run attacks are left out from the last one on
            until 50 images are affordable, or 25 for the first.
    """

    attacks: Mapping[str, tuple[Attack, np.ndarray]] = field(default_factory=dict)
    costs: Mapping[str, int] = field(default_factory=dict)
    ran_on: Mapping[str, np.ndarray] = field(default_factory=dict)
    gradient: FailureIndicator | None = None
    samples: int = SAMPLES
    passes: int | None = None

    @property
    def whole(self) -> str | None:
        """The first attack that left no sample right."""
        return next((name for name, (_, left) in self.attacks.items() if len(left) and not left.any()), None)


def examine(
    model: object, x: Tensor, y: Tensor, threat: ThreatModel, done: Done, context: Context | None = None
) -> Examination:
    """Run the checks of :func:`failure_indicators`, and keep the adversarial images that they find.

    Args:
        model: as for :func:`failure_indicators`; so are ``x``, ``y`` and ``threat``.
        x: images.
        y: labels.
        threat: threat model.
        done: the attacks that ran, and the limits of the checks.
        context: seed, device and progress.
    """
    context = or_default("context", context, Context(device="cpu"))
    device = torch.device(context.device)
    if not len(x):
        return Examination([], {}, {})
    x, y = x[: done.samples].to(device), y[: done.samples].to(device)
    prepared = model if isinstance(model, PreparedModel) else prepare(model, x, device=device)
    with eval_mode(prepared.model), seeded(context.seed, device):
        look = _Look(prepared, x, y, threat, context.seed)
        reasons = _inapplicable(x, [attack for attack, _ in done.attacks.values()], done.gradient)
        direct = [check for check in _direct(look, done.gradient, device) if check[0] not in reasons]
        checks, passes = _cheap_enough(look, direct, done.passes, done.whole)
        checks += _by_attacks(look, replace(done, passes=passes), reasons) if _has_ascent(threat) else []
        checks += [(name, partial(_left_out, name, f"does not apply: {reason}")) for name, reason in reasons.items()]
        checks.sort(key=lambda check: CHECKS.index(check[0]))
        indicators: list[FailureIndicator] = []
        for number, (name, check) in enumerate(checks):
            try:
                indicator = check()
            except NoGradientError:
                indicator = None
                if "zero gradients" not in {one.name for one in indicators}:
                    detail = "no gradient exists: the logits do not depend on the image by differentiable operations"
                    indicator = FailureIndicator("zero gradients", True, detail, _STALLED)
            if indicator:
                indicators.append(indicator)
            # The name of the last check beside the finished count would read as a finding.
            context.report("attack-failure checks", number + 1, len(checks), name if checks[number + 1 :] else "")
    return Examination(indicators, look.fooled, look.notes)


def _has_ascent(threat: ThreatModel) -> bool:
    """Whether the attacks of the checks are defined under the norm; under L0 they are not."""
    return threat.norm in CONVEX_NORMS


def _inapplicable(x: Tensor, attacks: Sequence[Attack], gradient: FailureIndicator | None = None) -> dict[str, str]:
    """Return the checks that say nothing under the conditions of the attacks, with the reason.

    Args:
        x: images, which may carry masks and targets.
        attacks: the attacks that ran.
        gradient: the result of the gradient check, which may be that of a surrogate.
    """
    reasons: dict[str, str] = {}
    if carried(x, "targets") is not None:
        reasons[UNBOUNDED] = "a target class may be out of reach at any eps"
        reasons[BOUNDARY] = "FAB-T chooses its target classes itself"
    if carried(x, "mask") is not None:
        reasons[UNBOUNDED] = "an image of which a mask holds a part may stay right at any eps"
    if any(isinstance(attack, Transfer) for attack in attacks):
        why = "the attacks follow the gradient of the surrogate, and not the model's"
        sound = (*_OF_TRANSFERS, *(() if gradient is None else (GRADIENT,)))
        reasons |= dict.fromkeys((name for name in CHECKS if name not in sound), why)
    return reasons


def _direct(look: _Look, gradient: FailureIndicator | None, device: torch.device) -> list[_NamedCheck]:
    """The checks that look at the model itself."""
    prepared, x, y = look.prepared, look.x, look.y
    return [
        (GRADIENT, lambda: gradient or gradient_indicator(prepared, x, y, seed=look.seed, device=device)),
        ("random outputs", lambda: _random_outputs(look)),
        ("outputs depend on the batch", lambda: _batch_dependence(prepared)),
        ("outputs are probabilities", lambda: _probabilities(prepared)),
        ("test-time optimisation", lambda: _test_time_optimisation(prepared.model, x[:_CALLED])),
        ("zero gradients", lambda: _gradients(look)),
    ]


def _by_attacks(look: _Look, done: Done, without: Mapping[str, str]) -> list[_NamedCheck]:
    """The checks that run attacks, or compare those that ran; the last ones get a quarter of the passes.

    Those of the names in ``without`` are left out.
    """
    attacks, whole = done.attacks, done.whole
    reserved = done.passes // 4 if done.passes is not None and attacks else 0
    costly = None if done.passes is None else done.passes - reserved
    wanted = [check for check in _costly(look, attacks) if check.name not in without]
    checks, rest = _affordable(look, wanted, attacks, costly, whole)
    if not attacks:
        return checks
    limit = None if done.passes is None else reserved
    active = partial(_moot, PLANTED_NAME, whole) if whole else partial(_planted, look, attacks, done.costs, limit)
    compared: list[_NamedCheck] = [
        (SHIFT, lambda: _shift(attacks, done.ran_on)),
        (PLANTED_NAME, active),
        (WEAKER, lambda: _weaker(look, attacks, done.costs, rest, whole)),
    ]
    return [*checks, *(check for check in compared if check[0] not in without)]


def gradient_indicator(
    prepared: PreparedModel, x: Tensor, y: Tensor, *, seed: int = 0, device: torch.device | str = "cpu"
) -> FailureIndicator:
    """Return the result of the gradient check on correctly classified images: see :func:`gradient_error`.

    Raises:
        NoGradientError: the model has no gradient.
    """
    error = gradient_error(prepared, x, y, seed=seed, device=device)
    if not error.repeatable:
        detail = "not measured: the same call with the same random numbers gives other logits"
    else:
        detail = (
            f"autograd explains {100 * max(error.explained, 0):.0f}% of the finite differences on the median image, "
            f"and less than {100 * (1 - error.bound):.0f}% on {int(error.false.sum())} of {len(error.share)}"
        )
    return FailureIndicator(
        GRADIENT,
        _many(torch.as_tensor(error.false)),
        detail,
        "attacks follow another direction than the model's: a part of it has no gradient or is detached, rounds "
        "with a straight-through gradient, or changes its gradient; mend that, or rely on black-box attacks only",
    )


def weaker_than_reference(
    prepared: PreparedModel,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    *,
    costs: Mapping[str, int] | None = None,
    context: Context | None = None,
    **fields: Any,
) -> dict[str, str]:
    """Return a note on each attack that leaves more samples right than PGD of 20 steps on the model itself.

    Args: as for :func:`failure_indicators`. Single-step attacks are skipped, since they are weaker by design.
    """
    (context,) = gather("weaker_than_reference", fields, or_default("context", context, Context(device="cpu")))
    device = torch.device(context.device)
    x, y = x[:SAMPLES].to(device), y[:SAMPLES].to(device)
    if not len(x) or threat.norm not in CONVEX_NORMS or WEAKER in _inapplicable(x, [a for a, _ in attacks.values()]):
        return {}
    with eval_mode(prepared.model), seeded(context.seed, device):
        try:
            return _named(_Look(prepared, x, y, threat, context.seed), attacks, costs or {})
        except NoGradientError:
            return {}


class _Look:
    """The samples of the checks, and the samples that the attacks of the checks leave right."""

    def __init__(self, prepared: PreparedModel, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> None:
        self.x, self.y, self.threat, self.seed = x, aimed(x, y), threat, seed
        draws = _DRAWS if prepared.random else 1
        self.random, self.calls, self.prepared = prepared.random, prepared.model, prepared
        self.model = BatchedModel(prepared.model, prepared.batch_size, random=prepared.random, draws=draws)
        self._right: dict[str, Tensor] = {}
        self.fooled: dict[int, Tensor] = {}
        self.notes: dict[str, str] = {}

    def has(self, name: str) -> bool:
        """Whether an attack of the checks ran."""
        return name in self._right

    def first(self, count: int) -> None:
        """Restrict the checks to the first images."""
        self.x, self.y = self.x[:count], self.y[:count]

    def right(self, name: str, attack: Attack) -> Tensor:
        """Return which samples (N,) the attack leaves right."""
        if name not in self._right:
            given = given_to(attack, self.x, self.y)
            x_adv = attack.perturb(self.model, *given, SampleRNG(self.seed, range(len(self.x))))
            with torch.no_grad():
                self._right[name] = ~self.fools(self.model(x_adv))
            self.keep(x_adv, ~self._right[name])
        return self._right[name]

    def fools(self, logits: Tensor) -> Tensor:
        """Whether logits (N, classes) are a success of an attack: a wrong class, or the target."""
        return Objective.untargeted(self.y, "margin").criterion(logits)

    def keep(self, x_adv: Tensor, fooled: Tensor) -> None:
        """Keep the first adversarial image in the ball of each image; of a stochastic model it may be a lucky draw."""
        if self.random:
            return
        for row in (fooled & self.threat.allows(x_adv, self.x)).nonzero().squeeze(1).tolist():
            self.fooled.setdefault(row, x_adv[row].detach().clone())

    def pgd(self) -> Tensor:
        """Return which samples (N,) PGD of 20 steps leaves right."""
        return self.right("pgd", PGD(self.threat.norm, self.threat.eps, steps=20))

    def large_to_small(self) -> Tensor:
        """Return which samples (N,) APGD with a large-to-small eps schedule leaves right."""
        return self.right("large to small", APGD(self.threat.norm, self.threat.eps, schedule_start=SCHEDULE_START))


def _costly(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> list[_Check]:
    """Return the checks that run attacks."""
    pgd, scheduled = 3 * _PGD, 3 * 100
    return [
        _Check("loss does not grow", lambda: _flat_loss(look), pgd),
        _Check("one step beats many", lambda: _fewer_steps(look), pgd + 3),
        _Check(UNBOUNDED, lambda: _unbounded(look), 3 * 50),
        _Check("black box beats gradients", lambda: _black_box(look), _QUERIES + scheduled),
        _Check(BOUNDARY, lambda: _boundary_steps(look, attacks), 3 * 20 * _TARGETS, True),
        _Check("large-to-small eps beats ascent", lambda: _large_to_small(look, attacks), 0, True),
        _Check("more effort still helps", lambda: _more_effort(look, attacks), 2 * scheduled, True),
    ]


def _cheap_enough(
    look: _Look, checks: list[_NamedCheck], passes: int | None, whole: str | None
) -> tuple[list[_NamedCheck], int | None]:
    """Return the checks without attacks that are affordable and needed, and the passes that remain for the others."""
    if passes is None:
        return checks, None
    costs = {"random outputs": _CALLED * (1 if look.random else _CALLS), "zero gradients": 6 * len(look.x)}
    chosen: list[_NamedCheck] = []
    for name, check in checks:
        if whole and name in costs and not look.random:
            check = partial(_moot, name, whole)
        elif costs.get(name, 0) > passes:
            check = partial(_left_out, name, _TOO_DEAR)
        else:
            passes -= costs.get(name, 0)
        chosen.append((name, check))
    return chosen, passes


def _affordable(
    look: _Look,
    checks: Sequence[_Check],
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    passes: int | None,
    whole: str | None,
) -> tuple[list[_NamedCheck], int | None]:
    """Return checks that run attacks, on as many images as ``passes`` suffice for, and the passes that they leave.

    Checks that are left out say why.
    """
    if whole:
        return [(one.name, partial(_moot, one.name, whole)) for one in checks], passes
    if passes is None:
        return [(one.name, one.run) for one in checks], None
    ensemble = next((name for name, (attack, _) in attacks.items() if isinstance(attack, FastEnsemble)), None)
    chosen = [one for one in checks if not (ensemble and one.inside)]

    def images() -> int:
        return passes // max(1, sum(one.passes for one in chosen))

    available = len(look.x)
    while chosen and images() < min(available, _POWERFUL if len(chosen) > 1 else _FEWEST):
        chosen = chosen[:-1]
    if chosen:
        look.first(min(available, images()))
    reasons = {
        one.name: f"left out: {ensemble} contains this attack" if ensemble and one.inside else _TOO_DEAR
        for one in checks
    }
    spent = len(look.x) * sum(one.passes for one in chosen)
    runs = [(o.name, o.run if o in chosen else partial(_left_out, o.name, reasons[o.name])) for o in checks]
    return runs, max(0, passes - spent)


def _left_out(name: str, reason: str) -> FailureIndicator:
    assert reason.startswith(NOT_RUN), "a check that did not run must say so as readers of its detail expect"
    return FailureIndicator(name, False, reason, "the absence of this indicator says nothing here")


def _moot(name: str, attack: str) -> FailureIndicator:
    return FailureIndicator(
        name,
        False,
        f"skipped: {attack} fooled every image",
        "a failed attack would have left images right",
    )


def _seeing(samples: int, share: float = _SHARE) -> str:
    """Return what a check on few images cannot see, for its detail."""
    if samples >= _POWERFUL:
        return ""
    least = detectable_share(samples, share, _LEVEL)
    return f" ({samples} images, which show effects from {100 * least:.0f}% of the images on)"


def _percent(mask: Tensor) -> str:
    return f"{100 * float(mask.float().mean()):.0f}%"


def _many(mask: Tensor, share: float = _SHARE) -> bool:
    """Whether significantly more than a share of the samples are marked."""
    return share_test(int(mask.sum()), len(mask), share) <= _LEVEL


def _more(one: Tensor, two: Tensor) -> bool:
    """Whether significantly more samples are in ``one`` alone than in ``two`` alone."""
    return sign_test(int((one & ~two).sum()), int((two & ~one).sum())) <= _LEVEL


def _random_outputs(look: _Look) -> FailureIndicator:
    few, gaps = half_perturbed(look.x[:_CALLED]), []
    with torch.no_grad(), faults_of("the model"):
        first = look.calls(few)
        for _ in range(_CALLS - 1):
            gaps.append(differ(first, look.calls(few)))
            if gaps[-1] > 1e-3:
                break
    others = sum(g > 1e-3 for g in gaps)
    return FailureIndicator(
        "random outputs",
        look.random or others > 0,  # the threshold exceeds the nondeterminism of GPU reductions
        f"call {len(gaps) + 1} on the same images differs from the first by {gaps[-1]:.2g} of the logits' spread"
        if others
        else f"{_CALLS} calls on the same images differ by at most {max(gaps):.2g} of the logits' spread",
        "the model is stochastic: attacks average over several draws, and so does the evaluation; prefer "
        "autoattack-linf-rand, or remove the randomness",
    )


def _batch_dependence(prepared: PreparedModel) -> FailureIndicator:
    return FailureIndicator(
        "outputs depend on the batch",
        prepared.company,
        "the same image in another batch has " + ("other logits" if prepared.company else "the same logits"),
        "the gradient of one image then depends on the other images: the model was called on single images, and all "
        "results are those of single images",
    )


def _probabilities(prepared: PreparedModel) -> FailureIndicator:
    return FailureIndicator(
        "outputs are probabilities",
        prepared.probabilities,
        "on clean images the outputs " + ("are probabilities" if prepared.probabilities else "are not probabilities"),
        "the softmax of a softmax hides the gradient: attacks used the logits before the last softmax; provide the "
        "model without it",
    )


@contextmanager
def _backward_passes() -> Iterator[list[int]]:
    """Record the tensors that backward passes read in the block."""
    read: list[int] = []

    def unpack(tensor: Tensor) -> Tensor:
        read.append(1)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        yield read


def _test_time_optimisation(net: nn.Module, x: Tensor) -> FailureIndicator:
    with torch.no_grad(), faults_of("the model"), _backward_passes() as made:
        net(x)
    return FailureIndicator(
        "test-time optimisation",
        bool(made),
        "a call of the model runs backward passes" if made else "a call of the model runs no backward pass",
        "gradients through an optimisation at test time are unreliable: attack the static part of the model, or "
        "differentiate through its steps (adaptive attacks)",
    )


def _gradients(look: _Look) -> FailureIndicator:
    gradient = objective_gradient(look.model, look.x, Objective.untargeted(look.y, "ce"))[0].flatten(1)
    broken = look.model.broken / len(look.x) / look.model.draws
    # In float32 the cross-entropy has gradient 0 below about 1e-7. A nonzero gradient of the margin shows this case.
    zero = (gradient == 0).all(1)
    margin = objective_gradient(look.model, look.x, Objective.untargeted(look.y, "margin"))[0].flatten(1)
    saved = zero & (margin != 0).any(1)
    detail = (
        f"the gradient of the cross-entropy is 0 on {_percent(zero)} of the images, not finite on {100 * broken:.0f}%"
    )
    if bool(saved.any()):
        detail += f"; that of the margin is not 0 on {_percent(saved)} of them"
    many = share_test(round(broken * len(zero)), len(zero), _SHARE) <= _LEVEL
    return FailureIndicator("zero gradients", _many(zero) or many, detail, _STALLED)


def _flat_loss(look: _Look) -> FailureIndicator:
    goal, x, threat = Objective.untargeted(look.y, "margin"), look.x, look.threat
    x_adv = projected_gradient_ascent(
        look.model, x, goal, threat, start=x, steps=20, step_size=2.5 * threat.eps / 20, keep="last"
    )
    with torch.no_grad():
        before, after = goal.value(look.model(x)), look.model(x_adv)
    flat = ~(goal.value(after) > before) & finite_answers(after)
    look.keep(x_adv, look.fools(after))
    return FailureIndicator(
        "loss does not grow",
        _many(flat),
        f"20 steps did not raise the margin of {_percent(flat)} of the images{_seeing(len(flat))}",
        "the gradient is no ascent direction of the loss: it is masked, or the step size is wrong",
    )


def _fewer_steps(look: _Look) -> FailureIndicator:
    fgsm, pgd = look.right("fgsm", FGSM(look.threat.norm, look.threat.eps)), look.pgd()
    return FailureIndicator(
        "one step beats many",
        _more(pgd, fgsm),
        f"FGSM leaves {_percent(fgsm)} right, PGD of 20 steps {_percent(pgd)}{_seeing(len(pgd))}",
        "the iteration stops at a poor local maximum: the loss surface is rough, or gradients are masked",
    )


def _unbounded(look: _Look) -> FailureIndicator:
    whole = replace(look.threat, eps=look.threat.widest(look.x[0].numel()))
    # A fixed step size may end in a corner of the box even without gradient masking, and with an unbounded eps random
    # restarts fool by chance.
    remaining = look.right("unbounded", APGD(whole.norm, whole.eps, steps=50))
    return FailureIndicator(
        UNBOUNDED,
        _many(remaining, _RARE),
        f"APGD of 50 steps with the whole box as its ball leaves {_percent(remaining)} right"
        f"{_seeing(len(remaining), _RARE)}",
        "with an unbounded eps an attack must fool every sample: it does not follow the gradient of the model",
    )


def _black_box(look: _Look) -> FailureIndicator | None:
    if look.x.ndim != 4 or look.threat.norm not in Square.norms:
        return None
    square = look.right("square", Square(look.threat.norm, look.threat.eps, queries=_QUERIES))
    try:
        # Gradients near the clean image may be uninformative where gradients at a larger distance are not.
        ascent, reference = look.pgd() & look.large_to_small(), "PGD of 20 steps and large-to-small APGD together"
    except NoGradientError:
        ascent, reference = torch.ones_like(square), "PGD without a gradient"
    alone = ascent & ~square
    return FailureIndicator(
        "black box beats gradients",
        _more(ascent, square) or _many(alone),
        f"Square of {_QUERIES} queries leaves {_percent(square)} right, {reference} {_percent(ascent)}; "
        f"{int(alone.sum())} of {len(square)} are fooled by Square alone{_seeing(len(square))}",
        "gradient attacks should find what random search finds: gradients are masked",
    )


def _strongest(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> tuple[str, Tensor]:
    """Return the attack that left the fewest samples right, or PGD if none ran, and which samples (N,) it left."""
    if not attacks:
        return "PGD of 20 steps", look.pgd()
    name = min(attacks, key=lambda label: float(attacks[label][1][: len(look.x)].mean()))
    return name, torch.as_tensor(attacks[name][1][: len(look.x)] >= 0.5).to(look.x.device)


def _outdone(
    look: _Look,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    indicator: str,
    remaining: Tensor,
    other: str,
    meaning: str,
) -> FailureIndicator:
    """Compare the strongest attack that ran with another attack, which left the samples ``left`` (N,) right."""
    name, right = _strongest(look, attacks)
    return FailureIndicator(
        indicator,
        _more(right, remaining),
        f"{name} leaves {_percent(right)} right, {other} {_percent(remaining)}; the latter alone fools "
        f"{int((right & ~remaining).sum())}, the former alone {int((remaining & ~right).sum())}"
        f"{_seeing(len(remaining))}",
        meaning,
    )


def _boundary_steps(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        BOUNDARY,
        look.right("fab-t", FAB(look.threat.norm, look.threat.eps, targeted=True, targets=_TARGETS, steps=20)),
        f"FAB-T of {_TARGETS} classes and 20 steps",
        "gradient ascent stalls here, with more steps too, and steps onto the linearised boundary do not: add fab-t or "
        "the fast ensemble",
    )


def _large_to_small(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        "large-to-small eps beats ascent",
        look.large_to_small(),
        f"APGD of 100 steps with eps from {SCHEDULE_START:g} times down to 1 times its value",
        "gradients near the clean images are uninformative, and AutoAttack's APGD stalls: add the fast ensemble, or "
        f"apgd-ce-{look.threat.norm}:schedule_start={SCHEDULE_START:g}",
    )


def _more_effort(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        "more effort still helps",
        look.right("longer pgd", PGD(look.threat.norm, look.threat.eps, steps=100, restarts=2)),
        "PGD of 100 steps and 2 restarts",
        "the attack had not converged: a longer attack will find a lower robust accuracy",
    )


def _shift(attacks: Mapping[str, tuple[Attack, np.ndarray]], ran_on: Mapping[str, np.ndarray]) -> FailureIndicator:
    """Compare gradient ascent with random search and boundary attacks, on all images.

    What the attacks before one in a cascade fooled does not count as its own. Ensembles are of no kind: what they fool
    after untargeted ascent falls mostly to their targeted ascent.
    """
    ascents = [n for n, (a, _) in attacks.items() if isinstance(a, APGD | PGD) and (cost_of(a, n) or 0) >= _PGD]
    others = [n for n, (a, _) in attacks.items() if isinstance(a, Square | MinimumNormAttack)]
    if not ascents or not others:
        missing = "Auto-PGD or PGD of 20 steps or more" if others else "Square or a boundary attack"
        return _left_out(SHIFT, f"skipped: {missing} did not run")
    ascent = min(ascents, key=lambda n: float(attacks[n][1].sum()))
    remaining = attacks[ascent][1] >= 0.5
    fooled = remaining & np.logical_or.reduce([(attacks[n][1] < 0.5) & ran_on.get(n, True) for n in others])
    hits, total = int(fooled.sum()), int(remaining.sum())
    return FailureIndicator(
        SHIFT,
        share_test(hits, total, _SHIFT) <= _LEVEL,
        f"{ascent} left {total} images right, of which {', '.join(others)} fooled {hits}",
        "gradient ascent fails on this model, and what the other attacks leave may fall to stronger ones: run --full, "
        "and look for the reason",
    )


def _planted(
    look: _Look,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    costs: Mapping[str, int] | None,
    passes: int | None,
) -> FailureIndicator | None:
    """Plant adversarial images, and count those that each attack finds. Single-step attacks may miss some."""
    if look.random:
        return None
    each = {n: (costs or {}).get(n) or cost_of(attack, n) or _PGD for n, (attack, _) in attacks.items()}
    needed = PASSES + 3 * sum(min(cost, 100) for cost in each.values())
    count = PLANTED if passes is None else min(PLANTED, passes // needed)
    if count < _LEAST_PLANTED:
        return _left_out(PLANTED_NAME, _TOO_DEAR)
    ran = {name: attack for name, (attack, _) in attacks.items()}
    hits_of = planted_found(look.prepared, look.x[:count], look.threat, ran, seed=look.seed)
    if not hits_of:
        return None
    missed = {name: torch.tensor([not hit for hit in hits]) for name, hits in hits_of.items()}
    return FailureIndicator(
        PLANTED_NAME,
        any(_many(which, _MISSED) for name, which in missed.items() if each[name] > 1),
        ", ".join(f"{name} finds {sum(hits)} of {len(hits)}" for name, hits in hits_of.items()) + " planted images",
        "the attack misses adversarial images that are known to exist on this model's features: what it leaves may not "
        "be robust",
    )


def _named(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]], costs: Mapping[str, int]) -> dict[str, str]:
    if attacks and all((costs.get(n, cost_of(a, n)) or 2) <= 1 for n, (a, _) in attacks.items()):
        return {}
    pgd = look.pgd()
    notes = {}
    for label, (attack, shares) in attacks.items():
        cost = costs.get(label, cost_of(attack, label))
        if cost is not None and cost <= 1:  # single-step attacks are weaker by design
            continue
        right = torch.as_tensor(shares[: len(pgd)] >= 0.5).to(pgd.device)
        if _more(right, pgd):
            notes[label] = (
                f"it leaves {_percent(right)} of {len(pgd)} images right; PGD of 20 steps on the model itself leaves "
                f"{_percent(pgd)}"
            )
    return notes


def _weaker(
    look: _Look,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    costs: Mapping[str, int],
    passes: int | None,
    whole: str | None,
) -> FailureIndicator:
    if passes is not None:
        if whole and all(not remaining.any() for _, remaining in attacks.values()):
            return _moot(WEAKER, whole)
        count = len(look.x) if look.has("pgd") else min(len(look.x), passes // (3 * _PGD))
        if count < min(len(look.x), _FEWEST):
            return _left_out(WEAKER, _TOO_DEAR)
        look.first(count)
    look.notes |= (notes := _named(look, attacks, costs))
    return FailureIndicator(
        WEAKER,
        bool(notes),
        "; ".join(f"{label}: {note}" for label, note in notes.items())
        or f"no attack leaves significantly more right than PGD of 20 steps ({_percent(look.pgd())})",
        "that attack failed on this model, or its steps do not reach the edge of the ball: its robust accuracy is not "
        "a property of the model",
    )
