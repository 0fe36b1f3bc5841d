"""What a run folder claims, held against its adversarial images and the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robgib.attacks.threat_model import ThreatModel, distance
from robgib.errors import RobGIBError
from robgib.models.checkpoint import weights_digest
from robgib.models.inference import UNDECIDED, answers, prepare
from robgib.results import Run
from robgib.robustness.certification import certify
from robgib.statistics import clopper_pearson

__all__ = ["Claim", "verify"]

_SIZE = 1e-4  # of a distance: what it may be off by in a table


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

    That an image fools is shown by the image. That one stands cannot be: another attack may fell it.

    Args:
        run: of :func:`robgib.results.load_run`.
        saved: its images, of :func:`robgib.results.load_adversarial`.
        model: the model that it is of.
        data: the test images (N, …) in [0, 1] and labels (N,) that it is of, where they are at hand.
        device: where the model is.

    Yields:
        The claims in order: weights, data, clean answers; then for each attack its images' budgets, the answers to
        them and to their 8-bit copies, their sizes, the samples proven robust, and the table's counts and intervals.

    Raises:
        RobGIBError: the model answers at random, so that its answers cannot be repeated.
    """
    x, y = (torch.from_numpy(saved[name]) for name in ("clean", "labels"))
    own = weights_digest(model)
    yield Claim(
        "the model has the weights that were attacked", own == run.config["weights"],
        f"their digest is {own[:12]}, that of the run's {str(run.config['weights'])[:12]}",
    )  # fmt: skip
    if data is not None:
        same = len(data[0]) >= len(x) and torch.equal(data[0][: len(x)], x) and torch.equal(data[1][: len(x)], y)
        yield Claim("the images and labels are those of the data", same, "another image or label is there")
    prepared = prepare(model, x, classes=len(run.config["data"]["classes"]), device=device)
    if prepared.random:
        raise RobGIBError("the model answers at random: what it said cannot be repeated, and is not verified.")

    def asked(images: Tensor, labels: Tensor) -> np.ndarray:
        return answers(prepared, images, labels, device=device).prediction

    told = asked(x, y)
    leads: dict[ThreatModel, np.ndarray] = {}
    for label, rows in run.outcomes.groupby("attack", sort=False):
        rows = rows.sort_values("index")
        yield _equal(f"{label}: labels", rows["label"].to_numpy(), y.numpy())
        yield _equal(f"{label}: answers to clean images", rows["clean_prediction"].to_numpy(), told)
        here = saved.get(f"{label}/rows")
        found = saved.get(f"{label}/images")
        fooled = (rows["clean_prediction"] == rows["label"]) & (rows["adversarial_prediction"] != rows["label"])
        if here is None or found is None:
            yield Claim(f"{label}: images", not fooled.any(), f"none is kept of {int(fooled.sum())} that it claims")
            continue
        yield Claim(
            f"{label}: an image for each sample that it fooled", set(here) == set(np.flatnonzero(fooled)),
            f"{len(here)} images, {int(fooled.sum())} samples",
        )  # fmt: skip
        threat = ThreatModel(str(rows["norm"].iloc[0]), float(rows["eps"].iloc[0]))  # type: ignore[arg-type]
        images, centres = torch.from_numpy(found), x[here]
        inside = threat.allows(images, centres).numpy()
        yield Claim(
            f"{label}: images within {threat.norm} {threat.eps:.4g} and the box", bool(inside.all()),
            f"image {_first(here, ~inside)} lies outside",
        )  # fmt: skip
        given = rows.iloc[here]
        said = asked(images, y[here])
        yield _equal(f"{label}: answers to adversarial images", given["adversarial_prediction"].to_numpy(), said, here)
        wrong = (said == y[here].numpy()) & (said != UNDECIDED)
        yield Claim(
            f"{label}: these answers are wrong", not wrong.any(), f"that to image {_first(here, wrong)} is right"
        )
        if images.ndim == 4:
            coarse = asked((images * 255).round() / 255, y[here]) == y[here].numpy()
            yield _equal(f"{label}: answers to 8-bit copies", given["right_8bit"].to_numpy() > 0.5, coarse, here)
        for norm in ("linf", "l2"):
            size = distance(images, centres, norm).numpy()
            off = np.abs(size - given[norm].to_numpy()) > _SIZE * size + 1e-7
            yield Claim(f"{label}: sizes in {norm}", not off.any(), f"image {_first(here, off)} is of another size")
        table = run.robustness[run.robustness["attack"] == label]
        proven = np.flatnonzero(rows["certified_lead"].to_numpy() > 0)
        if len(proven):
            if threat not in leads:
                leads[threat] = certify(prepared, x[proven], y[proven], threat, device=device)
            yield Claim(
                f"{label}: {len(proven)} samples are proven robust",
                len(leads[threat]) == len(proven) and bool((leads[threat] > 0).all()),
                f"sample {_first(proven, ~(leads[threat] > 0))} is not",
            )
            yield Claim(
                f"{label}: certified accuracy",
                bool((table["certified"] == len(proven)).all())
                and np.allclose(table["certified_accuracy"], len(proven) / len(y), rtol=1e-6),
                f"the samples say {len(proven)} of {len(y)}",
            )
        standing = int(((told == y.numpy()) & ~fooled.to_numpy()).sum())
        low, high = clopper_pearson(standing, len(y))
        expected = [len(y), standing, standing / len(y), low, high]
        stated = table[["samples", "robust", "robust_accuracy", "low", "high"]].to_numpy(dtype=float)
        yield Claim(
            f"{label}: robust accuracy and its interval",
            len(stated) == 1 and np.allclose(stated[0], expected, rtol=1e-6, atol=1e-9),
            f"the samples say {standing} of {len(y)}",
        )


def _first(rows: np.ndarray, mask: np.ndarray) -> int:
    return int(rows[mask][0]) if mask.any() else -1


def _equal(what: str, stated: np.ndarray, seen: np.ndarray, rows: np.ndarray | None = None) -> Claim:
    if len(stated) != len(seen):
        return Claim(what, False, f"{len(stated)} are stated for {len(seen)} images")
    off = stated != seen
    first = _first(np.arange(len(stated)) if rows is None else rows, off)
    detail = f"image {first}: {stated[off][0]} is stated, it is {seen[off][0]}" if off.any() else ""
    return Claim(what, not off.any(), detail)
