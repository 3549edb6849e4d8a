"""Paper for pictures drawn in Python: the views' tokens, a typeface that is there, and latents as colours."""

import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from ..typefaces import face, heavy
from .payload import LIMIT_STD
from .words import sigma

CODE_FACES = ("DejaVu Sans Mono",)
SCALE = 2  # device pixels for one pixel of the layout


@cache
def tokens() -> dict[str, Any]:
    """The light column of the token table in style.css: colours for matplotlib, maps as lists of them."""
    text = (Path(__file__).parent / "style.css").read_text("utf-8")
    table = {}
    for name, value in re.findall(r"--tk-([\w-]+): ([^;]+);", text[text.index(".tk {") : text.index("}")]):
        hexes = re.findall(r"#[0-9a-f]{6}", value)
        rgba = re.search(r"rgba\(([^)]+)\)", value)
        if rgba:
            red, green, blue, alpha = (float(v) for v in rgba[1].split(","))
            table[name] = (red / 255, green / 255, blue / 255, alpha)
        elif hexes:
            table[name] = hexes if len(hexes) > 1 else hexes[0]
    return table


def colours(values: np.ndarray, limit: float | None = None) -> np.ndarray:
    """(y, x) on the diverging map, +-3 std unless `limit` is given: (y, x, rgba). Not finite stays clear."""
    finite = np.isfinite(values)
    limit = limit or LIMIT_STD * float(np.std(values[finite])) if finite.any() else 1.0
    table = LinearSegmentedColormap.from_list("tk", tokens()["diverging"], N=256)
    picture = table((np.where(finite, values, 0.0) / (limit or 1.0) + 1) / 2)
    picture[~finite] = 0.0
    return picture


class Sheet:
    """A figure laid out in pixels from its top left corner, as the views are."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        paper = tokens()["paper"]
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100 * SCALE, facecolor=paper)
        FigureCanvasAgg(self.figure)  # measures text; without pyplot nothing else attaches a canvas
        self.ground = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), zorder=-1)
        self.ground.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 11, token: str = "ink", **more: Any) -> Any:
        """Text with its baseline at (x, y); `size` in pixels."""
        options = {"family": face(), "fontsize": size * 0.72, "color": tokens()[token], "va": "baseline"}
        return self.ground.text(x, y, text, **options | more)

    def level(self, x: float, y: float, value: float, **more: Any) -> None:
        """A noise level over a picture."""
        self.text(x, y, f"σ {sigma(value)}", 12, fontweight=heavy(), **more)

    def beside(self, text: Any, gap: float = 8) -> float:
        """Where something may start to the right of `text`."""
        box = text.get_window_extent(self.figure.canvas.get_renderer())
        return box.x1 / SCALE + gap

    def rule(self, x0: float, x1: float, y: float, token: str = "rule") -> None:
        """A hairline."""
        self.ground.plot([x0, x1], [y, y], color=tokens()[token], linewidth=0.72, solid_capstyle="butt")

    def dots(self, x: Any, y: Any) -> None:
        """Marks of rungs, with a ring of paper."""
        ring = {"markeredgecolor": tokens()["paper"], "markeredgewidth": 1.2}
        self.ground.plot(x, y, "o", color=tokens()["solid"], markersize=6.4, clip_on=False, **ring)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Empty axes at these pixels."""
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.axis("off")
        return axes

    def picture(self, x: float, y: float, side: float, image: np.ndarray | None, radius: float = 2) -> None:
        """An image in a square of `side` pixels, its longer side filled; else a dashed frame."""
        shape = image.shape if image is not None else (1, 1)
        factor = side / max(shape[:2])
        width, height = shape[1] * factor, shape[0] * factor
        box = FancyBboxPatch(
            (x + 0.5, y + 0.5), width - 1, height - 1, boxstyle=f"round,pad=0,rounding_size={radius}"
        )
        box.set(facecolor="none", linewidth=0.6, edgecolor=tokens()["grid"])
        self.ground.add_patch(box)  # axes of its own would take ten times as long
        if image is None:
            box.set(edgecolor=tokens()["edge"], linestyle=(0, (4, 3)))
            return
        smooth = "antialiased" if max(shape[:2]) > side * SCALE else "nearest"
        place = (x, x + width, y + height, y)
        self.ground.imshow(image, extent=place, interpolation=smooth, aspect="auto", clip_path=box)

    def png(self, most: int) -> bytes:
        """The picture, in at most `most` bytes: 256 colours, then fewer pixels, where it would be more."""
        self.figure.canvas.draw()
        image = Image.fromarray(np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy())
        data, factor = _file(image), 1.0
        if len(data) > most:
            data = _file(image.quantize(256, dither=Image.Dither.NONE))
        while len(data) > most and factor > 0.3:
            factor *= 0.85
            small = image.resize([round(n * factor) for n in image.size], Image.Resampling.LANCZOS)
            data = _file(small.quantize(256, dither=Image.Dither.NONE))
        return data


def _file(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG", compress_level=6)  # the best level takes five times as long for 3 %
    return out.getvalue()
