"""The loop under a recorder: every hop is remembered, and a run that goes on begins after the last one."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .dataset import LATENT
from .later import sent
from .loop import steps
from .record import Recorder


def bar(hops: Iterable, total: int | None, label: str, progress: bool, done: int = 0) -> Iterable:
    """`hops` with a progress bar, in notebook and terminal; `done` of them are behind it."""
    return tqdm(hops, total=total, initial=done, desc=label, leave=False, disable=not progress)


class Walk:
    """One pass over the rows: the Steps of ``tk.steps``, those of an earlier process left out.

    Between two Steps the caller records the hop; then the store gets the state behind it, and `more`.

    Attributes
    ----------
    x : Tensor
        The state after the last Step; None where an earlier process went on to the next pass.
    begun : Bookmark
        Where an earlier process stood, with `more` as it was.
    more : dict
        What else this pass needs to go on, besides the state.
    """

    def __init__(self, record: Recorder, denoiser: Any, solver: Any, x: torch.Tensor, levels: Any, label: str,
                 progress: bool, *, noise: Any = None, past: tuple = (), start: int = 0,
                 stop: int | None = None):  # fmt: skip
        self.begun, self.more = record.begin(), {}
        if self.begun.x is not None:
            x, past, start, self.more = self.begun.x, self.begun.past, self.begun.i, dict(self.begun.more)
        self.x = None if self.begun.done else x
        self._record, self._label, self._progress = record, label, progress
        self._total = None if solver.adaptive is not None else (len(levels) - 1 if stop is None else stop)
        self._start = start
        self._steps = () if self.begun.done else steps(denoiser, solver, x, levels, noise=noise, past=past,
                                                       start=start, stop=stop)  # fmt: skip

    def __iter__(self) -> Iterator[Any]:
        for step in bar(self._steps, self._total, self._label, self._progress, self._start):
            self.x = step.x_next
            yield step
            self._record.mark(step.span.i + 1, step.x_next, step.past, **self.more)
        self._record.settle()


class Ladder:
    """The states of a climb by row, in full precision, for the pass that comes down it.

    In memory they are the tensors themselves. A run with a store reads them from there: from `latent` where
    that is every row in float64, else from an array that goes when the run is whole.
    """

    def __init__(self, record: Recorder, device: Any):
        self._record, self._device, self._kept = record, device, {}
        self._name = None
        if record.stored:
            save, scratch = record.save, "resume/rungs"
            whole = record.dtype == np.float64 and save.every == 1 and save.keeps("latent")
            self._name = "latent" if whole else scratch
            if not whole:
                record.make(scratch, LATENT)

    def __setitem__(self, row: int, x: torch.Tensor) -> None:
        if self._name is None:
            self._kept[row] = x
        elif self._name != "latent":
            self._record.put(self._name, row, x)

    def __getitem__(self, row: int) -> torch.Tensor:
        if self._name is None:
            return self._kept[row]
        return sent(torch.from_numpy(self._record.sink.read(self._name, row)), self._device)
