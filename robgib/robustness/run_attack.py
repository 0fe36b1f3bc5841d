"""Run attacks on a model: per-sample outcomes, each adversarial image verified."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robgib.attacks.base import (
    Attack,
    MinimumNormAttack,
    images_and_labels,
    projected_gradient_ascent,
    reach_note,
    running,
    unchanged,
    verified,
)
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import ThreatModel, distance, per_sample, within
from robgib.errors import NoGradientError, RobGIBWarning
from robgib.files import Parts
from robgib.models.adapt import put_random_state, random_state, seeded
from robgib.models.inference import (
    _DRAWS,
    Answers,
    BatchedModel,
    PreparedModel,
    QueryCount,
    answers,
    ask,
    count_queries,
    eval_mode,
    prepare,
)
from robgib.models.state import State
from robgib.options import Context
from robgib.runtime import Progress, SampleRNG
from robgib.statistics import sign_test

__all__ = [
    "AttackResult",
    "AttackState",
    "accuracy_curve",
    "after",
    "curve_points",
    "gradient_cost",
    "in_8_bits",
    "joined",
    "run_attack",
]

_POOL = 2**24  # pixels that an attack holds at once, at most
_BATCHES = 16  # that it holds at once: survivors then leave one in sixteen ragged, and the bar still moves
_KEPT = 20.0  # seconds after which an attack that goes on puts away what it has
_JUDGE = 20  # sets its seeds apart from those of attacks
_LEVEL = 0.01  # of the test that tells a faster form that misleads from rounding
_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0)  # of an attack's eps, at which a curve is measured too
_CHECKED = (16, 32)  # samples, at least and at most, on which that is looked at: one in 32 of those attacked


@dataclass(frozen=True)
class AttackResult:
    """What one attack did to N samples. Samples that were wrong beforehand are not attacked.

    Attributes:
        prediction: adversarial prediction (N,), int64; -1 where the model has no answer (see :class:`Answers`).
        right: share (N,) of the draws in which the model labels the adversarial image right, 0 or 1 for a model that
            does not answer at random; a sample that was wrong beforehand keeps its share on the clean image.
        right_8bit: the same with adversarial images rounded to 255ths, as files of 8 bits keep them.
        linf: perturbation size in L-infinity (N,).
        l2: perturbation size in L2 (N,).
        distance: distance (N,), in the attack's norm, of the nearest image found that the model does not label right,
            also outside the ball if the attack looks there; 0 for samples wrong beforehand, inf where none was found.
        pictures: adversarial images of the first fooled samples, by row.
        passes: images that went through the model, and gradients that came back, all told.
        seconds: that it took.
        notes: what must be known beside the figure, a sentence each.
    """

    prediction: np.ndarray
    right: np.ndarray
    right_8bit: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    distance: np.ndarray
    pictures: dict[int, np.ndarray]
    passes: QueryCount
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def after(before: AttackResult, found: AttackResult) -> AttackResult:
    """What two attacks of a cascade did together: samples that the first did more to keep what it found."""
    first = (before.right == 0) | (before.right < found.right)

    def kept(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.where(first, one, two)

    fields = ("prediction", "right", "right_8bit", "linf", "l2")
    return replace(
        found,
        **{name: kept(getattr(before, name), getattr(found, name)) for name in fields},  # type: ignore[arg-type]
        distance=np.where(before.right == 0, before.distance, np.minimum(before.distance, found.distance)),
        notes=tuple(dict.fromkeys((*before.notes, *found.notes))),
    )


def joined(one: AttackResult, two: AttackResult) -> AttackResult:
    """What an attack did to samples, and to those that follow them."""
    fields = ("prediction", "right", "right_8bit", "linf", "l2", "distance")
    count = len(one.right)
    passes = (one.passes, two.passes)
    return AttackResult(
        **{name: np.concatenate([getattr(one, name), getattr(two, name)]) for name in fields},
        pictures={**one.pictures, **{row + count: picture for row, picture in two.pictures.items()}},
        passes=QueryCount(sum(p.forward for p in passes), sum(p.backward for p in passes)),
        seconds=one.seconds + two.seconds,
        notes=tuple(dict.fromkeys((*one.notes, *two.notes))),
    )


def run_attack(
    model: object,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    label: str = "attack",
    clean: np.ndarray | Answers | None = None,
    index: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    pictures: int = 0,
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attack the samples that the model labels right.

    The attack may climb a faster form of the model; the model itself, in float32, decides who is fooled, and a sample
    that fooled the faster form alone is attacked again on the model. On some samples a few steps are taken on both
    forms beforehand; where those on the faster form lead to less, the model itself is attacked, and a note says so.

    A model that answers at random is attacked through the average of ``attack.eot`` draws (20 where that is None), and
    judged by 20 draws of its own on each adversarial image. All random numbers, the model's too, follow from ``seed``.

    Args:
        model: classifier on ``device``, or what :func:`prepare` made of it.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attack: the attack with its threat model.
        label: name for messages and progress.
        clean: clean predictions (N,), or :func:`answers`; None asks the model.
        index: each sample's own number (N,), which with ``seed`` fixes its random numbers.
        seed: of the attack's random numbers, and the model's.
        batch_size: images at once; None finds it.
        device: where the model is.
        pictures: how many adversarial images of fooled samples to keep.
        parts: where what is found is kept, at intervals and at the end. What is there of the same attack is gone on
            from: the outcome is that of an attack that was not interrupted.
        progress: called as the attack goes on.

    Raises:
        AttackContractError: the attack returned a wrong shape, or an image outside the ball or the box, or it changed
            the model (which is mended; a mode that it left is put back before its images are judged, and noted).
        RobGIBError: eps is larger than the box, images or labels are no such, or whatever the attack or the model
            raises.
    """
    x, y = images_and_labels(x, y)
    if len(x):
        attack.threat.check(x[0].numel())
    if not isinstance(model, PreparedModel):
        model = prepare(model, x, batch_size=batch_size, device=device)
    if clean is None:
        clean = answers(model, x, y, seed=seed, device=device)
    elif not isinstance(clean, Answers):
        clean = Answers(clean, (clean == y.numpy()).astype(float))
    index = np.arange(len(x)) if index is None else np.asarray(index)
    state = AttackState.begin(clean, pictures)
    former = parts.read() if parts else None
    if former is not None:
        state.restore(former)
    run = _Run(model, x, y, attack, label, index, seed, torch.device(device), state, progress)
    run.go(parts, former)
    return state.result()


@dataclass
class AttackState:
    """An attack under way: what it did to each of N samples so far, and which samples it has still to attack.

    Attributes:
        arrays: as in :class:`AttackResult`, by name; samples that were not attacked yet are as on the clean image.
        clean: the model's answers to the clean images.
        waiting: rows of the samples that are attacked, those that the model labels right.
        done: how many of these have been attacked.
        most: how many adversarial images to keep.
        broken: gradients so far that were not finite.
        passes: through the model so far.
        notes: sentences so far.
        began: when it began, less what earlier tries took.
    """

    arrays: dict[str, np.ndarray]
    clean: Answers
    waiting: np.ndarray
    most: int
    done: int = 0
    broken: int = 0
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    passes: QueryCount = field(default_factory=QueryCount)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, clean: Answers, most: int) -> AttackState:
        """The state before the first sample is attacked; ``most`` images of fooled samples will be kept."""
        right = clean.right.astype(float)
        arrays = {
            "prediction": clean.prediction.astype(np.int64),
            "right": right,
            "right_8bit": right.copy(),
            "linf": np.zeros(len(right)),
            "l2": np.zeros(len(right)),
            "distance": np.where(right > 0, np.inf, 0.0),
        }
        return cls(arrays, clean, np.flatnonzero(right > 0), most)

    def restore(self, former: Mapping[str, Any]) -> None:
        """Go on from what :meth:`kept` gave."""
        self.arrays = {name: former[name] for name in self.arrays}
        self.pictures = dict(zip(former["picked"].tolist(), former["pictures"], strict=True))
        self.done, self.broken = former["done"], former["broken"]
        self.passes.forward, self.passes.backward = former["passes"]
        self.notes = list(former["notes"])
        self.began -= former["seconds"]

    def kept(self, notes: Sequence[str], broken: int, random: Mapping[str, Any]) -> dict[str, Any]:
        """All that would be needed to go on: with the notes, broken gradients and random state of this try."""
        return {
            **self.arrays,
            "picked": np.array(list(self.pictures), dtype=np.int64),
            "pictures": np.stack(list(self.pictures.values())) if self.pictures else np.zeros(0),
            "done": self.done,
            "broken": self.broken + broken,
            "seconds": time.monotonic() - self.began,
            "notes": list(notes),
            "passes": [self.passes.forward, self.passes.backward],
            **{f"random/{name}": value for name, value in random.items()},
        }

    def next_rows(self, count: int) -> np.ndarray:
        """The next rows to attack, ``count`` at most."""
        return self.waiting[self.done : self.done + count]

    def record(
        self, rows: np.ndarray, judged: _Judged, x: Tensor, y: Tensor, right_8bit: np.ndarray, threat: ThreatModel
    ) -> None:
        """Enter what an attack found of some rows: their images ``x`` and labels ``y`` are on the device."""
        inside = (judged.image == judged.found).flatten(1).all(1)
        fooled = judged.answer != y
        found = {
            "prediction": torch.where(inside, judged.answer, y),
            "distance": torch.where(fooled, threat.distance(judged.found, x), float("inf")),
            "linf": distance(judged.image, x, "linf"),
            "l2": distance(judged.image, x, "l2"),
        }
        for name, values in found.items():
            self.arrays[name][rows] = values.cpu().numpy()
        self.arrays["right"][rows] = self.right_within(rows, judged)
        self.arrays["right_8bit"][rows] = right_8bit
        wrong = (self.arrays["prediction"][rows] != y.cpu().numpy()).nonzero()[0]
        for place in wrong[: max(0, self.most - len(self.pictures))]:
            self.pictures[int(rows[place])] = judged.image[place].cpu().numpy()
        self.done += len(rows)

    def right_within(self, rows: np.ndarray, judged: _Judged) -> np.ndarray:
        """Shares (n,) of right answers: those to what lies in the ball; elsewhere those to the clean image."""
        inside = (judged.image == judged.found).flatten(1).all(1).cpu().numpy()
        within_ball: np.ndarray = np.where(inside, judged.right.cpu().numpy(), self.clean.right[rows])
        return within_ball

    def result(self) -> AttackResult:
        """What the attack did, when all samples have been attacked."""
        return AttackResult(
            **self.arrays,
            pictures=self.pictures,
            passes=self.passes,
            seconds=time.monotonic() - self.began,
            notes=tuple(dict.fromkeys(self.notes)),
        )


class _Forms:
    """The forms of one model that an attack and its judge call, with the draws of a model that answers at random."""

    def __init__(self, model: PreparedModel, attack: Attack, fused: nn.Module, watch: Callable[[], None]) -> None:
        net, size = model.model, model.batch_size
        draws = attack.eot or (_DRAWS if model.random else 1)
        self.judge = BatchedModel(net, size, watch=watch)
        self.plain = BatchedModel(net, size, watch=watch, random=model.random, draws=draws)
        self.fast = BatchedModel(fused, size, model.precision, watch, model.random, draws)
        self.is_fused = attack.pooled and fused is not net
        self.attacked = self.fast if attack.pooled else self.plain if draws > 1 else net

    @property
    def broken(self) -> int:
        """Gradients that were not finite."""
        return self.fast.broken + self.plain.broken


@dataclass
class _Run:
    """One call of :func:`run_attack`."""

    model: PreparedModel
    x: Tensor
    y: Tensor
    attack: Attack
    label: str
    index: np.ndarray
    seed: int
    device: torch.device
    state: AttackState
    progress: Progress | None
    _shown: float = field(default_factory=time.monotonic)

    def go(self, parts: Parts | None, former: Mapping[str, Any] | None) -> None:
        """Attack all samples that wait, and keep what is found."""
        net, state = self.model.model, self.state
        prefix = f"{getattr(self.attack, 'label', self.label)}: "
        with (
            eval_mode(net),
            eval_mode(self.model.fused),
            unchanged([net, self.model.fused], self.label, self.attack.doubted) as before,
            seeded(self.seed, self.device),
            _heard(prefix) as (notes, caught),
            count_queries(net, self.model.fused) as passes,
        ):
            fused, note = self._fused()
            notes += [note] if note else []
            if former is not None:
                notes[:] = state.notes
                passes.forward, passes.backward = state.passes.forward, state.passes.backward
                drawn = {name.removeprefix("random/"): v for name, v in former.items() if name.startswith("random/")}
                put_random_state(drawn, self.device)
            state.passes = passes
            forms = _Forms(self.model, self.attack, fused, self._watch)

            def keep() -> None:
                if parts:
                    every = [*notes, *_said(caught, prefix)]
                    parts.write(state.kept(every, forms.broken, random_state(self.device)))

            written, begun = time.monotonic(), state.done
            while len(rows := state.next_rows(self._pool())):
                self._attack(rows, forms, before, notes)
                if self.progress:
                    self.progress(self.label, state.done, len(state.waiting), f"{passes.forward:,} passes")
                if time.monotonic() - written > _KEPT and state.done < len(state.waiting):
                    keep()
                    written = time.monotonic()
            if begun < state.done or former is None:
                keep()
            state.broken += forms.broken
        state.notes = [*notes, *self._limits()]

    def _fused(self) -> tuple[nn.Module, str]:
        """The form to attack: the fused one, or the model itself where steps on the fused one lead to less; a note."""
        state, net = self.state, self.model.model
        left = len(state.waiting) - state.done
        if not self.attack.pooled or self.model.fused is net or not left:
            return self.model.fused, ""
        waiting = state.waiting
        count = min(len(waiting), max(_CHECKED[0], min(_CHECKED[1], len(waiting) // 32)))
        some = waiting[np.linspace(0, len(waiting) - 1, count).astype(int)]
        note = _misleads(self.model, self.x[some].to(self.device), self.y[some].to(self.device), self.attack.threat)
        return (net if note else self.model.fused), note

    def _pool(self) -> int:
        """How many samples the attack gets at once."""
        size = self.model.batch_size
        return max(size, min(_BATCHES * size, _POOL // max(1, self.x[:1].numel()))) if self.attack.pooled else size

    def _attack(self, rows: np.ndarray, forms: _Forms, before: State, notes: list[str]) -> None:
        """Attack some rows, judge what was found, and record it."""
        start, draws = self.state.done, self.model.draws
        x, y = self.x[rows].to(self.device), self.y[rows].to(self.device)
        found = self._find(forms.attacked, x, y, SampleRNG(self.seed, self.index[rows]), before, notes)
        with _judging(self.model, self.seed, start, self.device):
            judged = _judge(self.attack, self.label, forms.judge, found, x, y, draws)
        if forms.is_fused:
            with torch.no_grad():
                misjudged = (forms.fast(judged.found).argmax(1) != y) & (judged.answer == y)
            lost = misjudged.nonzero().squeeze(1)
            if len(lost):  # they fool the fused form alone
                numbers = SampleRNG(self.seed, self.index[rows][lost.cpu().numpy()])
                again = self._find(forms.plain, x[lost], y[lost], numbers, before, notes)
                judged.put(lost, _judge(self.attack, self.label, forms.judge, again, x[lost], y[lost], draws))
        right_8bit = self.state.right_within(rows, judged)
        if self.x.ndim == 4:
            with _judging(self.model, self.seed + 1, start, self.device):
                right_8bit = _after_rounding(forms.judge, judged.image, y, right_8bit, draws)
        self.state.record(rows, judged, x, y, right_8bit, self.attack.threat)

    def _find(
        self, model: nn.Module, x: Tensor, y: Tensor, numbers: SampleRNG, before: State, notes: list[str]
    ) -> object:
        """What the attack finds; modes that it leaves are put back before anything is asked of the model."""
        attack, net = self.attack, self.model.model
        look = attack.find if isinstance(attack, MinimumNormAttack) else attack.perturb
        with running(self.label, net):
            # Copies: what an attack writes into its images must not move the centre of the ball.
            found = look(model, x.clone(), y.clone(), numbers)
        if left := before.modes():
            before.restore_modes()
            notes.append(f"it left the model in training mode ({left[0] or type(net).__name__}): that was put back")
        return found

    def _watch(self) -> None:
        """Show progress while an attack runs, five times a second at most."""
        if self.progress and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            count = f"{self.state.passes.forward:,} passes"
            self.progress(self.label, self.state.done, len(self.state.waiting), count)

    def _limits(self) -> list[str]:
        """What must be known beside the figure: steps that cannot reach the ball's edge, gradients not finite."""
        state, limits = self.state, []
        steps, length = getattr(self.attack, "steps", None), getattr(self.attack, "step_size", None)
        if isinstance(steps, int) and isinstance(length, float):
            note = reach_note(steps, length, self.attack.threat.eps)
            limits += [note.rstrip(".")] if note else []
        if state.broken:
            total = max(state.passes.backward, state.broken)
            limits.append(
                f"gradients were not finite at {state.broken:,} of {total:,} images; such entries counted as 0, and a "
                "way around the operation that makes them could find more"
            )
        return limits


_COUNTED = 4  # samples on which an attack's passes are counted


def gradient_cost(
    model: PreparedModel, x: Tensor, y: Tensor, clean: Answers, attack: Attack, label: str, context: Context
) -> int:
    """Return about how many gradients a sample an attack takes, counted on a few samples that the model labels right.

    An attack that fails on them fails again where it is run, which says why: here it costs one.
    """
    some = np.flatnonzero(clean.right > 0)[:_COUNTED]
    if not len(some):
        return 1
    held = Answers(clean.prediction[some], clean.right[some])
    try:
        found = run_attack(model, x[some], y[some], attack, label=label, clean=held, index=some, seed=context.seed,
                           device=context.device)  # fmt: skip
    except Exception:
        return 1
    return max(1, round(found.passes.cost / 3 / len(some)))  # a gradient comes with a pass forward: three together


@contextmanager
def _heard(name: str) -> Iterator[tuple[list[str], list[warnings.WarningMessage]]]:
    """Collect what attacks warn of (:class:`RobGIBWarning`), less their name; other warnings go their own way.

    Yields:
        The notes, and what was warned of so far, which becomes notes at the end.
    """
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RobGIBWarning)
            yield notes, caught
    finally:
        notes += _said(caught, name)
        for warning in caught:
            if not issubclass(warning.category, RobGIBWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _said(caught: Sequence[warnings.WarningMessage], name: str) -> list[str]:
    ours = (w for w in caught if issubclass(w.category, RobGIBWarning))
    return [str(w.message).removeprefix(name).rstrip(".") for w in ours]


def _misleads(model: PreparedModel, x: Tensor, y: Tensor, threat: ThreatModel) -> str:
    """Whether climbing the faster form leads to less than climbing the model: a sentence, or nothing.

    A few steps from the clean images ``x`` (N, …) on either form; the model itself says by its margin which led
    further, sample by sample.
    """
    ends = []
    for net in (model.model, model.fused):
        housed = BatchedModel(net, model.batch_size)
        try:
            ends.append(
                projected_gradient_ascent(
                    housed,
                    x,
                    Objective.untargeted(y, "margin"),
                    threat,
                    start=x,
                    steps=5,
                    step_size=threat.eps / 2,
                    keep="last",
                )
            )
        except NoGradientError:
            return ""  # whoever attacks with gradients will say so
    judge = BatchedModel(model.model, model.batch_size)
    with torch.no_grad():
        logits = [judge(images) for images in ends]
    own, other = (Objective.untargeted(y, "margin").value(held) for held in logits)
    step = 1e-3 * logits[0].abs().amax(1)
    ahead, behind = int((own > other + step).sum()), int((other > own + step).sum())
    if sign_test(ahead, behind) > _LEVEL or ahead < 0.2 * len(x):
        return ""
    return (
        f"steps on the faster form of the network led less far than on the network itself on {ahead} of {len(x)} "
        "images: the network itself was attacked"
    )


@dataclass
class _Judged:
    """What an attack found (N, …), what of it lies in the ball (else the clean image), and what the model says of it.

    ``answer`` (N,) and ``right`` (N,) are as in :class:`Answers`.
    """

    found: Tensor
    image: Tensor
    answer: Tensor
    right: Tensor

    def put(self, rows: Tensor, others: _Judged) -> None:
        """Put others' findings in the place of some rows."""
        for name in ("found", "image", "answer", "right"):
            getattr(self, name)[rows] = getattr(others, name)


def _judge(attack: Attack, label: str, model: nn.Module, found: object, x: Tensor, y: Tensor, draws: int) -> _Judged:
    """Hold what an attack found against its threat model, and ask the model."""
    image = found
    if isinstance(attack, MinimumNormAttack) and isinstance(found, Tensor) and found.shape == x.shape:
        low, high = attack.threat.box
        found = found.detach().to(x.dtype)
        inside = ((found >= low - 1e-6) & (found <= high + 1e-6)).flatten(1).all(1)
        found = torch.where(per_sample(inside, x), found, x)
        image = torch.where(per_sample(attack.threat.allows(found, x), x), found, x)
    image = verified(attack, label, image, x)
    if not isinstance(attack, MinimumNormAttack):
        found = image
    assert isinstance(found, Tensor)
    with torch.no_grad():
        return _Judged(found.clone(), image.clone(), *ask(model, found, y, draws))


@contextmanager
def _judging(model: PreparedModel, seed: int, start: int, device: torch.device | str) -> Iterator[None]:
    """Let a model that answers at random draw numbers of its own while it judges: an attack that seeds the global
    generators does not know them beforehand."""
    if not model.random:
        yield
        return
    own = np.random.SeedSequence([seed, start, _JUDGE]).generate_state(1, np.uint32)
    with seeded(int(own[0]), device):
        yield


def in_8_bits(images: Tensor) -> Tensor:
    """Images as files of 8 bits keep them."""
    return (images * 255).round() / 255


def _after_rounding(model: nn.Module, image: Tensor, y: Tensor, right: np.ndarray, draws: int) -> np.ndarray:
    """Share (N,) of right answers to adversarial images rounded to 255ths; those that fooled nobody stay right."""
    kept = right.copy()
    fooled = np.flatnonzero(right < 1)
    if len(fooled):
        with torch.no_grad():
            kept[fooled] = ask(model, in_8_bits(image[fooled]), y[fooled], draws)[1].cpu().numpy()
    return kept


def accuracy_curve(
    model: object,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    known: AttackResult,
    *,
    label: str = "attack",
    clean: np.ndarray | Answers,
    factors: Sequence[float] = _FACTORS,
    attacked: np.ndarray | None = None,
    index: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    parts: Parts | None = None,
    progress: Progress | None = None,
) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Return (eps, samples still right) at 0, at the attack's eps and at multiples of it, ascending; and distances.

    What is known is used: an image found at a distance fools at every eps above it, at whichever eps it was found, and
    a sample that ``known`` (the outcome at the attack's own eps) did not fool counts as right at every smaller one. A
    minimal-norm attack's distances give the whole curve without another step, for the samples that it was run on: in a
    cascade those that fell before it are given to it now (``attacked`` (N,) is false for them; None is true for all).
    Against a model that answers at random each eps is attacked anew, and samples count by their shares of right
    answers.

    Returns:
        The curve, and the distance (N,) of the nearest image found for each sample (see :class:`AttackResult`).
    """
    eps, truth = attack.threat.eps, y.numpy()
    index = np.arange(len(x)) if index is None else index
    held = clean if isinstance(clean, Answers) else Answers(clean, (clean == truth).astype(float))
    right = held.right > 0
    fooled_here = right & (known.right < 1)
    nearest = known.distance.copy()
    prepared = model if isinstance(model, PreparedModel) else prepare(model, x, batch_size=batch_size, device=device)
    random = prepared.random

    def attack_at(at: float, todo: np.ndarray) -> AttackResult:
        outcome = run_attack(
            prepared,
            x[todo],
            y[todo],
            attack.at(at),
            label=f"{label} at eps={at:.3g}",
            clean=Answers(held.prediction[todo], held.right[todo]),
            index=index[todo],
            seed=seed,
            device=device,
            parts=parts.at(f"{at:.9g}") if parts else None,
            progress=progress,
        )
        nearest[todo] = np.minimum(nearest[todo], outcome.distance)
        return outcome

    if isinstance(attack, MinimumNormAttack) and attacked is not None and not random:
        unseen = np.flatnonzero(right & ~attacked)
        if len(unseen):
            attack_at(eps, unseen)
    radii = _radii(attack.threat, x[0].numel() if len(x) else 0, factors)
    if random:
        curve: list[tuple[float, float]] = [(0.0, _count(held.right))]
        todo = np.flatnonzero(right)
        for at in radii:
            shares = held.right.copy()
            if at == eps:
                shares = known.right
            elif len(todo):
                shares[todo] = attack_at(at, todo).right
            curve.append((at, min(curve[-1][1], _count(shares))))
        return curve, nearest
    if not isinstance(attack, MinimumNormAttack):
        for at in radii:
            left = _standing(at, eps, right, fooled_here, nearest) & (fooled_here | (at > eps))
            if at != eps and left.any():
                attack_at(at, np.flatnonzero(left))
    return curve_points(attack.threat, x, held.right, known.right, nearest, factors), nearest


def curve_points(
    threat: ThreatModel,
    x: Tensor,
    clean: np.ndarray,
    known: np.ndarray,
    nearest: np.ndarray,
    factors: Sequence[float] = _FACTORS,
) -> list[tuple[float, float]]:
    """The curve (eps, samples still right) of a model that does not answer at random.

    Args:
        threat: of the attack.
        x: images (N, …).
        clean: which (N,) the model labels right.
        known: which (N,) it labels right at the attack's eps.
        nearest: distances (N,) of the nearest images found.
        factors: of eps, at which points lie too.
    """
    right, fooled = clean > 0, (clean > 0) & (known < 1)
    radii = _radii(threat, x[0].numel() if len(x) else 0, factors)
    return [
        (0.0, _count(clean)),
        *((at, _count(_standing(at, threat.eps, right, fooled, nearest))) for at in radii),
    ]


def _radii(threat: ThreatModel, pixels: int, factors: Sequence[float]) -> list[float]:
    """Where a curve's points lie, 0 apart: no ball is larger than the box."""
    widest = threat.widest(pixels) if pixels else threat.eps
    return sorted({min(threat.eps * factor, widest) for factor in (*factors, 1.0)})


def _standing(at: float, eps: float, right: np.ndarray, fooled: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Which samples (N,) stand at one radius, ``fooled`` being those that fell at the attack's own ``eps``."""
    reached = within(nearest, at)
    fell = fooled & reached if at < eps else fooled if at == eps else fooled | reached
    standing: np.ndarray = right & ~fell
    return standing


def _count(right: np.ndarray) -> float:
    """Samples right: a whole number, but where shares of draws are summed."""
    total = float(right.sum())
    return int(total) if total.is_integer() else total
