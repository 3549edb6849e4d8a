"""A model's table of noise levels with its clock. No torch here.

All is float64, and the table is rounded once, to the float32 that ComfyUI's numbers are made of.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from .errors import bad
from .paths import FLOW, VE, Path

TRAIN_STEPS = 1000  # levels in the table of a model trained in discrete steps, and the clock of a flow model
FLUX_LEVELS = 10_000
SCALED_LINEAR = (0.00085, 0.012)  # first and last beta of Stable Diffusion 1, 2 and XL
# ComfyUI's last cumulative alpha at zero terminal SNR: 0 would put the top level at infinity
ZERO_SNR_LAST = 4.8973451890853435e-08
ABOVE_ALL_LEVELS = 999999999.9  # percent(0) where sigma has no upper bound


def number(argument: str, given: object, low: float, line: str, high: float = math.inf) -> float:
    """`given` as a float if it is a finite real number above `low`, and `high` at most."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise bad(argument, given, "a number", line, TypeError)
    if not (math.isfinite(given) and low < given <= high):
        raise bad(argument, given, f"a finite number above {low:g}, and {high:g} at most", line)
    return float(given)


def _discrete(kind: str, betas: np.ndarray, zero_snr: object, between: object = False) -> "Levels":
    line = "tk.Levels.scaled_linear(zero_snr=True)"
    for name, given in (("zero_snr", zero_snr), ("between", between)):
        if not isinstance(given, (bool, np.bool_)):
            raise bad(name, given, "True or False", line, TypeError)
    return _usable(_Discrete(kind, tuple(betas.tolist()), bool(zero_snr), bool(between)), line)


def _like(given: Any, values: np.ndarray) -> Any:
    """A Python float for a scalar, a float64 array for an array."""
    return float(values) if np.ndim(given) == 0 else values


class Levels(ABC):
    """A model's `table` of sigmas, its clock, and its `path` (VE or FLOW); from one of five constructors.

    Examples
    --------
    >>> import toolkit as tk
    >>> levels = tk.Levels.flow(shift=3.0)
    >>> levels, levels.sigma_max, levels.time(0.25), levels.percent(0.8)
    (tk.Levels.flow(shift=3.0), 1.0, 250.0, 0.42857142857142855)
    """

    path: Path
    _above: float  # percent(0)
    _table: Callable[[], np.ndarray]
    _clock: Callable[[], tuple[float, float]]  # the times at percent 1 and percent 0

    @cached_property
    def table(self) -> np.ndarray:
        """The levels the model was trained at: rising, float32 (as ComfyUI rounds them), read-only."""
        with np.errstate(all="ignore"):  # extreme parameters: `_usable` refuses what they give
            table = np.asarray(self._table(), np.float32)
        table.flags.writeable = False
        return table

    @property
    def sigma_min(self) -> float:
        """The lowest level of the table."""
        return float(self.table[0])

    @property
    def sigma_max(self) -> float:
        """The highest level of the table."""
        return float(self.table[-1])

    @abstractmethod
    def time(self, sigma: Any) -> Any:
        """The model's clock at `sigma`: a float for a scalar, else float64 of the same shape; finite at 0."""

    @abstractmethod
    def sigma(self, time: Any) -> Any:
        """The level at `time`: a float for a scalar, else float64 of the same shape."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Kind and parameters as plain JSON, for the attributes of a Dataset."""

    def percent(self, p: float) -> float:
        """The level at which the share `p` of the model's clock has passed, from 0 (all noise) to 1 (clean).

        At p <= 0 a bound no level exceeds (1 on FLOW, 999999999.9 on VE), at p >= 1 exactly 0.
        """
        if isinstance(p, bool) or not isinstance(p, Real) or math.isnan(p):
            raise bad("p", p, "a number, 0 for the noisiest and 1 for the clean end", "levels.percent(0.2)")
        if not 0 < p < 1:
            return self._above if p <= 0 else 0.0
        clean, noisy = self._clock()
        return self.sigma(clean + (1.0 - p) * (noisy - clean))

    def __repr__(self) -> str:
        kind, *rest = self.describe().items()
        return f"tk.Levels.{kind[1]}({', '.join(f'{name}={value!r}' for name, value in rest)})"

    @staticmethod
    def scaled_linear(zero_snr: bool = False) -> "Levels":
        """Levels of Stable Diffusion 1, 2 and XL: 1,000 betas, linear in their root from 0.00085 to 0.012.

        `zero_snr` rescales them to zero terminal SNR (2305.08891, algorithm 1).
        """
        low, high = SCALED_LINEAR
        return _discrete("scaled_linear", np.linspace(low**0.5, high**0.5, TRAIN_STEPS) ** 2, zero_snr)

    @staticmethod
    def from_betas(betas: Sequence[float], zero_snr: bool = False, between: bool = False) -> "Levels":
        """Levels of any discrete noise schedule, by its betas (a diffusers scheduler has them as `betas`).

        Parameters
        ----------
        betas : sequence of float
            In (0, 1), two or more, first the one next to the clean end.
        zero_snr : bool
            Rescale them to zero terminal SNR; give the betas as they were before.
        between : bool
            The clock runs between the trained steps too, linear in log sigma, as in k-diffusion; else it is
            the index of the nearest level, as in ComfyUI.

        Raises
        ------
        ValueError, TypeError
            For betas that are not numbers between 0 and 1.

        Examples
        --------
        >>> import numpy as np, toolkit as tk
        >>> round(tk.Levels.from_betas(np.linspace(1e-4, 0.02, 1000)).sigma_max, 2)
        157.41
        """
        line = "tk.Levels.from_betas(np.linspace(0.0001, 0.02, 1000))"
        try:
            values = np.asarray(betas, np.float64)
        except (TypeError, ValueError):
            raise bad("betas", betas, "a one-dimensional sequence of numbers", line, TypeError) from None
        if values.ndim != 1 or len(values) < 2:
            raise bad("betas", betas, "two or more numbers in one dimension", line)
        if not ((values > 0) & (values < 1)).all():
            wanted = "numbers between 0 and 1, both excluded (a last beta of 1 means zero terminal SNR)"
            raise bad("betas", betas, wanted, "tk.Levels.from_betas(betas_before_rescaling, zero_snr=True)")
        return _discrete("from_betas", values, zero_snr, between)

    @staticmethod
    def edm(sigma_min: float = 0.002, sigma_max: float = 120.0) -> "Levels":
        """Levels of a continuous model (2206.00364): 1,000, uniform in log sigma; clock: log(sigma)/4."""
        line = "tk.Levels.edm(0.002, 120.0)"
        low = number("sigma_min", sigma_min, 0.0, line)
        return _usable(_Edm(low, number("sigma_max", sigma_max, low, line)), line)

    @staticmethod
    def flow(shift: float = 3.0) -> "Levels":
        """Levels of a flow model (SD3: 3): 1,000, S u/(1 + (S - 1) u) of uniform u; clock: 1000 sigma."""
        line = "tk.Levels.flow(shift=3.0)"
        return _usable(_Shifted("flow", number("shift", shift, 0.0, line)), line)

    @staticmethod
    def flux(shift: float = 1.15) -> "Levels":
        """Levels of Flux: 10,000, e^mu/(e^mu + 1/u - 1) with mu = `shift`; clock: sigma itself."""
        line = "tk.Levels.flux(shift=1.15)"
        return _usable(_Shifted("flux", number("shift", shift, -math.inf, line)), line)


def _usable(levels: Levels, line: str) -> Levels:
    """`levels`, if float32 can tell their table apart from 0, infinity and a falling one."""
    gaps = np.diff(levels.table)
    if not (0 < levels.sigma_min < levels.sigma_max < math.inf and (gaps >= 0).all()):
        raise bad("levels", levels, "parameters whose levels are positive, finite, rising in float32", line)
    return levels


@dataclass(frozen=True, repr=False)
class _Discrete(Levels):
    """sigma = sqrt((1 - abar)/abar), abar = cumprod(1 - beta); time: index of the nearest log sigma."""

    kind: str
    betas: tuple[float, ...]
    zero_snr: bool
    between: bool = False
    path = VE
    _above = ABOVE_ALL_LEVELS

    def _table(self) -> np.ndarray:
        abar = np.cumprod(1.0 - np.array(self.betas))
        if self.zero_snr:
            # float64 throughout: in float32 the subtraction costs more digits than parity allows
            root = np.sqrt(abar)
            abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
            abar[-1] = ZERO_SNR_LAST
        return np.sqrt((1.0 - abar) / abar)

    @cached_property
    def _log_table(self) -> np.ndarray:
        return np.log(self.table.astype(np.float64))

    @cached_property
    def _borders(self) -> np.ndarray:
        """Half way between neighbours in log sigma."""
        return (self._log_table[1:] + self._log_table[:-1]) / 2.0

    def _clock(self) -> tuple[float, float]:
        return 0.0, len(self.betas) - 1.0

    def time(self, sigma: Any) -> Any:
        log_sigma = np.log(np.maximum(np.asarray(sigma, np.float64), self.sigma_min))
        if self.between:
            return _like(sigma, np.interp(log_sigma, self._log_table, np.arange(len(self._log_table))))
        return _like(sigma, np.searchsorted(self._borders, log_sigma).astype(np.float64))

    def sigma(self, time: Any) -> Any:
        steps = np.arange(len(self._log_table))
        return _like(time, np.exp(np.interp(np.asarray(time, np.float64), steps, self._log_table)))

    def describe(self) -> dict[str, Any]:
        if self.kind == "scaled_linear":
            return {"kind": self.kind, "zero_snr": self.zero_snr}
        digest = hashlib.sha256(np.array(self.betas).tobytes()).hexdigest()[:16]
        first, last = self.betas[0], self.betas[-1]
        betas = {"count": len(self.betas), "first": first, "last": last, "sha256": digest}
        clock = {"between": True} if self.between else {}
        return {"kind": self.kind, **betas, "zero_snr": self.zero_snr, **clock}


@dataclass(frozen=True, repr=False)
class _Edm(Levels):
    low: float
    high: float
    path = VE
    _above = ABOVE_ALL_LEVELS

    def _table(self) -> np.ndarray:
        return np.exp(np.linspace(math.log(self.low), math.log(self.high), TRAIN_STEPS))

    def _clock(self) -> tuple[float, float]:
        return self.time(self.sigma_min), self.time(self.sigma_max)

    def time(self, sigma: Any) -> Any:
        # clamped below only, where the log would run to -inf: above the table (churn) it still holds
        return _like(sigma, np.log(np.maximum(np.asarray(sigma, np.float64), self.sigma_min)) / 4.0)

    def sigma(self, time: Any) -> Any:
        return _like(time, np.exp(4.0 * np.asarray(time, np.float64)))

    def describe(self) -> dict[str, Any]:
        return {"kind": "edm", "sigma_min": self.low, "sigma_max": self.high}


@dataclass(frozen=True, repr=False)
class _Shifted(Levels):
    """sigma = S u/(1 + (S - 1) u), with S = `shift` (flow) or e^shift (flux); u runs from 0 to 1.

    time(sigma) and sigma(time) are not each other's inverse unless S = 1: the network's clock is sigma, times
    1000 (flow) or 1 (flux), while schedules walk the clock before the shift. Upstream has one name for
    both, and the numbers of `normal` and `sgm_uniform`, whose clean end is shifted twice, need it.
    """

    kind: str
    shift: float
    path = FLOW
    _above = 1.0

    def _unit(self) -> float:
        return float(TRAIN_STEPS) if self.kind == "flow" else 1.0

    def _clock(self) -> tuple[float, float]:
        return 0.0, self._unit()

    def _table(self) -> np.ndarray:
        count = TRAIN_STEPS if self.kind == "flow" else FLUX_LEVELS
        return self.sigma(np.arange(1, count + 1) / count * self._unit())

    def time(self, sigma: Any) -> Any:
        return _like(sigma, np.asarray(sigma, np.float64) * self._unit())

    def sigma(self, time: Any) -> Any:
        u = np.asarray(time, np.float64) / self._unit()
        # the same fraction divided by S: u = 0 is no pole of it
        inverse = 1.0 / self.shift if self.kind == "flow" else np.exp(-self.shift)
        return _like(time, u / (u + (1.0 - u) * inverse))

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "shift": self.shift}
