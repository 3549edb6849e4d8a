"""Still pictures of a run, without a browser: a contact sheet of ten rungs, and a strip there and back."""

from collections.abc import Mapping
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from ..errors import bad
from ..typefaces import heavy
from . import words
from .paper import CODE_FACES, Sheet, colours, tokens
from .payload import LIMIT_STD, check, column, decoded, evenly, planned, rows_with_latent

TILES = 10
TOLD = "A still picture of an interactive view. Trust this notebook, or open the HTML page, to scrub it."
MOST = 300_000  # bytes: a notebook holds one for each widget
STRIP_MOST = 1_500_000
LEFT, RIGHT = 52, 932  # of the sheet's 984 pixels
TILE, PITCH = 80, 800 / 9


def _picture(ds: xr.Dataset, model: Any, images: Mapping, row: int) -> np.ndarray | None:
    """Decoded image of a row's first sample: of its denoised, else of the latent itself."""
    if (row, 0) in images:
        return np.asarray(Image.open(BytesIO(images[row, 0])))
    for name in ("denoised", "latent"):
        batch = decoded(ds, model, name, row)
        if batch is not None:
            return np.clip(batch[0], 0, 1)
    return None


def _latent(ds: xr.Dataset, name: str, row: int, channel: int) -> np.ndarray | None:
    """A channel in colour, on the scale of all channels of its rung; None where nothing is finite."""
    values = np.asarray(ds[name][row, 0].values, np.float64)  # (channel, y, x)
    finite = values[np.isfinite(values)]
    return colours(values[channel], LIMIT_STD * float(finite.std())) if finite.size else None


def _rows(ds: xr.Dataset, model: Any, images: Mapping) -> list[tuple[str, Any]]:
    """Up to three rows: what they are called, and a function from rung to image."""

    def tiles(name: str, channel: int) -> tuple[str, Any]:
        label = str(np.atleast_1d(ds["channel"].values)[channel]) if "channel" in ds.coords else f"c{channel}"
        return f"{name} {label}", lambda row: _latent(ds, name, row, channel)

    rows = [tiles("latent", 0)] + ([tiles("denoised", 0)] if "denoised" in ds else [])
    if images or model is not None or "image" in ds:
        both = (
            "denoised, decoded (latent where the model was not called)"
            if "denoised" in ds
            else "latent, decoded"
        )
        rows.append((both, lambda row: _picture(ds, model, images, row)))
    more = range(1, min(ds.sizes["channel"], 4 - len(rows)))
    return rows[:1] + [tiles("latent", c) for c in more] + rows[1:]


def _schedule(sheet: Sheet, top: float, sigma: np.ndarray, rows: np.ndarray, marked: np.ndarray) -> None:
    """The schedule over the whole width, with the rungs of the sheet marked."""
    left, right, last = LEFT + 40, RIGHT - 10, max(len(sigma) - 1, 1)
    positive = sigma[rows][sigma[rows] > 0]
    ink, height = tokens()["solid"], 50
    low, high = (np.log10(positive.min()), np.log10(positive.max())) if len(positive) else (0.0, 1.0)
    span = max(high - low, 1e-9)

    def place(row: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return left + (right - left) * row / last, top + height * (1 - (np.log10(level) - low) / span)

    sheet.text(LEFT, top + 4, "σ", 11, fontweight=heavy())
    powers = range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1)
    for power in list(powers)[:: max(1, len(powers) // 4)]:
        _, y = place(np.zeros(1), np.array([10.0**power]))
        sheet.rule(left, right, float(y[0]), "grid")
        sheet.text(left - 8, float(y[0]) + 4, f"{10.0**power:g}", 10.5, "muted", ha="right")
    line, dots = rows[sigma[rows] > 0], marked[sigma[marked] > 0]
    sheet.ground.plot(*place(line, sigma[line]), color=ink, linewidth=1.1, solid_joinstyle="round")
    sheet.dots(*place(dots, sigma[dots]))
    step = next(s * 10**k for k in range(9) for s in (1, 2, 5) if last / (s * 10**k) <= 5)
    for row in range(0, last + 1, step):
        sheet.text(
            left + (right - left) * row / last,
            top + height + 24,
            words.count(row),
            10.5,
            "muted",
            ha="center",
        )
    sheet.text(left - 8, top + height + 24, "rung", 10.5, "muted", ha="right")


def placard(title: str, text: str) -> bytes:
    """A still picture of a run of which there is nothing to show yet."""
    sheet = Sheet(984, 84)
    sheet.text(LEFT, 42, title, 14, fontweight=heavy())
    sheet.text(LEFT, 64, text, 12, "muted")
    return sheet.png(MOST)


def contact_sheet(
    dataset: xr.Dataset,
    model: Any = None,
    path: str | PathLike[str] | None = None,
    *,
    images: Mapping[tuple[int, int], bytes] | None = None,
) -> bytes:
    """Ten rungs of a run in one still picture: what an untrusted notebook, a README or a paper shows.

    Parameters
    ----------
    dataset : Dataset
        A recorded run with `latent` (step, sample, channel, y, x); its first sample is drawn.
    model : optional
        Anything with ``decode(latent)``; adds a row of decoded images.
    path : path, optional
        Where to write it as well.
    images : mapping, optional
        Picture files by (row, sample) that are made already, in place of `model`.

    Returns
    -------
    bytes
        A PNG of at most 300 kB, on its own white paper.

    Raises
    ------
    ValueError, TypeError
        For a Dataset that cannot be drawn.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.views.contact_sheet(tk.testing.ladder_dataset())[1:4]
    b'PNG'
    """
    ds = check(dataset, model)
    sigma, kept = column(ds, "sigma"), rows_with_latent(ds)
    marked = evenly(sigma, kept, TILES)
    rows, pitch = _rows(ds, model, images or {}), TILE + 8
    sheet = Sheet(984, 544 - pitch * (3 - len(rows)))
    heading = sheet.text(LEFT, 42, words.title(ds.attrs), 14, fontweight=heavy())
    some = f"{len(marked)} of {words.count(ds.sizes['step'])} rungs"
    said = [*words.provenance(ds.attrs, planned(ds)), some]
    sheet.text(sheet.beside(heading, 10), 42, " · ".join(said), 12, "muted")
    for place, row in enumerate(marked):
        x = LEFT + place * PITCH
        sheet.level(x, 76, sigma[row])
        sheet.text(x, 90, f"rung {words.count(int(row))}", 10.5, "muted")
        for k, (_, image) in enumerate(rows):
            sheet.picture(x, 102 + k * pitch, TILE, image(int(row)))
    below = 102 + len(rows) * pitch + 12
    sheet.text(LEFT, below, "rows: " + " · ".join(name for name, _ in rows), 11, "muted")
    legend = "blue: negative · orange: positive · scale: ±3 std of each rung"
    sheet.text(RIGHT, below, legend, 11, "muted", ha="right")
    _schedule(sheet, below + 34, sigma, kept, marked)
    sheet.rule(LEFT, RIGHT, sheet.height - 48)
    sheet.text(LEFT, sheet.height - 27, TOLD, 11, "muted")
    sheet.text(RIGHT, sheet.height - 27, "tk.view(run)", 11, family=CODE_FACES[0], ha="right")
    return _written(sheet.png(MOST), path)


def _written(data: bytes, path: str | PathLike[str] | None) -> bytes:
    if path is not None:
        Path(path).write_bytes(data)
    return data


def round_trip_error(up: xr.Dataset, down: xr.Dataset) -> float:
    """RMS of what came back minus what went up, over all samples and channels of the latent."""
    gap = np.asarray(down.latent[-1].values, np.float64) - np.asarray(up.latent[0].values, np.float64)
    return float(np.sqrt(np.mean(gap**2)))


def _between(up: xr.Dataset, down: xr.Dataset, levels: int, between: str, model: Any) -> np.ndarray:
    """The rows of `up` that a strip shows between its ends; or the error that says what does not fit."""
    if up.latent.shape[1:] != down.latent.shape[1:]:
        wanted = f"`up` has {up.latent.shape[1:]}"
        raise bad("down", down.latent.shape[1:], wanted, "down = tk.sample(model, up)")
    sigma, rows = column(up, "sigma"), rows_with_latent(up)
    rows = rows[sigma[rows] > 0]
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= len(rows):
        line = f"tk.views.strip(up, down, levels={min(6, len(rows))})"
        raise bad("levels", levels, f"a whole number, 1 to {len(rows)}", line)
    if between not in ("latent", "decoded") or (between == "decoded" and model is None):
        line = 'tk.views.strip(up, down, between="latent")'
        raise bad("between", between, '"latent", or with a model "decoded"', line)
    return evenly(sigma, rows, levels)


def _end_or_tile(ds: xr.Dataset, row: int, model: Any, decode: bool) -> np.ndarray | None:
    """A row as an image, if it can and should be decoded, else its first channel."""
    batch = decoded(ds, model, "latent", row) if decode else None
    return np.clip(batch[0], 0, 1) if batch is not None else _latent(ds, "latent", row, 0)


def strip(
    up: xr.Dataset,
    down: xr.Dataset,
    path: str | PathLike[str] | None = None,
    model: Any = None,
    levels: int = 6,
    caption: str = "Run diffusion backwards, rung by rung, and keep every step as labelled data.",
    between: str = "latent",
) -> bytes:
    """One wide picture: an image, its latents on the way to noise, and the image that comes back.

    Parameters
    ----------
    up, down : Dataset
        A run from image to noise (``tk.unsample``), and the one that replays it (``tk.sample(model, up)``).
    path : path, optional
        Where to write it as well.
    model : optional
        Anything with ``decode(latent)``: both ends are shown as images. Without it, as the first channel.
    levels : int
        Latents between the ends, evenly in log sigma.
    caption : str
        A line under the picture; "" leaves it out.
    between : {"latent", "decoded"}
        Draw the latents between as their first channel, or decode them.

    Returns
    -------
    bytes
        A PNG, on its own white paper.

    Raises
    ------
    ValueError, TypeError
        For a Dataset that cannot be drawn, two that do not belong together, or too few levels.

    Examples
    --------
    >>> import toolkit as tk
    >>> run = tk.testing.unsample_dataset()
    >>> tk.views.strip(run, run.isel(step=slice(None, None, -1)))[1:4]
    b'PNG'
    """
    up, down = check(up, model), check(down, model)
    rows, sigma = _between(up, down, levels, between, model), column(up, "sigma")
    tile, end, gap, edge, top = 132, 184, 12, 48, 48  # pixels
    width = 2 * edge + 2 * (end + 20) + levels * (tile + gap) - gap
    sheet, back, middle = Sheet(width, 348 if caption else 292), width - edge - end, top + end / 2
    sheet.picture(edge, top, end, _end_or_tile(up, 0, model, True), 4)
    sheet.picture(back, top, end, _end_or_tile(down, down.sizes["step"] - 1, model, True), 4)
    centres = [edge + end + 20 + tile / 2 + place * (tile + gap) for place in range(levels)]
    for centre, row in zip(centres, rows, strict=True):
        image = _end_or_tile(up, int(row), model, between == "decoded")
        sheet.picture(centre - tile / 2, middle - tile / 2, tile, image, 3)
        sheet.level(centre, middle - tile / 2 - 10, sigma[row], ha="center")
    _there_and_back(sheet, centres, middle + tile / 2 + 22)
    sheet.text(edge, top + end + 20, "given", 12, "muted")
    _returned(sheet, back, top + end + 20, round_trip_error(up, down))
    sheet.text(edge, sheet.height - 34, caption, 19, fontweight=heavy())
    return _written(sheet.png(STRIP_MOST), path)


def _returned(sheet: Sheet, x: float, y: float, error: float) -> None:
    """What is under the image that came back."""
    sheet.text(x, y, "came back, off by", 12, "muted")
    sheet.text(x, y + 18, f"RMS {words.error(error)} (latent)", 12, fontweight=heavy())


def _there_and_back(sheet: Sheet, centres: list[float], y: float) -> None:
    """A hairline under the latents with a dot for each, and what happens along it."""
    ink = tokens()["solid"]
    sheet.ground.plot([centres[0], centres[-1]], [y, y], color=ink, linewidth=1.1, solid_capstyle="round")
    sheet.dots(centres, [y] * len(centres))
    sheet.text(centres[0], y + 22, "unsample: up, rung by rung", 11, "muted")
    sheet.text(centres[-1], y + 22, "sample: the same rungs, back down", 11, "muted", ha="right")
