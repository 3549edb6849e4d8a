"""A view to files: the picture that it shows, its page, or the scrub as a film."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import bad
from .page import place
from .paper import tokens
from .scene import MARGIN, WIDTH, Scene
from .unpacked import rgb

SUFFIXES = (".png", ".html", ".gif", ".mp4", ".webm")
HOLD = 1.5  # seconds that the last frame of a GIF stays
PALETTE = 256  # colours of a GIF, the same in every frame
CODECS = {
    ".mp4": ["-c:v", "libx264", "-preset", "medium", "-crf", "18", "-movflags", "+faststart"],
    ".webm": ["-c:v", "libvpx-vp9", "-b:v", "0", "-crf", "28", "-row-mt", "1"],
}


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is whole; nothing is left of it otherwise."""
    beside = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def save(view: Any, path: str | PathLike[str], *, fps: float = 12, rungs: slice | None = None,
         width: int | None = None, progress: bool = True) -> Path:  # fmt: skip
    """See `View.save`."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        wanted = f"a view is saved as {', '.join(SUFFIXES)}"
        raise bad("path", str(path), wanted, f'view.save("{Path(path).stem or "view"}.png")')
    path = place(path)
    if suffix == ".html":
        with _replacing(path) as beside:
            view.to_html(beside)
        return path
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 320):
        raise bad(
            "width", width, "a whole number of pixels, 320 or more", f'view.save("{path.name}", width=928)'
        )
    if suffix == ".png":
        with _replacing(path) as beside:
            _picture(view, beside, width)
        return path
    return _film(view, path, fps, rungs, width, progress)


def _picture(view: Any, path: Path, width: int | None) -> None:
    """The view as it stands, or the still picture of one that has no rungs."""
    scene = _scene(view, _scale(width, 2.0))
    if scene is None:
        path.write_bytes(view._still())
        return
    image = scene.frame(_position(view))
    with open(path, "wb") as file:
        image.save(file, "PNG", optimize=True)


def _scene(view: Any, scale: float) -> Scene | None:
    """What draws the view; None where it has no rungs, or none yet."""
    there = getattr(view, "_run", None)
    return view._scene(scale) if there and there["rungs"] else None


def _scale(width: int | None, usual: float) -> float:
    return usual if width is None else width / (WIDTH + 2 * MARGIN)


def _position(view: Any) -> int:
    """Where in the payload the rung is that is shown."""
    return view._run["rungs"].index(view.rung)


def _film(view: Any, path: Path, fps: float, rungs: slice | None, width: int | None, progress: bool) -> Path:
    name = path.name
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 50:
        raise bad("fps", fps, "frames a second, above 0 and at most 50", f'view.save("{name}", fps=12)')
    scene = _scene(view, _scale(width, 1.0))
    if scene is None:
        line = f'view.save("{path.stem}.png")'
        raise bad("path", str(path), f"a {type(view).__name__} has no rungs to make a film of", line)
    shown = _shown(scene, rungs, name)
    program = None if path.suffix.lower() == ".gif" else _ffmpeg(path)
    bar = tqdm(shown, desc=name, unit="frame", disable=not progress)
    with _replacing(path) as beside:
        if program is None:
            _gif(scene, shown, bar, beside, fps)
        else:
            _video(program, (scene.frame(k) for k in bar), beside, fps)
    return path


def _shown(scene: Scene, rungs: slice | None, name: str) -> list[int]:
    """The positions in the payload that a film shows."""
    line = f'view.save("{name}", rungs=slice(0, None, 2))'
    if rungs is not None and not isinstance(rungs, slice):
        raise bad("rungs", rungs, "a slice of the rungs that the view holds", line, TypeError)
    shown = list(range(scene.run.R))[rungs or slice(None)]
    if not shown:
        raise bad("rungs", rungs, f"no rung is in it; there are {scene.run.R}, from 0", line)
    return shown


# --- GIF


def _palette(scene: Scene, shown: list[int]) -> Image.Image:
    """One palette for all frames: the paper and the inks exactly, the colour map, and the decoded images'."""
    ink, paper = np.array(rgb(tokens()["solid"])), np.array(rgb(tokens()["paper"]))
    ramp = [tuple(c) for c in (ink + (paper - ink) * np.linspace(0, 1, 24)[:, None]).round().astype(int)]
    names = [f"cat-{c}" for c in range(min(scene.run.C, 6))] + ["warn", "error"]
    inks = [tuple((np.array(rgb(tokens()[n])) * t + paper * (1 - t)).round().astype(int))
            for n in names for t in (1.0, 0.5)]  # fmt: skip
    fixed = list(dict.fromkeys([*ramp, *inks]))
    photos = 112 if scene.decodable else 0
    room = PALETTE - len(fixed) - photos
    table = [tuple(c) for c in scene.colours[np.linspace(0, 255, room).round().astype(int)]]
    colours = list(dict.fromkeys([*fixed, *table])) + (_photographic(scene, shown, photos) if photos else [])
    colours = (colours + [colours[0]] * PALETTE)[:PALETTE]
    image = Image.new("P", (1, 1))
    image.putpalette([int(v) for colour in colours for v in colour])
    return image


def _photographic(scene: Scene, shown: list[int], count: int) -> list[tuple[int, ...]]:
    """The colours of the decoded images over the whole film."""
    x, top, space = (round(v * scene.scale) for v in scene.picture)
    some = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, 12).round().astype(int))]
    sheet = Image.new("RGB", (space, space * len(some)))
    for i, k in enumerate(some):
        sheet.paste(scene.frame(k).crop((x, top, x + space, top + space)), (0, i * space))
    found = sheet.quantize(count, Image.Quantize.MEDIANCUT).getpalette()[: 3 * count]
    return [tuple(found[i : i + 3]) for i in range(0, len(found), 3)]


def _gif(scene: Scene, shown: list[int], bar: Iterable[int], path: Path, fps: float) -> None:
    palette = _palette(scene, shown)
    frames = (scene.frame(k).quantize(palette=palette, dither=Image.Dither.NONE) for k in bar)
    first = next(frames)
    usual = 10 * round(100 / fps)  # a GIF counts in hundredths of a second
    times = [usual] * (len(shown) - 1) + [round(1000 * HOLD)]
    more = {"save_all": True, "append_images": frames, "duration": times, "loop": 0} if shown[1:] else {}
    with open(path, "wb") as file:  # closed even where a frame fails
        first.save(file, "GIF", optimize=False, disposal=1, **more)


# --- video


def _ffmpeg(path: Path) -> str:
    program = shutil.which("ffmpeg")
    if program is not None:
        return program
    with suppress(ImportError, RuntimeError):  # not installed, or none for this machine in it
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    wanted = (
        f"{path.suffix} is made by ffmpeg, which is not there (pip install imageio-ffmpeg); a GIF needs none"
    )
    raise bad("path", str(path), wanted, f'view.save("{path.stem}.gif")', RuntimeError)


def _even(image: Image.Image) -> Image.Image:
    """A row and a column more of paper where their number is odd: the codecs halve both."""
    width, height = (n + n % 2 for n in image.size)
    if (width, height) == image.size:
        return image
    larger = Image.new("RGB", (width, height), rgb(tokens()["paper"]))
    larger.paste(image)
    return larger


def _video(program: str, frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """Raw frames through a pipe; what ffmpeg says goes to a file, as a full pipe would stop both."""
    first = _even(next(frames))
    size = f"{first.width}x{first.height}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{fps:g}", "-i", "-"]
    # the matrix is named: else players guess it by the size, and colours shift
    colour = ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", "-colorspace", "bt709",
              "-color_primaries", "bt709", "-color_trc", "bt709"]  # fmt: skip
    command = [
        program,
        "-y",
        "-loglevel",
        "error",
        *given,
        *colour,
        "-an",
        *CODECS[path.suffix.lower()],
        str(path),
    ]
    with tempfile.TemporaryFile() as said:
        work = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        try:
            work.stdin.write(first.tobytes())
            for frame in frames:
                work.stdin.write(_even(frame).tobytes())
        except BrokenPipeError:
            pass  # it has ended already; why is in what it said
        except BaseException:
            work.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                work.stdin.close()
            failed = work.wait()
        if failed:
            said.seek(0)
            why = said.read().decode(errors="replace").strip().splitlines()
            text = f"ffmpeg could not write it: {why[-1] if why else failed}"
            raise bad("path", path.name, text, 'view.save("view.gif")', RuntimeError)
