"""Traces: the information in a network's layers, epoch by epoch, while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from robgib.data import Dataset
from robgib.errors import RobGIBError
from robgib.evaluation import DEFAULT_ESTIMATORS, evaluate
from robgib.reporting import trace_page
from robgib.store import write_file
from robgib.training import Progress

__all__ = ["Tracer", "log_spaced", "write_trace"]


def log_spaced(epochs: int) -> tuple[int, ...]:
    """Return 0 (the untrained network), the powers of two, and the last epoch."""
    powers = [2**i for i in range(epochs.bit_length()) if 2**i < epochs]
    return tuple(dict.fromkeys([0, *powers, epochs]))


class Tracer:
    """Estimates the layers' terms at chosen epochs; to be called as ``watch`` of :func:`~robgib.training.train`.

    Attributes:
        table: a row an epoch, estimator, layer and term: value in bits, 95% interval, saturation, as in
            :attr:`robgib.store.Run.layers`, with the epoch and the test accuracy.
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
    ) -> None:
        """Choose what to trace.

        Args:
            data: its test images are estimated on; codes and components are fitted on training images.
            at: epochs, from 0 (the untrained network).
            estimators: specifications such as ``gaussian``.
            samples: most images to estimate on, the same at every epoch.
            device: where the model is.
            catalogue: further folders of plug-ins.
            progress: called after each epoch traced.
        """
        if not at or min(at) < 0:
            raise RobGIBError("a trace needs at least one epoch, from 0 on.")
        self.data, self.at, self.estimators = data, tuple(at), tuple(estimators)
        self.samples, self.device, self.catalogue, self.progress = samples, device, catalogue, progress
        self._rows: list[pd.DataFrame] = []

    def __call__(self, epoch: int, model: nn.Module) -> None:
        """Estimate, if this epoch is one of those chosen."""
        if epoch not in self.at:
            return
        run = evaluate(
            model,
            self.data,
            attacks=[],
            estimators=self.estimators,
            information_samples=self.samples,
            signs=False,
            corruptions=False,
            device=self.device,
            catalogue=self.catalogue,
        )
        accuracy = float(run.robustness["clean_accuracy"].iloc[0])
        self._rows.append(run.layers.assign(epoch=epoch, test_accuracy=accuracy))
        if self.progress:
            self.progress("tracing", len(self._rows), len(self.at), f"epoch {epoch}, accuracy {100 * accuracy:.1f}%")

    @property
    def table(self) -> pd.DataFrame:
        """What has been estimated so far."""
        if not self._rows:
            return pd.DataFrame(columns=["epoch", "test_accuracy"])
        table = pd.concat(self._rows, ignore_index=True)
        first = ["epoch", "test_accuracy"]
        return table[[*first, *(c for c in table.columns if c not in first)]]


def write_trace(table: pd.DataFrame, checkpoint: Path, name: str) -> Path:
    """Write a trace beside its checkpoint, as ``.trace.csv`` and the page ``.trace.html``; return the page's path."""
    write_file(checkpoint.with_suffix(".trace.csv"), table.to_csv(index=False).encode())
    page = checkpoint.with_suffix(".trace.html")
    write_file(page, trace_page(table, name).encode())
    return page
