"""A model's table of noise levels with its clock, and the nine schedules that pick from it. No torch here.

Every schedule is a function (levels, steps) -> falling float32 levels that end at 0. Names and numbers are
ComfyUI's. All is float64 and rounded once, save where ComfyUI's float32 shows at zero terminal SNR: there the
table doubles in its last step, and the arctangent of 4,519 is within 3e-4 of its pole.
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
import xarray as xr

from .dataset import rung_coordinates
from .errors import bad
from .paths import FLOW, VE, Path
from .tables import Table

TRAIN_STEPS = 1000  # levels in the table of a model trained in discrete steps, and the clock of a flow model
FLUX_LEVELS = 10_000
SCALED_LINEAR = (0.00085, 0.012)  # first and last beta of Stable Diffusion 1, 2 and XL
# ComfyUI's last cumulative alpha at zero terminal SNR: 0 would put the top level at infinity
ZERO_SNR_LAST = 4.8973451890853435e-08
ABOVE_ALL_LEVELS = 999999999.9  # percent(0) where sigma has no upper bound
KARRAS_RHO = 7.0  # 2206.00364, table 1
BETA_SHAPE = 0.6  # both shape parameters of the Beta distribution, 2407.12173
LINEAR_PART = 0.025  # noise removed by the linear half of linear_quadratic (Mochi's threshold)
CLOSE_TO_ZERO = 1e-5  # a lowest level below this counts as the final 0 in `normal`
MOST_STEPS = 1_000_000  # a slip of the keyboard must not take the machine's memory

DISCARD_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})


def _number(argument: str, given: object, low: float, line: str, high: float = math.inf) -> float:
    """`given` as a float if it is a finite real number above `low`, and `high` at most."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise bad(argument, given, "a number", line, TypeError)
    if not (math.isfinite(given) and low < given <= high):
        raise bad(argument, given, f"a finite number above {low:g}, and {high:g} at most", line)
    return float(given)


def _discrete(kind: str, betas: np.ndarray, zero_snr: object) -> "Levels":
    line = "tk.Levels.scaled_linear(zero_snr=True)"
    if not isinstance(zero_snr, (bool, np.bool_)):
        raise bad("zero_snr", zero_snr, "True or False", line, TypeError)
    return _usable(_Discrete(kind, tuple(betas.tolist()), bool(zero_snr)), line)


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
    def from_betas(betas: Sequence[float], zero_snr: bool = False) -> "Levels":
        """Levels of any discrete noise schedule, by its betas (a diffusers scheduler has them as `betas`).

        Parameters
        ----------
        betas : sequence of float
            In (0, 1), two or more, first the one next to the clean end.
        zero_snr : bool
            Rescale them to zero terminal SNR; give the betas as they were before.

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
        return _discrete("from_betas", values, zero_snr)

    @staticmethod
    def edm(sigma_min: float = 0.002, sigma_max: float = 120.0) -> "Levels":
        """Levels of a continuous model (2206.00364): 1,000, uniform in log sigma; clock: log(sigma)/4."""
        line = "tk.Levels.edm(0.002, 120.0)"
        low = _number("sigma_min", sigma_min, 0.0, line)
        return _usable(_Edm(low, _number("sigma_max", sigma_max, low, line)), line)

    @staticmethod
    def flow(shift: float = 3.0) -> "Levels":
        """Levels of a flow model (SD3: 3): 1,000, S u/(1 + (S - 1) u) of uniform u; clock: 1000 sigma."""
        line = "tk.Levels.flow(shift=3.0)"
        return _usable(_Shifted("flow", _number("shift", shift, 0.0, line)), line)

    @staticmethod
    def flux(shift: float = 1.15) -> "Levels":
        """Levels of Flux: 10,000, e^mu/(e^mu + 1/u - 1) with mu = `shift`; clock: sigma itself."""
        line = "tk.Levels.flux(shift=1.15)"
        return _usable(_Shifted("flux", _number("shift", shift, -math.inf, line)), line)


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
        return {"kind": self.kind, **betas, "zero_snr": self.zero_snr}


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


def _to_zero(levels: np.ndarray) -> np.ndarray:
    """With the final 0, in float32."""
    return np.append(levels, 0.0).astype(np.float32)


def normal(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in the model's clock: sigma(linspace(time(max), time(min), n)), then 0.

    Where the lowest of them is 0 already (1e-5 or less), n + 1 points and no 0 appended. ComfyUI.
    """
    start, end = levels.time(levels.sigma_max), levels.time(levels.sigma_min)
    if levels.sigma(end) <= CLOSE_TO_ZERO:
        return levels.sigma(np.linspace(start, end, steps + 1, dtype=np.float32)).astype(np.float32)
    return _to_zero(levels.sigma(np.linspace(start, end, steps, dtype=np.float32)))


def karras(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in sigma^(1/7): (max^(1/7) + i/(n-1) (min^(1/7) - max^(1/7)))^7, then 0. 2206.00364, eq. 5."""
    low, high = levels.sigma_min ** (1 / KARRAS_RHO), levels.sigma_max ** (1 / KARRAS_RHO)
    return _to_zero((high + np.linspace(0.0, 1.0, steps) * (low - high)) ** KARRAS_RHO)


def exponential(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in log sigma: exp(linspace(log max, log min, n)), then 0. k-diffusion."""
    return _to_zero(np.exp(np.linspace(math.log(levels.sigma_max), math.log(levels.sigma_min), steps)))


def sgm_uniform(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in the clock, the lowest left out: sigma(linspace(time(max), time(min), n + 1)[:-1]), then 0.

    Stability's generative-models; ComfyUI.
    """
    start, end = levels.time(levels.sigma_max), levels.time(levels.sigma_min)
    return _to_zero(levels.sigma(np.linspace(start, end, steps + 1, dtype=np.float32)[:-1]))


def simple(levels: Levels, steps: int) -> np.ndarray:
    """Every so many entries of the table, from the top: T[-(1 + int(i M/n))], then 0. ComfyUI.

    Repeats levels where more steps are asked than the table has.
    """
    table = levels.table
    return _to_zero(table[[-(1 + int(i * (len(table) / steps))) for i in range(steps)]])


def ddim_uniform(levels: Levels, steps: int) -> np.ndarray:
    """Every k-th entry of the table, from the second: T[1::max(M // n, 1)] reversed, then 0. 2010.02502.

    Returns more or fewer levels than asked wherever n does not divide M.
    """
    return _to_zero(levels.table[1 :: max(len(levels.table) // steps, 1)][::-1])


def beta(levels: Levels, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6): T[rint(ppf(1 - i/n) (M - 1))], repeats removed, then 0. 2407.12173.

    Returns fewer levels than asked where several quantiles fall on one entry.
    """
    from scipy.special import betaincinv  # the ppf, without the second it takes to import scipy.stats

    share = betaincinv(BETA_SHAPE, BETA_SHAPE, 1.0 - np.linspace(0.0, 1.0, steps, endpoint=False))
    index = np.rint(share * (len(levels.table) - 1)).astype(int)
    return _to_zero(levels.table[index[np.insert(np.diff(index) != 0, 0, True)]])


def linear_quadratic(levels: Levels, steps: int) -> np.ndarray:
    """Linear through the first 2.5 % of the noise in n // 2 steps, then quadratic: (1 - y) max. Mochi.

    With m = n // 2, q = n - m, gap = m - 0.025 n: y_i = 0.025 i/m for i < m; from m on
    gap/(m q^2) (i^2 + m^2) + (0.025/m - 2 gap/q^2) i; y_n = 1. One step: max, 0.
    """
    if steps == 1:
        return _to_zero(np.array([levels.sigma_max]))
    m = steps // 2
    q, gap = steps - m, m - LINEAR_PART * steps
    i = np.arange(steps, dtype=np.float64)
    curve = gap / (m * q * q) * (i * i + m * m) + (LINEAR_PART / m - 2.0 * gap / (q * q)) * i
    return _to_zero((1.0 - np.where(i < m, LINEAR_PART * i / m, curve)) * levels.sigma_max)


def kl_optimal(levels: Levels, steps: int) -> np.ndarray:
    """Uniform in arctan sigma: tan(x atan(min) + (1 - x) atan(max)) with x = i/(n - 1), then 0.

    2404.14507 (the schedule that is optimal there for Gaussian data, under KL divergence).
    """
    if steps == 1:
        wanted = "two or more with kl_optimal, whose formula divides by steps - 1"
        raise bad("steps", steps, wanted, 'tk.schedule(levels, "kl_optimal", steps=2)')
    x = np.linspace(0.0, 1.0, steps, dtype=np.float32)
    low, high = np.float32(math.atan(levels.sigma_min)), np.float32(math.atan(levels.sigma_max))
    return _to_zero(np.tan(x * low + (np.float32(1.0) - x) * high))


_NINE = normal, karras, exponential, sgm_uniform, simple, ddim_uniform, beta, linear_quadratic, kl_optimal
SCHEDULES = Table(
    "Schedules",
    "schedule",
    'tk.schedule(levels, "{}", steps=20)',
    {"name": lambda name, make: name, "what": lambda name, make: (make.__doc__ or "").strip().split("\n")[0]},
)
for _make in _NINE:
    SCHEDULES[_make.__name__] = _make


def _picked(levels: Levels, name: str, steps: int, solver: str | None, denoise: float) -> np.ndarray:
    """The levels of a validated request: whole, less the last but one, or the lower end of a longer one."""
    make, total = SCHEDULES[name], steps if denoise == 1.0 else int(steps / denoise)
    drop = solver in DISCARD_PENULTIMATE
    result = np.asarray(make(levels, total + drop), np.float32)
    falls = result.ndim == 1 and len(result) > 1 and (np.diff(result) <= 0).all()
    if not (falls and np.isfinite(result).all()):
        wanted = f"a function that gives finite, falling levels; it does not for {total + drop} steps"
        raise bad("schedule", name, wanted, f'tk.schedule(levels, "{name}", steps=20)')
    if drop:
        result = np.delete(result, -2)
    return result if denoise == 1.0 else result[-(steps + 1) :]


def sigmas(levels: Levels, name: str, steps: int, solver: object = None, denoise: float = 1.0) -> np.ndarray:
    """Falling levels (steps + 1,), float32, of schedule `name`; arguments and errors: see `schedule`."""
    line = 'tk.schedule(tk.Levels.scaled_linear(), "karras", steps=20)'
    if not isinstance(levels, Levels):
        raise bad("levels", levels, "a Levels, or a model that carries one", line, TypeError)
    SCHEDULES[name]  # an unknown name raises, with the closest one
    if isinstance(steps, (bool, np.bool_)) or not isinstance(steps, (int, np.integer)):
        raise bad("steps", steps, "a whole number of steps", line, TypeError)
    if steps < 1:
        raise bad("steps", steps, "1 or more", line)
    share = _number("denoise", denoise, 0.0, "tk.schedule(levels, denoise=0.5)", high=1.0)
    if steps / share > MOST_STEPS:
        raise bad("steps", steps, f"at most {MOST_STEPS:,} over denoise, which is {share:g}", line)
    return _picked(levels, name, int(steps), _solver_name(solver), share)


def _solver_name(solver: object) -> str | None:
    """The name of a solver that is given by name or as itself."""
    name = getattr(solver, "name", solver)
    if name is not None and not isinstance(name, str):
        line = 'tk.schedule(levels, solver="dpm_2")'
        raise bad("solver", solver, "a name from tk.SOLVERS, or None", line, TypeError)
    return name


def schedule(
    model_or_levels: Any, name: str = "normal", steps: int = 20, solver: object = None, denoise: float = 1.0
) -> xr.Dataset:
    """The levels that a run would walk, as labelled data.

    Parameters
    ----------
    model_or_levels : Levels, or a model
        Anything that carries `.levels` (and `.path`) serves as a model.
    name : str
        One of ``tk.SCHEDULES``.
    steps : int
        1 or more.
    solver : str or solver, optional
        dpm_2, dpm_2_ancestral, uni_pc and uni_pc_bh2 take one step more and drop the last level but one.
    denoise : float
        In (0, 1]: below 1, the last `steps` + 1 levels of a schedule of int(steps/denoise) steps.

    Returns
    -------
    Dataset
        Coordinates on `step`: `sigma` (falling, float32 values), `timestep`, `alpha`, `log_snr`. Variable
        `step_size` (step): the change of half log-SNR (lambda) of the hop that leaves the row; infinite where
        it leaves pure noise or reaches 0, NaN in the last row. All dimensionless. ``attrs["note"]`` where a
        schedule gives another number of levels than asked. The names and numbers are ComfyUI's; each function
        of ``tk.SCHEDULES`` has its formula and source in its docstring.

    Raises
    ------
    ValueError, TypeError
        For an unknown name, and numbers that the schedule has no levels for.

    Examples
    --------
    >>> import toolkit as tk
    >>> grid = tk.schedule(tk.Levels.scaled_linear(), "karras", steps=5)
    >>> grid.sigma.values.round(2).tolist()
    [14.61, 4.8, 1.27, 0.25, 0.03, 0.0]
    """
    levels = (
        model_or_levels if isinstance(model_or_levels, Levels) else getattr(model_or_levels, "levels", None)
    )
    if levels is None:
        wanted = "a Levels, or a model that carries `.levels`"
        raise bad(
            "model_or_levels", model_or_levels, wanted, "tk.schedule(tk.Levels.scaled_linear())", TypeError
        )
    picked = sigmas(levels, name, steps, solver, denoise)
    path = getattr(model_or_levels, "path", levels.path)
    coordinates = rung_coordinates(picked, levels, path)
    half = coordinates["log_snr"][1] / 2.0
    with np.errstate(invalid="ignore"):  # inf - inf, between equal levels
        hops = np.where(np.diff(picked) == 0, 0.0, np.diff(half))
    text = "change of half log-SNR (lambda) of the hop that leaves this row"
    size = ("step", np.append(hops, np.nan), {"long_name": text, "units": "1"})
    attrs = {"kind": "schedule", "schedule": name, "steps": int(steps), "solver": _solver_name(solver)}
    attrs |= {"denoise": float(denoise), "path": path.name, "levels": levels.describe()}
    if len(picked) != steps + 1:
        attrs["note"] = f"{name} gives {len(picked)} levels here, not {steps + 1}: {len(picked) - 1} steps"
    return xr.Dataset({"step_size": size}, coordinates, attrs)
