"""A view of rungs as pictures without a browser: what does not move is drawn once, the rest for each rung."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..typefaces import heavy
from . import words
from .paper import Sheet, tokens
from .pen import FINE, Pen, badge, enlarged, font, hatch
from .rail import BOTTOM, HEIGHT, LEVEL, NAMED, Rail, category, deep
from .unpacked import Run, lut, rgb

MARGIN, WIDTH, GAP = 24, 880, 20  # of the layout, in its own pixels
FIGURES = 172
PAGE = 16  # most channels at once
WHOLE = 0.96  # tiles of whole pixels, where they fill so much of their room


@dataclass
class Column:
    """Tiles of one kind, side by side on one colour scale.

    Attributes
    ----------
    title, second : str
        Caption: what it is, and a word more.
    planes : function (k, c) -> (y, x, 3), (y, x)
        A channel in colour, and where it is not finite.
    limit : function k -> float
        Of the colours, at a rung.
    called : function k -> bool
        Whether there is anything to show.
    """

    name: str
    title: str
    second: str
    planes: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    limit: Callable[[int], float]
    note: str = ""
    called: Callable[[int], bool] = lambda k: True
    absent: str = "the model was not called here"
    places: list[tuple[int, int]] = field(default_factory=list)  # of the tiles, in device pixels
    size: tuple[int, int] = (0, 0)  # of each of them
    x: float = 0.0
    width: float = 0.0


class Scene:
    """A view of rungs, ready to be drawn at any of them: ``scene.frame(k)``.

    Parameters
    ----------
    view : RungView
        Whose sample, channel and colours are drawn.
    columns : function of a Run -> list of Column
    scale : float
        Device pixels for one pixel of the layout, which is 928 wide.
    pictures : bytes
        Of the decoded images that the meta tells of.
    run : Run, optional
        None: the payload of the view.
    """

    def __init__(self, view: Any, columns: Callable[[Run], list[Column]], scale: float = 2.0,
                 pictures: bytes = b"", run: Run | None = None):  # fmt: skip
        self.view, self.scale, self.blob = view, scale, pictures
        self.run = run or Run(view._run, view._latent, view._denoised, view._floats)
        self.sample, self.focused = view.sample, getattr(view, "channel", None)
        self.colours, self.map = lut(getattr(view, "_lut", b"")), getattr(view, "colormap", "tk")
        self.smooth = getattr(view, "interpolation", "nearest") == "linear"
        run, page = self.run, (self.focused or 0) // PAGE * PAGE
        self.channels = list(range(page, min(page + PAGE, run.C)))
        self.columns = columns(run)
        self.decodable = [n for n in ("denoised", "latent") if pictures and run.meta["pictures"][n]]
        self.stage = self._stage()
        body = self.stage + 14
        rail = HEIGHT if run.R > 1 else 0
        self.body, self.foot = body, body + max(rail, self._figures_height()) + 16
        self.width, self.height = WIDTH + 2 * MARGIN, self.foot + 38
        axis = getattr(view, "axis", "step")
        place = MARGIN + FIGURES + GAP, body, WIDTH - FIGURES - GAP
        self.rail = Rail(*place, run, self.sample, axis, self.focused) if run.R > 1 else None
        self.paper = self._paper()
        self.shade = self._shade()

    # --- layout

    def _stage(self) -> float:
        """Places the tiles of all columns; gives where they end."""
        run, count = self.run, len(self.columns) + bool(self.decodable)
        space, n = (WIDTH - GAP * (count - 1)) / count, len(self.channels)
        across = min(n, 4 if n <= 8 else 8) if count == 1 else int(np.ceil(np.sqrt(n)))
        top, end = 90.0, 0.0
        for k, column in enumerate(self.columns):
            column.x = MARGIN + k * (space + GAP)
            room = min(space, 320.0) if count == 1 and run.C == 1 else space
            column.size = self._fit((room - 4 * (across - 1)) / across, run.W, run.H)
            (w, h), left, gap = column.size, round(column.x * self.scale), round(4 * self.scale)
            first = round(top * self.scale)
            column.places = [
                (left + i % across * (w + gap), first + i // across * (h + gap)) for i in range(n)
            ]
            column.width = (across * w + gap * (across - 1)) / self.scale
            end = max(end, (column.places[-1][1] + h) / self.scale)
        if self.decodable:
            self.picture = MARGIN + len(self.columns) * (space + GAP), top, space
            w, h = self.run.meta["pictures"][self.decodable[0]][0][4:]
            end = max(end, top + self._fit(space, w, h)[1] / self.scale)
        return end + 32

    def _fit(self, room: float, width: int, height: int) -> tuple[int, int]:
        """Device pixels of a picture in a square of `room`: a whole multiple where one nearly fills it."""
        free = room * self.scale / max(width, height)
        factor = int(free) if int(free) >= WHOLE * free else free
        return max(1, round(width * factor)), max(1, round(height * factor))

    def _figures_height(self) -> float:
        facts, moments = 60 + 21.5 * len(self._facts(0)) + 12, 20.5 * (1 + min(self.run.C, 4))
        return facts + 10 + moments if self.run.R > 1 else max(facts, moments)

    # --- what does not move

    def _paper(self) -> Image.Image:
        run, sheet, s = self.run, Sheet(self.width, self.height), self.scale
        bold = sheet.text(MARGIN, 44, run.meta["title"], 14, fontweight=heavy())
        sheet.text(sheet.beside(bold, 10), 44, " · ".join(run.meta["words"]), 12, "muted")
        if run.S > 1:
            name = run.meta["samples"][self.sample] if run.meta["samples"] else self.sample
            sheet.text(MARGIN + WIDTH, 44, f"sample {name}", 12, "muted", ha="right")
        for column in self.columns:
            self._caption(sheet, column.x, column.width, column.title, column.note)
        if self.decodable:
            x, _, space = self.picture
            self._caption(sheet, x, space, "Decoded", " × ".join(map(str, run.meta["pictures"]["size"])))
        if self.rail:
            self.rail.draw(sheet)
        sheet.rule(MARGIN, MARGIN + WIDTH, self.foot)
        told = "blue negative, orange positive" if self.map == "tk" else "low to high"
        sheet.text(MARGIN, self.foot + 19, f"colours: {self.map}, {told}", 11, "muted")
        notice, stopped = run.meta["notice"], run.meta["stopped"]
        sheet.text(
            MARGIN + WIDTH, self.foot + 19, notice[:90], 11, "error" if stopped else "muted", ha="right"
        )
        sheet.figure.set_dpi(100 * s)
        sheet.figure.canvas.draw()
        image = Image.fromarray(np.asarray(sheet.figure.canvas.buffer_rgba())[..., :3].copy())
        for column in self.columns:
            self._bar(image, column)
        return image

    def _caption(self, sheet: Sheet, x: float, width: float, title: str, note: str) -> None:
        sheet.text(x, 82, title, 12, fontweight=heavy())
        if note and width > 150:
            sheet.text(x + width, 82, note, 11, "muted", ha="right")

    def _bar(self, image: Image.Image, column: Column) -> None:
        s = self.scale
        box = [round(v * s) for v in (column.x, self.stage - 24, column.x + column.width, self.stage - 18)]
        image.paste(enlarged(self.colours[None], box[2] - box[0], box[3] - box[1]), box[:2])
        (w, h), pen, edge = column.size, ImageDraw.Draw(image), rgb(tokens()["rule"])
        for x, y in column.places:  # outside the tiles: their own pixels are values
            pen.rectangle((x - 1, y - 1, x + w, y + h), outline=edge)

    def _shade(self) -> Image.Image | None:
        """How dark the part that the thumb has passed may get, over the whole picture."""
        if self.rail is None or not self.rail.area():
            return None
        corners = [(x * self.scale * FINE, y * self.scale * FINE) for x, y in self.rail.area()]
        top = round((self.rail.y + LEVEL[0]) * self.scale) - 1
        bottom = round((self.rail.y + LEVEL[1]) * self.scale) + 1
        mask = Image.new("L", (self.paper.width * FINE, (bottom - top) * FINE), 0)
        dark = round(255 * tokens()["grid"][3])
        ImageDraw.Draw(mask).polygon([(x, y - top * FINE) for x, y in corners], fill=dark)
        self.shade_top = top
        return mask.resize((self.paper.width, bottom - top), Image.Resampling.BOX)

    # --- what moves

    def frame(self, k: int) -> Image.Image:
        """The view at position `k` of the payload, RGB."""
        image = self.paper.copy()
        pen = Pen(image, self.scale)
        for column in self.columns:
            self._tiles(pen, column, k)
        if self.decodable:
            self._decoded(pen, k)
        self._figures(pen, k)
        if self.rail:
            self._thumb(pen, k)
        return image

    def _beside(self, x: float, title: str) -> float:
        """Where the second half of a caption begins."""
        return x + font(12 * self.scale, True).getlength(title) / self.scale + 8

    def _tiles(self, pen: Pen, column: Column, k: int) -> None:
        run, muted, called = self.run, tokens()["muted"], column.called(k)
        fault = run.fault(k, self.sample) if column.name == "latent" else None
        second = f"{fault[0]} NaN, {fault[1]} Inf" if fault else column.second
        second = second if called else column.absent
        pen.text(self._beside(column.x, column.title), 82, second, 11, tokens()["warn"] if fault else muted)
        if not called:
            self._dashed(pen, column)
            return
        limit, (w, h) = column.limit(k), column.size
        for c, (x, y) in zip(self.channels, column.places, strict=True):
            small, gone = column.planes(k, c)
            tile = enlarged(small, w, h, self.smooth)
            if gone.any():
                tile.paste(
                    Image.fromarray(hatch(w, h, self.scale)), (0, 0), enlarged(gone, w, h).convert("L")
                )
            pen.image.paste(tile, (x, y))
            if run.C > 1:
                label = badge(run.names[c], category(c, run.C), self.scale)
                inset = round(4 * self.scale)
                pen.image.paste(label, (x + inset, y + h - inset - label.height), label)
            if c == self.focused and run.C > 1:
                ImageDraw.Draw(pen.image).rectangle(
                    (x, y, x + w - 1, y + h - 1),
                    outline=rgb(tokens()["solid"]),
                    width=max(1, round(2 * self.scale)),
                )
        below, text = self.stage - 4, words.minus(_limit(limit))
        pen.text(column.x, below, f"{words.MINUS}{text}", 11, muted)
        pen.text(column.x + column.width / 2, below, "0", 11, muted, anchor="m")
        pen.text(column.x + column.width, below, f"+{text}", 11, muted, anchor="r")

    def _dashed(self, pen: Pen, column: Column) -> None:
        """Empty frames, and no colour bar, where there is nothing to show."""
        (w, h), s, edge = column.size, self.scale, rgb(tokens()["edge"])
        paper = rgb(tokens()["paper"])
        for x, y in column.places:
            pen.draw.rectangle((x - 1, y - 1, x + w, y + h), outline=paper)
            for at in range(0, w, round(7 * s)):
                for edge_y in (y, y + h - 1):
                    pen.draw.line((x + at, edge_y, min(x + at + 4 * s, x + w - 1), edge_y), fill=edge)
            for at in range(0, h, round(7 * s)):
                for edge_x in (x, x + w - 1):
                    pen.draw.line((edge_x, y + at, edge_x, min(y + at + 4 * s, y + h - 1)), fill=edge)
        box = [column.x - 1, self.stage - 25, column.x + column.width + 1, self.stage - 17]
        pen.draw.rectangle([round(v * s) for v in box], fill=paper)

    def _decoded(self, pen: Pen, k: int) -> None:
        """The image of this rung, or of the nearest that was decoded, which is then said."""
        run, (x, top, space) = self.run, self.picture
        asked = self.view.decode if self.view.decode in self.decodable else self.decodable[0]
        called = run.meta["called"][k] if run.meta["called"] else True
        kind = asked if called or "latent" not in self.decodable else "latent"
        own = [p for p in run.meta["pictures"][kind] if p[1] == self.sample]
        said = f"the {kind} as an image" if kind == asked else "the latent: no model call here"
        pen.text(self._beside(x, "Decoded"), 82, said, 11, tokens()["muted"])
        if not own:
            return
        near = min(own, key=lambda p: abs(p[0] - k))
        image = Image.open(BytesIO(self.blob[near[2] : near[2] + near[3]])).convert("RGB")
        w, h = self._fit(space, *image.size)
        how = Image.Resampling.NEAREST if max(image.size) <= 96 else Image.Resampling.BICUBIC
        pen.image.paste(image.resize((w, h), how), (round(x * self.scale), round(top * self.scale)))
        if near[0] != k:
            pen.text(x + space, self.stage - 4, f"image of rung {run.rungs[near[0]]}", 11, tokens()["muted"],
                     anchor="r")  # fmt: skip

    def _facts(self, k: int) -> list[tuple[str, str]]:
        run, columns = self.run, self.run.columns
        last, rung = run.meta["planned"] - 1, words.count(int(run.rungs[k]))
        facts = [("rung", f"{rung} of {words.count(last)}" if last else "the only one")]
        if "log_snr" in columns:
            facts.append(("log-SNR", _signed(columns["log_snr"][k])))
        if "timestep" in columns:
            clock = columns["timestep"][k]
            facts.append(("timestep", f"{clock:.1f}" if clock % 1 else f"{clock:.0f}"))
        if "nfe" in columns:
            facts.append(("model calls", words.count(int(columns["nfe"][k]))))
        return facts

    def _figures(self, pen: Pen, k: int) -> None:
        run, x, y, right, muted = self.run, MARGIN, self.body, MARGIN + FIGURES, tokens()["muted"]
        pen.text(x, y + 11, "noise level σ", 11, muted)
        pen.text(x - 1, y + 42, _level(run.sigma[k]), 30)
        y += 60
        for name, value in self._facts(k):
            pen.text(x, y + 15, name, 12, muted)
            pen.text(right, y + 15, value, 12, anchor="r")
            y += 21.5
        pen.rule(x, right, y + 9, tokens()["rule"])
        y += 22
        if self.rail is None:  # there is room beside, and nothing else to fill it
            x, y, right = right + 60, self.body, right + 60 + FIGURES
        for at, name in ((right - 62, "mean"), (right, "std")):
            pen.text(at, y + 14, name, 12, muted, anchor="r")
        first = min(max((self.focused or 0) - 1, 0), max(0, run.C - 4))
        for c in range(first, min(first + 4, run.C)):
            y += 20.5
            colour = deep(category(c, run.C)) if run.C <= NAMED else muted
            pen.text(x, y + 14, run.names[c][:6], 12, (*colour[:3], 1.0) if run.C <= NAMED else colour, True)
            mean, std = (run.table[f"latent.{name}"][k, self.sample, c] for name in ("mean", "std"))
            pen.text(right - 62, y + 14, _signed(mean), 12, anchor="r")
            pen.text(right, y + 14, _signed(std).removeprefix("+"), 12, anchor="r")

    def _thumb(self, pen: Pen, k: int) -> None:
        """Hairline, dots, thumb and pill, the labels that the pill leaves, and the area passed."""
        rail, s = self.rail, self.scale
        x, bottom, solid = float(rail.at[k]), rail.y + BOTTOM, tokens()["solid"]
        if self.shade is not None:
            passed = self.shade.crop((0, 0, round(x * s), self.shade.height))
            pen.image.paste(
                (0, 0, 0), (0, self.shade_top, passed.width, self.shade_top + passed.height), passed
            )
        pen.line(x, rail.level[k], bottom, solid)
        for box in rail.titles:  # the hairline goes behind them
            box = tuple(round(v * s) for v in box)
            pen.image.paste(self.paper.crop(box), box[:2])
        for colour, ys in rail.dots:
            if np.isfinite(ys[k]):
                pen.dot(x, ys[k], 3.4, 1.5, colour)
        pen.dot(x, rail.level[k], 8, 3, solid)
        steps = rail.name == "rung"
        said = words.count(int(self.run.rungs[k])) if steps else f"{self.run.sigma[k]:.3g}"
        half = max(14.0, len(said) * 3.4 + 7)
        middle = min(max(x, rail.x + half), rail.right + 30 - half)
        for at, text in [*rail.labels, (rail.left - 19, rail.name)]:
            if abs(at - middle) >= half + 4 + len(text) * 3.2:
                pen.text(at, bottom + 14, text, 10.5, tokens()["muted"], anchor="m")
        pen.pill(middle, bottom + 1, 2 * half, said)


def coded(run: Run, name: str, view: Any, ends: Callable[[int, int], tuple[float, float]],
          limit: Callable[[int], float]) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """The planes of a column whose codes stand for `ends` (k, c) -> (lo, hi), in the colours of the view."""
    table, sample = lut(getattr(view, "_lut", b"")), view.sample
    return lambda k, c: run.colours(run.codes[name][k, sample, c], ends(k, c), limit(k), table)


def recorded(view: Any, run: Run) -> list[Column]:
    """Latent and denoised as the scrubber shows them: on the scale of the rung, or of the run."""

    def column(name: str, title: str, second: str, note: str, called: Callable[[int], bool]) -> Column:
        limits, lo, hi = (run.table[f"{name}.{part}"][:, view.sample] for part in ("limit", "lo", "hi"))
        fixed = float(limits.max())
        reach = (lambda k: fixed) if view.scale == "fixed" else (lambda k: float(limits[k]))
        planes = coded(run, name, view, lambda k, c: (lo[k, c], hi[k, c]), reach)
        return Column(name, title, second, planes, reach, note, called)

    page = (view.channel or 0) // PAGE * PAGE
    pages = (
        f"channels {page} to {min(page + PAGE, run.C) - 1} of {run.C}" if run.C > PAGE else "x at this rung"
    )
    note = "scale of run" if view.scale == "fixed" else "scale per rung"
    columns = [column("latent", "Latent", pages, note, lambda k: True)]
    if "denoised" in run.codes:
        seen = run.meta["called"]
        columns.append(column("denoised", "Denoised", "what the model sees in it", "", lambda k: seen[k]))
    return columns


def _limit(value: float) -> str:
    """As under the view's colour bars."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.01 else words.sigma(value, 2)


def _signed(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    return words.minus(f"{value:+.3f}") if np.isfinite(value) else "+∞" if value > 0 else f"{words.MINUS}∞"


def _level(value: float) -> str:
    """As the view writes it: three decimals from 0.1 to 10, else four significant digits."""
    return words.minus(f"{value:.3f}") if 0.1 <= value <= 10 else words.sigma(value, 4)
