"""Run attacks on a model: per-sample outcomes, each adversarial image verified."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

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
    Prepared,
    QueryCount,
    answers,
    ask,
    count_queries,
    eval_mode,
    prepare,
)
from robgib.options import Context
from robgib.runtime import Progress, SampleRNG
from robgib.statistics import sign_test

__all__ = [
    "AttackResult",
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
    if not isinstance(model, Prepared):
        model = prepare(model, x, batch_size=batch_size, device=device)
    if clean is None:
        clean = answers(model, x, y, seed=seed, device=device)
    elif not isinstance(clean, Answers):
        clean = Answers(clean, (clean == y.numpy()).astype(float))
    net, size = model.model, model.batch_size
    index = np.arange(len(x)) if index is None else np.asarray(index)
    prediction, right = clean.prediction.astype(np.int64), clean.right.astype(float)
    coarse = right.copy()
    sizes = {norm: np.zeros(len(x)) for norm in ("linf", "l2")}
    todo = np.flatnonzero(right > 0)
    nearest = np.where(right > 0, np.inf, 0.0)
    kept: dict[int, np.ndarray] = {}
    done, told = 0, time.monotonic()
    pictured = x.ndim == 4
    began = written = time.monotonic()
    former = parts.read() if parts else None
    broken = 0
    if former is not None:
        prediction, right, coarse, nearest = (former[n] for n in ("prediction", "right", "coarse", "nearest"))
        sizes = {norm: former[norm] for norm in sizes}
        kept = dict(zip(former["picked"].tolist(), former["pictures"], strict=True))
        done, broken, began = former["done"], former["broken"], began - former["seconds"]
    start = done

    def keep() -> None:
        """Put away all that would be needed to go on."""
        if parts:
            parts.write(
                {
                    "prediction": prediction,
                    "right": right,
                    "coarse": coarse,
                    "nearest": nearest,
                    **sizes,
                    "picked": np.array(list(kept), dtype=np.int64),
                    "pictures": np.stack(list(kept.values())) if kept else np.zeros(0),
                    "done": done,
                    "broken": broken + fast.broken + plain.broken,
                    "seconds": time.monotonic() - began,
                    "notes": [*notes, *_said(caught, prefix)],
                    "passes": [passes.forward, passes.backward],
                    **{f"random/{name}": value for name, value in random_state(device).items()},
                }
            )

    def watch() -> None:
        nonlocal told
        if progress and time.monotonic() - told > 0.2:
            told = time.monotonic()
            progress(label, done, len(todo), f"{passes.forward:,} passes")

    def find(climbed: nn.Module, images: Tensor, labels: Tensor, numbers: SampleRNG) -> object:
        """What the attack finds; modes that it leaves are put back before anything is asked of the model."""
        look = attack.find if isinstance(attack, MinimumNormAttack) else attack.perturb
        with running(label, net):
            # Copies: what an attack writes into its images must not move the centre of the ball.
            found = look(climbed, images.clone(), labels.clone(), numbers)
        if left := before.modes():
            before.restore_modes()
            notes.append(f"it left the model in training mode ({left[0] or type(net).__name__}): that was put back")
        return found

    prefix = f"{getattr(attack, 'label', label)}: "
    with (
        eval_mode(net),
        eval_mode(model.quick),
        unchanged([net, model.quick], label, attack.doubted) as before,
        seeded(seed, device),
        _heard(prefix) as (notes, caught),
        count_queries(net, model.quick) as passes,
    ):
        quick = model.quick
        if attack.pooled and quick is not net and done < len(todo):
            count = min(len(todo), max(_CHECKED[0], min(_CHECKED[1], len(todo) // 32)))
            some = todo[np.linspace(0, len(todo) - 1, count).astype(int)]
            off = _misleads(model, x[some].to(device), y[some].to(device), attack.threat)
            if off:
                quick = net
                notes.append(off)
        draws = attack.eot or (_DRAWS if model.random else 1)
        judge = BatchedModel(net, size, watch=watch)
        plain = BatchedModel(net, size, watch=watch, random=model.random, draws=draws)
        fast = BatchedModel(quick, size, model.precision, watch, model.random, draws)
        climbed = fast if attack.pooled else plain if draws > 1 else net
        pool = max(size, min(_BATCHES * size, _POOL // max(1, x[:1].numel()))) if attack.pooled else size
        if former is not None:
            notes[:] = former["notes"]
            passes.forward, passes.backward = former["passes"]
            drawn = {name.removeprefix("random/"): v for name, v in former.items() if name.startswith("random/")}
            put_random_state(drawn, device)
        for start in range(done, len(todo), pool):
            rows = todo[start : start + pool]
            batch, labels, numbers = x[rows].to(device), y[rows].to(device), SampleRNG(seed, index[rows])
            found = find(climbed, batch, labels, numbers)
            with _judging(model, seed, start, device):
                judged = _judge(attack, label, judge, found, batch, labels, model.draws)
            if attack.pooled and quick is not net:
                with torch.no_grad():
                    lost = ((fast(judged.found).argmax(1) != labels) & (judged.answer == labels)).nonzero().squeeze(1)
                if len(lost):
                    numbers = SampleRNG(seed, index[rows][lost.cpu().numpy()])
                    again = find(plain, batch[lost], labels[lost], numbers)
                    judged.put(lost, _judge(attack, label, judge, again, batch[lost], labels[lost], model.draws))
            fooled = judged.answer != labels
            inside = (judged.image == judged.found).flatten(1).all(1)
            prediction[rows] = torch.where(inside, judged.answer, labels).cpu().numpy()
            right[rows] = np.where(inside.cpu().numpy(), judged.right.cpu().numpy(), clean.right[rows])
            coarse[rows] = right[rows]
            if pictured:
                with _judging(model, seed + 1, start, device):
                    coarse[rows] = _after_rounding(judge, judged.image, labels, right[rows], model.draws)
            reach = attack.threat.distance(judged.found, batch)
            nearest[rows] = torch.where(fooled, reach, float("inf")).cpu().numpy()
            for norm, values in sizes.items():
                values[rows] = distance(judged.image, batch, norm).cpu().numpy()
            if len(kept) < pictures:
                for row, picture in zip(rows, judged.image, strict=True):
                    if len(kept) < pictures and prediction[row] != int(y[row]):
                        kept[int(row)] = picture.cpu().numpy()
            done = start + len(rows)
            if progress:
                progress(label, done, len(todo), f"{passes.forward:,} passes")
            if time.monotonic() - written > _KEPT and done < len(todo):
                keep()
                written = time.monotonic()
        if start < len(todo) or former is None:
            keep()
        broken += fast.broken + plain.broken
    steps, size_of_step = getattr(attack, "steps", None), getattr(attack, "step_size", None)
    if isinstance(steps, int) and isinstance(size_of_step, float):
        note = reach_note(steps, size_of_step, attack.threat.eps)
        notes += [note.rstrip(".")] if note else []
    if broken:
        asked = max(passes.backward, broken)
        notes.append(
            f"gradients were not finite at {broken:,} of {asked:,} images; such entries counted as 0, and a way around "
            "the operation that makes them could find more"
        )
    return AttackResult(
        prediction,
        right,
        coarse,
        sizes["linf"],
        sizes["l2"],
        nearest,
        kept,
        passes,
        time.monotonic() - began,
        tuple(dict.fromkeys(notes)),
    )


_COUNTED = 4  # samples on which an attack's passes are counted


def gradient_cost(
    model: Prepared, x: Tensor, y: Tensor, clean: Answers, attack: Attack, label: str, context: Context
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


def _misleads(model: Prepared, x: Tensor, y: Tensor, threat: ThreatModel) -> str:
    """Whether climbing the faster form leads to less than climbing the model: a sentence, or nothing.

    A few steps from the clean images ``x`` (N, …) on either form; the model itself says by its margin which led
    further, sample by sample.
    """
    ends = []
    for net in (model.model, model.quick):
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
def _judging(model: Prepared, seed: int, start: int, device: torch.device | str) -> Iterator[None]:
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
    prepared = model if isinstance(model, Prepared) else prepare(model, x, batch_size=batch_size, device=device)
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
