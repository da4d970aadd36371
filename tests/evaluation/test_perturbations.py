"""Every evaluator gives the numbers of an independent program, on right and on wrong predictions."""

import logging

import pytest

pytest.importorskip("cityscapesscripts")
from perturbations import EVALUATORS, compare, prepare
from scenes import PERTURBATIONS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("perturbed") / "data")


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_scores_are_those_of_an_independent_program(data, evaluator, perturbation, caplog):
    caplog.set_level(logging.ERROR)
    ours, independent, difference, shared = compare(evaluator, perturbation, *data)
    assert shared >= 9
    assert difference < 1e-6
    assert ours == pytest.approx(independent, abs=1e-6)
    assert (ours == pytest.approx(100)) == (perturbation == "exact")
