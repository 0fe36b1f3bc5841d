"""Run attacks on a model, verify each adversarial image, and record the outcome of each sample."""

from __future__ import annotations

import functools
import io
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
    TransformAttack,
    check_aim,
    check_masks,
    check_range,
    classes_named,
    cost_of,
    given_to,
    images_and_labels,
    projected_gradient_ascent,
    reach_note,
    running,
    unchanged,
    verified,
)
from robgib.attacks.carried import carried
from robgib.attacks.objective import Objective
from robgib.attacks.threat_model import NORMS, ThreatModel, distance, per_sample
from robgib.engines import Shared, packed, unpacked
from robgib.errors import NoGradientError, RobGIBWarning, number_text
from robgib.files import Parts
from robgib.models.adapt import seeded
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
    fuse_for_inference,
    one_thread_measures,
    prepare,
)
from robgib.models.state import State
from robgib.options import Context, WorkersProtocol, gather, or_default
from robgib.robustness.steps import TRACKED, RecordingModel, StepRecord
from robgib.runtime import SampleRNG, one_thread
from robgib.statistics import sign_test

__all__ = [
    "AttackResult",
    "AttackState",
    "Run",
    "after",
    "attack_together",
    "gradient_cost",
    "joined",
    "quantized",
    "run_attack",
    "run_together",
]

_SHARD = 128  # maximum number of samples of a shard
_POOL = 512  # the same, of attacks whose result for a sample depends on other samples
_DEVICE_SHARD = 512  # the same, on a GPU
_KEPT = 20.0  # seconds between two saves of a running attack
_LEAST_SHARD = 32  # minimum number of samples of a shard, where batches are smaller
_JUDGE, _DRAWN = 20, 21  # separate the seeds of the evaluation and of a shard from those of attacks
_LEVEL = 0.01  # level of the test that compares the fused form with the model
_CHECKED = (16, 32)  # minimum and maximum number of samples of that comparison: one in 32 of the attacked samples


@dataclass(frozen=True)
class AttackResult:
    """The result of one attack on N samples. Samples that were misclassified before are not attacked.

    Attributes:
        prediction: adversarial prediction (N,), int64; -1 if the output is not finite (see :class:`Answers`).
        right: share (N,) of draws in which the adversarial image is classified correctly; 0 or 1 for a deterministic
            model. A sample that was misclassified before keeps its share on the clean image.
        right_8bit: the same for adversarial images quantized to 8 bits.
        linf: perturbation size in L-infinity (N,).
        l2: perturbation size in L2 (N,).
        distance: smallest distance (N,), in the norm of the attack, of an adversarial image, including images outside
            the ball; 0 for samples misclassified before, inf if no adversarial image was found.
        pictures: adversarial images of the first fooled samples, by row.
        passes: number of forward and backward passes.
        seconds: run time.
        notes: limitations of the result, one sentence each.
        attacked: which samples (N,) the attack ran on; in a cascade, those that the attacks before it left.
        steps: margin and distance at every gradient of the first attacked samples.
        parameters: of a transformation, those that made each of the pictures (p,), by row.
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
    attacked: np.ndarray | None = None
    steps: StepRecord | None = None
    parameters: dict[int, np.ndarray] = field(default_factory=dict)


def after(before: AttackResult, later: AttackResult) -> AttackResult:
    """Combine the results of two attacks of a cascade: each sample keeps the result of the stronger attack."""
    first = (before.right == 0) | (before.right < later.right)

    def kept(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.where(first, one, two)

    fields = ("prediction", "right", "right_8bit", "linf", "l2")
    return replace(
        later,
        **{name: kept(getattr(before, name), getattr(later, name)) for name in fields},  # type: ignore[arg-type]
        distance=np.where(before.right == 0, before.distance, np.minimum(before.distance, later.distance)),
        notes=tuple(dict.fromkeys((*before.notes, *later.notes))),
    )


def joined(one: AttackResult, two: AttackResult) -> AttackResult:
    """Concatenate the results of an attack on two consecutive groups of samples."""
    fields = ("prediction", "right", "right_8bit", "linf", "l2", "distance", "attacked")
    count = len(one.right)
    passes = (one.passes, two.passes)
    return AttackResult(
        **{name: np.concatenate([getattr(one, name), getattr(two, name)]) for name in fields},
        pictures={**one.pictures, **{row + count: picture for row, picture in two.pictures.items()}},
        parameters={**one.parameters, **{row + count: values for row, values in two.parameters.items()}},
        passes=QueryCount(sum(p.forward for p in passes), sum(p.backward for p in passes)),
        seconds=one.seconds + two.seconds,
        notes=tuple(dict.fromkeys((*one.notes, *two.notes))),
        steps=one.steps,
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
    pictures: int = 0,
    context: Context | None = None,
    **fields: Any,
) -> AttackResult:
    """Attack the samples that the model classifies correctly.

    The attack may use a fused form of the model. The model itself, in float32, decides which samples are fooled, and a
    sample that fools only the fused form is attacked again on the model. Before the attack, a few ascent steps on some
    samples compare both forms. If ascent on the fused form is weaker, the model itself is attacked, with a note.

    The samples are attacked in shards of consecutive remaining samples. Their size depends on the model and the device
    alone, and each shard has its own random numbers: the result is the same whether one process or several compute the
    shards.

    An attack on a stochastic model uses the average over ``attack.eot`` draws (20 if None). Each adversarial image is
    evaluated by 20 further draws. All random numbers, including those of the model, depend on the context's seed.

    Args:
        model: classifier on the context's device, or the result of :func:`prepare`.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attack: the attack with its threat model.
        label: name for messages and progress.
        clean: clean predictions (N,), or the result of :func:`answers`; None calls the model.
        index: index (N,) of each sample, which with the seed determines its random numbers.
        pictures: number of adversarial images of fooled samples to keep.
        context: seed, device (by default the CPU), batch size, resume and progress
            (:class:`~robgib.options.Context`). If its ``parts`` store a part of the attack, the attack is resumed, and
            the outcome equals that of an uninterrupted attack.
        fields: fields of ``context`` by name, such as ``seed=1`` or ``batch_size=64``.

    Raises:
        AttackContractError: the attack returned a wrong shape, or an image outside the ball or the box, or it changed
            the model (which is restored; a changed training mode is only restored and noted).
        RobGIBError: eps is larger than the box, images or labels are invalid, or the attack or the model raised an
            error.
    """
    (context,) = gather("run_attack", fields, or_default("context", context, Context(device="cpu")))
    x, y = images_and_labels(x, y)
    if len(x):
        attack.threat.check(x[0].numel())
    check_range(x)
    check_aim(attack, x, label)
    if not isinstance(model, PreparedModel):
        model = prepare(model, x, batch_size=context.batch_size, device=context.device)
    if clean is None:
        # A label without a logit would count as an error of the model.
        clean = answers(model, x, y, classes=classes_named(x, y), seed=context.seed, device=context.device)
    elif not isinstance(clean, Answers):
        clean = Answers(clean, (clean == y.numpy()).astype(float))
    index = np.arange(len(x)) if index is None else np.asarray(index)
    state = AttackState.begin(clean, pictures, attack.threat.norm)
    (result,) = run_together([Run(model, x, y, attack, label, index, state, context)])
    if isinstance(result, Exception):
        raise result
    return result


def attack_together(
    model: PreparedModel,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    clean: Answers,
    pictures: int,
    contexts: Mapping[str, Context],
) -> dict[str, AttackResult | Exception]:
    """Run independent attacks as :func:`run_attack` does, and share the shards of all of them among the workers.

    Args:
        model: the prepared classifier.
        x: images (N, …) in [0, 1].
        y: labels (N,).
        attacks: the attacks by label.
        clean: the model's answers to the images.
        pictures: number of adversarial images of fooled samples to keep.
        contexts: the context of each attack, by label.

    Returns:
        By label, the result of each attack or the exception that ended it.
    """
    index = np.arange(len(x))
    runs = [
        Run(
            model,
            x,
            y,
            attack,
            label,
            index,
            AttackState.begin(clean, pictures, attack.threat.norm),
            contexts[label],
        )
        for label, attack in attacks.items()
    ]
    return dict(zip(attacks, run_together(runs), strict=True))


def run_together(runs: Sequence[Run]) -> list[AttackResult | Exception]:
    """Run independent attacks, whose shards the workers of the first one's context compute, if it has any.

    Returns:
        The result of each attack, or the exception that ended it.
    """
    workers = runs[0].context.workers if runs else None
    results: dict[int, AttackResult | Exception] = {}
    waiting: list[tuple[int, Shard]] = []
    for number, run in enumerate(runs):
        try:
            shards = run.begin()
            if workers is None or workers.engine.alone or len(runs) == len(shards) == 1:
                results[number] = run.compute(shards)
            else:
                waiting += [(number, shard) for shard in shards]
        except Exception as error:
            results[number] = error
    if workers is not None and waiting:
        _compute_elsewhere(runs, workers, waiting, results)
    return [results[n] if n in results else run.end() for n, run in enumerate(runs)]


def _compute_elsewhere(
    runs: Sequence[Run],
    workers: WorkersProtocol,
    waiting: Sequence[tuple[int, Shard]],
    results: dict[int, AttackResult | Exception],
) -> None:
    """Let workers compute shards, each of the run of its number; put the exceptions that end a run into ``results``."""
    calls = [(runs[number].sent_model(workers), runs[number].sent_attack, shard) for number, shard in waiting]
    for returned in workers.run(_attack_there, calls):
        number, shard = waiting[returned.number]
        if number in results:
            continue
        try:
            if returned.error is not None:
                raise returned.error
            runs[number].receive(shard, returned.value)
        except Exception as error:
            results[number] = error


@dataclass
class AttackState:
    """The state of a running attack: its results on N samples so far, and the samples that remain to be attacked.

    Attributes:
        arrays: arrays of :class:`AttackResult`, by name; samples not attacked yet have their clean results.
        clean: the model's answers to the clean images.
        waiting: rows of the samples to attack, those that the model classifies correctly.
        done: number of these that have been attacked.
        most: number of adversarial images to keep.
        broken: number of gradients so far that were not finite.
        passes: number of passes so far.
        notes: notes so far.
        steps: steps of the first of these samples.
        began: start time, minus the run time before a resume.
    """

    arrays: dict[str, np.ndarray]
    clean: Answers
    waiting: np.ndarray
    most: int
    steps: StepRecord
    done: int = 0
    broken: int = 0
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    parameters: dict[int, np.ndarray] = field(default_factory=dict)
    passes: QueryCount = field(default_factory=QueryCount)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, clean: Answers, most: int, norm: str) -> AttackState:
        """Return the initial state; ``most`` is the number of adversarial images to keep, ``norm`` the attack's."""
        right = clean.right.astype(float)
        arrays = {
            "prediction": clean.prediction.astype(np.int64),
            "right": right,
            "right_8bit": right.copy(),
            "linf": np.zeros(len(right)),
            "l2": np.zeros(len(right)),
            "distance": np.where(right > 0, np.inf, 0.0),
        }
        return cls(arrays, clean, np.flatnonzero(right > 0), most, StepRecord.begin(norm, np.zeros(0, np.int64)))

    def restore(self, former: Mapping[str, Any]) -> None:
        """Restore the state from the result of :meth:`kept`."""
        self.arrays = {name: former[name] for name in self.arrays}
        self.pictures, self.parameters = _pictures_of(former)
        self.done, self.broken = former["done"], former["broken"]
        if "steps/rows" in former:  # a part of an earlier version has none
            self.steps = StepRecord.restore(self.steps.norm, former)
        self.passes.forward, self.passes.backward = former["passes"]
        self.notes = list(former["notes"])
        self.began -= former["seconds"]

    def kept(self) -> dict[str, Any]:
        """Return all values needed to resume."""
        return {
            **self.arrays,
            **_kept_pictures(self.pictures, self.parameters),
            "done": self.done,
            "broken": self.broken,
            "seconds": time.monotonic() - self.began,
            "notes": self.notes,
            "passes": [self.passes.forward, self.passes.backward],
            **self.steps.kept(),
        }

    def record(self, rows: np.ndarray, found: ShardResult) -> None:
        """Record the results of some rows."""
        for name, values in found.arrays.items():
            self.arrays[name][rows] = values
        for place, picture in found.pictures.items():
            if len(self.pictures) < self.most:
                self.pictures[int(rows[place])] = picture
                if place in found.parameters:
                    self.parameters[int(rows[place])] = found.parameters[place]
        self.steps.extend(found.steps, rows)
        self.passes.forward += found.passes.forward
        self.passes.backward += found.passes.backward
        self.broken += found.broken
        self.notes = list(dict.fromkeys([*self.notes, *found.notes]))
        self.done += len(rows)

    def result(self) -> AttackResult:
        """Return the result, after all samples have been attacked."""
        return AttackResult(
            **self.arrays,
            pictures=self.pictures,
            parameters=self.parameters,
            passes=self.passes,
            seconds=time.monotonic() - self.began,
            notes=tuple(dict.fromkeys(self.notes)),
            attacked=self.clean.right > 0,
            steps=self.steps,
        )


def _kept_pictures(pictures: Mapping[int, np.ndarray], parameters: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Return pictures and the parameters that made them as arrays, for :func:`_pictures_of`."""
    kept = {
        "picked": np.array(list(pictures), dtype=np.int64),
        "pictures": np.stack(list(pictures.values())) if pictures else np.zeros(0),
    }
    return kept | ({"parameters": np.stack([parameters[row] for row in pictures])} if parameters else {})


def _pictures_of(kept: Mapping[str, Any]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Return the pictures and parameters of :func:`_kept_pictures`, by row."""
    rows = kept["picked"].tolist()
    parameters = dict(zip(rows, kept["parameters"], strict=True)) if "parameters" in kept else {}
    return dict(zip(rows, kept["pictures"], strict=True)), parameters


class _Forms:
    """The forms of one model that an attack and its evaluation call, with the draws of a stochastic model."""

    def __init__(self, model: PreparedModel, attack: Attack, fused: nn.Module, watch: Callable[[], None]) -> None:
        net, size = model.model, model.batch_size
        draws = attack.eot or (_DRAWS if model.random else 1)
        self.judge = BatchedModel(net, size, watch=watch)
        self.plain = BatchedModel(net, size, watch=watch, random=model.random, draws=draws)
        self.fused = RecordingModel(fused, size, model.precision, watch, model.random, draws)
        self.is_fused = attack.pooled and fused is not net
        self.attacked = self.fused if attack.pooled else self.plain if draws > 1 else net

    @property
    def broken(self) -> int:
        """Number of gradients that were not finite."""
        return self.fused.broken + self.plain.broken


@dataclass(frozen=True)
class Shard:
    """Some samples to attack, apart from all others.

    Attributes:
        start: number of samples that wait before them.
        rows: their rows (n,).
        index: index (n,) of each, which with the seed determines its random numbers.
        x: images (n, …).
        y: labels (n,).
        clean: the model's answers to the images.
        fused: whether the attack uses the fused form of the model.
        seed: seed of the run.
        label: name of the attack.
        pictures: number of adversarial images to return at most.
    """

    start: int
    rows: np.ndarray
    index: np.ndarray
    x: Tensor
    y: Tensor
    clean: Answers
    fused: bool
    seed: int
    label: str
    pictures: int


@dataclass(frozen=True)
class ShardResult:
    """The result of a shard: arrays as of :class:`AttackResult`, pictures and parameters by place, and the rest."""

    arrays: dict[str, np.ndarray]
    pictures: dict[int, np.ndarray]
    parameters: dict[int, np.ndarray]
    passes: QueryCount
    broken: int
    notes: tuple[str, ...]
    steps: StepRecord

    def kept(self) -> dict[str, Any]:
        """Return all values, for :meth:`restore`."""
        return {
            **{f"array/{name}": values for name, values in self.arrays.items()},
            **_kept_pictures(self.pictures, self.parameters),
            "passes": [self.passes.forward, self.passes.backward],
            "broken": self.broken,
            "notes": list(self.notes),
            **self.steps.kept(),
        }

    @classmethod
    def restore(cls, norm: str, kept: Mapping[str, Any]) -> ShardResult:
        """Return the result of :meth:`kept`."""
        arrays = {name.removeprefix("array/"): kept[name] for name in kept if name.startswith("array/")}
        passes = QueryCount(*kept["passes"])
        steps = StepRecord.restore(norm, kept)
        return cls(arrays, *_pictures_of(kept), passes, kept["broken"], tuple(kept["notes"]), steps)


@dataclass
class Run:
    """One attack on one model, as :func:`run_attack` documents it."""

    model: PreparedModel
    x: Tensor
    y: Tensor
    attack: Attack
    label: str
    index: np.ndarray
    state: AttackState
    context: Context
    _shown: float = field(default_factory=time.monotonic)
    _early: dict[int, tuple[Shard, ShardResult]] = field(default_factory=dict)
    _kept_early: set[int] = field(default_factory=set)
    _written: float = field(default_factory=time.monotonic)
    _now: QueryCount = field(default_factory=QueryCount)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return torch.device(self.context.device)

    def begin(self) -> list[Shard]:
        """Return the shards that remain, after reading what was stored."""
        state = self.state
        former = self.context.parts.read()
        if former is not None:
            state.restore(former)
        if state.done == len(state.waiting):
            if former is None:
                self._keep()
            return []
        with _attacking(self.model, self.attack, self.label, self.context.seed, self.device) as (notes, passes, _):
            fused, note = self._fused()
            notes += [note] if note else []
        if former is None:
            state.notes = notes
            state.passes.forward, state.passes.backward = passes.forward, passes.backward
        size, net = self._size(), self.model.model
        starts = range(state.done, len(state.waiting), size)
        shards = [self._shard(start, start + size, fused is not net) for start in starts]
        return [shard for shard in shards if not self._came_early(shard)]

    def _shard(self, start: int, stop: int, fused: bool) -> Shard:
        state = self.state
        rows = state.waiting[start:stop]
        clean = Answers(state.clean.prediction[rows], state.clean.right[rows])
        fields = (self.context.seed, self.label, state.most)
        return Shard(start, rows, self.index[rows], self.x[rows], self.y[rows], clean, fused, *fields)

    def compute(self, shards: Sequence[Shard]) -> AttackResult:
        """Compute shards in this process, and return the result of the attack."""
        for shard in shards:
            self.receive(shard, _attack_counted(self.model, self.attack, shard, self.device, self._watch))
        return self.end()

    def receive(self, shard: Shard, found: ShardResult) -> None:
        """Record the result of a shard, once those before it are recorded, and save the results now and then."""
        state = self.state
        self._early[shard.start] = (shard, found)
        while state.done in self._early:
            ready, its = self._early.pop(state.done)
            state.record(ready.rows, its)
        self._now = QueryCount()
        self.context.report(self.label, state.done, len(state.waiting), self._note())
        if time.monotonic() - self._written > _KEPT or state.done == len(state.waiting):
            self._keep()
            self._written = time.monotonic()

    def end(self) -> AttackResult:
        """Return the result, after all shards have been received."""
        self.state.notes += self._limits()
        return self.state.result()

    def sent_model(self, workers: WorkersProtocol) -> Shared:
        """Return the model as workers receive it."""
        model = self.model
        # A traced form cannot be sent: each process makes it again, from the same images.
        sent = (replace(model, fused=model.model), self.x[:16] if model.fused is not model.model else None)
        shared: Shared = workers.share_once(model, lambda: packed("the model", sent, _save))
        return shared

    @functools.cached_property
    def sent_attack(self) -> bytes:
        """The attack as workers receive it."""
        return packed(f"attack {self.label!r}", self.attack, _dump)

    def _keep(self) -> None:
        """Save the results, and those of shards that wait for others before them."""
        for start, (shard, found) in self._early.items():
            if start not in self._kept_early:
                self.context.parts.at("early", str(start)).write({"rows": shard.rows, **found.kept()})
                self._kept_early.add(start)
        self.context.parts.write(self.state.kept())

    def _came_early(self, shard: Shard) -> bool:
        """Whether the result of a shard was saved before those of the shards before it; it is then read."""
        former = self.context.parts.at("early", str(shard.start)).read()
        if former is None or not np.array_equal(former["rows"], shard.rows):
            return False
        self._early[shard.start] = (shard, ShardResult.restore(self.attack.threat.norm, former))
        self._kept_early.add(shard.start)
        return True

    def _fused(self) -> tuple[nn.Module, str]:
        """Return the form to attack, and a note if it is the model itself because the fused form is weaker."""
        state, net = self.state, self.model.model
        if not self.attack.pooled or self.model.fused is net:
            return self.model.fused, ""
        waiting = state.waiting
        count = min(len(waiting), max(_CHECKED[0], min(_CHECKED[1], len(waiting) // 32)))
        some = waiting[np.linspace(0, len(waiting) - 1, count).astype(int)]
        x, y = self.x[some].to(self.device), self.y[some].to(self.device)
        note = _fused_is_weaker(self.model, x, y, _ball(self.attack.threat))
        return (net if note else self.model.fused), note

    def _size(self) -> int:
        """Return the number of samples of a shard; it does not depend on the number of processes."""
        most = _DEVICE_SHARD if self.device.type == "cuda" else _SHARD
        if not self.attack.pooled:
            return min(self.model.batch_size, most)
        if not self.attack.batch_independent:
            return max(most, _POOL)
        return min(max(self.model.batch_size, _LEAST_SHARD), most)

    def _watch(self, passes: QueryCount) -> None:
        """Report progress during an attack, at most five times per second; ``passes`` are those of the shard so far."""
        self._now = passes
        if self.context.progress and time.monotonic() - self._shown > 0.2:
            self._shown = time.monotonic()
            state = self.state
            rows = min(self._size(), len(state.waiting) - state.done)
            under_way = int(_UNDER_WAY * rows * min(1.0, self._share(rows)))
            self.context.report(self.label, state.done + under_way, len(state.waiting), self._note())

    def _share(self, rows: int) -> float:
        """Return the approximate share of the attack that the rows under attack have behind them."""
        cost = cost_of(self.attack, self.label) or 0
        most = 3 * cost * rows  # a gradient and its forward pass count as three passes
        return self._now.cost / most if most else 0.0

    def _note(self) -> str:
        """Return the note of a progress report: the robust accuracy once all samples are attacked, and the passes."""
        state, right = self.state, self.state.arrays["right"]
        over = state.done >= len(state.waiting)
        robust = f"{right.mean():.1%} robust ({number_text(right.sum())}/{len(right)}), " if over else ""
        return f"{robust}{state.passes.forward + self._now.forward:,} passes"

    def _limits(self) -> list[str]:
        """Return notes on limitations: steps that cannot reach the edge of the ball, gradients that are not finite."""
        state, limits = self.state, []
        steps, length = getattr(self.attack, "steps", None), getattr(self.attack, "step_size", None)
        if isinstance(steps, int) and isinstance(length, float):
            note = reach_note(steps, length, self.attack.threat.eps)
            limits += [note.rstrip(".")] if note else []
        if state.broken:
            total = max(state.passes.backward, state.broken)
            limits.append(
                f"gradients were not finite for {state.broken:,} of {total:,} images; such entries were set to 0, and "
                "an attack that avoids the operation at fault may be stronger"
            )
        return limits


def _own_seed(seed: int, start: int) -> int:
    """Return the seed of the global generators for the shard that begins at ``start``."""
    return int(np.random.SeedSequence([seed, start, _DRAWN]).generate_state(1, np.uint32)[0])


def _save(value: Any, file: Any, pickler: Any) -> None:
    torch.save(value, file, pickle_module=pickler)


def _dump(value: Any, file: Any, pickler: Any) -> None:
    pickler.dump(value, file)


@functools.lru_cache(maxsize=2)
def _received(model: Shared, device: str) -> PreparedModel:
    """Return the model that was sent, on a device."""
    prepared: PreparedModel
    prepared, sample = torch.load(io.BytesIO(model.value()), map_location=device, weights_only=False)
    if sample is None:
        return prepared
    with eval_mode(prepared.model):
        return replace(prepared, fused=fuse_for_inference(prepared.model, sample.to(device)))


def _attack_there(device: str, model: Shared, attack: bytes, shard: Shard) -> ShardResult:
    """Compute a shard in another process."""
    prepared, kind = _received(model, device), unpacked(attack)
    with one_thread_measures(), one_thread():
        return _attack_counted(prepared, kind, shard, torch.device(device), lambda passes: None)


def _attack_counted(
    model: PreparedModel, attack: Attack, shard: Shard, device: torch.device, watch: Callable[[QueryCount], None]
) -> ShardResult:
    """Attack the samples of a shard, with its notes and passes; ``watch`` receives the passes so far at each call."""
    with _attacking(model, attack, shard.label, _own_seed(shard.seed, shard.start), device) as (notes, passes, before):
        look = functools.partial(_find, model, attack, shard, before, notes)
        found = _attack_shard(model, attack, shard, device, functools.partial(watch, passes), look)
    return replace(found, notes=tuple(notes), passes=passes)


@contextmanager
def _attacking(
    model: PreparedModel, attack: Attack, label: str, seed: int, device: torch.device
) -> Iterator[tuple[list[str], QueryCount, State]]:
    """Prepare a model for an attack and restore it afterwards.

    Yields:
        The notes, complete at the end, the passes, and the state of the model before.
    """
    net = model.model
    with (
        eval_mode(net),
        eval_mode(model.fused),
        unchanged([net, model.fused], label, attack.doubted) as before,
        seeded(seed, device),
        _collected_warnings(f"{getattr(attack, 'label', label)}: ") as notes,
        count_queries(net, model.fused) as passes,
    ):
        yield notes, passes, before


def _attack_shard(
    model: PreparedModel,
    attack: Attack,
    shard: Shard,
    device: torch.device,
    watch: Callable[[], None],
    look: Callable[[nn.Module, Tensor, Tensor, SampleRNG], object],
) -> ShardResult:
    """Attack the samples of a shard by ``look``, and evaluate the images; the caller counts the passes."""
    forms = _Forms(model, attack, model.fused if shard.fused else model.model, watch)
    x, y, draws = shard.x.to(device), shard.y.to(device), model.draws
    steps = StepRecord.begin(attack.threat.norm, np.arange(len(y))[: max(0, TRACKED - shard.start)])
    forms.fused.watching(steps, x, y)
    x_adv = look(forms.attacked, x, y, SampleRNG(shard.seed, shard.index))
    with _judging(model, shard.seed, shard.start, device):
        judged = _judge(attack, shard.label, forms.judge, x_adv, x, y, draws)
    if forms.is_fused:
        with torch.no_grad():
            misjudged = _reached(forms.fused(judged.found).argmax(1), x, y) & ~_reached(judged.answer, x, y)
        lost = misjudged.nonzero().squeeze(1)
        if len(lost):  # these images fool only the fused form
            numbers = SampleRNG(shard.seed, shard.index[lost.cpu().numpy()])
            again = look(forms.plain, x[lost], y[lost], numbers)
            judged.put(lost, _judge(attack, shard.label, forms.judge, again, x[lost], y[lost], draws))
    right = judged.right_within(shard.clean.right)
    right_8bit = right
    if x.ndim == 4:
        with _judging(model, shard.seed + 1, shard.start, device):
            right_8bit = _after_rounding(forms.judge, judged.image, x, y, right, draws)
    arrays = {**judged.columns(x, y), "right": right, "right_8bit": right_8bit}
    fooled = _reached(judged.answer, x, y) & judged.inside()
    steps.finish(fooled, judged.size)
    wrong = fooled.cpu().numpy().nonzero()[0]
    pictures = {int(place): judged.image[place].cpu().numpy() for place in wrong[: shard.pictures]}
    made = judged.parameters
    parameters = {} if made is None else {place: made[place].cpu().numpy() for place in pictures}
    return ShardResult(arrays, pictures, parameters, QueryCount(), forms.broken, (), steps)


def _find(
    model: PreparedModel,
    attack: Attack,
    shard: Shard,
    before: State,
    notes: list[str],
    attacked: nn.Module,
    x: Tensor,
    y: Tensor,
    numbers: SampleRNG,
) -> object:
    """Return the images of the attack. Training modes that it changed are restored before the evaluation."""
    look = (
        attack.find
        if isinstance(attack, MinimumNormAttack)
        else attack.find_parameters
        if isinstance(attack, TransformAttack)
        else attack.perturb
    )
    with running(shard.label, model.model):
        # The attack receives copies, so that in-place changes do not move the centre of the ball.
        x_adv = look(attacked, *given_to(attack, x, y), numbers)
    if changed := before.modes():
        before.restore_modes()
        where = changed[0] or type(model.model).__name__
        notes.append(f"it left the model in training mode ({where}): eval mode restored")
    return x_adv


_UNDER_WAY = 0.99  # share of their progress that samples under attack may show
_COUNTED = 4  # samples on which the passes of an attack are counted


def gradient_cost(
    model: PreparedModel, x: Tensor, y: Tensor, clean: Answers, attack: Attack, label: str, context: Context
) -> int:
    """Return the approximate number of gradients per sample of an attack, counted on a few samples.

    A failing attack costs 1 here. Its error is reported when it runs on all samples.
    """
    some = np.flatnonzero(clean.right > 0)[:_COUNTED]
    if not len(some):
        return 1
    clean_few = Answers(clean.prediction[some], clean.right[some])
    try:
        result = run_attack(
            model,
            x[some],
            y[some],
            attack,
            label=label,
            clean=clean_few,
            index=some,
            context=replace(context, parts=Parts(), progress=None, workers=None),
        )
    except Exception:
        return 1
    return max(1, round(result.passes.cost / 3 / len(some)))  # a gradient and its forward pass count as three passes


@contextmanager
def _collected_warnings(name: str) -> Iterator[list[str]]:
    """Collect the warnings of attacks (:class:`RobGIBWarning`) without their prefix; emit other warnings again.

    Yields:
        The notes, to which the warnings are added at the end.
    """
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RobGIBWarning)
            yield notes
    finally:
        notes += _messages(caught, name)
        for warning in caught:
            if not issubclass(warning.category, RobGIBWarning):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _messages(caught: Sequence[warnings.WarningMessage], name: str) -> list[str]:
    ours = (w for w in caught if issubclass(w.category, RobGIBWarning))
    return [str(w.message).removeprefix(name).rstrip(".") for w in ours]


def _ball(threat: ThreatModel) -> ThreatModel:
    """Return the threat model, or an L-inf ball in place of one without gradient steps."""
    return threat if threat.norm in NORMS else ThreatModel("linf", 8 / 255)


def _fused_is_weaker(model: PreparedModel, x: Tensor, y: Tensor, threat: ThreatModel) -> str:
    """Return a note if gradient ascent on the fused form is weaker than on the model, else an empty string.

    Both ascents take a few steps from the clean images ``x`` (N, …). The margin of the model itself, sample by sample,
    decides which one is stronger.
    """
    ends = []
    for net in (model.model, model.fused):
        wrapped = BatchedModel(net, model.batch_size)
        try:
            ends.append(
                projected_gradient_ascent(
                    wrapped,
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
            return ""  # the attack itself reports missing gradients
    judge = BatchedModel(model.model, model.batch_size)
    with torch.no_grad():
        logits = [judge(images) for images in ends]
    own, other = (Objective.untargeted(y, "margin").value(values) for values in logits)
    step = 1e-3 * logits[0].abs().amax(1)
    ahead, behind = int((own > other + step).sum()), int((other > own + step).sum())
    if sign_test(ahead, behind) > _LEVEL or ahead < 0.2 * len(x):
        return ""
    return (
        f"gradient ascent on the fused form of the network was weaker than on the network itself on {ahead} of "
        f"{len(x)} images: the network itself was attacked"
    )


@dataclass
class _Judged:
    """The images of an attack (N, …), those in the ball (else the clean image), and the model's answers to them.

    ``size`` (N,) is the distance of the found images; ``answer`` (N,) and ``right`` (N,) are as in :class:`Answers`.
    ``parameters`` (N, p) are those of a transformation.
    """

    found: Tensor
    image: Tensor
    size: Tensor
    answer: Tensor
    right: Tensor
    parameters: Tensor | None = None

    def inside(self) -> Tensor:
        """Whether each image found is in the ball (N,)."""
        return (self.image == self.found).flatten(1).all(1)

    def columns(self, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
        """Return predictions and distances from the clean images ``x``, by their name in :class:`AttackResult`."""
        columns = {
            "prediction": torch.where(self.inside(), self.answer, y),
            "distance": torch.where(_reached(self.answer, x, y), self.size, float("inf")),
            "linf": distance(self.image, x, "linf"),
            "l2": distance(self.image, x, "l2"),
        }
        return {name: values.cpu().numpy() for name, values in columns.items()}

    def right_within(self, clean: np.ndarray) -> np.ndarray:
        """Return shares (N,) of right answers, to the image if it is in the ball, else to the clean one (N,)."""
        within_ball: np.ndarray = np.where(self.inside().cpu().numpy(), self.right.cpu().numpy(), clean)
        return within_ball

    def put(self, rows: Tensor, others: _Judged) -> None:
        """Replace some rows by those of ``others``."""
        for name in ("found", "image", "size", "answer", "right", "parameters"):
            values = getattr(self, name)
            if values is not None:
                values[rows] = getattr(others, name)


def _judge(attack: Attack, label: str, model: nn.Module, x_adv: object, x: Tensor, y: Tensor, draws: int) -> _Judged:
    """Check the images of an attack against its threat model, and call the model on them."""
    size = parameters = None
    if isinstance(attack, TransformAttack):
        parameters = x_adv.detach().clone() if isinstance(x_adv, Tensor) else None
        x_adv, size = attack.made(label, x_adv, x)
    image = x_adv
    if isinstance(attack, MinimumNormAttack) and isinstance(x_adv, Tensor) and x_adv.shape == x.shape:
        low, high = attack.threat.box
        x_adv = x_adv.detach().to(x.dtype)
        inside = ((x_adv >= low - 1e-6) & (x_adv <= high + 1e-6)).flatten(1).all(1)
        x_adv = torch.where(per_sample(inside, x), x_adv, x)
        check_masks(label, x_adv, x)
        image = torch.where(per_sample(attack.threat.allows(x_adv, x), x), x_adv, x)
    image = verified(attack, label, image, x)
    if not isinstance(attack, MinimumNormAttack):
        x_adv = image
    assert isinstance(x_adv, Tensor)
    with torch.no_grad():
        size = attack.threat.distance(x_adv, x) if size is None else size.to(x.dtype)
        return _Judged(x_adv.clone(), image.clone(), size, *_asked(model, x_adv, x, y, draws), parameters)


def _reached(answer: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Whether each answer (N,) is a success of the attack: it is wrong, or the target that the image carries."""
    targets = carried(x, "targets")
    return answer != y if targets is None else answer == targets


def _asked(model: nn.Module, images: Tensor, x: Tensor, y: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return answers (N,) to images, and the share (N,) of draws in which the attack has no success."""
    targets = carried(x, "targets")
    if targets is None:
        return ask(model, images, y, draws)
    answer, share = ask(model, images, targets, draws)
    return answer, 1 - share


@contextmanager
def _judging(model: PreparedModel, seed: int, start: int, device: torch.device | str) -> Iterator[None]:
    """Seed a stochastic model for its evaluation, independently of an attack that seeds the global generators."""
    if not model.random:
        yield
        return
    own = np.random.SeedSequence([seed, start, _JUDGE]).generate_state(1, np.uint32)
    with seeded(int(own[0]), device):
        yield


def quantized(images: Tensor) -> Tensor:
    """Return images quantized to 8 bits."""
    return (images * 255).round() / 255


def _after_rounding(model: nn.Module, image: Tensor, x: Tensor, y: Tensor, right: np.ndarray, draws: int) -> np.ndarray:
    """Return shares (N,) of right answers to quantized adversarial images; those that do not fool stay right."""
    kept = right.copy()
    fooled = np.flatnonzero(right < 1)
    if len(fooled):
        with torch.no_grad():
            some = quantized(image[fooled])
            kept[fooled] = _asked(model, some, x[fooled], y[fooled], draws)[1].cpu().numpy()
    return kept
