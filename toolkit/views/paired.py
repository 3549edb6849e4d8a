"""Two runs at one level as a still picture, without a browser: A, B, the difference, and its course."""

from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..diagnostics.pairs import meet, pairs
from ..typefaces import heavy
from . import words
from .paper import CODE_FACES, Sheet, colours, tokens
from .payload import LIMIT_STD
from .scene import Column
from .sheet import MOST, TOLD
from .unpacked import Run, lut

LEFT, RIGHT, SIDE, GAP = 52, 932, 280, 20


def still(view: Any) -> bytes:
    """The comparer's picture: its present level, sample and channel, 984 x 744 at 2x."""
    found = view.difference
    name = "denoised" if "denoised" in found and found.denoised_rms.notnull().any() else "latent"
    row, sample, channel = view.rung, view.sample, view.channel
    runs = [view._datasets[k] for k in (view.a, view.b)]
    at = 0 if view.focused == "A" else 1
    own, other = runs[at], runs[1 - at]
    rows, share = meet(own, other, name, view.match)
    rows[np.arange(len(rows)) != row] = -1
    two = next(((mine, theirs) for _, mine, theirs in pairs(own, other, name, rows, share)), None)
    sheet = Sheet(984, 640)
    heading = sheet.text(LEFT, 42, "Compare", 14, fontweight=heavy())
    sheet.text(sheet.beside(heading, 10), 42, f"at equal σ, here {words.sigma(view.sigma)}", 12, "muted")
    planes = [None] * 3
    rms = f"RMS {words.error(float(found[f'{name}_rms'][row, sample]))}" if two else "no such level"
    if two:
        planes = [v[sample, channel] for v in (two if at == 0 else two[::-1])]
        planes.append(planes[0] - planes[1])
    limit = max((LIMIT_STD * float(np.nanstd(p)) for p in planes[:2] if p is not None), default=1.0)
    scales = [limit, limit, float(found[f"{name}_quantile"][row, sample]) if two else 1.0]
    for k, (letter, plane) in enumerate(zip("AB−", planes, strict=True)):
        x = LEFT + k * (SIDE + GAP)
        title = f"{letter}  {view.called[k]}" if k < 2 else f"A − B, {name} c{channel}"
        sheet.text(x, 76, _short(title), 12, fontweight=heavy())
        if k == 2:
            sheet.text(x + SIDE, 76, rms, 11, "muted", ha="right")
        scale = scales[k] if np.isfinite(scales[k]) and scales[k] > 0 else 1.0
        sheet.picture(x, 86, SIDE, colours(plane, scale) if plane is not None else None, 3)
    _course(sheet, 410, found, name, row, sample)
    sheet.rule(LEFT, RIGHT, sheet.height - 48)
    sheet.text(LEFT, sheet.height - 27, TOLD, 11, "muted")
    sheet.text(RIGHT, sheet.height - 27, "tk.views.compare(a, b)", 11, family=CODE_FACES[0], ha="right")
    return sheet.png(MOST)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _course(sheet: Sheet, top: float, found: Any, name: str, row: int, sample: int) -> None:
    """RMS of A - B over sigma, both on log axes, with the present level marked."""
    sigma, rms = found.sigma.values, found[f"{name}_rms"].values[:, sample]
    seen = np.isfinite(rms) & (rms > 1e-15) & (sigma > 0)
    heading = sheet.text(LEFT, top, "RMS difference", 12, fontweight=heavy())
    sheet.text(sheet.beside(heading, 8), top, f"{name}, at equal σ", 11, "muted")
    if not seen.any():
        none = rms[np.isfinite(rms)]
        sheet.text(
            LEFT, top + 60, "the runs are the same" if len(none) and not none.any() else "none", 11, "muted"
        )
        return
    order = np.flatnonzero(seen)[np.argsort(sigma[seen], kind="stable")]
    left, low = LEFT + 48, top + 140
    x0, x1 = np.log10(sigma[order][[0, -1]])
    y0, y1 = np.floor(np.log10(rms[seen].min()) + 1e-9), np.ceil(np.log10(rms[seen].max()) - 1e-9)
    y1 = max(y1, y0 + 1)

    def place(level: Any, value: Any) -> tuple[Any, Any]:
        across = (np.log10(level) - x0) / max(x1 - x0, 1e-9)
        return left + (RIGHT - left) * across, low - (low - top - 20) * (np.log10(value) - y0) / (y1 - y0)

    for power in range(int(y0), int(y1) + 1, max(1, int(y1 - y0) // 3)):
        _, y = place(10**x0, 10.0**power)
        sheet.rule(left, RIGHT, float(y), "grid")
        sheet.text(
            left - 8,
            float(y) + 4,
            words.minus(f"{10.0**power:g}".replace("e-0", "e-")),
            10.5,
            "muted",
            ha="right",
        )
    for power in range(int(np.ceil(x0 - 1e-9)), int(np.floor(x1 + 1e-9)) + 1):
        x, _ = place(10.0**power, 10**y0)
        sheet.text(float(x), low + 20, f"{10.0**power:g}", 10.5, "muted", ha="center")
    sheet.text(left - 8, low + 20, "σ", 10.5, "muted", ha="right")
    sheet.ground.plot(*place(sigma[order], rms[order]), color=tokens()["solid"], linewidth=1.1)
    if seen[row]:
        x, y = place(sigma[row], rms[row])
        sheet.dots([x], [y])
        sheet.text(float(x), float(y) - 8, words.sigma(float(sigma[row])), 10.5, ha="center")


def apart(view: Any, run: Run) -> list[Column]:
    """Latents of A and B on one scale, and A - B on its own, at each rung of the focused run."""
    at, (a, b) = 0 if view.focused == "A" else 1, (view._datasets[k] for k in (view.a, view.b))
    own, other = (a, b) if at == 0 else (b, a)
    rows, share = meet(own, other, "latent", view.match)
    table = lut()

    @lru_cache(2)
    def states(k: int) -> list[np.ndarray]:
        """A, B and A - B (channel, y, x); nothing where one of them has no such level."""
        only = np.where(np.arange(len(rows))[:, None] == run.rungs[k], rows, -1)
        for _, mine, theirs in pairs(own, other, "latent", only, share):
            both = [v[view.sample] for v in ((mine, theirs) if at == 0 else (theirs, mine))]
            with np.errstate(invalid="ignore"):  # Inf - Inf
                return [*both, both[0] - both[1]]
        return []

    def limit(k: int, which: int) -> float:
        finite = [plane[np.isfinite(plane)] for plane in states(k)]  # colour limits ignore what is not
        if which < 2:
            reach = max((LIMIT_STD * float(plane.std()) for plane in finite[:2] if plane.size), default=0.0)
        else:
            reach = float(np.quantile(np.abs(finite[2]), 0.995)) if finite[2].size else 0.0
        return reach or 1.0

    def column(which: int, title: str, second: str) -> Column:
        def planes(k: int, c: int) -> tuple[np.ndarray, np.ndarray]:
            values = states(k)[which][c]
            gone = ~np.isfinite(values)
            unit = (np.where(gone, 0.0, values) / limit(k, which) + 1) / 2
            return table[np.clip(np.floor(unit * 255 + 0.5), 0, 255).astype(int)], gone

        reach, there = partial(limit, which=which), lambda k: bool(states(k))
        return Column("AB−"[which], title, second, planes, reach, "", there, "no such level")

    return [*(column(k, "AB"[k], _short(view.called[k])) for k in (0, 1)), column(2, "A − B", "at equal σ")]
