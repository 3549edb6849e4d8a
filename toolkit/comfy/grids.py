"""ComfyUI's nine schedules in its own float32 arithmetic, to the last bit of its levels.

`toolkit.grids` has the formulas, in float64. Its levels are as good, and a millionth apart; but a Brownian
path is rough: asked at a level one bit away it moves by some 5e-4 of its noise, and a run amplifies that.
"""

import math

import numpy as np
import torch

from ..grids import CLOSE_TO_ZERO, KARRAS_RHO, LINEAR_PART
from ..levels import FLUX_LEVELS, TRAIN_STEPS, Levels
from ..schedules import DISCARD_PENULTIMATE
from ..schedules import sigmas as schedule_sigmas


def float32_sigmas(levels: Levels, name: str, steps: int, sampler: str) -> np.ndarray:
    """Falling levels of a sampler's name, float32; of other schedules than the nine those of `schedules`."""
    checked = schedule_sigmas(levels, name, steps, sampler)  # raises for what has no levels
    drops = sampler in DISCARD_PENULTIMATE
    total = steps + drops
    with torch.device("cpu"):
        table = _table(levels)
        own = _picked(table, name, total)
        if own is None:
            own = _computed(levels, table, name, total)
    if own is None:
        return checked
    own = (
        own.numpy() if name == "normal" and _reaches_zero(levels) else np.append(own.numpy(), np.float32(0.0))
    )
    return np.delete(own, -2) if drops and len(own) > 2 else own


def _reaches_zero(levels: Levels) -> bool:
    """Whether the lowest level of the clock counts as the final 0 of `normal`."""
    return levels.sigma(levels.time(levels.sigma_min)) <= CLOSE_TO_ZERO


def _ramp(first: float, last: float, count: int) -> torch.Tensor:
    return torch.linspace(first, last, count, dtype=torch.float32)


def _table(levels: Levels) -> torch.Tensor:
    """The rising table of a model."""
    facts = levels.describe()
    if facts["kind"] == "edm":
        return _ramp(math.log(facts["sigma_min"]), math.log(facts["sigma_max"]), TRAIN_STEPS).exp()
    if facts["kind"] in ("flow", "flux"):
        count = TRAIN_STEPS if facts["kind"] == "flow" else FLUX_LEVELS
        clock = torch.arange(1, count + 1, dtype=torch.float32) / count
        return _sigma(levels, clock * TRAIN_STEPS if facts["kind"] == "flow" else clock)
    return torch.from_numpy(levels.table.copy())


def _sigma(levels: Levels, time: torch.Tensor) -> torch.Tensor:
    """The levels at times of the model's clock."""
    facts = levels.describe()
    if facts["kind"] == "edm":
        return (time / 0.25).exp()
    if facts["kind"] == "flow":
        u = time / TRAIN_STEPS
        return facts["shift"] * u / (1 + (facts["shift"] - 1) * u)
    if facts["kind"] == "flux":
        top = math.exp(facts["shift"])
        return top / (top + (1 / time - 1))
    # of the table before it is rounded, as upstream
    logs = torch.from_numpy(np.log(levels._table()).astype(np.float32))
    low, share = time.floor().long(), time.frac()
    return ((1 - share) * logs[low] + share * logs[time.ceil().long()]).exp()


def _picked(table: torch.Tensor, name: str, steps: int) -> torch.Tensor | None:
    """The schedules that pick entries of the table, without their final 0; None for another one."""
    count = len(table)
    if name == "simple":
        return table[[-(1 + int(i * (count / steps))) for i in range(steps)]]
    if name == "ddim_uniform":
        return table[1 :: max(count // steps, 1)].flip(0)
    if name == "beta":
        from scipy.special import betaincinv

        share = betaincinv(0.6, 0.6, 1.0 - np.linspace(0.0, 1.0, steps, endpoint=False))
        index = np.rint(share * (count - 1)).astype(int)
        return table[index[np.insert(np.diff(index) != 0, 0, True)]]
    return None


def _computed(levels: Levels, table: torch.Tensor, name: str, steps: int) -> torch.Tensor | None:
    """The schedules with a formula, mostly without their final 0; None for another one."""
    low, high = float(table[0]), float(table[-1])
    if name in ("normal", "sgm_uniform"):
        first, last = levels.time(high), levels.time(low)
        more = name == "sgm_uniform" or _reaches_zero(levels)
        times = _ramp(first, last, steps + more)
        return _sigma(levels, times[:-1] if name == "sgm_uniform" else times)
    if name == "karras":
        ends = low ** (1 / KARRAS_RHO), high ** (1 / KARRAS_RHO)
        return (ends[1] + _ramp(0, 1, steps) * (ends[0] - ends[1])) ** KARRAS_RHO
    if name == "exponential":
        return _ramp(math.log(high), math.log(low), steps).exp()
    if name == "kl_optimal":
        x = torch.arange(steps, dtype=torch.float32) / (steps - 1)
        return (x * math.atan(low) + (1 - x) * math.atan(high)).tan()
    if name == "linear_quadratic":
        m = steps // 2
        if m == 0:
            return table[-1:]
        q, gap = steps - m, m - LINEAR_PART * steps
        bend, slope = gap / (m * q**2), LINEAR_PART / m - 2 * gap / q**2
        curve = [LINEAR_PART * i / m if i < m else bend * (i**2 + m**2) + slope * i for i in range(steps)]
        return torch.tensor([1.0 - y for y in curve], dtype=torch.float32) * high
    return None
