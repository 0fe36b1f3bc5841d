"""Simple figures of a classifier that need no information theory: baselines of every claim about robustness."""

from robgib.measures.figures import MEASURES, Sample, list_measures, measure_model, sample_of
from robgib.measures.probabilistic import probabilistic_robustness

__all__ = ["MEASURES", "Sample", "list_measures", "measure_model", "probabilistic_robustness", "sample_of"]
