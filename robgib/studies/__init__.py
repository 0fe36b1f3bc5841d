"""Many models: a design, what is measured of them, and what may be claimed."""

from robgib.studies.claims import Claim, claim
from robgib.studies.design import Cell, Figure, Outcome, Study, cells, read_study
from robgib.studies.measure import Measured, measure, measured_rows, stored
from robgib.studies.page import STUDY_SCHEMA, study_json, study_markdown, study_page

__all__ = [
    "STUDY_SCHEMA",
    "Cell",
    "Claim",
    "Figure",
    "Measured",
    "Outcome",
    "Study",
    "cells",
    "claim",
    "measure",
    "measured_rows",
    "read_study",
    "stored",
    "study_json",
    "study_markdown",
    "study_page",
]
