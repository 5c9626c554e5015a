"""The mean of gradients over processes, on its way while backward still runs."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from continual.jobs.watch import collective, together

SLICE = 2**20  # numbers, at least, that travel together; large enough for the wire, small enough to begin early


class _Slice:
    """Parameters of one type whose gradients travel together, as views of one buffer."""

    def __init__(self, parameters: list[nn.Parameter], nb_words: int = 0):
        sizes = [p.numel() for p in parameters]
        self.parameters = parameters
        self.buffer = torch.zeros(sum(sizes) + nb_words, dtype=parameters[0].dtype, device=parameters[0].device)
        *views, self.words = self.buffer.split([*sizes, nb_words])
        self.views = {  # laid out as the parameter is, which may be channels-last
            p: view.as_strided(p.shape, p.stride(), view.storage_offset()) for p, view in zip(parameters, views, strict=True)
        }
        self.awaited: set[nn.Parameter] = set()
        self.sent: dist.Work | None = None

    def take(self, p: nn.Parameter) -> None:
        """Put a gradient in its place, from where the optimizer will read the mean."""
        self.views[p].copy_(p.grad)
        p.grad = self.views[p]

    def send(self) -> None:
        with collective():
            self.sent = dist.all_reduce(self.buffer, async_op=True)


class Reduction:
    """Averages the gradients of parameters over the processes, and with them a few words, such as losses.

    The parameters lie in fixed slices, the last first, as backward meets them, whichever of them get a gradient: so a sum is
    rounded alike in every step, before and after a resume. (DistributedDataParallel lays its buckets out anew after its first
    step, and with more than two processes that changes the last bits.) A slice leaves, in its turn, once all gradients are in
    it that the step before had there. Alone, nothing travels.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self._slices: list[_Slice] = []
        self._of: dict[nn.Parameter, _Slice] = {}
        self._used: set[nn.Parameter] | None = None  # with a gradient, in the step before
        self._next = 0  # slice to leave

    def backward(self, loss: Tensor, words: Tensor) -> Tensor:
        """Add the gradient of a scalar `loss` to what is there, average all gradients; returns the mean of `words` (n,).

        All processes must call it together. Raises LostProcess if one of them does not answer.
        """
        if not together():
            loss.backward()
            return words
        if not self._slices:
            self._lay_out(len(words))
        self._begin(words)
        handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in self.parameters]
        try:
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        self._finish()
        return self._slices[-1].words.to(words.dtype, copy=True)

    def _lay_out(self, nb_words: int) -> None:
        groups: list[list[nn.Parameter]] = [[]]
        for p in reversed(self.parameters):
            full = sum(each.numel() for each in groups[-1]) >= SLICE
            if groups[-1] and (full or groups[-1][0].dtype != p.dtype):
                groups.append([])
            groups[-1].append(p)
        self._slices = [_Slice(group, nb_words if group is groups[-1] else 0) for group in groups]
        self._of = {p: each for each in self._slices for p in each.parameters}

    def _begin(self, words: Tensor) -> None:
        self._next, self._taken, self._late = 0, set(), []
        self._slices[-1].words.copy_(words)
        for each in self._slices:
            each.awaited = {p for p in each.parameters if self._used is None or p in self._used}
            each.sent = None

    def _arrived(self, p: nn.Parameter) -> None:
        """One gradient is whole, in the middle of backward."""
        home = self._of[p]
        if home.sent is not None:  # unlike in the step before
            self._late.append(p)
            return
        home.take(p)
        self._taken.add(p)
        home.awaited.discard(p)
        if self._used is not None:
            while self._next < len(self._slices) and not self._slices[self._next].awaited:
                self._send_next()

    def _send_next(self) -> None:
        self._slices[self._next].send()
        self._next += 1

    def _finish(self) -> None:
        for each in self._slices[self._next :]:
            for p in each.parameters:
                if p.grad is None:
                    each.views[p].zero_()
                elif p not in self._taken:  # from an earlier batch alone
                    each.take(p)
            self._send_next()
        for each in self._slices:
            with collective():
                each.sent.wait()
            each.buffer.div_(dist.get_world_size())
        for p in self._late:
            self._average_alone(p)
        self._used = {p for p in self.parameters if p.grad is not None}

    def _average_alone(self, p: nn.Parameter) -> None:
        with collective():
            dist.all_reduce(p.grad)
        p.grad.div_(dist.get_world_size())
