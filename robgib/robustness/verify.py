"""What a run folder claims, held against its adversarial images and the model."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import robgib.attacks
from robgib.attacks.base import Attack, MinimumNormAttack
from robgib.attacks.threat_model import ThreatModel, distance, within
from robgib.errors import RobGIBError
from robgib.models.checkpoint import weights_digest
from robgib.models.inference import NO_ANSWER, Answers, PreparedModel, QueryCount, answers, prepare
from robgib.results import Run
from robgib.robustness.certification import certify
from robgib.robustness.rows import curve_rows, outcome_rows, summary_row, unattacked_row, worst_row
from robgib.robustness.run_attack import AttackResult, curve_points, in_8_bits

__all__ = ["UNCHECKED", "Claim", "verify"]

UNCHECKED = (
    "Not checked, since nothing in the folder shows it: that the samples that stand cannot be fooled, how large the "
    "changes that did not fool them were, distances other than those of the images kept (of nearer ones that the curve "
    "found, and of farther ones), how large a proof's lead is, seconds, passes, reasons and notes; nor the other "
    "tables, the pictures and the page."
)
"""What :func:`verify` does not recompute, in a sentence."""
_SIZE = 1e-4  # of a distance: what it may be off by in a table
_ANSWERS = {
    "adversarial_prediction": "answers to adversarial images",
    "robust": "which samples are robust",
    "right": "shares of right answers",
    "right_8bit": "answers to 8-bit copies",
}
"""Columns of the outcomes that the model's answers give, and what they are called."""
_FIGURES = {
    "norm and eps": ("norm", "eps"),
    "clean accuracy and its interval": ("correct", "clean_accuracy", "clean_low", "clean_high"),
    "robust accuracy and its interval": ("samples", "robust", "robust_accuracy", "low", "high"),
    "robust accuracy in 8 bits": ("robust_accuracy_8bit",),
    "certified accuracy": ("certified", "certified_accuracy"),
    "undecided samples": ("undecided",),
    "median distance": ("median_distance",),
    "status": ("attack", "status"),
}
"""Columns of the robustness table by what they tell."""
_POINTS = {
    "radii of the curve": ("norm", "eps", "at"),
    "accuracy at each radius, by the distances": ("right", "samples", "accuracy", "low", "high"),
}
"""Likewise of the curve's."""


@dataclass(frozen=True)
class Claim:
    """One claim of a run, whether it holds, and what was seen where it does not."""

    what: str
    holds: bool
    detail: str = ""


def verify(
    run: Run,
    saved: Mapping[str, np.ndarray],
    model: torch.nn.Module,
    data: tuple[Tensor, Tensor] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[Claim]:
    """Recompute what a run says of its model from the images that were saved with it.

    That an image fools is shown by the image. That one stands cannot be: another attack may fell it. What else is not
    recomputed :data:`UNCHECKED` says.

    Args:
        run: of :func:`robgib.results.load_run`.
        saved: its images, of :func:`robgib.results.load_adversarial`.
        model: the model that it is of.
        data: all test images (N, …) in [0, 1] and labels (N,), of which it is of some, where they are at hand.
        device: where the model is.

    Yields:
        The claims in order: weights, data; then for each attack every column of its outcomes, its images' budgets, the
        samples proven robust, and its row of the robustness table; then the rows of attacks that failed and of the
        worst of several; then the curves.

    Raises:
        RobGIBError: the model answers at random, so that its answers cannot be repeated, or the run does not say what
            its attacks were.
    """
    x, y = (torch.from_numpy(saved[name]) for name in ("clean", "labels"))
    own = weights_digest(model)
    yield Claim(
        "the model has the weights that were attacked", own == run.config["weights"],
        f"their digest is {own[:12]}, that of the run's {str(run.config['weights'])[:12]}",
    )  # fmt: skip
    if data is not None:
        rows = torch.from_numpy(_drawn(run, len(x)))
        inside = len(rows) == len(x) and bool((rows < len(data[0])).all()) and bool((rows >= 0).all())
        same = inside and torch.equal(data[0][rows], x) and torch.equal(data[1][rows], y)
        yield Claim("the images and labels are those of the data", same, "another image or label is there")
    threats = _threats(run)
    prepared = prepare(model, x, classes=len(run.config["data"]["classes"]), device=device)
    if prepared.random:
        raise RobGIBError("the model answers at random: what it said cannot be repeated, and is not verified.")
    case = _Case(run, saved, prepared, x, y, answers(prepared, x, y, device=device), threats, device)
    shown: dict[str, _Evidence] = {}
    for label, rows in run.outcomes.groupby("attack", sort=False):
        yield Claim(f"{label}: it is an attack of the run", label in threats, "its configuration names no such one")
        drawn = _drawn(run, len(y))
        rows = rows.iloc[rows["index"].map({row: place for place, row in enumerate(drawn)}).argsort(kind="stable")]
        lined = _equal(f"{label}: a row for each sample", rows["index"].to_numpy(), drawn)
        yield lined
        if label in threats and lined.holds:
            shown[label] = yield from _attacked(case, label, rows)
    yield from _table(case, shown)
    yield from _curves(case, shown)


@dataclass(frozen=True)
class _Case:
    """What claims are held against: a run, its images, and the model with its answers to the clean ones."""

    run: Run
    saved: Mapping[str, np.ndarray]
    model: PreparedModel
    x: Tensor
    y: Tensor
    clean: Answers
    threats: Mapping[str, ThreatModel]
    device: torch.device | str
    proofs: dict[ThreatModel, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """By budget: samples that were proven again, and by how much: the same for all of its attacks."""

    def base(self, label: str) -> dict[str, Any]:
        """The columns that name an attack."""
        return {"attack": label, "norm": self.threats[label].norm, "eps": self.threats[label].eps}

    @property
    def attacks(self) -> int:
        """How many rows of the robustness table are attacks': those of the worst of several stand below."""
        return max(1, len(self.threats))

    def summary(self, label: str) -> pd.DataFrame:
        """An attack's row of the robustness table."""
        own = self.run.robustness.iloc[: self.attacks]
        return own[own["attack"] == label]


@dataclass(frozen=True)
class _Evidence:
    """What the images of an attack show, and the distances (N,) that the run states."""

    result: AttackResult
    stated: np.ndarray


def _attacked(case: _Case, label: str, rows: pd.DataFrame) -> Generator[Claim, None, _Evidence]:
    """What is claimed of an attack, a row a sample, and its row of the robustness table."""
    threat, clean, truth = case.threats[label], case.clean, case.y.numpy()
    base = case.base(label)
    yield _same(f"{label}: norm and eps of each sample", rows, [base] * len(truth), ("norm", "eps"))
    yield _equal(f"{label}: labels", rows["label"].to_numpy(), truth)
    yield _equal(f"{label}: answers to clean images", rows["clean_prediction"].to_numpy(), clean.prediction)
    fooled = ((clean.right > 0) & (rows["adversarial_prediction"] != rows["label"])).to_numpy()
    if f"{label}/rows" not in case.saved or f"{label}/images" not in case.saved:
        yield Claim(f"{label}: images", not fooled.any(), f"none is kept of {int(fooled.sum())} that it claims")
    here = case.saved.get(f"{label}/rows", np.zeros(0, np.int64))
    images = torch.from_numpy(case.saved.get(f"{label}/images", np.zeros((0, *case.x.shape[1:]), np.float32)))
    yield Claim(
        f"{label}: an image for each sample that it fooled", np.array_equal(here, np.flatnonzero(fooled)),
        f"{len(here)} images, {int(fooled.sum())} samples",
    )  # fmt: skip
    inside = threat.allows(images, case.x[here]).numpy()
    yield Claim(
        f"{label}: images within {threat.norm} {threat.eps:.4g} and the box", bool(inside.all()),
        f"image {_first(here, ~inside)} lies outside",
    )  # fmt: skip
    result = _shown(case, threat, here, images)
    wrong = (result.prediction[here] == truth[here]) & (result.prediction[here] != NO_ANSWER)
    expected = outcome_rows(base, truth, clean, result, result.distance)
    for column, what in _ANSWERS.items():
        yield _equal(f"{label}: {what}", rows[column].to_numpy(), expected[column].to_numpy())
    yield Claim(f"{label}: these answers are wrong", not wrong.any(), f"that to image {_first(here, wrong)} is right")
    known = clean.right == 0  # such samples are not attacked: their images are the clean ones
    known[here] = True
    yield from _sized(case, label, rows, expected, known)
    nearest = rows["distance"].to_numpy()
    held = _possible(case, label, result, nearest)
    yield Claim(f"{label}: distances", bool(held.all()), _off("distance", held, nearest, result.distance))
    lead = rows["certified_lead"].to_numpy()
    yield from _proven(case, label, np.flatnonzero(lead > 0))
    yield from _summarised(label, case.summary(label), summary_row(base, clean, result, "", nearest), lead)
    return _Evidence(result, nearest)


def _sized(case: _Case, label: str, rows: pd.DataFrame, expected: pd.DataFrame, known: np.ndarray) -> Iterator[Claim]:
    """The sizes of changes, of the samples (N,) whose images are known, and all of them beside the budget."""
    threat = case.threats[label]
    for norm in ("linf", "l2"):
        size, stated = expected[norm].to_numpy(), rows[norm].to_numpy()
        held = (np.abs(size - stated) <= _SIZE * size + 1e-7) | ~known
        yield Claim(f"{label}: sizes in {norm}", bool(held.all()), _off(norm, held, stated, size))
    if threat.norm in ("linf", "l2"):
        stated = rows[threat.norm].to_numpy()
        held = within(stated, threat.eps)
        detail = _off(threat.norm, held, stated, np.full(len(stated), threat.eps), "at most")
        yield Claim(f"{label}: no size is beyond the budget", bool(held.all()), detail)


def _proven(case: _Case, label: str, proven: np.ndarray) -> Iterator[Claim]:
    """That the samples ``proven`` (indices) are: the proof is made again."""
    if not len(proven):
        return
    threat = case.threats[label]
    before = case.proofs.get(threat)
    if before is None or not np.array_equal(before[0], proven):
        again = certify(case.model, case.x[proven], case.y[proven], threat, device=case.device)
        before = case.proofs[threat] = proven, again
    found = before[1] > 0
    yield Claim(
        f"{label}: {len(proven)} samples are proven robust", bool(found.all()),
        f"sample {_first(proven, ~found)} is not",
    )  # fmt: skip


def _table(case: _Case, shown: Mapping[str, _Evidence]) -> Iterator[Claim]:
    """The rows of the robustness table beside those of attacks that ran: failed ones, and the worst of several."""
    run, threats = case.run, case.threats
    if not threats:
        yield from _summarised("none", run.robustness.iloc[: case.attacks], unattacked_row(case.clean), None)
    for label in threats:
        if label not in set(run.outcomes["attack"]):
            failed = summary_row(case.base(label), case.clean, None, "")
            yield from _summarised(label, case.summary(label), failed, None)
    standing: dict[ThreatModel, list[AttackResult]] = {}
    for label, one in shown.items():
        standing.setdefault(threats[label], []).append(one.result)
    several = [] if run.attack_options["cascade"] else [(t, found) for t, found in standing.items() if len(found) > 1]
    below = run.robustness.iloc[case.attacks :]
    yield Claim(
        "the robustness table has a row for each attack and for the worst of several",
        len(run.robustness) >= case.attacks and len(below) == len(several),
        f"{len(run.robustness)} rows, of {len(threats)} attacks",
    )
    for number, (threat, results) in enumerate(several):
        row, lead = worst_row(threat.norm, threat.eps, case.clean, results), _leads(run, threat)
        name = f"{row['attack']}, {threat.norm} {threat.eps:.4g}"
        yield from _summarised(name, below.iloc[number : number + 1], row, lead)


def _curves(case: _Case, shown: Mapping[str, _Evidence]) -> Iterator[Claim]:
    """The curves: each point follows from the distances."""
    run = case.run
    if run.attack_options["curve"] and not run.attack_options["cascade"] and shown:
        curved = set(run.curve["attack"])
        yield Claim("each attack has a curve", curved == set(shown), f"{len(curved)} curves, {len(shown)} attacks")
    for label, rows in run.curve.groupby("attack", sort=False):
        yield Claim(f"{label}: its curve is of an attack that ran", label in shown, "it has no outcomes")
        if label in shown:
            one = shown[label]
            points = curve_points(case.threats[label], case.x, case.clean.right, one.result.right, one.stated)
            expected = curve_rows(case.base(label), points, len(case.y))
            for what, columns in _POINTS.items():
                yield _same(f"{label}: {what}", rows.sort_values("at"), expected, columns)


def _drawn(run: Run, count: int) -> np.ndarray:
    """Which of the data's samples (``count``,) the run is of, in the order of its images."""
    drawn = run.config.get("drawn")
    return np.arange(count) if drawn is None else np.array(drawn, dtype=np.int64)


def _threats(run: Run) -> dict[str, ThreatModel]:
    """The threat models of a run's attacks, by label."""
    try:
        specs = {label: spec["threat"] for label, spec in run.attack_options["attacks"].items()}
        return {label: ThreatModel(t["norm"], float(t["eps"]), tuple(t["box"])) for label, t in specs.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RobGIBError("the run's configuration does not say what its attacks were.") from error


def _shown(case: _Case, threat: ThreatModel, here: np.ndarray, images: Tensor) -> AttackResult:
    """What an attack did, as far as the images (n, …) that it left of the samples ``here`` (n,) show.

    Nothing is known of the images that fooled nobody: as sizes of their changes stand zeros, and inf as distances.
    """
    x, y, clean = case.x, case.y, case.clean
    prediction, right = clean.prediction.copy(), clean.right.astype(float)
    coarse, nearest = right.copy(), np.where(right > 0, np.inf, 0.0)
    sizes = {norm: np.zeros(len(x)) for norm in ("linf", "l2")}
    if len(here):
        said = answers(case.model, images, y[here], device=case.device)
        prediction[here], right[here], coarse[here] = said.prediction, said.right, said.right
        if images.ndim == 4:
            coarse[here] = answers(case.model, in_8_bits(images), y[here], device=case.device).right
        nearest[here] = threat.distance(images, x[here]).numpy()
        for norm, values in sizes.items():
            values[here] = distance(images, x[here], norm).numpy()
    return AttackResult(prediction, right, coarse, sizes["linf"], sizes["l2"], nearest, {}, QueryCount())


def _possible(case: _Case, label: str, shown: AttackResult, stated: np.ndarray) -> np.ndarray:
    """Which stated distances (N,) can be, beside those of the images kept.

    A curve's attacks may have found nearer images, which are not kept, and images outside the ball; so may an attack
    that looks there, and in a cascade those before it.
    """
    run, threats, clean = case.run, case.threats, case.clean
    same = np.isclose(stated, shown.distance, rtol=_SIZE, atol=1e-7)
    nearer = (stated > 0) & (stated <= shown.distance * (1 + _SIZE) + 1e-7)
    group = [n for n, t in threats.items() if t == threats[label]] if run.attack_options["cascade"] else [label]
    beyond = any(_looks_outside(str(run.attack_options["attacks"][name].get("class"))) for name in group)
    curved = label in set(run.curve["attack"])
    elsewhere = (clean.right > 0) & (curved | (beyond & (shown.right > 0)))
    possible: np.ndarray = same | (elsewhere & nearer)
    return possible


def _looks_outside(name: str) -> bool:
    """Whether attacks of a class look outside their ball, or may: of others' classes nothing is known."""
    kind = getattr(robgib.attacks, name, None)
    return not (isinstance(kind, type) and issubclass(kind, Attack)) or issubclass(kind, MinimumNormAttack)


def _leads(run: Run, threat: ThreatModel) -> np.ndarray:
    """The leads (N,) that are stated at a budget: they are the same for all of its attacks."""
    rows = run.outcomes
    here = rows[(rows["norm"] == threat.norm) & np.isclose(rows["eps"], threat.eps, rtol=1e-9)]
    return here.groupby("index")["certified_lead"].max().reindex(_drawn(run, here["index"].nunique())).to_numpy()


def _summarised(name: str, stated: pd.DataFrame, row: dict[str, Any], lead: np.ndarray | None) -> Iterator[Claim]:
    """A row of the robustness table beside what it should be; ``lead`` (N,) is what was proven of the samples."""
    asked = lead is not None and bool(np.isfinite(lead).any())
    if lead is not None and (asked or (stated["certified"] == 0).all()):  # 0, where no sample was left to prove
        row = {**row, "certified": int((lead > 0).sum()), "certified_accuracy": float((lead > 0).mean())}
    for what, columns in _FIGURES.items():
        if what != "certified accuracy" or asked or stated[list(columns)].notna().any(axis=None):
            yield _same(f"{name}: {what}", stated, [row], columns)


def _same(what: str, stated: pd.DataFrame, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Claim:
    """Whether some columns of a table are those of ``rows``; numbers to the rounding of a text file."""
    if len(stated) != len(rows):
        return Claim(what, False, f"{len(stated)} rows are stated, there should be {len(rows)}")
    for column in columns:
        for number, (one, row) in enumerate(zip(stated[column], rows, strict=True)):
            two = row[column]
            alike = one == two if isinstance(two, str) else np.isclose(float(one), two, 1e-6, 1e-9, equal_nan=True)
            if not alike:
                place = f" in row {number}" if len(rows) > 1 else ""
                return Claim(what, False, f"{column}{place} is stated as {one}, it is {two}")
    return Claim(what, True)


def _off(column: str, held: np.ndarray, stated: np.ndarray, seen: np.ndarray, how: str = "") -> str:
    if held.all():
        return ""
    first = _first(np.arange(len(held)), ~held)
    return f"{column} of image {first} is stated as {stated[first]:.6g}, it is {f'{how} {seen[first]:.6g}'.strip()}"


def _first(rows: np.ndarray, mask: np.ndarray) -> int:
    return int(rows[mask][0]) if mask.any() else -1


def _equal(what: str, stated: np.ndarray, seen: np.ndarray) -> Claim:
    if len(stated) != len(seen):
        return Claim(what, False, f"{len(stated)} are stated for {len(seen)} images")
    off = stated != seen
    first = _first(np.arange(len(stated)), off)
    detail = f"image {first}: {stated[off][0]} is stated, it is {seen[off][0]}" if off.any() else ""
    return Claim(what, not off.any(), detail)
