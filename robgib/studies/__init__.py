"""Studies of many models: their design, measurement, and statistical claims."""

from robgib.studies.claims import Claim, claim
from robgib.studies.design import Cell, Figure, Outcome, Study, cells, read_study
from robgib.studies.engines import ENGINES, Engine
from robgib.studies.kinds import KINDS, Answer, CorrelationStudy, Plan, StudyKind, open_study
from robgib.studies.ladder import Question, Rung, ladder
from robgib.studies.measure import Measured, estimated_seconds, measure, measured_rows, read_rows, stored
from robgib.studies.page import (
    STUDY_SCHEMA,
    phases_json,
    phases_markdown,
    phases_page,
    study_json,
    study_markdown,
    study_page,
)
from robgib.studies.phases import (
    Followed,
    Phases,
    PhasesClaim,
    Traced,
    followed,
    phases_claim,
    phases_rows,
    read_phases,
    trace_all,
)
from robgib.studies.simulate import simulate, structure

__all__ = [
    "ENGINES",
    "KINDS",
    "STUDY_SCHEMA",
    "Answer",
    "Cell",
    "Claim",
    "CorrelationStudy",
    "Engine",
    "Figure",
    "Followed",
    "Measured",
    "Outcome",
    "Phases",
    "PhasesClaim",
    "Plan",
    "Question",
    "Rung",
    "Study",
    "StudyKind",
    "Traced",
    "cells",
    "claim",
    "estimated_seconds",
    "followed",
    "ladder",
    "measure",
    "measured_rows",
    "open_study",
    "phases_claim",
    "phases_json",
    "phases_markdown",
    "phases_page",
    "phases_rows",
    "read_phases",
    "read_rows",
    "read_study",
    "simulate",
    "stored",
    "structure",
    "study_json",
    "study_markdown",
    "study_page",
    "trace_all",
]
