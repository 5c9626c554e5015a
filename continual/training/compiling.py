"""Compiled forward and backward passes (torch.compile): fused kernels, and CUDA graphs on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from continual.errors import one_line
from continual.losses import Objective


class Compiled:
    """An Objective compiled for whole batches, once for a phase; batches of another size go the plain way.

    nb_rows: images of one replica in a whole batch. say: told if it cannot be compiled, once; all goes the plain way then.
    """

    def __init__(self, objective: Objective, *, nb_rows: int, say: Callable[[str], None] = print):
        torch.compiler.reset()  # what was compiled for other phases would count towards torch's limit
        on_cuda = next(objective.model.parameters()).is_cuda
        self.objective, self.nb_rows, self.say = objective, nb_rows, say
        self.compiled = torch.compile(objective, mode="reduce-overhead" if on_cuda else None, dynamic=False)
        self.rows: tuple[int, ...] | None = None  # of the batches that it is compiled for
        self.works = True

    def fits(self, rows: tuple[int, ...]) -> bool:
        """Whether a batch with so many images of each replica is one to compile for."""
        if self.rows is None and rows[0] == self.nb_rows:
            self.rows = rows
        return rows == self.rows and self.works

    def __call__(self, images: Tensor, targets: Tensor, held_out: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        try:
            torch.compiler.cudagraph_mark_step_begin()
            return self.compiled(images, targets, held_out)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.works = False
            self.say(f"compile: it does not work here, the run goes on without it: {one_line(error)[:200]}")
            return self.objective(images, targets, held_out)
