"""Verify the results of a run folder with its adversarial images and the model."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import robgib.attacks
from robgib.attacks.base import Attack, MinimumNormAttack, TransformAttack
from robgib.attacks.carried import carried, carry, masked
from robgib.attacks.registry import attack_class
from robgib.attacks.threat_model import NORMS, ThreatModel, distance, within
from robgib.errors import RobGIBError
from robgib.files import digest
from robgib.models.checkpoint import weights_digest
from robgib.models.inference import NO_ANSWER, Answers, PreparedModel, QueryCount, answers, prepare
from robgib.options import Context, construct
from robgib.results import Run, eps_text
from robgib.robustness.certification import certify
from robgib.robustness.curve import curve_points
from robgib.robustness.random_points import random_points_row
from robgib.robustness.rows import curve_rows, outcome_rows, summary_row, unattacked_row, worst_row
from robgib.robustness.run_attack import AttackResult, quantized

__all__ = ["UNCHECKED", "Verification", "verify"]

UNCHECKED = (
    "Not checked, because the folder has no evidence for them: whether samples that remain robust can be fooled, the "
    "sizes of perturbations that did not fool, distances of images that were not kept, certified margins, audits, "
    "seconds, passes, reasons and notes; nor the other tables, the pictures and the page."
)
"""What :func:`verify` does not recompute."""
_CONDITIONS = {"mask": "masks", "targets": "targets"}
"""What may be given for each sample, by its name in the options and the folder, with its name in messages."""
_SIZE = 1e-4  # relative tolerance of distances in a table
_ANSWERS = {
    "adversarial_prediction": "answers to adversarial images",
    "robust": "which samples are robust",
    "right": "shares of right answers",
    "right_8bit": "answers to quantized copies",
}
"""Columns of the outcomes that follow from the model's answers, with their names in messages."""
_FIGURES = {
    "norm and eps": ("norm", "eps"),
    "clean accuracy and its interval": ("correct", "clean_accuracy", "clean_low", "clean_high"),
    "robust accuracy and its interval": ("samples", "robust", "robust_accuracy", "low", "high"),
    "quantized robust accuracy": ("robust_accuracy_8bit",),
    "certified accuracy": ("certified", "certified_accuracy"),
    "samples without a finite answer": ("not_finite",),
    "median minimum norm": ("median_distance",),
    "status": ("attack", "status"),
}
"""Columns of the robustness table, by their name in messages."""
_POINTS = {
    "radii of the curve": ("norm", "eps", "at"),
    "accuracy at each radius, by the distances": ("right", "samples", "accuracy", "low", "high"),
}
"""Columns of the curve table, by their name in messages."""

_RANDOM = {
    "threat models": ("norm", "eps", "points", "samples"),
    "share that keeps the label, and its interval": ("kept", "share", "low", "high"),
}
"""Columns of the table of random points, by their name in messages."""
_BY_IMAGE = (*NORMS, "patch")
"""Threat models by which an image shows its distance; others have parameters."""
_PIXEL = 1e-4  # largest difference of a pixel between two computations of a transformation


@dataclass(frozen=True)
class Verification:
    """The verification of one result of a run: what was checked, whether it holds, and the difference otherwise."""

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
) -> Iterator[Verification]:
    """Recompute the results of a run from the images that were saved with it.

    An adversarial image proves that a sample can be fooled. Nothing proves that a sample remains robust, since another
    attack may fool it. :data:`UNCHECKED` lists the results that are not recomputed.

    Args:
        run: the result of :func:`robgib.results.load_run`.
        saved: its images, the result of :func:`robgib.results.load_adversarial`.
        model: the evaluated model.
        data: all test images (N, …) in [0, 1] and labels (N,), if available.
        device: device of the model.

    Yields:
        The verifications in order: weights and data; for each attack the columns of its outcomes, the budget of its
        images, their masks, targets and parameters, the certified samples, and its row of the robustness table; the
        rows of failed attacks and of the worst case of several; the curves; random points.

    Raises:
        RobGIBError: the model is stochastic, so that its answers are not reproducible, the configuration of the run
            does not describe its attacks, its masks or targets are not stored, or the class of a transformation is
            unknown.
    """
    x, y = (torch.from_numpy(saved[name]) for name in ("clean", "labels"))
    yield from _conditioned(run, saved)
    given = {name: torch.from_numpy(saved[name]) for name in _CONDITIONS if name in saved}
    own = weights_digest(model)
    yield Verification(
        "the model has the weights that were attacked", own == run.config["weights"],
        f"their digest is {own[:12]}, that of the run's {str(run.config['weights'])[:12]}",
    )  # fmt: skip
    if data is not None:
        rows = torch.from_numpy(_drawn(run, len(x)))
        inside = len(rows) == len(x) and bool((rows < len(data[0])).all()) and bool((rows >= 0).all())
        same = inside and torch.equal(data[0][rows], x) and torch.equal(data[1][rows], y)
        yield Verification("the images and labels are those of the data", same, "another image or label is there")
    threats = _threats(run)
    prepared = prepare(model, x, classes=len(run.config["data"]["classes"]), device=device)
    if prepared.random:
        raise RobGIBError(
            "the model is stochastic: its answers are not reproducible, and so the run cannot be verified."
        )
    clean = answers(prepared, x, y, device=device)
    case = _Case(run, saved, prepared, carry(x, **given), y, clean, threats, device)
    shown: dict[str, _Evidence] = {}
    for label, rows in run.outcomes.groupby("attack", sort=False):
        yield Verification(
            f"{label}: it is an attack of the run", label in threats, "it is missing in the configuration"
        )
        drawn = _drawn(run, len(y))
        rows = rows.iloc[rows["index"].map({row: place for place, row in enumerate(drawn)}).argsort(kind="stable")]
        lined = _equal(f"{label}: a row for each sample", rows["index"].to_numpy(), drawn)
        yield lined
        if label in threats and lined.holds:
            shown[label] = yield from _attacked(case, label, rows)
    yield from _table(case, shown)
    yield from _curves(case, shown)
    yield from _random_points(case)


def _conditioned(run: Run, saved: Mapping[str, np.ndarray]) -> Iterator[Verification]:
    """Verify that the folder holds the masks and targets of its configuration."""
    for name in _CONDITIONS:
        stated = run.attack_options.get(name)
        if stated is None and name not in saved:
            continue
        # With --until-width the digest is that of all samples that could be attacked.
        same = name in saved and (
            run.attack_options.get("until_width") is not None or digest(saved[name].tobytes()) == stated
        )
        detail = "other values are stored" if name in saved else "they are not stored; evaluate the model again"
        yield Verification(f"the {_CONDITIONS[name]} are those of the configuration", same, detail)
        if name not in saved:
            raise RobGIBError(f"the folder does not hold the {_CONDITIONS[name]} of its run; evaluate the model again.")


@dataclass(frozen=True)
class _Case:
    """A run, its images, and the model with its answers to the clean images."""

    run: Run
    saved: Mapping[str, np.ndarray]
    model: PreparedModel
    x: Tensor
    y: Tensor
    clean: Answers
    threats: Mapping[str, ThreatModel]
    device: torch.device | str
    proofs: dict[ThreatModel, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """By budget: certified samples and their margins, the same for all attacks of the budget."""

    def base(self, label: str) -> dict[str, Any]:
        """Return the columns that identify an attack."""
        return {"attack": label, "norm": self.threats[label].norm, "eps": self.threats[label].eps}

    @property
    def targets(self) -> np.ndarray | None:
        """The target class (N,) of each sample, if there are any."""
        targets = carried(self.x, "targets")
        return None if targets is None else targets.numpy()

    def reached(self, prediction: np.ndarray) -> np.ndarray:
        """Whether each prediction (N,) is a success of an attack: it is wrong, or the target."""
        reached: np.ndarray = prediction != self.y.numpy() if self.targets is None else prediction == self.targets
        return reached

    def left(self, images: Tensor, here: np.ndarray) -> Answers:
        """Return the answers to images of the samples ``here``; ``right`` is where the attack has no success."""
        if self.targets is None:
            return answers(self.model, images, self.y[here], device=self.device)
        asked = answers(self.model, images, torch.from_numpy(self.targets[here]), device=self.device)
        return Answers(asked.prediction, 1 - asked.right)

    def group(self, label: str) -> list[str]:
        """Return the attacks whose images those of an attack may be: in a cascade all at its budget."""
        together = self.run.attack_options["cascade"]
        return [n for n, t in self.threats.items() if t == self.threats[label]] if together else [label]

    @property
    def attacks(self) -> int:
        """Number of rows of the robustness table that belong to attacks; worst-case rows follow them."""
        return max(1, len(self.threats))

    def summary(self, label: str) -> pd.DataFrame:
        """Return the row of an attack in the robustness table."""
        own = self.run.robustness.iloc[: self.attacks]
        return own[own["attack"] == label]


@dataclass(frozen=True)
class _Evidence:
    """The results recomputed from the images of an attack, and the distances (N,) in the run."""

    result: AttackResult
    stated: np.ndarray


def _attacked(case: _Case, label: str, rows: pd.DataFrame) -> Generator[Verification, None, _Evidence]:
    """Verify the outcomes of an attack and its row of the robustness table."""
    threat, clean, truth = case.threats[label], case.clean, case.y.numpy()
    base = case.base(label)
    yield _same(f"{label}: norm and eps of each sample", rows, [base] * len(truth), ("norm", "eps"))
    yield _equal(f"{label}: labels", rows["label"].to_numpy(), truth)
    yield _equal(f"{label}: answers to clean images", rows["clean_prediction"].to_numpy(), clean.prediction)
    fooled = (clean.right > 0) & case.reached(rows["adversarial_prediction"].to_numpy())
    if f"{label}/rows" not in case.saved or f"{label}/images" not in case.saved:
        yield Verification(
            f"{label}: images", not fooled.any(), f"no image is kept of {int(fooled.sum())} fooled samples"
        )
    here = case.saved.get(f"{label}/rows", np.zeros(0, np.int64))
    images = torch.from_numpy(case.saved.get(f"{label}/images", np.zeros((0, *case.x.shape[1:]), np.float32)))
    yield Verification(
        f"{label}: an image for each sample that it fooled", np.array_equal(here, np.flatnonzero(fooled)),
        f"{len(here)} images, {int(fooled.sum())} samples",
    )  # fmt: skip
    change = images - case.x[here].as_subclass(Tensor)
    if "mask" in case.saved:
        masked_only = (masked(change, case.x[here]) == change).flatten(1).all(1).numpy()
        yield Verification(
            f"{label}: only pixels of the mask changed", bool(masked_only.all()),
            f"image {_first(here, ~masked_only)} has others",
        )  # fmt: skip
    inside = threat.allows(images, case.x[here]).numpy()
    yield Verification(
        f"{label}: images within {threat.norm} {eps_text(threat.eps)} and the box", bool(inside.all()),
        f"image {_first(here, ~inside)} lies outside",
    )  # fmt: skip
    size = threat.distance(images, case.x[here]).numpy()
    if threat.norm not in _BY_IMAGE:
        size = yield from _remade(case, label, here, images)
    result = _shown(case, rows, here, images, size)
    wrong = ~case.reached(result.prediction)[here] & (result.prediction[here] != NO_ANSWER)
    expected = outcome_rows(base, truth, clean, result, result.distance, case.targets)
    for column, what in _ANSWERS.items():
        yield _equal(f"{label}: {what}", rows[column].to_numpy(), expected[column].to_numpy())
    yield Verification(
        f"{label}: these answers are wrong" if case.targets is None else f"{label}: these answers are the targets",
        not wrong.any(),
        f"that to image {_first(here, wrong)} is {'right' if case.targets is None else 'another'}",
    )
    known = clean.right == 0  # these samples are not attacked: their images are the clean ones
    known[here] = True
    yield from _sized(case, label, rows, expected, known)
    nearest = rows["distance"].to_numpy()
    possible = _possible(case, label, result, nearest)
    yield Verification(
        f"{label}: distances", bool(possible.all()), _off("distance", possible, nearest, result.distance)
    )
    margin = rows["certified_margin"].to_numpy()
    yield from _proven(case, label, np.flatnonzero(margin > 0))
    yield from _summarised(label, case.summary(label), summary_row(base, clean, result, "", nearest), margin)
    return _Evidence(result, nearest)


def _sized(
    case: _Case, label: str, rows: pd.DataFrame, expected: pd.DataFrame, known: np.ndarray
) -> Iterator[Verification]:
    """Verify perturbation sizes: of the samples (N,) with known images, and the budget of all samples."""
    threat = case.threats[label]
    for norm in ("linf", "l2"):
        size, stated = expected[norm].to_numpy(), rows[norm].to_numpy()
        matches = (np.abs(size - stated) <= _SIZE * size + 1e-7) | ~known
        yield Verification(f"{label}: sizes in {norm}", bool(matches.all()), _off(norm, matches, stated, size))
    if threat.norm in ("linf", "l2"):
        stated = rows[threat.norm].to_numpy()
        matches = within(stated, threat.eps)
        detail = _off(threat.norm, matches, stated, np.full(len(stated), threat.eps), "at most")
        yield Verification(f"{label}: no size is beyond the budget", bool(matches.all()), detail)


def _proven(case: _Case, label: str, proven: np.ndarray) -> Iterator[Verification]:
    """Certify the samples ``proven`` (indices) again."""
    if not len(proven):
        return
    threat = case.threats[label]
    before = case.proofs.get(threat)
    if before is None or not np.array_equal(before[0], proven):
        again = certify(case.model, case.x[proven], case.y[proven], threat, device=case.device)
        before = case.proofs[threat] = proven, again
    proven_again = before[1] > 0
    yield Verification(
        f"{label}: {len(proven)} samples are proven robust", bool(proven_again.all()),
        f"sample {_first(proven, ~proven_again)} is not",
    )  # fmt: skip


def _table(case: _Case, shown: Mapping[str, _Evidence]) -> Iterator[Verification]:
    """Verify the other rows of the robustness table: failed attacks, and the worst case of several."""
    run, threats = case.run, case.threats
    if not threats:
        yield from _summarised("none", run.robustness.iloc[: case.attacks], unattacked_row(case.clean), None)
    for label in threats:
        if label not in set(run.outcomes["attack"]):
            failed = summary_row(case.base(label), case.clean, None, "")
            yield from _summarised(label, case.summary(label), failed, None)
    by_budget: dict[ThreatModel, list[AttackResult]] = {}
    for label, one in shown.items():
        by_budget.setdefault(threats[label], []).append(one.result)
    several = (
        []
        if run.attack_options["cascade"]
        else [(t, together) for t, together in by_budget.items() if len(together) > 1]
    )
    below = run.robustness.iloc[case.attacks :]
    yield Verification(
        "the robustness table has a row for each attack and for the worst of several",
        len(run.robustness) >= case.attacks and len(below) == len(several),
        f"{len(run.robustness)} rows, of {len(threats)} attacks",
    )
    for number, (threat, results) in enumerate(several):
        row, margin = worst_row(threat.norm, threat.eps, case.clean, results), _margins(run, threat)
        name = f"{row['attack']}, {threat.norm} {eps_text(threat.eps)}"
        yield from _summarised(name, below.iloc[number : number + 1], row, margin)


def _curves(case: _Case, shown: Mapping[str, _Evidence]) -> Iterator[Verification]:
    """Verify the curves: each point follows from the distances."""
    run = case.run
    if run.attack_options["curve"] and not run.attack_options["cascade"] and shown:
        curved = set(run.curve["attack"])
        yield Verification(
            "each attack has a curve", curved == set(shown), f"{len(curved)} curves, {len(shown)} attacks"
        )
    for label, rows in run.curve.groupby("attack", sort=False):
        yield Verification(f"{label}: its curve belongs to an attack that ran", label in shown, "it has no outcomes")
        if label in shown:
            one = shown[label]
            points = curve_points(case.threats[label], case.x, case.clean.right, one.result.right, one.stated)
            # By default a curve has as many radii as the cost of the attacks allows.
            measured = [p for p in points if run.attack_options["curve"] or np.isclose(rows["at"], p[0], 1e-9).any()]
            expected = curve_rows(case.base(label), measured, len(case.y))
            for what, columns in _POINTS.items():
                yield _same(f"{label}: {what}", rows.sort_values("at"), expected, columns)


def _random_points(case: _Case) -> Iterator[Verification]:
    """Verify the shares of random points that keep their label: the points follow from the seed of the run."""
    rows, wanted = case.run.random_points, case.run.attack_options.get("random_points")
    if wanted is None and rows.empty:
        return
    context = Context(seed=case.run.config["options"]["context"]["seed"], device=case.device)
    threats = [t for t in dict.fromkeys(case.threats.values()) if t.norm in NORMS]
    expected = [random_points_row(case.model, case.x, case.y, t, int(wanted or 1), context=context) for t in threats]
    for what, columns in _RANDOM.items():
        yield _same(f"random points: {what}", rows, expected, columns)


def _drawn(run: Run, count: int) -> np.ndarray:
    """Return the indices (``count``,) of the samples in the data, in the order of the images."""
    drawn = run.config.get("drawn")
    return np.arange(count) if drawn is None else np.array(drawn, dtype=np.int64)


def _threats(run: Run) -> dict[str, ThreatModel]:
    """Return the threat models of the attacks of a run, by label."""
    try:
        specs = {label: spec["threat"] for label, spec in run.attack_options["attacks"].items()}
        return {label: ThreatModel(t["norm"], float(t["eps"]), tuple(t["box"])) for label, t in specs.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RobGIBError("the configuration of the run does not describe its attacks.") from error


def _remade(case: _Case, label: str, here: np.ndarray, images: Tensor) -> Generator[Verification, None, np.ndarray]:
    """Verify that the parameters of transformations are allowed and make the images (n, …); return the sizes (n,)."""
    size, missing = np.full(len(here), np.nan), np.ones(len(here), bool)
    differs, outside = np.zeros(len(here), bool), ""
    for name in case.group(label):
        made = case.saved.get(f"{name}/made", np.zeros(0, np.int64))
        places = np.flatnonzero(np.isin(here, made) & missing)
        if not len(places):
            continue
        order = {int(row): place for place, row in enumerate(made)}
        some = [order[int(row)] for row in here[places]]
        parameters = torch.from_numpy(case.saved[f"{name}/parameters"][some])
        attack = _transformation(case.run, name)
        try:
            again, sizes = attack.made(name, parameters, case.x[here[places]])
        except RobGIBError as error:
            outside = str(error).rstrip(".")
            continue
        missing[places] = False
        gap = (again - images[places]).abs().flatten(1).amax(1)
        differs[places], size[places] = (gap > _PIXEL).numpy(), sizes.numpy()
    yield Verification(f"{label}: parameters within {case.threats[label].eps:g}", not outside, outside)
    yield Verification(
        f"{label}: parameters of each image", not missing.any(), f"those of image {_first(here, missing)} are not kept"
    )
    yield Verification(
        f"{label}: images made again from their parameters", not differs.any(),
        f"image {_first(here, differs)} is another",
    )  # fmt: skip
    return size


def _transformation(run: Run, label: str) -> TransformAttack:
    """Return an attack that transforms images, from the configuration of a run.

    Raises:
        RobGIBError: its class is unknown here, or is no transformation.
    """
    spec = run.attack_options["attacks"][label]
    if isinstance(spec.get("attack"), Mapping):  # a transfer: the surrogate chose the parameters
        spec = spec["attack"]
    kind = attack_class(str(spec.get("class")), TransformAttack)
    if kind is None:
        raise RobGIBError(
            f"the class {spec.get('class')} of attack {label!r} is unknown here; give its folder with --catalogue, or "
            "import it in Python."
        )
    fields = {name: value for name, value in spec.items() if name not in ("class", "threat")}
    threat = spec["threat"]
    made: TransformAttack = construct(kind, fields, f"attack {label!r}", norm=threat["norm"], eps=float(threat["eps"]))
    return made


def _shown(case: _Case, rows: pd.DataFrame, here: np.ndarray, images: Tensor, size: np.ndarray) -> AttackResult:
    """Recompute the result of an attack from its images (n, …) of the samples ``here`` (n,), and their distances (n,).

    Images that did not fool are not kept. Their perturbation sizes are set to 0, and their distances to inf. If targets
    were given, their answers are those that ``rows`` state: any class but the target.
    """
    x, clean = case.x.as_subclass(Tensor), case.clean
    prediction, right = clean.prediction.copy(), clean.right.astype(float)
    if case.targets is not None:
        elsewhere = clean.right > 0
        prediction[elsewhere] = rows["adversarial_prediction"].to_numpy()[elsewhere]
    right_8bit, nearest = right.copy(), np.where(right > 0, np.inf, 0.0)
    sizes = {norm: np.zeros(len(x)) for norm in ("linf", "l2")}
    if len(here):
        outcome = case.left(images, here)
        prediction[here], right[here], right_8bit[here] = outcome.prediction, outcome.right, outcome.right
        if images.ndim == 4:
            right_8bit[here] = case.left(quantized(images), here).right
        nearest[here] = size
        for norm, values in sizes.items():
            values[here] = distance(images, x[here], norm).numpy()
    return AttackResult(prediction, right, right_8bit, sizes["linf"], sizes["l2"], nearest, {}, QueryCount())


def _possible(case: _Case, label: str, shown: AttackResult, stated: np.ndarray) -> np.ndarray:
    """Return which stated distances (N,) are consistent with the images.

    The attacks of a curve may have found nearer images, which are not kept, and images outside the ball. The same holds
    for minimum-norm attacks, and in a cascade for the attacks before them.
    """
    run, threats, clean = case.run, case.threats, case.clean
    same = np.isclose(stated, shown.distance, rtol=_SIZE, atol=1e-7)
    nearer = (stated >= 0) & (stated <= shown.distance * (1 + _SIZE) + 1e-7)
    nearer &= stated > 0
    group = case.group(label) if threats[label].norm in NORMS else []
    beyond = any(_looks_outside(str(run.attack_options["attacks"][name].get("class"))) for name in group)
    curved = label in set(run.curve["attack"])
    elsewhere = (clean.right > 0) & (curved | (beyond & (shown.right > 0)))
    possible: np.ndarray = same | (elsewhere & nearer)
    return possible


def _looks_outside(name: str) -> bool:
    """Whether attacks of a class may search outside their ball; unknown classes may."""
    kind = getattr(robgib.attacks, name, None)
    return not (isinstance(kind, type) and issubclass(kind, Attack)) or issubclass(kind, MinimumNormAttack)


def _margins(run: Run, threat: ThreatModel) -> np.ndarray:
    """Return the certified margins (N,) at a budget, which are the same for all of its attacks."""
    rows = run.outcomes
    here = rows[(rows["norm"] == threat.norm) & np.isclose(rows["eps"], threat.eps, rtol=1e-9)]
    return here.groupby("index")["certified_margin"].max().reindex(_drawn(run, here["index"].nunique())).to_numpy()


def _summarised(
    name: str, stated: pd.DataFrame, row: dict[str, Any], margin: np.ndarray | None
) -> Iterator[Verification]:
    """Compare a row of the robustness table with its expected values; ``margin`` (N,) are certified margins."""
    certified = margin is not None and bool(np.isfinite(margin).any())
    if margin is not None and (certified or (stated["certified"] == 0).all()):  # 0 if no sample remained to certify
        row = {**row, "certified": int((margin > 0).sum()), "certified_accuracy": float((margin > 0).mean())}
    for what, columns in _FIGURES.items():
        if what != "certified accuracy" or certified or stated[list(columns)].notna().any(axis=None):
            yield _same(f"{name}: {what}", stated, [row], columns)


def _same(what: str, stated: pd.DataFrame, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Verification:
    """Compare columns of a table with those of ``rows``; numbers agree up to the rounding of a text file."""
    if len(stated) != len(rows):
        return Verification(what, False, f"{len(stated)} rows are stated, there should be {len(rows)}")
    for column in columns:
        for number, (one, row) in enumerate(zip(stated[column], rows, strict=True)):
            two = row[column]
            alike = one == two if isinstance(two, str) else np.isclose(float(one), two, 1e-6, 1e-9, equal_nan=True)
            if not alike:
                place = f" in row {number}" if len(rows) > 1 else ""
                return Verification(what, False, f"{column}{place} is stated as {one}, it is {two}")
    return Verification(what, True)


def _off(column: str, matches: np.ndarray, stated: np.ndarray, actual: np.ndarray, how: str = "") -> str:
    if matches.all():
        return ""
    first = _first(np.arange(len(matches)), ~matches)
    return f"{column} of image {first} is stated as {stated[first]:.6g}, it is {f'{how} {actual[first]:.6g}'.strip()}"


def _first(rows: np.ndarray, mask: np.ndarray) -> int:
    return int(rows[mask][0]) if mask.any() else -1


def _equal(what: str, stated: np.ndarray, actual: np.ndarray) -> Verification:
    if len(stated) != len(actual):
        return Verification(what, False, f"{len(stated)} are stated for {len(actual)} images")
    off = stated != actual
    first = _first(np.arange(len(stated)), off)
    detail = f"image {first}: {stated[off][0]} is stated, it is {actual[off][0]}" if off.any() else ""
    return Verification(what, not off.any(), detail)
