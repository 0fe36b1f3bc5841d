"""Signs that an attack failed rather than that a model is robust."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.apgd import APGD, WIDEST
from robgib.attacks.base import Attack, objective_gradient, projected_gradient_ascent
from robgib.attacks.fab import FAB
from robgib.attacks.fgsm import FGSM
from robgib.attacks.objective import Objective, misled
from robgib.attacks.pgd import PGD
from robgib.attacks.square import Square
from robgib.attacks.threat_model import CONVEX_NORMS, ThreatModel
from robgib.errors import NoGradientError
from robgib.models.adapt import differ, finite_answers, seeded
from robgib.models.inference import BatchedModel, PreparedModel, eval_mode, prepare
from robgib.runtime import Progress, SampleRNG, faults_of
from robgib.statistics import share_test, sign_test

__all__ = [
    "CHECKS",
    "SAMPLES",
    "FailureIndicator",
    "failure_indicators",
    "weaker_than_reference",
]

CHECKS = (
    "random outputs",
    "answers depend on the batch",
    "answers are probabilities",
    "optimises inside",
    "zero gradients",
    "loss does not grow",
    "one step beats many",
    "unbounded eps does not reach 0",
    "black box beats gradients",
    "boundary steps beat climbing",
    "climbs from afar lead further",
    "more effort still helps",
    "weaker than a short attack",
)
"""The names of the checks, in order."""
SAMPLES = 100
"""Images that are looked at, at most."""
_SHARE = 0.05  # of the samples: an effect on more counts
_RARE = 0.01  # of the samples: what an attack with any image allowed may miss
_LEVEL = 0.01  # of each check's test: how often chance alone may raise it
_QUERIES = 200
_WALKS = 3  # classes that FAB-T walks towards
_CALLS = 60  # on the same images: a model that answers at random in one call of twenty is seen in 19 cases of 20
_CALLED = 2  # images of each call
_DRAWS = 5  # over which a model that answers at random is averaged here
_STILL = (
    "gradient attacks stand still: use a loss that does not saturate (margin, dlr), or a way around the operation "
    "without gradient (a smooth stand-in, or a black-box attack)"
)


@dataclass(frozen=True)
class FailureIndicator:
    """One check: what it looks for, whether it was seen, what was measured, and what it means if it was."""

    name: str
    seen: bool
    detail: str
    meaning: str


_Check = Callable[[], FailureIndicator | None]


def failure_indicators(
    model: object,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    attacks: Mapping[str, tuple[Attack, np.ndarray]] | None = None,
    costs: Mapping[str, int] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[FailureIndicator]:
    """Look for signs that gradient attacks fail on a model although it is not robust.

    After Athalye, Carlini & Wagner (2018), Carlini et al. (2019), Pintor et al. (2022) and AutoAttack's flags (Croce &
    Hein 2020). A sign is a reason to look closer, and its absence proves nothing.

    Each check is an exact test at the 1% level, so that a few samples raise no sign by chance: of a share of samples
    against 5% (1% where any image is allowed), or of pairs, the samples that one attack alone fooled against those that
    the other did alone.

    Args:
        model: classifier on ``device``, or what :func:`~robgib.models.inference.prepare` made of it.
        x: images (N, …) in [0, 1], right ones; the first ``samples`` are used.
        y: their labels (N,).
        threat: the threat model under which the attacks ran.
        attacks: the attacks that ran under it, by name, each with the shares (N,) of right answers that it left on
            ``x``. The last two checks judge them; without any the check's own PGD is judged. Where one left none right,
            the checks that attack are not made: an attack that failed would have left some.
        costs: gradients a sample that an attack takes, by name, where it does not state them.
        samples: how many images are looked at.
        seed: of random numbers.
        device: where the model is.
        progress: called after each check.

    Returns:
        The checks of :data:`CHECKS`, in order, less those that attack under L0, those that need a gradient where there
        is none ("zero gradients" is then seen), and the last without ``attacks``; none when there are no images.
    """
    whole = next((name for name, (_, left) in (attacks or {}).items() if len(left) and not left.any()), None)
    x, y = x[:samples].to(device), y[:samples].to(device)
    if not len(x):
        return []
    prepared = model if isinstance(model, PreparedModel) else prepare(model, x, device=device)
    net = prepared.model
    with eval_mode(net), seeded(seed, device):
        look = _Look(prepared, x, y, threat, seed)
        checks: list[_Check] = [
            lambda: _random_outputs(look),
            lambda: _company(prepared),
            lambda: _probabilities(prepared),
            lambda: _optimises(net, x[:_CALLED]),
            lambda: _gradients(look),
        ]
        if threat.norm in CONVEX_NORMS:  # no attack of the checks' own is defined under L0
            costly = _costly(look, attacks or {}).items()
            checks += [partial(_moot, name, whole) if whole else check for name, check in costly]
            checks.append(lambda: _weaker(look, attacks, costs or {}) if attacks else None)
        signs: list[FailureIndicator] = []
        for number, check in enumerate(checks):
            try:
                sign = check()
            except NoGradientError:
                sign = None
                if "zero gradients" not in {s.name for s in signs}:
                    told = "none can be taken: no differentiable way leads from the image to the logits"
                    sign = FailureIndicator("zero gradients", True, told, _STILL)
            if sign:
                signs.append(sign)
            if progress:
                progress("looking for failed attacks", number + 1, len(checks), CHECKS[number])
    return signs


def weaker_than_reference(
    prepared: PreparedModel,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    *,
    costs: Mapping[str, int] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, str]:
    """Name the attacks that leave more samples right than PGD of 20 steps on the model itself does, each in a sentence.

    Args: as for :func:`failure_indicators`. Attacks of one step are not named, since they are weaker by design.
    """
    x, y = x[:SAMPLES].to(device), y[:SAMPLES].to(device)
    if not len(x) or threat.norm not in CONVEX_NORMS:
        return {}
    with eval_mode(prepared.model), seeded(seed, device):
        try:
            return _named(_Look(prepared, x, y, threat, seed), attacks, costs or {})
        except NoGradientError:
            return {}


class _Look:
    """The samples that the checks look at, and what their own attacks leave right of them."""

    def __init__(self, prepared: PreparedModel, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> None:
        self.x, self.y, self.threat, self.seed = x, y, threat, seed
        draws = _DRAWS if prepared.random else 1
        self.random, self.calls = prepared.random, prepared.model
        self.model = BatchedModel(prepared.model, prepared.batch_size, random=prepared.random, draws=draws)
        self._right: dict[str, Tensor] = {}

    def right(self, name: str, attack: Attack) -> Tensor:
        """Which samples (N,) the attack leaves right."""
        if name not in self._right:
            found = attack.perturb(self.model, self.x, self.y, SampleRNG(self.seed, range(len(self.x))))
            with torch.no_grad():
                self._right[name] = ~misled(self.model(found), self.y)
        return self._right[name]

    def pgd(self) -> Tensor:
        """What PGD of 20 steps leaves right (N,)."""
        return self.right("pgd", PGD(self.threat.norm, self.threat.eps, steps=20))

    def from_afar(self) -> Tensor:
        """What a climb from afar leaves right (N,)."""
        return self.right("from afar", APGD(self.threat.norm, self.threat.eps, widest=WIDEST))


def _costly(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> dict[str, _Check]:
    """The checks that attack, by name."""
    return {
        "loss does not grow": lambda: _flat_loss(look),
        "one step beats many": lambda: _fewer_steps(look),
        "unbounded eps does not reach 0": lambda: _unbounded(look),
        "black box beats gradients": lambda: _black_box(look),
        "boundary steps beat climbing": lambda: _boundary_steps(look, attacks),
        "climbs from afar lead further": lambda: _from_afar(look, attacks),
        "more effort still helps": lambda: _more_effort(look, attacks),
    }


def _moot(name: str, attack: str) -> FailureIndicator:
    return FailureIndicator(
        name,
        False,
        f"not looked for: every image fell to {attack}",
        "an attack that failed would have left images right",
    )


def _percent(mask: Tensor) -> str:
    return f"{100 * float(mask.float().mean()):.0f}%"


def _many(mask: Tensor, share: float = _SHARE) -> bool:
    """Whether clearly more than a share of the samples are marked."""
    return share_test(int(mask.sum()), len(mask), share) <= _LEVEL


def _more(one: Tensor, two: Tensor) -> bool:
    """Whether clearly more samples are in ``one`` alone than in ``two`` alone."""
    return sign_test(int((one & ~two).sum()), int((two & ~one).sum())) <= _LEVEL


def _random_outputs(look: _Look) -> FailureIndicator:
    few, gaps = look.x[:_CALLED], []
    with torch.no_grad(), faults_of("the model"):
        first = look.calls(few)
        for _ in range(_CALLS - 1):
            gaps.append(differ(first, look.calls(few)))
            if gaps[-1] > 1e-3:
                break
    others = sum(g > 1e-3 for g in gaps)
    return FailureIndicator(
        "random outputs",
        look.random or others > 0,  # on a GPU reductions differ from call to call, but not so much
        f"call {len(gaps) + 1} on the same images differs from the first by {gaps[-1]:.2g} of the logits' spread"
        if others
        else f"{_CALLS} calls on the same images differ by at most {max(gaps):.2g} of the logits' spread",
        "the model answers at random: attacks average over its draws and its answers are judged by several; prefer "
        "autoattack-linf-rand, or fix its randomness",
    )


def _company(prepared: PreparedModel) -> FailureIndicator:
    return FailureIndicator(
        "answers depend on the batch",
        prepared.company,
        "the same image in other company gets " + ("other logits" if prepared.company else "the same logits"),
        "one image's gradient then leads through the others: images were given to the model one at a time, and all "
        "figures are those of single images",
    )


def _probabilities(prepared: PreparedModel) -> FailureIndicator:
    return FailureIndicator(
        "answers are probabilities",
        prepared.probabilities,
        "on clean images the outputs " + ("are probabilities" if prepared.probabilities else "are no probabilities"),
        "softmax of softmax hides the gradient: attacks climbed the logits below the probabilities; give the model "
        "without its last softmax",
    )


@contextmanager
def _backward_passes() -> Iterator[list[int]]:
    """Note the tensors that backward passes read meanwhile: without any nobody differentiates."""
    read: list[int] = []

    def unpack(tensor: Tensor) -> Tensor:
        read.append(1)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        yield read


def _optimises(net: nn.Module, x: Tensor) -> FailureIndicator:
    with torch.no_grad(), faults_of("the model"), _backward_passes() as made:
        net(x)
    return FailureIndicator(
        "optimises inside",
        bool(made),
        "one call makes backward passes of its own" if made else "a call makes no backward pass of its own",
        "the model optimises while it answers: gradients through that are misleading; attack its fixed part, or follow "
        "its steps (adaptive attacks)",
    )


def _gradients(look: _Look) -> FailureIndicator:
    gradient = objective_gradient(look.model, look.x, Objective.untargeted(look.y, "ce"))[0].flatten(1)
    broken = look.model.broken / len(look.x) / look.model.draws
    # float32 loses a loss below about 1e-7, whose gradient is then 0: the margin's, where there is one, tells which.
    zero = (gradient == 0).all(1)
    margin = objective_gradient(look.model, look.x, Objective.untargeted(look.y, "margin"))[0].flatten(1)
    saved = zero & (margin != 0).any(1)
    detail = f"of the cross-entropy at {_percent(zero)} of the images 0, at {100 * broken:.0f}% not finite"
    if bool(saved.any()):
        detail += f"; the margin has one at {_percent(saved)} of them"
    many = share_test(round(broken * len(zero)), len(zero), _SHARE) <= _LEVEL
    return FailureIndicator("zero gradients", _many(zero) or many, detail, _STILL)


def _flat_loss(look: _Look) -> FailureIndicator:
    goal, x, threat = Objective.untargeted(look.y, "margin"), look.x, look.threat
    found = projected_gradient_ascent(
        look.model, x, goal, threat, start=x, steps=20, step_size=2.5 * threat.eps / 20, keep="last"
    )
    with torch.no_grad():
        before, told = goal.value(look.model(x)), look.model(found)
    flat = ~(goal.value(told) > before) & finite_answers(told)
    return FailureIndicator(
        "loss does not grow",
        _many(flat),
        f"20 steps did not raise the margin of {_percent(flat)} of the images",
        "the gradient does not point where the loss grows: it is masked, or the step size is wrong",
    )


def _fewer_steps(look: _Look) -> FailureIndicator:
    fgsm, pgd = look.right("fgsm", FGSM(look.threat.norm, look.threat.eps)), look.pgd()
    return FailureIndicator(
        "one step beats many",
        _more(pgd, fgsm),
        f"FGSM leaves {_percent(fgsm)} right, PGD of 20 steps {_percent(pgd)}",
        "the iteration is stuck in a bad place: the loss surface is rough, or gradients are masked",
    )


def _unbounded(look: _Look) -> FailureIndicator:
    whole = replace(look.threat, eps=look.threat.widest(look.x[0].numel()))
    # Steps of one length may end in a corner of the box, on an honest network of few pixels too; and restarts would
    # fool by chance, since any image is allowed.
    stands = look.right("unbounded", APGD(whole.norm, whole.eps, steps=50))
    return FailureIndicator(
        "unbounded eps does not reach 0",
        _many(stands, _RARE),
        f"APGD of 50 steps with the whole box as its ball leaves {_percent(stands)} right",
        "with any image allowed an attack must reach every class: it does not follow the model's gradient",
    )


def _black_box(look: _Look) -> FailureIndicator | None:
    if look.x.ndim != 4 or look.threat.norm not in Square.norms:
        return None
    square = look.right("square", Square(look.threat.norm, look.threat.eps, queries=_QUERIES))
    try:
        # Slopes around a clean image may mislead where those further out do not: gradients then find it all the same.
        climbed, told = look.pgd() & look.from_afar(), "PGD of 20 steps and a climb from afar together"
    except NoGradientError:
        climbed, told = torch.ones_like(square), "without a gradient PGD"
    alone = climbed & ~square
    return FailureIndicator(
        "black box beats gradients",
        _more(climbed, square) or _many(alone),
        f"Square of {_QUERIES} queries leaves {_percent(square)} right, {told} {_percent(climbed)}; "
        f"{int(alone.sum())} of {len(square)} fall to Square alone",
        "what random search finds, gradients should: they are masked",
    )


def _strongest(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> tuple[str, Tensor]:
    """The attack that left fewest samples right, or PGD where none ran, and what it left (N,)."""
    if not attacks:
        return "PGD of 20 steps", look.pgd()
    name = min(attacks, key=lambda label: float(attacks[label][1][: len(look.x)].mean()))
    return name, torch.as_tensor(attacks[name][1][: len(look.x)] >= 0.5).to(look.x.device)


def _outdone(
    look: _Look,
    attacks: Mapping[str, tuple[Attack, np.ndarray]],
    sign: str,
    left: Tensor,
    told: str,
    meaning: str,
) -> FailureIndicator:
    """Whether clearly more images fall to another attack, which left ``left`` (N,), than to the strongest that ran."""
    name, right = _strongest(look, attacks)
    return FailureIndicator(
        sign,
        _more(right, left),
        f"{name} leaves {_percent(right)} right, {told} {_percent(left)}; {int((right & ~left).sum())} fall to the "
        f"latter alone, {int((left & ~right).sum())} to the former",
        meaning,
    )


def _boundary_steps(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        "boundary steps beat climbing",
        look.right("fab-t", FAB(look.threat.norm, look.threat.eps, targeted=True, targets=_WALKS, steps=20)),
        f"FAB-T of {_WALKS} classes and 20 steps",
        "climbing a loss stands still here, with more steps too, where steps onto the linearised boundary do not: add "
        "fab-t or the fast ensemble",
    )


def _from_afar(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        "climbs from afar lead further",
        look.from_afar(),
        f"APGD of 100 steps in balls that shrink from {WIDEST:g} eps",
        "the slopes around the clean images mislead, and AutoAttack's climbs with them: add the fast ensemble, or "
        f"apgd-ce-{look.threat.norm}:widest={WIDEST:g}",
    )


def _more_effort(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]]) -> FailureIndicator:
    return _outdone(
        look,
        attacks,
        "more effort still helps",
        look.right("longer pgd", PGD(look.threat.norm, look.threat.eps, steps=100, restarts=2)),
        "PGD of 100 steps and 2 restarts",
        "the attack had not converged: the robust accuracy of a longer one will be lower",
    )


def _named(look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]], costs: Mapping[str, int]) -> dict[str, str]:
    pgd = look.pgd()
    found = {}
    for label, (attack, shares) in attacks.items():
        cost = costs.get(label, attack.cost)
        if cost is not None and cost <= 1:  # one step is weaker than twenty, and nobody thinks otherwise
            continue
        right = torch.as_tensor(shares[: len(pgd)] >= 0.5).to(pgd.device)
        if _more(right, pgd):
            found[label] = (
                f"it leaves {_percent(right)} of {len(pgd)} images right where PGD of 20 steps on the model itself "
                f"leaves {_percent(pgd)}"
            )
    return found


def _weaker(
    look: _Look, attacks: Mapping[str, tuple[Attack, np.ndarray]], costs: Mapping[str, int]
) -> FailureIndicator:
    found = _named(look, attacks, costs)
    return FailureIndicator(
        "weaker than a short attack",
        bool(found),
        "; ".join(f"{label}: {told}" for label, told in found.items())
        or f"no attack leaves clearly more right than PGD of 20 steps ({_percent(look.pgd())})",
        "that attack failed on this model, or its steps do not reach the ball's edge: its robust accuracy is no "
        "property of the model",
    )
