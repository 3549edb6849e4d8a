"""What moves on a picture of a view: text, dots and tiles put on finished paper by Pillow, quickly."""

from functools import cache
from typing import Any

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from ..typefaces import face, heavy
from .paper import tokens
from .unpacked import rgb

FINE = 4  # shapes are drawn so many times as large, and made smaller: Pillow has no smooth edges


@cache
def font(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    """Our typeface at `size` device pixels."""
    return ImageFont.truetype(findfont(FontProperties(family=face(), weight=heavy() if bold else 400)), size)


@cache
def disc(radius: float, colour: Any, ring: float) -> Image.Image:
    """A dot with a ring of paper, in device pixels."""
    side = 2 * int(np.ceil(radius + ring)) + 2
    image = Image.new("RGBA", (side * FINE, side * FINE), (*rgb(tokens()["paper"]), 0))
    pen, middle = ImageDraw.Draw(image), side * FINE / 2
    for reach, fill in ((radius + ring, rgb(tokens()["paper"])), (radius, rgb(colour))):
        r = reach * FINE
        pen.ellipse((middle - r, middle - r, middle + r, middle + r), fill=(*fill, 255))
    return image.resize((side, side), Image.Resampling.BOX)


@cache
def badge(name: str, colour: Any, scale: float) -> Image.Image:
    """The name of a channel on a scrim, with its colour at the left."""
    fine, words = scale * FINE, font(10.5 * scale * FINE, False)
    width, height = round((words.getlength(name) / fine + 11) * scale), round(16 * scale)
    box = (0, 0, width * FINE - 1, height * FINE - 1)
    image = Image.new("RGBA", (width * FINE, height * FINE), 0)
    pen, (red, green, blue, alpha) = ImageDraw.Draw(image), tokens()["scrim"]
    scrim = tuple(round(255 * v) for v in (red, green, blue, alpha))
    pen.rounded_rectangle(box, 3 * fine, fill=(*rgb(colour), 255))
    cut = Image.new("L", image.size, 0)
    ImageDraw.Draw(cut).rectangle((3 * fine, 0, *box[2:]), fill=255)
    rest = Image.new("RGBA", image.size, 0)
    ImageDraw.Draw(rest).rounded_rectangle(box, 3 * fine, fill=scrim)
    image.paste(rest, (0, 0), cut)
    place = (8 * fine, 12 * fine)
    ImageDraw.Draw(image).text(place, name, rgb(tokens()["ink"]), words, "ls")
    return image.resize((width, height), Image.Resampling.BOX)


class Pen:
    """Draws on an image of `scale` device pixels for each pixel of the layout."""

    def __init__(self, image: Image.Image, scale: float):
        self.image, self.scale, self.draw = image, scale, ImageDraw.Draw(image)

    def text(self, x: float, y: float, text: str, size: float = 11, colour: Any = None, bold: bool = False,
             anchor: str = "l") -> float:  # fmt: skip
        """Text with its baseline at (x, y); gives where it ends."""
        words, s = font(size * self.scale, bold), self.scale
        fill = rgb(colour if colour is not None else tokens()["ink"])
        self.draw.text((x * s, y * s), text, fill, words, f"{anchor}s")
        return x + words.getlength(text) / s

    def line(self, x: float, y0: float, y1: float, colour: Any) -> None:
        """A hairline from y0 down to y1."""
        width = max(1, round(self.scale))
        left = round(x * self.scale - width / 2)
        box = (left, round(y0 * self.scale), left + width - 1, round(y1 * self.scale))
        self.draw.rectangle(box, fill=rgb(colour))

    def rule(self, x0: float, x1: float, y: float, colour: Any) -> None:
        """A hairline from x0 right to x1."""
        top, width = round(y * self.scale), max(1, round(self.scale))
        box = (round(x0 * self.scale), top, round(x1 * self.scale), top + width - 1)
        self.draw.rectangle(box, fill=rgb(colour))

    def dot(self, x: float, y: float, radius: float, ring: float, colour: Any) -> None:
        sprite = disc(radius * self.scale, colour, ring * self.scale)
        corner = [round(v * self.scale - sprite.width / 2) for v in (x, y)]
        self.image.paste(sprite, corner, sprite)

    def pill(self, x: float, y: float, width: float, text: str) -> None:
        """`text` on a filled pill, of which (x, y) is the middle of the upper side."""
        s, size = self.scale, (round(width * self.scale * FINE), round(18 * self.scale * FINE))
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), size[1] / 2, fill=255)
        mask = mask.resize([round(n / FINE) for n in size], Image.Resampling.BOX)
        corner = round((x - width / 2) * s), round(y * s)
        self.image.paste(
            rgb(tokens()["solid"]), (*corner, corner[0] + mask.width, corner[1] + mask.height), mask
        )
        self.text(x, y + 13, text, 11, tokens()["paper"], True, "m")


@cache
def hatch(width: int, height: int, scale: float) -> np.ndarray:
    """What stands for values that are not finite, (height, width, 3)."""
    y, x = np.mgrid[:height, :width] / scale
    stripe = ((x + y) / np.sqrt(2) % 8 < 4)[..., None]
    return np.where(stripe, rgb(tokens()["rule"]), rgb(tokens()["paper"])).astype(np.uint8)


def enlarged(small: np.ndarray, width: int, height: int, smooth: bool = False) -> Image.Image:
    """(y, x, 3) or (y, x) at another size: each value a block, unless `smooth`."""
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return Image.fromarray(small).resize((width, height), how)
