"""Recording behind a device: copies that are under way, and calls held back until they may be made.

A state that lies on a GPU is known to be finite only when the device has come to it, and to ask at once would
make the run wait there at every hop. So the record of a hop is held back until the next one has been handed
to the device, which is then never without work; what is made of it, in its order, is what is made at once
elsewhere.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DEFERRED = ("cuda",)  # devices whose work goes on while the host does something else


class Copy:
    """A copy of a tensor on the host; from a GPU it is under way while the run goes on.

    It comes into pinned memory, which torch hands out again once it is free. The tensor may be written on, or
    go, meanwhile: whatever the device does to it comes after the copy.
    """

    def __init__(self, x: torch.Tensor):
        self._arrived = None
        if not x.is_cuda:
            self._held = torch.empty(x.shape, dtype=x.dtype).copy_(x)
            return
        self._held = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._held.copy_(x, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(x.device))

    def ready(self) -> bool:
        """Whether it is there."""
        return self._arrived is None or self._arrived.query()

    @property
    def coming(self) -> np.ndarray:
        """Its array, to ask for shape and dtype: the values may not be there."""
        return self._held.numpy()

    def tensor(self) -> torch.Tensor:
        """The copy, once it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._held


class Later:
    """Calls held back, with the tensors among their arguments on their way to the host.

    A call that raises FloatingPointError takes all that came after it along: it was recorded of a run that
    had ended there.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[Callable, list[Any]]] = deque()

    def add(self, call: Callable, *args: Any) -> None:
        """Will make the call, with a `Copy` for each tensor; arrays may be written on after this."""
        self._calls.append((call, [held(value) for value in args]))

    def settle(self, wait: bool = True) -> None:
        """Makes the calls, in their order; all of them, or those whose copies are there."""
        while self._calls:
            call, args = self._calls[0]
            if not wait and not all(value.ready() for value in args if isinstance(value, Copy)):
                return
            try:
                call(*args)
            except FloatingPointError:
                self.drop()
                raise
            self._calls.popleft()  # not before: Ctrl-C while it waits loses nothing

    def drop(self) -> None:
        """Forgets the calls."""
        self._calls.clear()


def is_deferred(device: Any) -> bool:
    """Whether recording from a device is held back."""
    return torch.device(device).type in DEFERRED


def held(value: Any) -> Any:
    """`value` as it is now: of a tensor a `Copy`, of an array a copy."""
    if isinstance(value, torch.Tensor):
        return Copy(value)
    return np.array(value) if isinstance(value, np.ndarray) else value


def sent(x: torch.Tensor, device: Any) -> torch.Tensor:
    """A tensor of the host on a device, without a wait for what that was given until now."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def as_numpy(x: Any) -> np.ndarray:
    """A tensor, a `Copy` or anything array-like, on the host."""
    if isinstance(x, torch.Tensor):
        return x.numpy(force=True)
    return x.tensor().numpy() if isinstance(x, Copy) else np.asarray(x)


def moments(x: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
    """Mean and variance of a state as it is recorded, made where it lies: (2, sample, channel) in float64."""
    variance, mean = torch.var_mean(x.to(getattr(torch, dtype.name)).double().flatten(2), dim=2, correction=0)
    return torch.stack([mean, variance])


def mean_and_std(told: Copy) -> tuple[np.ndarray, np.ndarray]:
    """What `dataset.moments` gives of that row, each (sample, channel)."""
    mean, variance = as_numpy(told)
    return mean, np.sqrt(variance)
