"""Many models: a design, what is measured of them, and what may be claimed."""

from robgib.studies.claims import Claim, claim
from robgib.studies.design import Cell, Figure, Outcome, Study, cells, read_study
from robgib.studies.engines import ENGINES, Engine
from robgib.studies.kinds import KINDS, Answer, Plan, StudyKind, open_study
from robgib.studies.measure import Measured, estimated_seconds, measure, measured_rows, stored
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

__all__ = [
    "ENGINES",
    "KINDS",
    "STUDY_SCHEMA",
    "Answer",
    "Cell",
    "Claim",
    "Engine",
    "Figure",
    "Followed",
    "Measured",
    "Outcome",
    "Phases",
    "PhasesClaim",
    "Plan",
    "Study",
    "StudyKind",
    "Traced",
    "cells",
    "claim",
    "estimated_seconds",
    "followed",
    "measure",
    "measured_rows",
    "open_study",
    "phases_claim",
    "phases_json",
    "phases_markdown",
    "phases_page",
    "phases_rows",
    "read_phases",
    "read_study",
    "stored",
    "study_json",
    "study_markdown",
    "study_page",
    "trace_all",
]
