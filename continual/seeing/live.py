"""What can be watched while a run goes on: the same points on every board, at the training steps done so far in the run.

    loss/clf, loss/total, ...           mean losses of an epoch
    train/lr, train/images_per_second   of the epoch
    test/acc, test/avg_acc_known, ...   the figures of an evaluation
    acc_per_task/01, ...                its accuracies
    tokens/mean_dist, ...               distances between the task tokens
    size/n_parameters, ...              how large the model is, and the memory
    matrix/task unknown, ...            the accuracies so far, at the end of a task

Names are those of evaluations.jsonl. All but the speed are equal, to the bit, for equal runs, resumed or not: a point is added
after the last checkpoint that does not know it and before the first that does, and checkpoints hold the position of each board.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Matrix = Sequence[Sequence[float]]

ELSEWHERE = ("task", "epoch", "phase", "final", "test_acc1", "train_lr", "train_loss")  # told by others, or no figures


class AnyBoard(Protocol):
    """Where points go. name: what a checkpoint calls its position. None of it may end the run or hold it up."""

    name: str

    def start(self, position: int, hparams: Mapping[str, Any]) -> None: ...

    def add(self, step: int, scalars: Mapping[str, float], matrices: Mapping[str, Matrix] | None = None) -> None: ...

    def position(self) -> int: ...

    def end(self) -> None: ...

    def close(self, exit_code: int) -> None: ...


class Live:
    """All boards of a run; none on all but the main process. Nothing is added before `start`."""

    def __init__(self, boards: Sequence[AnyBoard] = ()) -> None:
        self._boards, self._started = boards, False
        self._positions: dict[str, int] = {}  # also of boards that were on before, and are off now

    def start(self, hparams: Mapping[str, Any]) -> None:
        """Begin, or go on from the positions that were loaded. hparams: the options that make the run what it is."""
        for board in self._boards:
            board.start(self._positions.get(board.name, 0), hparams)
        self._started = True

    def epoch(self, step: int, *, losses: Mapping[str, float], lr: float, speed: float | None) -> None:
        """One epoch is done. speed: images a second, None if it is not known."""
        known = {} if speed is None else {"train/images_per_second": speed}
        self._add(step, {**{f"loss/{name}": loss for name, loss in losses.items()}, "train/lr": lr, **known})

    def evaluation(self, step: int, record: Mapping[str, Any], matrices: Mapping[str, Matrix]) -> None:
        """One evaluation, as evaluations.jsonl has it."""
        self._add(step, scalars_of(record), {f"matrix/{name}": matrix for name, matrix in matrices.items()})

    def end(self) -> None:
        """The run is done."""
        for board in self._boards if self._started else ():
            board.end()

    def close(self, exit_code: int) -> None:
        """Nothing comes after this in this process."""
        for board in self._boards if self._started else ():
            board.close(exit_code)

    def state_dict(self) -> dict[str, int]:
        """For a manifest: the position of every board."""
        return {**self._positions, **{board.name: board.position() for board in self._boards if self._started}}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Before `start`: go on from `state_dict`; what a checkpoint does not know begins anew."""
        self._positions = dict(state)

    def _add(self, step: int, scalars: Mapping[str, float], matrices: Mapping[str, Matrix] | None = None) -> None:
        for board in self._boards if self._started else ():
            board.add(step, scalars, matrices)


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation's record by their tags."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if key.endswith("_per_task"):
            found |= {f"{key}/{number:02d}": share for number, share in enumerate(value, start=1)}
        elif value is not None and key not in ELSEWHERE and not key.startswith("loss_"):
            found[_tag(key)] = value
    return found


def _tag(key: str) -> str:
    if key.startswith("token_"):
        return f"tokens/{key.removeprefix('token_')}"
    return f"size/{key}" if key.startswith("n_") else f"test/{key.removeprefix('test_')}"
