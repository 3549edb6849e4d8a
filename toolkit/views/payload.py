"""Dataset -> bytes that a browser can draw: one uint8 atlas a variable, float32 tables, small pictures.

255 codes stand for values between `lo` and `hi` of each (rung, sample, channel), code 255 for what is not
finite. Any colour scale is then a table of 256 colours in the browser, and no second atlas.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image, features

from ..dataset import LATENT, VARIABLES, moments
from ..errors import bad
from .words import count, provenance, title

RUNGS = 256  # most rungs in one payload
ATLAS = 16 * 2**20  # most bytes of latent and denoised together: more takes the browser over a second to open
PICTURES = 64  # most rungs that are decoded, fewer of many samples; the nearest one is shown between
ALL_PICTURES = 256  # about as many of a column, over all samples: 4 MB
SIDE = 256  # most pixels along a decoded picture's longer side
LOSSLESS = 96  # pictures up to this side are kept exactly: lossy coding smears single pixels
LIMIT_STD = 3.0  # colour limits, in standard deviations of a rung
KINDS = ("denoised", "latent")  # what decoded images are made of
TOP = 254  # highest code of a value; TOP + 1 is not finite
Span = tuple[int, int] | None  # first and last row of a range
USED = {name: VARIABLES[name][0] for name in ("latent", "denoised", "mean", "std", "nfe")}


@dataclass
class Payload:
    """What a view draws: plain JSON in `meta`, and four runs of bytes that it describes."""

    meta: dict[str, Any]
    latent: bytes
    denoised: bytes
    floats: bytes
    pictures: bytes
    images: dict[tuple[int, int], bytes] = field(
        default_factory=dict
    )  # (row, sample) -> the picture shown first


def check(dataset: Any, model: Any = None, empty: bool = False) -> xr.Dataset:
    """What a view needs of `dataset`, with all five dimensions in order; or the error that says why not.

    `empty`: no rung may be there yet, of a run that is being written.
    """
    line = "tk.view(tk.unsample(model, latent))"
    if not isinstance(dataset, xr.Dataset):
        raise bad("dataset", type(dataset).__name__, "an xarray.Dataset of a recorded run", line, TypeError)
    if "latent" not in dataset:
        raise bad("dataset", list(dataset.data_vars), "there is no variable `latent` to draw", line)
    if "sigma" not in dataset.coords:
        raise bad("dataset", list(dataset.coords), "the coordinate `sigma` is missing", line)
    levels = np.asarray(dataset["sigma"].values, np.float64)
    # rows to come of a run that is being written have none yet
    if not empty and not np.isfinite(levels).all():
        known = "tk.view(ds.isel(step=numpy.flatnonzero(numpy.isfinite(ds.sigma))))"
        raise bad("sigma", "NaN or Inf in it", "a finite level at every rung", known)
    dims = dataset.latent.dims
    if set(dims) - set(LATENT) or not {"y", "x"} <= set(dims):
        raise bad("dataset", dims, f"`latent` needs the dimensions {', '.join(LATENT)}, and no others", line)
    if dataset.latent.dtype.kind not in "fiu":
        raise bad(
            "latent", str(dataset.latent.dtype), "real numbers", "tk.view(ds.assign(latent=ds.latent.real))"
        )
    if model is not None and not callable(getattr(model, "decode", None)):
        raise bad("model", model, "it has no decode(latent) to make images with", "tk.view(ds)", TypeError)
    names = [n for n in USED if n in dataset]
    ds = dataset[names]
    for dim in LATENT:  # one rung, sample or channel was picked: draw that one
        lacking = [n for n in names if dim in USED[n] and dim not in ds[n].dims]
        ds = ds.assign({n: ds[n].expand_dims(dim) for n in lacking})
        if ds.sizes[dim] == 0 and not (empty and dim == "step"):
            sizes = ", ".join(f"{d} {n}" for d, n in dataset.latent.sizes.items())
            raise bad(dim, 0, f"nothing to draw; the dimensions are {sizes}", line)
    ds = ds.assign({n: ds[n].transpose(*USED[n]) for n in names})
    if "image" in dataset and dataset["image"].ndim == 5:
        ds["image"] = dataset["image"]
    return ds.assign_attrs(dataset.attrs)


def column(ds: xr.Dataset, name: str) -> np.ndarray | None:
    """A coordinate or counter as (step,) floats; None where the run has none."""
    return np.atleast_1d(np.asarray(ds[name].values, np.float64)) if name in ds.variables else None


def rows_with_latent(ds: xr.Dataset, first: int = 0) -> np.ndarray:
    """The rows from `first` on that were kept (Save.every leaves others NaN); all of them if none was."""
    doubtful = np.isnan(ds.latent[first:, 0, 0, 0, 0].values)  # one pixel tells, save where the run met NaN
    rows = range(first, ds.sizes["step"])
    kept = [i for i in rows if not (doubtful[i - first] and np.isnan(ds.latent[i].values).all())]
    return np.array(kept if kept or first else rows, int)


def evenly(sigma: np.ndarray, rows: np.ndarray, most: int, always: tuple[int, ...] = ()) -> np.ndarray:
    """At most `most` of `rows`, evenly in log sigma along the run, with both ends and `always`.

    The length along the run is measured, not sigma itself: a run may go up and come down again. Level 0 has
    no logarithm and counts as the lowest positive level. Equal levels differ by a thousandth of a step.
    """
    if len(rows) <= most:
        return rows
    positive = sigma[rows][sigma[rows] > 0]
    level = np.log(np.maximum(sigma[rows], positive.min() if len(positive) else 1.0))
    hops = np.abs(np.diff(level))
    length = np.concatenate([[0.0], np.cumsum(hops + 1e-3 * max(hops.mean(), 1e-12))])
    fixed = {0, len(rows) - 1} | {int(np.searchsorted(rows, r)) for r in always if r in rows}
    fixed = set(sorted(fixed)[:most]) if len(fixed) > most else fixed
    chosen = set(fixed)
    for target in np.linspace(0, length[-1], most):
        if len(chosen) >= most:
            break
        chosen.add(int(np.abs(length - target).argmin()))
    for k in np.linspace(0, len(rows) - 1, most).round().astype(int):  # where levels crowd, even rows fill up
        if len(chosen) < most:
            chosen.add(int(k))
    return rows[sorted(chosen)]


def quantise(values: np.ndarray, top: int = TOP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and limits of (..., y, x): uint8 codes, float32 lo and hi (...). Code `top + 1` is not finite."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    lo = np.where(finite, values, np.inf).min(axis=(-2, -1))
    hi = np.where(finite, values, -np.inf).max(axis=(-2, -1))
    empty = lo > hi
    lo, hi = np.where(empty, 0.0, lo).astype(np.float32), np.where(empty, 0.0, hi).astype(np.float32)
    low, span = lo.astype(np.float64)[..., None, None], (hi.astype(np.float64) - lo)[..., None, None]
    unit = (np.where(finite, values, low) - low) / np.where(span > 0, span, 1.0)
    codes = np.clip(np.round(unit * top), 0, top).astype(np.uint8)
    codes[~finite] = top + 1
    return codes, lo, hi


def colour_limits(values: np.ndarray) -> np.ndarray:
    """Symmetric limit of each (rung, sample): three times the std of its finite values, 1 where that is 0."""
    finite = np.isfinite(values)
    count = np.maximum(finite.sum(axis=(-3, -2, -1)), 1)
    clean = np.where(finite, values, 0.0)
    mean = clean.sum(axis=(-3, -2, -1)) / count
    square = np.where(finite, (clean - mean[..., None, None, None]) ** 2, 0.0).sum(axis=(-3, -2, -1)) / count
    limit = LIMIT_STD * np.sqrt(square)
    return np.where(limit > 0, limit, 1.0)


def decoded(ds: xr.Dataset, model: Any, name: str, row: int) -> np.ndarray | None:
    """Images of one row, (sample, y, x, rgb) in 0..1; None where that row holds nothing finite to decode."""
    if name == "denoised" and "image" in ds:
        images = np.asarray(ds["image"].isel(step=row).values, np.float64)
        return images if np.isfinite(images).all() else None
    if model is None or name not in ds or not np.isfinite(ds[name][row].values).all():
        return None
    images = np.asarray(model.decode(ds[name].isel(step=row).drop_vars("step", errors="ignore")), np.float64)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.shape[0] != ds.sizes["sample"]:
        wanted = f"decode(latent) must give (sample {ds.sizes['sample']}, y, x, rgb)"
        raise bad("model.decode", images.shape, wanted, "tk.view(ds)")
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def encode(image: np.ndarray, side: int = SIDE) -> tuple[bytes, int, int]:
    """(y, x, rgb) in 0..1 as a picture file of at most `side` pixels: its bytes, width and height."""
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8), "RGB")
    if max(picture.size) > side:
        factor = side / max(picture.size)
        picture = picture.resize([max(1, round(n * factor)) for n in picture.size], Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if max(picture.size) <= LOSSLESS:
        picture.save(out, "PNG")
    elif features.check("webp"):
        picture.save(out, "WEBP", quality=82, method=4)
    else:
        picture.save(out, "JPEG", quality=88)
    return out.getvalue(), *picture.size


def picture_room(ds: xr.Dataset) -> int:
    """How many rungs are decoded at most."""
    return min(PICTURES, max(8, ALL_PICTURES // ds.sizes["sample"]))


def _pictures(ds: xr.Dataset, model: Any, rows: np.ndarray, pictured: Sequence[int] | None,
              kinds: Sequence[str] = KINDS) -> tuple[dict[str, list], bytes, dict]:  # fmt: skip
    """Index by column of [position, sample, offset, length, width, height], all bytes, and bytes by row."""
    index: dict[str, list] = {"denoised": [], "latent": []}
    blob, offset, first = [], 0, {}
    sources = [n for n in kinds if n in ds or (n == "denoised" and "image" in ds)]
    full, taken = None, pictured
    if taken is None:
        taken = evenly(column(ds, "sigma"), rows, picture_room(ds))
    for name in sources if model is not None or "image" in ds else []:
        for row in taken:
            images = decoded(ds, model, name, int(row))
            for sample, image in enumerate(images if images is not None else ()):
                data, width, height = encode(image)
                full = full or [image.shape[1], image.shape[0]]
                position = int(np.searchsorted(rows, row))
                index[name].append([position, sample, offset, len(data), width, height])
                first.setdefault((int(row), sample), data)
                blob.append(data)
                offset += len(data)
    index["size"] = full or []
    return index, b"".join(blob), first


def _room(ds: xr.Dataset) -> int:
    """How many rungs fit into the payload; an error where not even two do."""
    names = [n for n in ("latent", "denoised") if n in ds]
    each = sum(int(np.prod(ds[n].shape[1:])) for n in names)
    room = min(RUNGS, ATLAS // each)
    if room < min(2, ds.sizes["step"]):
        few = max(1, ds.sizes["sample"] * ATLAS // (2 * each))
        wanted = f"one rung takes {each / 2**20:.0f} MB, a view holds {ATLAS // 2**20}"
        raise bad("sample", ds.sizes["sample"], wanted, f"tk.view(ds.isel(sample=slice(0, {few})))")
    return room


def _faults(values: np.ndarray) -> Iterator[list[int]]:
    """[position, sample, NaN, Inf] wherever a latent is not finite."""
    nan, inf = np.isnan(values).sum(axis=(2, 3, 4)), np.isinf(values).sum(axis=(2, 3, 4))
    for position, sample in np.argwhere(nan + inf):
        yield [int(position), int(sample), int(nan[position, sample]), int(inf[position, sample])]


def _numbers(values: np.ndarray | None, rows: np.ndarray) -> list[float | str] | None:
    """JSON has no infinities: they travel as the words that JavaScript's Number reads."""
    if values is None:
        return None
    words = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
    return [v if np.isfinite(v) else words[str(v)] for v in values[rows].tolist()]


def planned(ds: xr.Dataset) -> int:
    """Rows that a run which did not end well was to have; of any other run, those it has."""
    steps = ds.attrs.get("steps")
    planned = steps + 1 if ds.attrs.get("stopped") and isinstance(steps, int) else 0
    return max(planned, ds.sizes["step"])


def notice(ds: xr.Dataset, rows: np.ndarray, kept: np.ndarray, top: int, span: Span = None) -> str:
    """The one thing that matters most of what was done to the data, in a sentence; mostly nothing."""
    if ds.attrs.get("stopped"):
        return str(ds.attrs["stopped"])
    if len(rows) < len(kept) and span:
        there, shown = _within(kept, span), _within(rows, span)
        some = "all" if len(shown) == len(there) else f"{len(shown)} of"
        return f"{some} {count(len(there))} rungs of this range"
    if len(rows) < len(kept):
        return f"{len(rows)} of {count(len(kept))} rungs, evenly in log \u03c3, ends kept"
    if len(kept) < ds.sizes["step"]:
        return f"{count(len(kept))} of {count(ds.sizes['step'])} rungs were kept"
    return "values kept in 6 bits" if top < TOP else ""


def _labels(ds: xr.Dataset, name: str) -> list[str]:
    return [str(v) for v in np.atleast_1d(ds[name].values)] if name in ds.coords else []


def _tables(name: str, values: np.ndarray, top: int) -> tuple[bytes, dict]:
    """Atlas and tables of a variable: lo, hi, mean, std (rung, sample, channel), limit (rung, sample)."""
    codes, lo, hi = quantise(values, top)
    with np.errstate(invalid="ignore"):  # a state that ran to infinity has no std
        mean, std = moments(values)  # anew: those of a run of which a part was picked are of the whole
    tables = {"lo": lo, "hi": hi, "mean": mean, "std": std, "limit": colour_limits(values)}
    return codes.tobytes(), {f"{name}.{key}": table for key, table in tables.items()}


def _within(rows: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return rows[(rows >= span[0]) & (rows <= span[1])]


def shown(ds: xr.Dataset, kept: np.ndarray, most: int = RUNGS, span: Span = None,
          always: tuple[int, ...] = ()) -> np.ndarray:  # fmt: skip
    """The rows that fit into a payload: with both ends, and the rows of least and most std.

    With a `span`, the rows from its first to its last, with both ends of the run. `always` are in it too.
    """
    room = min(most, _room(ds))
    if len(kept) <= room:
        return kept
    if span:
        inside = _within(kept, span)
        outside = np.setdiff1d(np.intersect1d([kept[0], kept[-1], *always], kept), inside)
        some = evenly(column(ds, "sigma"), inside, max(room - len(outside), 2), always)
        return np.union1d(some, outside)
    spread = ds["std"] if "std" in ds else ds.latent.std(("y", "x"))
    overall = np.nan_to_num(spread.mean(("sample", "channel")).values[kept])
    extreme = (int(kept[overall.argmin()]), int(kept[overall.argmax()]))
    return evenly(column(ds, "sigma"), kept, room, (*always, *extreme))


def described(ds: xr.Dataset, rows: np.ndarray, kept: np.ndarray, plan: int = 0) -> dict[str, Any]:
    """What the run is called, and where its rows drawn lie, in plain JSON. `plan`: rows that are to be."""
    calls, asks = column(ds, "nfe"), plan and ds.attrs.get("kind") != "ladder"
    columns = {name: column(ds, name) for name in ("sigma", "timestep", "log_snr")}
    columns["nfe"] = calls if calls is not None and (asks or calls.any()) else None  # a ladder asks no model
    return {
        "title": title(ds.attrs),
        "words": provenance(ds.attrs, max(plan, planned(ds))),
        "stopped": str(ds.attrs.get("stopped") or ""),
        "steps": ds.sizes["step"],
        "planned": max(plan, planned(ds)),
        "rungs": rows.tolist(),
        "kept": len(kept),
        "plan": [],
        "live": False,
        "channels": _labels(ds, "channel"),
        "samples": _labels(ds, "sample"),
        **{name: _numbers(column, rows) for name, column in columns.items()},
    }


def build(dataset: xr.Dataset, model: Any = None, top: int = TOP) -> Payload:
    """The payload of a run.

    Parameters
    ----------
    dataset : Dataset
        A recorded run with `latent` (step, sample, channel, y, x) and the coordinate `sigma`.
    model : optional
        Anything with ``decode(latent) -> (sample, y, x, rgb)`` in 0..1; adds decoded images.
    top : int
        Highest code of a value: 254 (8 bits) or 62 (6 bits, for pages that would grow too large).

    Returns
    -------
    Payload
        At most 256 rungs and 16 MB of atlas; rows that were never kept are left out.

    Raises
    ------
    ValueError, TypeError
        For what cannot be drawn, with the line to type.

    Examples
    --------
    >>> import toolkit as tk
    >>> from toolkit.views.payload import build
    >>> build(tk.testing.ladder_dataset()).meta["shape"]
    [21, 1, 4, 16, 16]
    """
    ds = check(dataset, model)
    kept = rows_with_latent(ds)
    return cut(ds, model, shown(ds, kept), kept, top)


def cut(ds: xr.Dataset, model: Any, rows: np.ndarray, kept: np.ndarray, top: int = TOP, plan: int = 0,
        pictured: Sequence[int] | None = None, kinds: Sequence[str] = KINDS) -> Payload:  # fmt: skip
    """The payload of some rows of what `check` gave, `kept` being all that there are.

    `pictured` are decoded, or as many as a payload has room for, evenly in log sigma; of each the `kinds`.
    """
    values = {name: ds[name][rows].values for name in ("latent", "denoised") if name in ds}
    if not plan and not np.isfinite(values.get("denoised", np.nan)).any():
        values.pop("denoised", None)  # kept, but the model was never called: no column for it
    atlas, tables = {}, {}
    for name, array in values.items():
        atlas[name], floats = _tables(name, array, top)
        tables |= floats
    index, pictures, images = _pictures(ds, model, rows, pictured, kinds)
    called = np.isfinite(values["denoised"]).any(axis=(1, 2, 3, 4)).tolist() if "denoised" in values else []
    meta = described(ds, rows, kept, plan) | {
        "shape": list(values["latent"].shape),
        "called": called,
        "faults": list(_faults(values["latent"])),
        "floats": [[name, table.size] for name, table in tables.items()],
        "pictures": index,
        "top": top,
        "notice": notice(ds, rows, kept, top),
    }
    flat = np.concatenate([table.ravel() for table in tables.values()]).astype("<f4").tobytes()
    return Payload(meta, atlas["latent"], atlas.get("denoised", b""), flat, pictures, images)
