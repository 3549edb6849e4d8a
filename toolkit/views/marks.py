"""What an atlas says at one model, cfg and number of steps: marks for its chart, rows for its table."""

import math
from dataclasses import dataclass
from typing import Any

import xarray as xr

from ..errors import bad, unknown
from .words import minus

RETURNS = 1e-9  # relative error below which an image has come back: rounding, and nothing else
USUAL_STEPS = 20
LOST = 0.1  # error from which it is another picture: how far off it is then is chance, and rounding

# names that a reader looks for, beside those on the front
KNOWN = (
    "euler", "dpmpp_2m", "heun", "uni_pc", "obelm", "bdia", "rex", "edict", "midpoint", "fireflow", "uni_inv",
    "dpm_adaptive", "dpm_fast", "lms", "deis", "euler_ancestral", "dpmpp_2m_sde", "seeds_3",
)  # fmt: skip

LINE = 'tk.views.atlas_chart(tk.atlas(solvers=["euler", "obelm"], steps=[20]))'


@dataclass(frozen=True)
class Mark:
    """Solvers that agree in cost, accuracy and fate, by one strategy."""

    names: tuple[str, ...]
    strategy: str
    calls: float
    accuracy: float
    error: float

    @property
    def returns(self) -> bool:
        return self.error < RETURNS

    @property
    def label(self) -> str:
        name = next((n for n in KNOWN if n in self.names), self.names[0])
        more = f" +{len(self.names) - 1}" if len(self.names) > 1 else ""
        return name + more + ("" if self.returns else f" ({shown(self.error)})")


def shown(error: float) -> str:
    """An error with one significant digit, as short as it can be."""
    if not error < 9.5:
        return (
            "∞" if error == math.inf else f"{error:.0f}" if error < 999.5 else f"1e{round(math.log10(error))}"
        )
    if error < RETURNS:
        return "●"
    mantissa, power = f"{error:.0e}".split("e")
    return f"{float(f'{error:.1g}'):g}" if error >= 9.5e-3 else minus(f"{mantissa}e{int(power)}")


def measured_part(ds: Any, model: Any, cfg: Any, steps: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """The part of an atlas that is drawn, with cfg left in, and what it is a part of."""
    if not isinstance(ds, xr.Dataset) or not {"error", "accuracy", "picked"} <= set(ds.data_vars):
        raise bad("ds", type(ds).__name__, "the Dataset of tk.atlas", LINE, TypeError)
    there = {name: ds[name].values.tolist() for name in ("model", "cfg", "steps")}
    usual = USUAL_STEPS if USUAL_STEPS in there["steps"] else there["steps"][0]
    asked = {"model": there["model"][0], "cfg": there["cfg"][0], "steps": usual}
    asked |= {k: v for k, v in (("model", model), ("cfg", cfg), ("steps", steps)) if v is not None}
    if asked["model"] not in there["model"]:
        raise unknown("model", model, there["model"], 'tk.views.atlas_chart(ds, model="{}")')
    for name in ("cfg", "steps"):
        if asked[name] not in there[name]:
            line = f"tk.views.atlas_chart(ds, {name}={there[name][0]})"
            raise bad(name, asked[name], f"one of those measured, {there[name]}", line)
    return ds.sel(model=asked["model"], steps=asked["steps"], drop=True), asked


def marks_of(part: xr.Dataset) -> list[Mark]:
    """What is drawn of one cfg, solvers that fall on the same spot together."""
    spots: dict[tuple, list] = {}
    for solver in part.solver.values:
        # what "auto" picks is measured under its own name as well, where that was asked for
        picked: dict[str, str] = {}
        for inverse in part.inverse.values:
            picked.setdefault(str(part.picked.sel(solver=solver, inverse=inverse).item()), inverse)
        for inverse in picked.values():
            one = part.sel(solver=solver, inverse=inverse)
            error, calls = float(one.error), float(one.calls_there + one.calls_back)
            if math.isnan(error) or math.isnan(calls):
                continue
            accuracy, strategy = float(one.accuracy), str(one.picked.item())
            fate = "" if error < RETURNS else f"{error:.1e}"
            spots.setdefault((strategy, calls, f"{accuracy:.2e}", fate), []).append((solver, accuracy, error))
    return [
        Mark(tuple(str(n) for n, _, _ in found), strategy, calls, found[0][1], max(e for _, _, e in found))
        for (strategy, calls, _, _), found in spots.items()
    ]


def front(marks: list[Mark]) -> list[Mark]:
    """Those that return the image, and that no other one that does beats in both cost and accuracy."""
    able = [m for m in marks if m.returns and math.isfinite(m.accuracy)]
    best: list[Mark] = []
    for mark in sorted(able, key=lambda m: (m.calls, m.accuracy)):
        if not best or mark.accuracy < best[-1].accuracy * 0.999:
            best.append(mark)
    return best


def atlas_table(
    ds: xr.Dataset,
    *,
    model: str | None = None,
    cfg: float | None = None,
    steps: int | None = None,
    solvers: list[str] | None = None,
) -> str:
    """An atlas at one model, cfg and number of steps, as text: a row a (solver, inverse).

    Parameters
    ----------
    ds, model, cfg, steps
        As for `atlas_chart`.
    solvers : list of str, optional
        Those to list, in this order; None: all.

    Returns
    -------
    str
        Solver, strategy, model calls there and back, round-trip error, accuracy, each rounded to two digits;
        what came back to the last bits is "< 1e-9", and what is another picture "> 0.1".

    Raises
    ------
    ValueError, TypeError
        For another Dataset, or what was not measured.

    Examples
    --------
    >>> import toolkit as tk
    >>> model, images = tk.testing.sharp_modes()
    >>> ds = tk.atlas({"A": (model, images["on"], 3, None)}, ["euler"], ["auto"], steps=[5], progress=False)
    >>> print(tk.views.atlas_table(ds, cfg=1.0))
    solver  strategy      calls     error  accuracy
    euler   offsets          16    < 1e-9     0.067
    """
    part, asked = measured_part(ds, model, cfg, steps)
    part, known = part.sel(cfg=asked["cfg"], drop=True), [str(n) for n in part.solver.values]
    for name in solvers or []:
        if name not in known:
            raise unknown("solvers", name, known, 'tk.views.atlas_table(ds, solvers=["{}"])')
    names = known if solvers is None else list(solvers)
    wide = max(map(len, [*names, "solver"])) + 2
    lines = [f"{'solver':<{wide}}{'strategy':<12}{'calls':>7}{'error':>10}{'accuracy':>10}"]
    for name in names:
        for inverse in part.inverse.values:
            one = part.sel(solver=name, inverse=inverse)
            error, accuracy = float(one.error), float(one.accuracy)
            if math.isnan(error):
                continue
            calls = float(one.calls_there + one.calls_back)
            shown_calls = "" if math.isnan(calls) else f"{calls:.0f}"
            back = "< 1e-9" if error < RETURNS else f"{error:.2g}" if error < LOST else f"> {LOST:g}"
            near = "" if math.isnan(accuracy) else f"{accuracy:.2g}"
            strategy = str(one.picked.item())
            lines.append(f"{name:<{wide}}{strategy:<12}{shown_calls:>7}{back:>10}{near:>10}".rstrip())
    return "\n".join(lines)
