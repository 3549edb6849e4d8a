"""A run in memory: rows in preallocated arrays. What `toolkit.store` does, without a disk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .dataset import moments
from .later import as_numpy, mean_and_std
from .store import FILL


class Memory:
    """Rows in preallocated arrays: what `Store` does, without a disk."""

    complete, flagged = False, 0

    def __init__(self, moments_last: bool, block: int) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.rowed: set[str] = set()  # those with a row a step
        self.moments_last, self.block = moments_last, block

    def create(self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: np.dtype,
               fill: float | None = None) -> None:  # fmt: skip
        if self.block and name == "latent":  # written whole: NaN beforehand would be as much work again
            self.arrays[name] = np.empty(shape, dtype)
        else:
            self.arrays[name] = np.full(shape, FILL[dtype.kind] if fill is None else fill, dtype)
        if dims[0] == "step":
            self.rowed.add(name)

    def publish(self, device: Any) -> None:
        return None

    def resize(self, rows: int) -> None:
        """Room for more rows."""
        for name in self.rowed:
            old = self.arrays[name]
            self.arrays[name] = np.full((rows, *old.shape[1:]), FILL[old.dtype.kind], old.dtype)
            self.arrays[name][: len(old)] = old

    def put(self, name: str, row: int, value: Any) -> None:
        self.arrays[name][row] = value if isinstance(value, (int, float)) else as_numpy(value)

    def fill(self, name: str, values: np.ndarray) -> None:
        self.arrays[name][: len(values)] = values

    def state(self, row: int, x: Any, keep: bool, dtype: np.dtype, told: Any = None) -> None:
        if keep:
            self.arrays["latent"][row] = as_numpy(x)
        if not self.moments_last:
            found = moments(as_numpy(x).astype(dtype, copy=False)) if told is None else mean_and_std(told)
            self.arrays["mean"][row], self.arrays["std"][row] = found

    def rungs(self, first: int, latent: np.ndarray, small: Mapping[str, np.ndarray]) -> None:
        for name, values in small.items():  # the rungs were made in their place
            self.arrays[name][first : first + len(values)] = values

    def close(self) -> None:
        """Nothing is open."""
