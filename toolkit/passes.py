"""The passes of an unsample over its rows: the climb, and what each inverse records on the way back down.

One function a strategy, ``(Run) -> the state at the top``; `PASSES` is their table. States that a replay
starts from are rounded first, where rows are kept in a lower dtype: what is read back is what was recorded.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .implicit import Fixed, Sweeps, defect_correction
from .inverse import Extracting, Recording, frozen
from .loop import steps as walk
from .noise import START, Keyed
from .record import Recorder, as_numpy, digest
from .solvers import Solver
from .walks import Ladder, Walk, bar

SOLVED = 1e-9  # relative residual above which an implicit inverse has not done what it promises


def stored(x: torch.Tensor, dtype: Any) -> torch.Tensor:
    """`x` as it will be read back: a replay repeats bit for bit only what it starts from."""
    if dtype is None:
        return x
    return torch.from_numpy(as_numpy(x).astype(np.dtype(dtype)).astype(np.float64)).to(x.device)


@dataclass
class Run:
    """An unsample under way."""

    record: Recorder
    denoiser: Any
    solver: Solver  # what the image is to be sampled with again
    via: Solver  # what climbs
    coupling: str
    x: torch.Tensor  # the image
    hops: int  # of the grid asked for
    highest: float  # level of it
    noise: Keyed
    progress: bool
    mask: torch.Tensor | None = None
    attrs: dict[str, Any] = field(default_factory=dict)  # what the passes found out
    extra: dict[str, Any] = field(default_factory=dict)  # variables without a row each

    @property
    def levels(self) -> list[float]:
        """The rows' sigmas, rising; a solver that chooses its levels adds to them as it climbs."""
        return self.record.sigmas

    @property
    def bottom(self) -> int:
        """The row of the lowest positive level."""
        return 1 if self.levels[0] == 0 else 0

    @property
    def top(self) -> int:
        return len(self.levels) - 1

    def opened(self, ladder: Ladder | None = None) -> torch.Tensor:
        """The state at the lowest positive level, alpha x; recorded, as is the image that it hops from."""
        low = self.denoiser.path.alpha(self.levels[self.bottom]) * self.x
        for row, state in enumerate([self.x, low] if self.bottom else [low]):
            self.record.state(row, state)
            if ladder is not None:
                ladder[row] = state
        return low

    def falling(self, solver: Any, x: torch.Tensor, label: str) -> Walk:
        """The steps of a solver from the top down to the lowest positive level."""
        return Walk(self.record, self.denoiser, solver, x, self.levels[::-1], f"{label}, {self.solver.name}",
                    self.progress, noise=self.noise, stop=self.top - self.bottom)  # fmt: skip


def reverse(run: Run) -> torch.Tensor:
    """The solver's own formula, run upwards."""
    return _climb(run, run.solver)


def algebraic(run: Run) -> torch.Tensor:
    """The solver's own step upwards, with the second state it needs for its step down."""

    def second(step: Any, row: int) -> None:
        run.record.put("aux", row, step.seen.aux if run.solver.pair else step.x)
        run.record.put("aux_gap", row, _pair_gap(step) if run.solver.pair else _gap(step))

    return _climb(run, run.solver, second)


def offsets(run: Run) -> torch.Tensor:
    """A ladder, then the recording pass down it."""
    ladder = Ladder(run.record, run.x.device)
    _climb(run, run.solver if run.solver.adaptive else run.via, ladder=ladder)
    return _recorded(run, Recording, ladder)


def noise(run: Run) -> torch.Tensor:
    """A ladder of noise, or of the ODE, then the pass down it that extracts what the solver needed."""
    ladder = Ladder(run.record, run.x.device)
    if run.coupling == "ode":
        _climb(run, run.via, ladder=ladder)
    else:
        _noised(run, ladder)
    return _recorded(run, Extracting, ladder)


def fixed_point(run: Run) -> torch.Tensor:
    """Each step down solved for its start, row by row upwards."""
    x, top, begun = run.opened(), run.top, run.record.begin()
    first, worst = run.bottom + 1, 0.0
    if begun.x is not None:
        x, first, worst = begun.x, begun.i, begun.more["worst"]
    solving = Fixed(frozen(run.solver, run.hops), run.via, run.levels[::-1])
    label = f"fixed point, {run.solver.name}"
    for row in bar(range(first, top + 1), top, label, run.progress, first):
        x, x0, residual, iterations, told = solving.up(run.denoiser, x, top - row)
        run.record.put("residual", row, residual)
        run.record.put("iterations", row, iterations)
        run.record.opinion(row, x0)
        for name, value in told.items():
            run.record.put(name, row, value)
        run.record.state(row, x)
        worst = max(worst, float(residual.max()))
        run.record.mark(row + 1, x, worst=worst)
    _warn_unsolved(run, worst, "the steps were solved to a residual of")
    return x


def defect(run: Run) -> torch.Tensor:
    """A climb, then sweeps that correct it by what its sample misses; rows are those of the best sample."""
    low, solver, levels = run.opened(), frozen(run.solver, run.hops), run.levels

    def climb(x: torch.Tensor) -> torch.Tensor:
        for step in walk(run.denoiser, run.via, x, levels[run.bottom :]):
            x = step.x_next
        return x

    def fall(y: torch.Tensor) -> torch.Tensor:
        down = walk(run.denoiser, solver, y, levels[::-1], stop=run.top - run.bottom)
        for step in bar(down, run.top - run.bottom, f"defect, {solver.name}", run.progress):
            y = step.x_next
        return y

    begun = run.record.begin()
    sweeps = None
    for sweeps in defect_correction(climb, fall, low, Sweeps(**begun.more) if begun.more else None):
        run.record.mark(len(sweeps.errors), sweeps.y, **vars(sweeps))
    top, history = sweeps.best, torch.stack(sweeps.errors)
    run.extra["sweep_error"] = (("sweep", "sample"), as_numpy(history))
    kept = {run.top: (top, None)}
    for step in walk(run.denoiser, solver, top, levels[::-1], stop=run.top - run.bottom):
        row = run.top - step.span.i
        kept[row] = (step.x, step.seen.x0)
    for row in range(run.bottom + 1, run.top + 1):
        if kept[row][1] is not None:
            run.record.opinion(row, kept[row][1])
        run.record.state(row, kept[row][0])
    _warn_unsolved(run, float(history.min(0).values.max()), "the sweeps came back to")
    return top


PASSES: dict[str, Callable[[Run], torch.Tensor]] = {
    "reverse": reverse, "algebraic": algebraic, "offsets": offsets, "noise": noise,
    "fixed_point": fixed_point, "defect": defect,
}  # fmt: skip
# what each makes room for, beside latent and denoised
NEEDS = {
    "reverse": (), "algebraic": ("aux", "aux_gap"), "offsets": ("offset", "offset_norm"),
    "noise": ("noise", "noise_scale", "noise_std", "noise_lag"), "fixed_point": ("residual", "iterations"),
    "defect": (),
}  # fmt: skip


def _climb(run: Run, solver: Solver, also: Callable[[Any, int], None] | None = None,
           ladder: Ladder | None = None) -> torch.Tensor:  # fmt: skip
    """Upwards through all rows, which `ladder` keeps; the state at the top."""
    record, first = run.record, run.bottom
    low = run.opened(ladder)
    adaptive = solver.adaptive is not None
    # one that chooses its levels knows the ends alone, and says where it stands
    levels = [run.levels[first], run.highest] if adaptive else run.levels[first:]
    solver = solver if adaptive else frozen(solver, run.hops)
    climb = Walk(record, run.denoiser, solver, low, levels, f"unsample, {solver.name}", run.progress)
    for step in climb:
        row = step.span.i + 1 + first
        record.hop(step, row - 1, row)
        if also is not None:
            also(step, row)
        if ladder is not None:
            ladder[row] = step.x_next
    return climb.x


def _noised(run: Run, ladder: Ladder) -> None:
    """Rows of the image with noise, L_i = r L_N + sqrt(sigma_i^2 - (r sigma_N)^2) n_i, r = alpha_i/alpha_N.

    So the lowest one is exactly alpha x; the noise is coupled from rung to rung, and is 0 where a mask keeps
    the image. It asks no model, so a run that goes on makes it again.
    """
    record, low, path = run.record, run.opened(ladder), run.denoiser.path
    record.begin()
    floor, unit, previous = run.levels[run.bottom], None, 0.0
    for row in range(run.bottom + 1, run.top + 1):
        sigma = run.levels[row]
        shrink = path.alpha(sigma) / path.alpha(floor)
        amount = max(sigma * sigma - (shrink * floor) ** 2, 0.0) ** 0.5
        drawn = run.noise.start() if run.coupling == "shared" else run.noise.draw(run.top - row, START)
        if run.coupling == "markov" and unit is not None:
            # what is there already, in units of the noise at this rung, and fresh noise for the rest
            kept = min(previous * path.alpha(sigma) / amount, 1.0) if amount > 0 else 1.0
            drawn = kept * unit + (1.0 - kept * kept) ** 0.5 * drawn
        unit, previous = drawn, amount / path.alpha(sigma) if path.alpha(sigma) > 0 else 0.0
        state = shrink * low + amount * (unit if run.mask is None else run.mask * unit)
        record.state(row, state)
        ladder[row] = state


def _recorded(run: Run, kind: type[Recording], ladder: Ladder) -> torch.Tensor:
    """The recording pass down a ladder: what it records, counters, opinions; the state at the top."""
    record, denoiser, extracting = run.record, run.denoiser, kind is Extracting
    record.flush()
    record.phase = ", in the pass that records what the solver needs"
    top = ladder[run.top]
    record.last(top)
    recording = kind(frozen(run.solver, run.hops), lambda i: ladder[run.top - i])
    for name in NEEDS["noise" if extracting else "offsets"]:
        for row in range(run.bottom + 1):
            record.put(name, row, 0.0)
    down = run.falling(recording, stored(top, record.dtype), "recording")
    if not down.more:  # what the climb has cost until each row, and what each hop down costs
        nfe, rows = (torch.from_numpy(values) for values in record.counts())
        down.more = {"nfe": nfe, "rows": rows, "calls": torch.zeros_like(nfe),
                     "network": torch.zeros_like(rows), "draws": 0, "above": None}  # fmt: skip
    more, before = down.more, (denoiser.calls, denoiser.rows)
    for step in down:
        row, info = run.top - step.span.i, step.seen.info
        record.check(row, step.x_next)
        if "offset" in info:
            record.zeros("offset", "offset_norm")
            record.put("offset", row, info["offset"])
            record.put("offset_norm", row, info["offset_norm"])
        if extracting:
            z = info.get("noise")
            more["draws"] = max(more["draws"], info.get("noise_draws", 0))
            _put_noise(record, row, z, info.get("noise_scale", 0.0), more["above"])
            more["above"] = z
        more["calls"][row], more["network"][row] = denoiser.calls - before[0], denoiser.rows - before[1]
        before = (denoiser.calls, denoiser.rows)
        if row == run.top or extracting:
            record.opinion(row, step.seen.x0)
    # of a run that goes on they lie where its bookmark was read to
    spent = (more["nfe"] + more["calls"].cumsum(0), more["rows"] + more["network"].cumsum(0))
    record.count_all(*map(as_numpy, spent))
    run.attrs["lands_on"] = digest(down.x)
    if extracting:
        run.attrs["noise_draws"] = more["draws"]
    return top


def _put_noise(
    record: Recorder, row: int, z: torch.Tensor | None, scale: float, above: torch.Tensor | None
) -> None:
    """The noise of one hop, its std and its correlation with that of the hop above; zeros for none."""
    record.put("noise", row, 0.0 if z is None else z)
    record.put("noise_scale", row, scale)
    if z is None:
        record.put("noise_std", row, 0.0)
        record.put("noise_lag", row, 0.0)
        return
    flat = z.flatten(1)
    record.put("noise_std", row, flat.std(dim=1, correction=0))
    if above is None:
        record.put("noise_lag", row, 0.0)
        return
    a, b = (v - v.mean(1, keepdim=True) for v in (flat, above.flatten(1)))
    record.put("noise_lag", row, (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300))


def _gap(step: Any) -> torch.Tensor:
    """Relative distance, (sample,), of `aux` from an Euler step down with the slope at its lower end."""
    s, t = step.span.s, step.span.t
    slope = (step.x - step.seen.x0) / s
    guess = step.x_next + (s - t) * slope
    return (step.x - guess).flatten(1).norm(dim=1) / step.x.flatten(1).norm(dim=1).clamp_min(1e-300)


def _pair_gap(step: Any) -> torch.Tensor:
    """Relative distance, (sample,), of the two states of a pair."""
    apart = (step.x_next - step.seen.aux).flatten(1).norm(dim=1)
    return apart / step.x_next.flatten(1).norm(dim=1).clamp_min(1e-300)


def _warn_unsolved(run: Run, worst: float, what: str) -> None:
    if worst > SOLVED:
        line = f'tk.unsample(model, latent, solver="{run.solver.name}", inverse="offsets")'
        warnings.warn(
            f"{what} {worst:.1e} at worst, so the image will not return exactly: under guidance, and on "
            f"coarse grids, an implicit inverse does not converge. Try: {line}",
            stacklevel=4,
        )
