"""Traces: the information in a network's layers, epoch by epoch, while it trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robgib.data.dataset import Dataset
from robgib.errors import RobGIBError
from robgib.files import write_file
from robgib.information.analysis import DEFAULT_ESTIMATORS, layer_information
from robgib.models.checkpoint import CHECKPOINT_SUFFIXES, read_record, save_checkpoint
from robgib.models.inference import answers, prepare
from robgib.results import column_names
from robgib.runtime import Progress

__all__ = [
    "Tracer",
    "log_spaced",
    "saved_epochs",
    "snapshots",
]


def log_spaced(epochs: int) -> tuple[int, ...]:
    """Return 0 (the untrained network), the powers of two, and the last epoch."""
    powers = [2**i for i in range(epochs.bit_length()) if 2**i < epochs]
    return tuple(dict.fromkeys([0, *powers, epochs]))


class Tracer:
    """Estimates the layers' terms at chosen epochs; to be called as ``watch`` of :func:`~robgib.training.train`.

    Attributes:
        table: a row an epoch, estimator, layer and term: value in bits, 95% interval, saturation, as in
            :attr:`robgib.results.Run.layers`, with the epoch and the test accuracy.
    """

    def __init__(
        self,
        data: Dataset,
        at: Sequence[int],
        estimators: Sequence[str] = DEFAULT_ESTIMATORS,
        *,
        samples: int = 2000,
        device: torch.device | str = "cpu",
        catalogue: Sequence[Path] = (),
        progress: Progress | None = None,
        keep: Path | None = None,
    ) -> None:
        """Choose what to trace.

        Args:
            data: its test images are estimated on; codes and components are fitted on training images.
            at: epochs, from 0 (the untrained network).
            estimators: specifications such as ``gaussian``.
            samples: most images to estimate on, the same at every epoch; data that list every input are taken whole.
            device: where the model is.
            catalogue: further folders of plug-ins.
            progress: called after each epoch traced.
            keep: file that holds the table after each epoch; a training taken up again finds in it what was traced
                before it was broken off.
        """
        if not at or min(at) < 0:
            raise RobGIBError("a trace needs at least one epoch, from 0 on.")
        self.data, self.at, self.estimators = data, tuple(at), tuple(estimators)
        samples = len(data.test) if data.enumerated else samples
        self.samples, self.device, self.catalogue, self.progress = samples, device, catalogue, progress
        self.keep = keep
        self._rows: list[pd.DataFrame] = []

    def __call__(self, epoch: int, model: nn.Module) -> None:
        """Estimate, if this epoch is one of those chosen."""
        if epoch and not self._rows and self.keep and self.keep.is_file():
            former = pd.read_csv(self.keep, float_precision="round_trip", keep_default_na=False, na_values=["nan", ""])
            former["note"] = former["note"].fillna("").astype("str")
            self._rows = [rows for e, rows in former.groupby("epoch") if int(str(e)) < epoch]
        if epoch not in self.at:
            return
        prepared = prepare(model, self.data.test.x, classes=len(self.data.classes), device=self.device)
        told = answers(prepared, self.data.test.x, self.data.test.y, classes=len(self.data.classes), device=self.device)
        accuracy = float(told.right.mean())
        found = layer_information(
            prepared, self.data, self.estimators, samples=self.samples, device=self.device, catalogue=self.catalogue
        )
        self._rows.append(found.layers.assign(epoch=epoch, test_accuracy=accuracy))
        if self.keep:
            write_file(self.keep, self.table.to_csv(index=False).encode())
        if self.progress:
            self.progress("tracing", len(self._rows), len(self.at), f"epoch {epoch}, accuracy {100 * accuracy:.1f}%")

    @property
    def table(self) -> pd.DataFrame:
        """What has been estimated so far."""
        if not self._rows:
            return pd.DataFrame(columns=column_names("trace"))
        return pd.concat(self._rows, ignore_index=True)[column_names("trace")]


def snapshots(folder: Path, at: Sequence[int], record: dict[str, Any]) -> Callable[[int, nn.Module], None]:
    """Return a ``watch`` that keeps the network of chosen epochs as ``folder/epoch-0004.safetensors``.

    ``record`` goes beside each, with its epoch.
    """

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in at:
            save_checkpoint(model, folder / f"epoch-{epoch:04d}.safetensors", {**record, "epoch": epoch})

    return keep


def saved_epochs(folder: Path) -> dict[int, Path]:
    """Return a folder's checkpoints by epoch: that of the record beside each, or the last number in its name.

    Raises:
        RobGIBError: no folder, no checkpoint in it, one without an epoch, or two of the same.
    """
    if not folder.is_dir():
        raise RobGIBError(f"folder {str(folder)!r} does not exist; give one that holds checkpoints.")
    found: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in CHECKPOINT_SUFFIXES):
        numbers = re.findall(r"\d+", path.stem)
        told = (read_record(path) or {}).get("epoch")
        if not isinstance(told, int) and not numbers:
            raise RobGIBError(f"{path} does not tell its epoch; put the number into its name, as in epoch-0004.")
        epoch = told if isinstance(told, int) else int(numbers[-1])
        if epoch in found:
            raise RobGIBError(f"{found[epoch]} and {path} are both of epoch {epoch}; a trace is of one training.")
        found[epoch] = path
    if not found:
        raise RobGIBError(f"{folder} holds no checkpoints ({', '.join(CHECKPOINT_SUFFIXES)}).")
    return dict(sorted(found.items()))
