"""What the region inspector is given, checked: regions, the picture under them, the size of the latent."""

import importlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image, UnidentifiedImageError

from .. import fitting
from ..errors import bad
from ..typefaces import heavy
from .paper import Sheet, colours, tokens
from .payload import ATLAS, Payload, build, check, column, decoded, encode, rows_with_latent
from .unpacked import rgb

LINE = "tk.views.regions([tk.Region(tk.box(0.0, 0.0, 0.5, 1.0), prompt=3)])"
DEFAULTS = {"feather": 0.0, "grow": 0.0, "strength": 1.0}
PER_LATENT = 8  # image pixels a latent pixel, where nobody says otherwise
SIDE = 1144  # most pixels along the longer side of the picture: two a pixel of the view
WORDS = 120  # characters of a prompt
CATEGORIES = 6
PICTURE_MOST = 300_000  # bytes
TOLD = "A still picture of an interactive view. Trust this notebook to move and paint its masks."


@dataclass
class Shown:
    """A region as the view has it: a `tk.Region`, or what a record says of one."""

    name: str
    mask: np.ndarray
    feather: float
    grow: float
    strength: float
    keep: bool
    factor: float
    words: str
    source: Any

    def changed(self, mask: np.ndarray, settings: Mapping[str, float], name: str) -> Any:
        """A `tk.Region` of another mask and other settings."""
        if not isinstance(self.source, Mapping):
            return replace(self.source, mask=mask, name=name, **settings)
        made = importlib.import_module("toolkit.regions").Region  # only who asks for a Region needs torch
        return made(mask, **{**self.source, **settings, "name": name})


@dataclass
class Masked:
    """What is drawn."""

    regions: list[Shown]
    size: tuple[int, int]
    whence: str
    image: np.ndarray | None  # (y, x, rgb), of all samples
    images: list[np.ndarray] | None  # one a sample, decoded
    run: xr.Dataset | None


def gather(regions: Any, image: Any, run: Any, model: Any, size: Any) -> tuple[Masked, Payload]:
    """Everything that the view needs, or the error that says why not."""
    if isinstance(regions, xr.Dataset):
        if run is not None:
            raise bad(
                "run", type(run).__name__, "`regions` is a run already", "tk.views.regions(run)", TypeError
            )
        run, listed = regions, None
    else:
        listed = importlib.import_module("toolkit.regions").named(regions)
    payload = None
    if run is not None:
        run, payload = _checked(run, model)
    shown = [_of_region(r) for r in listed] if listed is not None else _of_run(run)
    picture = _picture(image)
    size, whence = _size(size, run, model, picture, shown)
    if picture is not None and abs(picture.shape[0] / picture.shape[1] * size[1] - size[0]) > 1:
        seen, latent = " x ".join(map(str, picture.shape[:2])), " x ".join(map(str, size))
        wanted = f"of the shape of the latent, {latent} (y x x); the image is {seen}"
        raise bad("image", picture.shape, wanted, f"image.resize(({8 * size[1]}, {8 * size[0]}))")
    samples = _samples(shown, run)
    if sum(r.mask.size for r in shown) > ATLAS:
        most = max(max(r.mask.shape[-2:]) for r in shown)
        wanted = f"all masks together are above {ATLAS // 2**20} MB, the longest side is {most} pixels"
        raise bad("regions", len(shown), wanted, "tk.Region(mask[::2, ::2])")
    images = _decodings(run, model, samples) if picture is None and run is not None else None
    blank = Payload(_blank(samples, size), b"", b"", b"", b"")
    return Masked(shown, size, whence, picture, images, run), payload or blank


def _checked(run: Any, model: Any) -> tuple[xr.Dataset, Payload]:
    try:
        ds = check(run, model)
        payload = build(ds.drop_vars(["denoised", "image"], errors="ignore"))
    except (ValueError, TypeError) as error:  # the line to type is another one here
        raise type(error)(str(error).replace("tk.view(", "tk.views.regions(regions, run=")) from None
    names = [n for n in ("region_mask", "weight", "conflict") if n in run]
    return ds.assign({n: run[n] for n in names}).assign_attrs(run.attrs), payload


def _of_region(region: Any) -> Shown:
    values = {k: float(getattr(region, k)) for k in DEFAULTS}
    factor = 1.0 if callable(region.weight) else float(region.weight)
    words = _words(region.facts(), scheduled=callable(region.weight))
    return Shown(
        region.name, region.mask, **values, keep=region.keep, factor=factor, words=words, source=region
    )


def _of_run(run: xr.Dataset) -> list[Shown]:
    """The regions of a record, with their masks as they were on the latent: grown and feathered already."""
    if "region_mask" not in run or not run.attrs.get("regions"):
        wanted = "a run with regions, of tk.regional or with regions=; `region_mask` is not there"
        raise bad("regions", list(run.data_vars), wanted, "tk.views.regions(tk.regional(model, regions))")
    shown, masks = [], np.asarray(run["region_mask"].values, np.float64)
    if not np.isfinite(masks).all():
        raise bad("region_mask", "NaN or Inf in it", "weights in 0..1", LINE)
    names = [str(name) for name in run["region"].values]
    for told in run.attrs["regions"]:
        factor = 1.0 if isinstance(told.get("weight"), str) else float(told.get("weight", 1.0))
        source = {k: v for k, v in told.items() if k not in ("active", "solver_options", "mask")}
        high, low = source.get("span", (None, 0.0))
        source |= {"weight": factor, "span": (np.inf if high is None else high, low)}
        values = {"feather": 0.0, "grow": 0.0, "strength": float(told.get("strength", 1.0))}
        words = _words(told, scheduled=isinstance(told.get("weight"), str))
        keep, mask = bool(told.get("keep")), masks[names.index(told["name"])]
        shown.append(
            Shown(str(told["name"]), mask, **values, keep=keep, factor=factor, words=words, source=source)
        )
    return shown


def _words(facts: Mapping[str, Any], scheduled: bool) -> str:
    """What is asked for under a mask, in one line."""
    prompt = facts.get("prompt")
    words = ["kept as it is"] if facts.get("keep") else []
    if prompt is not None:
        text = " ".join(str(prompt).split())
        text = text if len(text) <= WORDS else text[: WORDS - 1] + "…"
        words.append(f"“{text}”" if isinstance(prompt, str) else f"prompt {text}")
    words += ["grey is when"] if facts.get("differential") else []
    words += ["its weight is scheduled"] if scheduled else []
    if not scheduled and facts.get("weight", 1.0) != 1:
        words.append(f"weight {facts['weight']:g}")
    return " · ".join(words)


def _picture(given: Any) -> np.ndarray | None:
    """(y, x, rgb) in 0..1."""
    if given is None:
        return None
    line = 'tk.views.regions(regions, image="photo.jpg")'
    if isinstance(given, (str, PathLike)):
        if not Path(given).is_file():
            raise bad("image", str(given), "there is no such file", line, FileNotFoundError)
        try:
            given = Image.open(given)
        except UnidentifiedImageError:
            raise bad("image", str(given), "this file is no image", line) from None
    if isinstance(given, Image.Image):
        return np.asarray(given.convert("RGB"), np.float64) / 255.0
    values = np.asarray(getattr(given, "values", given))
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3) or 0 in values.shape:
        raise bad(
            "image", type(given).__name__, "an array (y, x, rgb), a PIL image or a path", line, TypeError
        )
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[-1] not in (1, 3, 4):
        raise bad("image", values.shape, "of shape (y, x, rgb)", line)
    scaled = values / 255.0 if values.dtype.kind in "iu" else values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise bad("image", "NaN or Inf in it", "finite numbers", "image=numpy.nan_to_num(image)")
    if scaled.min() < 0 or scaled.max() > 1:
        shown = f"values from {scaled.min():.4g} to {scaled.max():.4g}"
        raise bad("image", shown, "floats in 0..1, or uint8", "image=image / 255")
    return np.broadcast_to(scaled[..., :3], (*scaled.shape[:2], 3))


def _size(given: Any, run: Any, model: Any, image: Any, shown: list[Shown]) -> tuple[tuple[int, int], str]:
    """(y, x) of the latent, and where it is from."""
    if given is not None:
        pair = tuple(given) if isinstance(given, Iterable) else ()
        whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in pair]
        if len(pair) != 2 or not all(whole):
            raise bad(
                "size", given, "two whole numbers above 0, (y, x)", LINE.replace("])", "], size=(64, 64))")
            )
        pair = (int(pair[0]), int(pair[1]))
        if run is None or pair == (run.sizes["y"], run.sizes["x"]):
            return pair, "as given"
        wanted = f"the run's latents are {run.sizes['y']} x {run.sizes['x']}"
        raise bad("size", pair, wanted, "tk.views.regions(regions, run=run)")
    if run is not None:
        return (run.sizes["y"], run.sizes["x"]), "of the run"
    own = getattr(model, "shape", None) or getattr(model, "usual_shape", None)
    if own is not None and len(own) == 3:
        return (int(own[1]), int(own[2])), "of the model"
    if image is not None:
        height, width = (max(1, round(n / PER_LATENT)) for n in image.shape[:2])
        return (height, width), f"image / {PER_LATENT}"
    height, width = shown[0].mask.shape[-2:]
    return (height, width), "of the first mask"


def _samples(shown: list[Shown], run: xr.Dataset | None) -> int:
    """How many samples there are: the run's, or that of masks which differ by sample."""
    own = {len(r.mask) for r in shown if r.mask.ndim == 3 and len(r.mask) > 1}
    count = run.sizes["sample"] if run is not None else max(own, default=1)
    for region in shown:
        if region.mask.ndim == 3 and len(region.mask) not in (1, count):
            wanted = f'"{region.name}" has {len(region.mask)} masks, and there are {count} samples'
            raise bad("mask", region.mask.shape, wanted, "tk.Region(mask[0])")
    return count


def _blank(samples: int, size: tuple[int, int]) -> dict[str, Any]:
    """What a payload says where there is no run: one rung of nothing."""
    meta = {
        "title": "Regions",
        "words": [],
        "stopped": "",
        "steps": 1,
        "planned": 1,
        "rungs": [0],
        "sigma": [0.0],
    }
    meta |= {"shape": [1, samples, 1, *size], "channels": [], "samples": [], "called": [], "faults": []}
    return meta | {"floats": [], "pictures": {}, "top": 254, "notice": "", "blank": True}


def _decodings(run: xr.Dataset, model: Any, samples: int) -> list[np.ndarray] | None:
    """The image of each sample at the lowest level that was kept."""
    rows = rows_with_latent(run)
    row = int(rows[column(run, "sigma")[rows].argmin()])
    for name in ("latent", "denoised"):
        images = decoded(run, model, name, row) if name in run or "image" in run else None
        if images is not None:
            return list(images[:samples])
    return None


def pictures(given: Masked) -> tuple[list[list[int]], bytes]:
    """Where the picture of each sample lies in the bytes: [offset, length, width, height]."""
    images = [given.image] if given.image is not None else given.images or []
    places, blobs, offset = [], [], 0
    for image in images:
        data, width, height = encode(image, SIDE)
        places.append([offset, len(data), width, height])
        blobs.append(data)
        offset += len(data)
    return places, b"".join(blobs)


def curves(run: xr.Dataset, rungs: list[int]) -> dict[str, Any]:
    """Conflict and mean share of each region, (region, rung, sample) each; None where there is none."""
    found: dict[str, Any] = {}
    for name in ("conflict", "weight"):
        if name not in run:
            continue
        values = run[name].isel(step=rungs)
        values = values.mean(("y", "x")) if name == "weight" else values
        values = values if "sample" in values.dims else values.expand_dims(sample=run.sizes["sample"])
        table = values.transpose("region", "step", "sample").values.astype(float)
        words = [
            [[float(f"{v:.5g}") if np.isfinite(v) else None for v in row] for row in one] for one in table
        ]
        found[name] = words
        found["names"] = [str(v) for v in run["region"].values]
    return found


def still(view: Any) -> bytes:
    """Masks over their picture, and each on the latent, as a PNG drawn without a browser."""
    (height, width), names = view._size, list(view.order)
    across = 560 if width >= height else 560 * width / height
    down = across * height / width
    tile = 128
    tall = tile * min(1.0, height / width)
    rows = -(-len(names) // 6)
    sheet = Sheet(880, 76 + down + 44 + rows * (tall + 30) + 28)
    heading = sheet.text(12, 34, "Regions", 14, fontweight=heavy())
    sheet.text(sheet.beside(heading, 10), 34, f"latent {height} × {width}", 12, "muted")
    fits, cats = view.fits[:, view.sample], [view._known.index(n) % CATEGORIES for n in names]
    axes = sheet.axes(12, 56, across, down)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.imshow(_ground(view), extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    places = np.arange(width) + 0.5, np.arange(height) + 0.5
    for fit, cat in zip(fits, cats, strict=True):
        colour = tokens()[f"cat-{cat}"]
        tint = np.array(rgb(colour)) / 255
        layer = np.concatenate([np.broadcast_to(tint, (*fit.shape, 3)), 0.3 * fit[..., None]], axis=2)
        axes.imshow(layer, extent=(0, width, height, 0), aspect="auto", interpolation="bilinear")
        if min(fit.shape) > 1 and fit.min() < 0.5 < fit.max():
            axes.contour(*places, fit, levels=[0.5], colors=[colour], linewidths=1.4)
    kept = [view._given[name].keep for name in names]
    hole, overlap, _ = fitting.coverage(fits.astype(np.float64), kept)
    side = 12 + across + 20
    for k, (name, fit, cat) in enumerate(zip(names, fits, cats, strict=True)):
        if k < 14:
            sheet.ground.plot([side + 6], [70 + 26 * k], "o", color=tokens()[f"cat-{cat}"], markersize=8)
            sheet.text(side + 22, 74 + 26 * k, f"{k}  {_short(name, 26)}", 12, parse_math=False)
            sheet.text(868, 74 + 26 * k, f"{100 * fit.mean():.1f} %", 11, "muted", ha="right")
    y = 74 + 26 * min(len(names), 14) + 16
    sheet.text(side, y, f"Hole {100 * hole:.1f} %, overlap {100 * overlap:.1f} %", 11, "muted")
    for k, (name, fit, cat) in enumerate(zip(names, fits, cats, strict=True)):
        x, top = 12 + (k % 6) * (tile + 16), 56 + down + 34 + (k // 6) * (tall + 30)
        tint = np.array(rgb(tokens()[f"cat-{cat}"])) / 255
        sheet.picture(x, top, tile, 1 - fit[..., None] * (1 - tint))
        sheet.text(x, top + tall + 15, f"{k} {_short(name, 16)}", 11, parse_math=False)
    sheet.text(12, 56 + down + 22, "What the sampler sees", 12, fontweight=heavy())
    sheet.text(12, sheet.height - 12, TOLD, 11, "muted")
    return sheet.png(PICTURE_MOST)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _ground(view: Any) -> np.ndarray:
    """What lies under the masks in the still picture."""
    places = view._regions["image"]
    if view.ground == "image" and places:
        offset, length, *_ = places[min(view.sample, len(places) - 1)]
        with Image.open(io.BytesIO(view._image[offset : offset + length])) as image:
            return np.asarray(image.convert("RGB"))
    if view._run_given is None:
        return np.full((1, 1, 3), 1.0)
    row = view.rung if view.ground == "rung" else view._run["rungs"][-1]
    return colours(view._run_given.latent[row, view.sample, view.channel].values)
