import subprocess
import sys

import pytest

from continual import metrics
from continual.metrics import Scores

# Two tasks of unequal size: 10 and 30 images.
SCORES = Scores(nb=(10, 30), top1=(5, 27), top5=(9, 30), known=(8, 30), loss_sum=(4.0, 6.0))

# Task 0 falls 0.9 -> 0.5 -> 0.6; task 1 rises 0.7 -> 0.8.
MATRIX = [[0.9], [0.5, 0.7], [0.6, 0.8, 0.4]]


def test_accuracy_weighs_images_not_tasks():
    assert metrics.accuracy(SCORES) == 32 / 40
    assert metrics.accuracy(SCORES, known=True) == 38 / 40
    assert metrics.accuracy_top5(SCORES) == 39 / 40
    assert metrics.mean_loss(SCORES) == 0.25


def test_accuracy_per_task():
    assert metrics.accuracy_per_task(SCORES) == [0.5, 0.9]
    assert metrics.accuracy_per_task(SCORES, known=True) == [0.8, 1.0]


def test_scores_survive_lists_of_floats():
    floats = [[float(number) for number in row] for row in SCORES.to_lists()]
    assert Scores.from_lists(floats) == SCORES
    assert all(isinstance(count, int) for count in Scores.from_lists(floats).nb)


def test_scores_refuse_unequal_fields():
    with pytest.raises(ValueError, match="different numbers of tasks"):
        Scores((1, 1), (1,), (1, 1), (1, 1), (0.0, 0.0))


def test_no_image_has_no_accuracy():
    with pytest.raises(ValueError, match="no test image"):
        metrics.accuracy(Scores(*[(0, 0)] * 5))
    with pytest.raises(ValueError, match="no test image"):
        metrics.accuracy_per_task(Scores((4, 0), (4, 0), (4, 0), (4, 0), (0, 0)))


def test_matrix_from_evaluations():
    first = Scores((10,), (9,), (10,), (9,), (1.0,))
    assert metrics.accuracy_matrix([first, SCORES]) == [[0.9], [0.5, 0.9]]
    assert metrics.accuracy_matrix([first, SCORES], known=True) == [[0.9], [0.8, 1.0]]
    with pytest.raises(ValueError, match="i \\+ 1 entries"):
        metrics.accuracy_matrix([SCORES])


def test_average_incremental_accuracy_counts_the_first_step():
    assert metrics.average_incremental_accuracy([0.9, 0.6, 0.3]) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no evaluation"):
        metrics.average_incremental_accuracy([])


def test_forgetting_is_measured_from_the_best_past_accuracy():
    # task 0: max(0.9, 0.5) - 0.6 = 0.3 ; task 1: 0.7 - 0.8 = -0.1
    assert metrics.forgetting(MATRIX) == pytest.approx(0.1)
    # best after a later task: max(0.5, 0.8) - 0.6 = 0.2 ; task 1: 0.7 - 0.7 = 0
    assert metrics.forgetting([[0.5], [0.8, 0.7], [0.6, 0.7, 0.9]]) == pytest.approx(0.1)


def test_backward_transfer_is_measured_from_when_the_task_was_learned():
    # task 0: 0.6 - 0.9 = -0.3 ; task 1: 0.8 - 0.7 = 0.1
    assert metrics.backward_transfer(MATRIX) == pytest.approx(-0.1)
    assert metrics.backward_transfer([[0.5], [0.8, 0.7], [0.6, 0.7, 0.9]]) == pytest.approx(0.05)


@pytest.mark.parametrize("figure", [metrics.forgetting, metrics.backward_transfer])
def test_one_task_forgets_nothing(figure):
    assert figure([[0.7]]) == 0.0


@pytest.mark.parametrize("figure", [metrics.forgetting, metrics.backward_transfer])
@pytest.mark.parametrize("matrix", [[], [[0.1, 0.2]], [[0.1], [0.2]]])
def test_ragged_matrices_are_refused(figure, matrix):
    with pytest.raises(ValueError, match="i \\+ 1 entries"):
        figure(matrix)


def test_metrics_and_report_need_no_torch():
    code = "import sys, continual.metrics, continual.runs.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
