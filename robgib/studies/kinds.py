"""The kinds of study, which share one protocol: plan, run, answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from robgib import registry
from robgib.engines import Engine
from robgib.errors import RobGIBError, unknown_name
from robgib.information.registry import make_estimator
from robgib.measures import MEASURES
from robgib.reading import as_path
from robgib.runtime import Progress, installed_version
from robgib.studies.checks import check_names, check_networks
from robgib.studies.claims import claim
from robgib.studies.design import Cell, Study, cells, read_study
from robgib.studies.ladder import counted
from robgib.studies.ledger import (
    Ledger,
    Network,
    dictionary,
    ledger_rows,
    ledger_structure,
    ledger_study,
    measure_networks,
    networks,
    of_design,
    read_ledger,
    read_ledger_design,
    rows_so_far,
    verdicts,
    without_units,
)
from robgib.studies.measure import estimated_seconds, measure, measured_rows, read_rows, stored
from robgib.studies.page import phases_json, phases_markdown, phases_page, study_json, study_markdown, study_page
from robgib.studies.phases import Followed, Phases, followed, phases_claim, phases_rows, read_phases, trace_all
from robgib.studies.simulate import structure
from robgib.studies.specification import (
    Analysed,
    Specification,
    analyse_all,
    analysed_networks,
    check_analysed,
    read_specification,
    read_specifications,
    specification_rows,
)
from robgib.studies.specification_claim import specification_claim
from robgib.studies.specification_page import specification_json, specification_markdown, specification_page

__all__ = ["KINDS", "Answer", "Format", "LedgerStudy", "Plan", "SpecificationStudy", "StudyKind", "open_study"]

_COUNTS = {"samples", "information_samples"}
Format = Literal["html", "markdown", "json"]


@dataclass(frozen=True)
class Plan:
    """What a study will do.

    Attributes:
        name: name of the study.
        columns: headings of the table of models.
        rows: one row per model, each with one text per column.
        summary: sentences shown below the table: how many models there are, how many are measured, and how long the
            others will take.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    summary: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The result of a study.

    Attributes:
        verdict: the verdict in one to four words, such as ``goes with``.
        words: the verdict in one or a few sentences.
        notes: limits of the result, one sentence each.
        texts: functions that render the result in each format; they are called only for the formats that are written.
        tables: tables of results, by the name of the CSV file.
        measured: whether at least one model was measured.
    """

    verdict: str
    words: str
    notes: tuple[str, ...]
    texts: Mapping[Format, Callable[[], str]]
    tables: Mapping[str, pd.DataFrame]
    measured: bool


class StudyKind(Protocol):
    """A study of any kind, as :func:`open_study` returns it.

    ``robgib study plan``, ``run``, ``claim`` and ``simulate`` each call one method. To add a kind of study, write a
    class with these methods and enter its reader in :data:`KINDS`.
    """

    @property
    def name(self) -> str:
        """Name of the study, from its file."""

    def plan(self, data_root: Path | None) -> Plan:
        """Return the models of the study, and which of them are already measured.

        Args:
            data_root: folder of the data files; None is the usual one.

        Raises:
            RobGIBError: the data or a network lacks something that the study needs.
        """

    def run(self, data_root: Path | None, engine: Engine, progress: Progress | None) -> Answer:
        """Train and measure the models that are not yet measured, and return the answer.

        Args:
            data_root: folder of the data files; None is the usual one.
            engine: runs the tasks, on this machine or on a cluster.
            progress: called with the stage, the number of finished models, and their total.

        Raises:
            RobGIBError: the data or a network lacks something that the study needs.
        """

    def claim(self, table: Path) -> Answer:
        """Return the answer from a table of measured models, without training or measuring.

        Args:
            table: CSV file that a run of the study wrote.

        Raises:
            RobGIBError: the file is not a table of this study, or this kind of study has no such table.
        """

    def structure(self) -> tuple[Study, pd.DataFrame]:
        """Return the study whose ladder of evidence is simulated, and one row per model, without measured figures.

        Raises:
            RobGIBError: this kind of study has no ladder of evidence.
        """


@dataclass(frozen=True)
class CorrelationStudy:
    """A study that correlates information figures of models with an outcome, such as robust accuracy.

    Attributes:
        study: the design.
        cells: the models.
        catalogue: further folders of recipes and plug-ins.
    """

    study: Study
    cells: Sequence[Cell]
    catalogue: Sequence[Path]

    @property
    def name(self) -> str:
        """See :class:`StudyKind`."""
        return self.study.name

    def plan(self, data_root: Path | None) -> Plan:
        """See :class:`StudyKind`."""
        self._check(data_root)
        study = self.study
        measured = {cell.name: stored(cell, study).is_dir() for cell in self.cells}
        rows = [(c.name, c.part, _training_of(c), "yes" if measured[c.name] else "") for c in self.cells]
        summary = [
            f"{counted(len(rows), 'model')}, {sum(measured.values())} measured before. Each of the others: "
            f"{len(study.outcome.attacks)} attacks on {study.samples} images, {len(study.estimators)} estimators on "
            f"{len(study.partitions)} partitions of {study.information_samples}."
        ]
        if not all(measured.values()):
            summary.append(self._duration(data_root))
        return Plan(study.name, ("model", "part", "training", "done"), rows, tuple(summary))

    def _check(self, data_root: Path | None) -> None:
        """Raise an error, before any model is trained, if the data or a network lacks what the study needs."""
        study = self.study
        check_networks(
            study.name,
            [c.recipe for c in self.cells],
            [f.layer for f in study.figures],
            study.partitions,
            max((getattr(study, n) for n in _COUNTS & study.model_fields_set), default=0),
            data_root,
            [make_estimator(spec, self.catalogue) for spec in study.estimators],
            study.information_samples,
        )

    def measuring(self, measures: Sequence[str]) -> CorrelationStudy:
        """Return the study with other baselines.

        Raises:
            RobGIBError: a measure that there is not.
        """
        for name in measures:
            MEASURES.find(name, self.catalogue)
        return replace(self, study=self.study.model_copy(update={"measures": list(dict.fromkeys(measures))}))

    def _duration(self, data_root: Path | None) -> str:
        try:
            seconds = estimated_seconds(self.study, self.cells, data_root, self.catalogue)
        except RobGIBError as error:
            return f"The duration cannot be estimated: {error}"
        minutes = max(1, round(seconds / 60))
        length = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return f"About {length} on one process of this machine, trainings included."

    def run(self, data_root: Path | None, engine: Engine, progress: Progress | None) -> Answer:
        """See :class:`StudyKind`."""
        self._check(data_root)
        study = self.study
        measured = measure(
            study, self.cells, data_root=data_root, engine=engine, catalogue=self.catalogue, progress=progress
        )
        return self.answer(measured_rows(study, measured))

    def claim(self, table: Path) -> Answer:
        """See :class:`StudyKind`."""
        return self.answer(read_rows(table, self.study))

    def structure(self) -> tuple[Study, pd.DataFrame]:
        """See :class:`StudyKind`."""
        return self.study, structure(self.cells)

    def answer(self, rows: pd.DataFrame) -> Answer:
        """Return the answer from one row per measured model (:func:`~robgib.studies.measured_rows`)."""
        study = self.study
        answer, release = claim(study, rows), installed_version("robgib")
        return Answer(
            answer.verdict,
            answer.words,
            tuple(answer.notes),
            {
                "html": lambda: study_page(study, rows, answer, release),
                "markdown": lambda: study_markdown(study, rows, answer),
                "json": lambda: _as_text(study_json(study, rows, answer, release)),
            },
            {"models.csv": rows},
            bool("outcome" in rows and rows["outcome"].notna().any()),
        )


@dataclass(frozen=True)
class CompressionStudy:
    """A study that estimates the information in a layer at several epochs of each training.

    Attributes:
        study: the design.
        networks: the networks, controls included.
        catalogue: further folders of recipes and plug-ins.
    """

    study: Phases
    networks: Sequence[Followed]
    catalogue: Sequence[Path]

    @property
    def name(self) -> str:
        """See :class:`StudyKind`."""
        return self.study.name

    def plan(self, data_root: Path | None) -> Plan:
        """See :class:`StudyKind`."""
        self._check(data_root)
        traced = {one.name: (one.folder(self.study) / "trace.csv").is_file() for one in self.networks}
        rows = [
            (one.name, one.group, one.control or "", str(one.recipe.training.epochs), "yes" if traced[one.name] else "")
            for one in self.networks
        ]
        summary = f"{counted(len(rows), 'network')}, {sum(traced.values())} traced before."
        return Plan(self.name, ("network", "group", "control", "epochs", "done"), rows, (summary,))

    def _check(self, data_root: Path | None) -> None:
        """Raise an error, before any model is trained, if the data or a network lacks what the study needs."""
        study = self.study
        recipes = [one.recipe for one in self.networks]
        given = study.samples if "samples" in study.model_fields_set else 1
        makers = [make_estimator(study.estimator, self.catalogue)]
        check_networks(study.name, recipes, [study.layer], [study.partition], given, data_root, makers)

    def run(self, data_root: Path | None, engine: Engine, progress: Progress | None) -> Answer:
        """See :class:`StudyKind`."""
        self._check(data_root)
        study = self.study
        traced = trace_all(
            study, self.networks, data_root=data_root, engine=engine, catalogue=self.catalogue, progress=progress
        )
        rows = phases_rows(study, traced)
        answer, release = phases_claim(study, rows), installed_version("robgib")
        traces = [
            t.table.assign(network=t.network.name, control=t.network.control or "")
            for t in traced
            if t.table is not None
        ]
        return Answer(
            answer.verdict,
            answer.words,
            tuple(answer.notes),
            {
                "html": lambda: phases_page(study, traced, rows, answer, release),
                "markdown": lambda: phases_markdown(study, answer),
                "json": lambda: _as_text(phases_json(study, rows, answer, release)),
            },
            {"networks.csv": rows, **({"traces.csv": pd.concat(traces)} if traces else {})},
            bool(traces),
        )

    def claim(self, table: Path) -> Answer:
        """See :class:`StudyKind`."""
        raise RobGIBError(
            f"study {self.name!r} is one of compression, which has no table of models; use `robgib study run`."
        )

    def structure(self) -> tuple[Study, pd.DataFrame]:
        """See :class:`StudyKind`."""
        raise _no_ladder(self.name, "compression")


@dataclass(frozen=True)
class LedgerStudy:
    """A study of networks whose training settings are drawn at random, with one table of all measurements.

    Attributes:
        ledger: the design.
        networks: the networks, in the order of the design.
        table: CSV file of the measured networks.
        catalogue: further folders of recipes and plug-ins.
    """

    ledger: Ledger
    networks: Sequence[Network]
    table: Path
    catalogue: Sequence[Path]

    @property
    def name(self) -> str:
        """See :class:`StudyKind`."""
        return self.ledger.name

    def plan(self, data_root: Path | None) -> Plan:
        """See :class:`StudyKind`."""
        self._check(data_root)
        known = of_design(self.ledger, self.networks, rows_so_far(self.table), self.table)
        done = dict.fromkeys(known["network"], "yes")
        partly = known.loc[without_units(known), "network"]
        done |= dict.fromkeys(partly, "without S(Z;Y)")
        rows = [(n.recipe.name, str(n.cell), _fields_of(n), done.get(n.recipe.name, "")) for n in self.networks]
        there = sum(n.recipe.name in done for n in self.networks)
        size = f"{counted(len(rows), 'network')} in {counted(self.ledger.cells, 'cell')}"
        summary = f"{size}, {there} of them in {self.table.name}."
        if len(partly):
            summary += f" {len(partly)} of these lack S(Z;Y), which is measured too."
        return Plan(self.name, ("network", "cell", "training", "done"), rows, (summary,))

    def _check(self, data_root: Path | None) -> None:
        """Raise an error, before any model is trained, if the data or a network lacks what the study needs."""
        of, recipes = self.ledger, [n.recipe for n in self.networks]
        makers = [make_estimator(of.estimator, self.catalogue)]
        most = max(of.samples, of.information_samples)
        check_networks(of.name, recipes, [], [of.partition], most, data_root, makers)

    def run(self, data_root: Path | None, engine: Engine, progress: Progress | None) -> Answer:
        """See :class:`StudyKind`."""
        self._check(data_root)
        rows, errors = measure_networks(
            self.ledger,
            self.table,
            catalogue=self.catalogue,
            data_root=data_root,
            engine=engine,
            progress=progress,
        )
        failed = tuple(f"{name} failed: {sentence}" for name, sentence in errors.items())
        return self.answer(rows, failed)

    def claim(self, table: Path) -> Answer:
        """See :class:`StudyKind`."""
        return self.answer(of_design(self.ledger, self.networks, read_ledger(table), table))

    def structure(self) -> tuple[Study, pd.DataFrame]:
        """See :class:`StudyKind`."""
        rows = [{"network": n.recipe.name, "seed": n.seed, **n.fields} for n in self.networks]
        return ledger_study(self.ledger), ledger_structure(pd.DataFrame(rows))

    def answer(self, rows: pd.DataFrame, notes: tuple[str, ...] = ()) -> Answer:
        """Return the answer from the rows of a ledger.

        The verdict is that of v(X;Z) of the last layer against the area under accuracy. The table ``verdicts.csv`` has
        those of all figures and outcomes.
        """
        study = ledger_study(self.ledger)
        models = ledger_rows(self.ledger, rows) if len(rows) else pd.DataFrame()
        answer = CorrelationStudy(study, (), self.catalogue).answer(models)
        own = {n.recipe.name for n in self.networks}
        there = sum(name in own for name in rows["network"])
        count = f"{there} of {len(self.networks)} networks of the design are in the ledger"
        if len(rows) > there:
            count += f", and {len(rows) - there} that are not of the design"
        tables = {"ledger.csv": rows, "columns.csv": dictionary()}
        if len(rows):
            tables["verdicts.csv"] = verdicts(self.ledger, rows)
        return replace(answer, notes=(count, *notes, *answer.notes), tables=tables)


def _fields_of(network: Network) -> str:
    """A network's architecture and training in a few words."""
    fields = network.fields
    strength = f" {fields['strength']:g}" if fields["strength"] else ""
    return f"{fields['architecture']} {fields['width']}x{fields['depth']}, {fields['regime']}{strength}"


@dataclass(frozen=True)
class SpecificationStudy:
    """A study that tests one claim under many analyses of the same networks (a specification curve).

    Attributes:
        study: the design.
        networks: the networks, controls included.
    """

    study: Specification
    networks: Sequence[Analysed]

    @property
    def name(self) -> str:
        """See :class:`StudyKind`."""
        return self.study.name

    def plan(self, data_root: Path | None) -> Plan:
        """See :class:`StudyKind`."""
        check_analysed(self.study, self.networks, data_root)
        done = {one.name: (one.folder(self.study) / "analyses.csv").is_file() for one in self.networks}
        rows = [
            (one.name, one.kind, one.control or "", str(one.recipe.training.epochs), "yes" if done[one.name] else "")
            for one in self.networks
        ]
        summary = f"{counted(len(rows), 'network')}, {sum(done.values())} analysed before."
        return Plan(self.name, ("network", "kind", "control", "epochs", "done"), rows, (summary,))

    def run(self, data_root: Path | None, engine: Engine, progress: Progress | None) -> Answer:
        """See :class:`StudyKind`."""
        check_analysed(self.study, self.networks, data_root)
        errors = analyse_all(self.study, self.networks, data_root=data_root, engine=engine, progress=progress)
        return self.answer(*specification_rows(self.study, self.networks), errors)

    def claim(self, table: Path) -> Answer:
        """See :class:`StudyKind`."""
        rows, facts = read_specifications(table)
        return self.answer(rows, facts, {})

    def structure(self) -> tuple[Study, pd.DataFrame]:
        """See :class:`StudyKind`."""
        raise _no_ladder(self.name, "specification")

    def answer(self, rows: pd.DataFrame, facts: pd.DataFrame, errors: Mapping[str, str]) -> Answer:
        """Return the answer from one row per analysis, one row per network, and the errors by network."""
        study, release = self.study, installed_version("robgib")
        answer = specification_claim(rows, facts, errors)
        return Answer(
            answer.verdict,
            answer.words,
            tuple(answer.notes),
            {
                "html": lambda: specification_page(study, rows, answer, release),
                "markdown": lambda: specification_markdown(study, answer),
                "json": lambda: _as_text(specification_json(study, facts, answer, release)),
            },
            {"specifications.csv": rows, "networks.csv": facts},
            bool(len(rows)),
        )


def _no_ladder(name: str, kind: str) -> RobGIBError:
    return RobGIBError(
        f"study {name!r} is of the kind {kind!r}, which has no ladder of evidence to simulate; "
        "give a study of the kind 'correlation' or 'ledger'."
    )


def _training_of(cell: Cell) -> str:
    """A cell's architecture and how it is trained, in a few words."""
    if cell.control:
        return f"{cell.architecture}, {cell.control}"
    return f"{cell.architecture}, {cell.regime}{f' {cell.strength:g}' if cell.strength else ''}"


def _as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _correlation(file: Path, catalogue: Sequence[Path], allow_code: bool) -> StudyKind:
    study = read_study(file, catalogue)
    check_names(study, file, catalogue)
    return CorrelationStudy(study, cells(study, catalogue, allow_code=allow_code), catalogue)


def _compression(file: Path, catalogue: Sequence[Path], allow_code: bool) -> StudyKind:
    study = read_phases(file, catalogue)
    return CompressionStudy(study, followed(study, catalogue, allow_code=allow_code), catalogue)


def _ledger(file: Path, catalogue: Sequence[Path], allow_code: bool) -> StudyKind:
    ledger = read_ledger_design(file, catalogue)
    return LedgerStudy(ledger, networks(ledger, catalogue), file.parent / ledger.table, catalogue)


def _specification(file: Path, catalogue: Sequence[Path], allow_code: bool) -> StudyKind:
    study = read_specification(file, catalogue)
    return SpecificationStudy(study, analysed_networks(study, catalogue, allow_code=allow_code))


KINDS: Mapping[str, Callable[[Path, Sequence[Path], bool], StudyKind]] = {
    "correlation": _correlation,
    "compression": _compression,
    "ledger": _ledger,
    "specification": _specification,
}
"""Readers of the kinds of study, by name: functions of the file, the catalogue folders, and ``allow_code``."""


def open_study(file: str | Path, catalogue: Sequence[Path] = (), *, allow_code: bool = False) -> StudyKind:
    """Read a study from its YAML file.

    Args:
        file: the YAML file. Its key ``kind`` is one of :data:`KINDS`; without it, it is a correlation study.
        catalogue: further folders of recipes and plug-ins.
        allow_code: import and run ``package.module:factory`` where a recipe or the study names it.

    Returns:
        The study. It is checked against the catalogue; nothing is trained.

    Raises:
        RobGIBError: the file does not exist, is invalid, or names something that does not exist.

    >>> import tempfile
    >>> text = '''
    ... name: example
    ... question: Does v go with robustness?
    ... primary: {figure: vulnerability, estimator: binned, partition: "patches:2"}
    ... confirm: {models: [digits-cnn]}
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "study.yaml"
    ...     _ = file.write_text(text)
    ...     study = open_study(file)
    >>> study.name, [cell.name for cell in study.cells]
    ('example', ['digits-cnn'])
    """
    file = as_path(file, "file")
    if not file.is_file():
        raise RobGIBError(f"study file {str(file)!r} does not exist.")
    kind = registry.read_yaml(file).get("kind", "correlation")
    if not isinstance(kind, str) or kind not in KINDS:
        line = registry.line_of(file, ["kind"])
        raise RobGIBError(f"{file}, line {line}: {unknown_name('kind of study', str(kind), KINDS)}")
    return KINDS[kind](file, catalogue, allow_code)
