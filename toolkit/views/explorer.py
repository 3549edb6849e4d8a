"""The schedule explorer: schedules over each other, with sliders for what their formulas leave open."""

from collections.abc import Iterable, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import traitlets as t
import xarray as xr

from .. import grids
from ..errors import bad, unknown
from ..levels import Levels
from ..schedules import SCHEDULES, schedule, sigmas
from ..typefaces import heavy
from .looks import look
from .page import packed, place, write
from .paper import Sheet, tokens
from .widget import View, source
from .words import sigma

AXES = ("log_sigma", "sigma")
FEWEST, MOST = 2, 1000  # steps: kl_optimal and bong_tangent need two, and beyond a thousand all is a line
COLOURS = 6  # of the token table; where more curves are shown all are grey, but for the focused one
PICTURE_MOST = 200_000  # bytes
TOLD = "A still picture of an interactive view. Trust this notebook to move its sliders."

# schedule -> its sliders: option, label, lowest, highest, hop, default
SLIDERS = {
    "karras": (("rho", "ρ", 0.5, 20.0, 0.1, grids.KARRAS_RHO),),
    "exponential": (),
    "polyexponential": (("rho", "ρ", 0.2, 5.0, 0.05, 1.0),),
    "beta": (
        ("alpha", "α", 0.1, 3.0, 0.05, grids.BETA_SHAPE),
        ("beta", "β", 0.1, 3.0, 0.05, grids.BETA_SHAPE),
    ),
    "vp": (("beta_d", "β d", 1.0, 40.0, 0.1, 19.9), ("beta_min", "β min", 0.05, 2.0, 0.05, 0.1)),
    "laplace": (("mu", "μ", -3.0, 3.0, 0.05, 0.0), ("beta", "β", 0.1, 2.0, 0.05, 0.5)),
    "dynamic_shift": (
        ("shift", "shift", -1.0, 4.0, 0.05, grids.MANY_TOKENS[1]),
        ("terminal", "terminal", 0.0, 0.5, 0.01, 0.0),
    ),
}
# these are made of nothing but the two ends of the levels, which may therefore be moved
BY_THEIR_ENDS = ("karras", "exponential", "polyexponential")
ENDS = {"sigma_min": "σ min", "sigma_max": "σ max"}
TABLES = {
    "ays_sd1": grids.AYS_SD1,
    "ays_sdxl": grids.AYS_SDXL,
    "ays_svd": grids.AYS_SVD,
    "ays_sd1_diffusers": grids.AYS_SD1_TIMESTEPS,
    "ays_sdxl_diffusers": grids.AYS_SDXL_TIMESTEPS,
    "oss": grids.OSS_FLUX,
}


@cache
def module() -> str:
    """The explorer's ES module."""
    return source("rungs.js", "formulas.js", "shelf.js", "explore.js")


def _median(levels: Levels, shape: float) -> int:
    """The entry that `beta` takes for the median of a symmetric shape.

    Half way between two entries rounding decides, and the browser's is not scipy's: it is told.
    """
    from scipy.special import betaincinv

    return int(np.rint(betaincinv(shape, shape, 0.5) * (len(levels.table) - 1)))


def _key(number: float) -> str:
    """A number as JavaScript writes it, for what sliders give: 1.0 is "1"."""
    return repr(int(number)) if float(number).is_integer() else repr(float(number))


def _call(source: Any, levels: Levels) -> str:
    """What stands in a line of Python for the model or the levels."""
    if source is not levels:
        return "model"
    kind, *rest = levels.describe().items()
    if kind[1] == "from_betas":
        return "levels"  # a thousand betas are no line
    return f"tk.Levels.{kind[1]}({', '.join(f'{k}={v!r}' for k, v in rest if v is not False)})"


def _clock(levels: Levels) -> dict[str, Any]:
    """What the browser needs for sigma(time): see the classes in `toolkit.levels`."""
    kind, shift = levels.describe()["kind"], levels.describe().get("shift")
    named = {"edm": "edm", "flow": "shifted", "flux": "shifted"}.get(kind, "discrete")
    unit, inverse = 1.0, 1.0
    if named == "shifted":
        unit = float(levels.time(1.0))
        inverse = 1.0 / shift if kind == "flow" else float(np.exp(-shift))
    start, end = levels.time(levels.sigma_max), levels.time(levels.sigma_min)
    return {"kind": named, "start": start, "end": end, "unit": unit, "inverse": inverse}


def describe_levels(source: Any, levels: Levels, path: str) -> dict[str, Any]:
    """The levels for the browser, but for their table."""
    lo, hi, hop = next((low, high, hop) for name, _, low, high, hop, _ in SLIDERS["beta"] if name == "alpha")
    shapes = [round(lo + k * hop, 2) for k in range(round((hi - lo) / hop) + 1)]
    words = [
        f"{levels.describe()['kind']} levels",
        f"σ {sigma(levels.sigma_min)} to {sigma(levels.sigma_max, 4)}",
    ]
    medians = {_key(shape): _median(levels, shape) for shape in shapes}
    meta = {"call": _call(source, levels), "path": path, "words": [*words, path], "medians": medians}
    return meta | _clock(levels)


def _sliders(name: str, levels: Levels) -> list[dict[str, Any]]:
    """The sliders of a schedule; hop 0 means even in log sigma."""
    rows = list(SLIDERS.get(name, ()))
    if name in BY_THEIR_ENDS:
        low, high = levels.sigma_min, levels.sigma_max
        middle = float(f"{(low * high) ** 0.5:.3g}")
        rows += [("sigma_min", ENDS["sigma_min"], low, middle, 0.0, low)]
        rows += [("sigma_max", ENDS["sigma_max"], middle, high, 0.0, high)]
    return [dict(zip(("name", "label", "low", "high", "hop", "value"), row, strict=True)) for row in rows]


def describe_schedule(name: str, source: Any, levels: Levels) -> dict[str, Any]:
    """A schedule for the browser: its sliders, all its options, and its table where it is one."""
    sliders = _sliders(name, levels)
    options = schedule(source, name, 20).attrs["options"]
    plain = {k: v for k, v in options.items() if isinstance(v, float)}
    entry = {"name": name, "sliders": sliders, "defaults": plain | {s["name"]: s["value"] for s in sliders}}
    if name in TABLES:
        table = np.array(TABLES[name])
        entry["table"] = (levels.sigma(table) if name.endswith("_diffusers") else table).tolist()
    return entry


def grid_of(source: Any, levels: Levels, name: str, steps: int, options: Mapping[str, float]) -> xr.Dataset:
    """The schedule of these options, where the ends of the levels may be among them."""
    free = {k: v for k, v in options.items() if k not in ENDS and not (k == "terminal" and v == 0)}
    if len(free) == len(options) or not any(k in ENDS for k in options):
        return schedule(source, name, steps, **free)
    low, high = options.get("sigma_min", levels.sigma_min), options.get("sigma_max", levels.sigma_max)
    return schedule(source, sigmas(Levels.edm(low, high), name, steps, **free))


class ScheduleExplorer(View):
    """Schedules to compare; made by ``tk.views.schedules``.

    Attributes
    ----------
    focused : str
        The schedule whose sliders are open.
    shown : list of str
        Those that are drawn.
    options : dict
        What was moved away from its default: ``{"karras": {"rho": 5.0}}``.
    steps : int
        Of all schedules, 2 to 1000.
    step : int
        Where the hairline stands.
    axis : {"log_sigma", "sigma"}
        Of the upper plot.

    Examples
    --------
    >>> import toolkit as tk
    >>> view = tk.views.schedules(names=["karras", "beta"], steps=10)
    >>> view.options = {"karras": {"rho": 3.0}}
    >>> view, view.grid.sigma.values[:3].round(2).tolist()
    (ScheduleExplorer(karras, beta; 10 steps, scaled_linear levels), [14.61, 10.76, 7.65])
    """

    _esm = module()

    focused = t.Unicode().tag(sync=True)
    shown = t.List(t.Unicode()).tag(sync=True)
    options = t.Dict().tag(sync=True)
    steps = t.Int(20).tag(sync=True)
    step = t.Int(0).tag(sync=True)
    axis = t.Enum(AXES, AXES[0]).tag(sync=True)

    _levels = t.Dict().tag(sync=True)
    _table = t.Bytes().tag(sync=True)
    _look = t.Bytes().tag(sync=True)
    _schedules = t.List().tag(sync=True)

    def __init__(self, model_or_levels: Any, names: Iterable[str], steps: int, image: Any = None):
        self._source, levels = model_or_levels, getattr(model_or_levels, "levels", model_or_levels)
        self._own, names = levels, list(names)
        path = getattr(model_or_levels, "path", levels.path).name
        entries = [describe_schedule(name, model_or_levels, levels) for name in names]
        for name in SCHEDULES:  # the others that these levels have
            if name not in names:
                try:
                    entries.append(describe_schedule(name, model_or_levels, levels))
                except ValueError:  # made for the other path, or for levels that reach farther
                    continue
        state = {"focused": names[0], "shown": names, "steps": steps, "step": 0}
        payload = {"_levels": describe_levels(model_or_levels, levels, path), "_schedules": entries}
        payload["_look"] = look(image)
        self._known = {entry["name"]: entry for entry in entries}
        super().__init__(**payload, _table=levels.table.astype("<f4").tobytes(), **state)

    def __repr__(self) -> str:
        names = ", ".join(self.shown) or "none shown"
        return f"ScheduleExplorer({names}; {self.steps} steps, {self._levels['words'][0]})"

    def _still(self) -> bytes:
        return still(self)

    @property
    def grid(self) -> xr.Dataset:
        """The focused curve as ``tk.schedule`` gives it: what the line in the view makes."""
        return self.curve(self.focused)

    def curve(self, name: str) -> xr.Dataset:
        """The curve of a schedule, with the options that stand here."""
        if name not in self._known:
            raise unknown("name", name, self._known, 'view.curve("{}")')
        return grid_of(self._source, self._own, name, self.steps, self.options.get(name, {}))

    @t.validate("focused")
    def _is_known(self, proposal: Any) -> str:
        self._check(proposal["value"], "focused", 'view.focused = "{}"')
        return proposal["value"]

    @t.validate("shown")
    def _are_known(self, proposal: Any) -> list[str]:
        for name in proposal["value"]:
            self._check(name, "shown", 'view.shown = ["{}"]')
        return list(dict.fromkeys(proposal["value"]))

    @t.validate("steps", "step")
    def _in_range(self, proposal: Any) -> int:
        name, given = proposal["trait"].name, proposal["value"]
        low, high = (FEWEST, MOST) if name == "steps" else (0, MOST + FEWEST)
        if not low <= given <= high:
            raise bad(name, given, f"{low} to {high}", f"view.{name} = 20", t.TraitError)
        return given

    @t.validate("options")
    def _possible(self, proposal: Any) -> dict[str, dict[str, float]]:
        line, kept = 'view.options = {"karras": {"rho": 5.0}}', {}
        for name, given in proposal["value"].items():
            self._check(name, "options", 'view.options = {"{}": {}}')
            known = {slider["name"]: slider["value"] for slider in self._known[name]["sliders"]}
            if not isinstance(given, Mapping) or not set(given) <= set(known):
                wanted = f"{name} has {', '.join(known) or 'no options'}"
                raise bad("options", proposal["value"], wanted, line, t.TraitError)
            try:
                grid_of(self._source, self._own, name, self.steps, given)
            except (ValueError, TypeError) as error:
                raise t.TraitError(str(error)) from None
            moved = {k: float(v) for k, v in given.items() if v != known[k]}
            kept |= {name: moved} if moved else {}
        return kept

    @t.observe("options")
    def _tell_the_median(self, change: Any) -> None:
        """The tie that a shape off the slider's hops would leave to the browser's rounding."""
        shape = {"alpha": grids.BETA_SHAPE, "beta": grids.BETA_SHAPE} | change["new"].get("beta", {})
        medians, key = self._levels["medians"], _key(shape["alpha"])
        if shape["alpha"] == shape["beta"] and key not in medians:
            more = medians | {key: _median(self._own, shape["alpha"])}
            self._levels = self._levels | {"medians": more}

    def _check(self, name: str, trait: str, line: str) -> None:
        if name not in self._known:
            raise t.TraitError(str(unknown(trait, name, self._known, line, " for these levels")))

    def to_html(self, path: str | PathLike[str]) -> Path:
        path = place(path)
        names = ("focused", "shown", "options", "steps", "step", "axis", "_levels", "_schedules")
        state = {name: getattr(self, name) for name in names}
        text, layout = packed({"_table": self._table, "_look": self._look}, {})
        return write(path, ["Schedules", *self._levels["words"]], state, text, layout, module())


def still(view: ScheduleExplorer) -> bytes:
    """The upper plot as a PNG: a file of its own, drawn without a browser."""
    sheet, left, right, top, bottom = Sheet(880, 372), 48, 640, 76, 300
    heading = sheet.text(12, 34, "Schedules", 14, fontweight=heavy())
    sheet.text(sheet.beside(heading, 10), 34, " · ".join(view._levels["words"]), 12, "muted")
    curves = {name: view.curve(name).sigma.values for name in view.shown}
    most = max([view.steps, *(len(curve) - 1 for curve in curves.values())])
    ends = np.log([view._own.sigma_min, view._own.sigma_max])
    height = (bottom - top - 24) / (ends[1] - ends[0])  # under the log axis, 24 pixels are for 0
    for value in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        if ends[0] <= np.log(value) <= ends[1]:
            y = top + (ends[1] - np.log(value)) * height
            sheet.rule(left, right, y)
            sheet.text(left - 8, y + 4, f"{value:g}", 10.5, "muted", ha="right")
    sheet.text(left - 8, bottom + 4, "0", 10.5, "muted", ha="right")
    for k, (name, curve) in enumerate(curves.items()):
        x = left + np.arange(len(curve)) * (right - left) / most
        with np.errstate(divide="ignore"):
            y = np.where(curve > 0, top + (ends[1] - np.log(curve)) * height, bottom)
        colour = tokens()[f"cat-{k}" if len(curves) <= COLOURS else "edge"]
        options = {"color": colour, "marker": "os^Dv_"[k % COLOURS], "clip_on": False, "markersize": 3}
        sheet.ground.plot(x, y, linewidth=1.9 if name == view.focused else 1.1, **options)
        if k < 12:
            sheet.ground.plot([668, 692], [top + 20 * k] * 2, linewidth=1.5, **options)
            sheet.text(702, top + 20 * k + 4, name, 12)
    sheet.text(left, bottom + 26, f"noise level σ at each of {view.steps} steps", 11, "muted")
    sheet.text(12, 352, TOLD, 11, "muted")
    return sheet.png(PICTURE_MOST)


def schedules(
    model_or_levels: Any = None,
    names: Iterable[str] = ("karras", "normal", "exponential", "beta"),
    steps: int = 20,
    image: Any = None,
) -> ScheduleExplorer:
    """Compare schedules: their levels, log-SNR and step sizes, with sliders for what a formula leaves open.

    Parameters
    ----------
    model_or_levels : Levels, or a model that carries them, optional
        None: Stable Diffusion's. All schedules that these levels have are offered.
    names : sequence of str
        Those shown at first, of ``tk.SCHEDULES``; the first one has its sliders open.
    steps : int
        2 to 1000.
    image : array (y, x, rgb) or PIL image, optional
        What the levels are shown on, from 0 to 1 or in bytes; None: a drawn flower.

    Returns
    -------
    ScheduleExplorer
        A widget whose traits (`focused`, `shown`, `options`, `steps`, `step`, `axis`) can be read, set and
        linked. ``view.grid`` is the focused curve as a Dataset, ``view.to_html(path)`` writes a page.

    Raises
    ------
    ValueError, TypeError
        For unknown names, schedules that these levels do not have, steps out of range, and what is no image,
        before a widget exists, with the line to type.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.views.schedules(tk.Levels.flow(), ["dynamic_shift", "simple"], steps=8)
    ScheduleExplorer(dynamic_shift, simple; 8 steps, flow levels)
    """
    source, line = model_or_levels, 'tk.views.schedules(tk.Levels.scaled_linear(), ["karras"], steps=20)'
    source = Levels.scaled_linear() if source is None else source
    if not isinstance(getattr(source, "levels", source), Levels):
        raise bad("model_or_levels", source, "a Levels, or a model that carries `.levels`", line, TypeError)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Iterable) or not (names := list(dict.fromkeys(names))):
        raise bad("names", names, "names of schedules, one or more", line, TypeError)
    for name in names:
        if name not in SCHEDULES:
            raise unknown("names", name, SCHEDULES, 'tk.views.schedules(names=["{}"])')
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not FEWEST <= steps <= MOST:
        raise bad("steps", steps, f"a whole number from {FEWEST} to {MOST}", line)
    return ScheduleExplorer(source, names, int(steps), image)
