"""The perplexity of what is certain, and of what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bench.bench_perplexity import WINDOW, of_logits, perplexity


def test_of_logits_by_hand() -> None:
    ids = np.array([0, 1, 0])
    logits = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]))
    assert of_logits(logits, ids) == pytest.approx(-math.log(0.5) - math.log(0.25))


@pytest.mark.parametrize("count", [2, WINDOW, WINDOW + 1, 2 * WINDOW + 7])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(count: int) -> None:
    def score(ids: np.ndarray) -> float:
        return of_logits(np.zeros((len(ids), 10)), ids)

    assert perplexity(score, np.zeros(count, np.int64)) == pytest.approx(10)
