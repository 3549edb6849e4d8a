"""Views as files: pixels are the values, frame k of a film is rung k, and no half file is left."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageSequence

import toolkit as tk
from toolkit.views.film import HOLD, _ffmpeg
from toolkit.views.scene import MARGIN, WIDTH
from toolkit.views.unpacked import lut

RUNGS = 6


class Colours:
    """A stand-in for a model with a VAE: three channels as red, green and blue, eight times as large."""

    def decode(self, latent):
        rgb = np.moveaxis(np.asarray(latent)[:, :3], 1, -1)
        return np.clip(0.5 + 0.2 * rgb.repeat(8, 1).repeat(8, 2), 0, 1)


@pytest.fixture(scope="module")
def run():
    return tk.testing.unsample_dataset(steps=RUNGS - 1, size=8, samples=2)


@pytest.fixture
def view(run):
    return tk.view(run)


def nearest_colour(values, limit, pixels, table, codes=1):
    """The distance of pixels (y, x, 3) from the colours that values (y, x) may have, give or take `codes`."""
    at = (values / limit + 1) / 2 * 255
    some = [np.clip(np.round(at + hop), 0, 255).astype(int) for hop in range(-codes, codes + 1)]
    gaps = [np.abs(table[k].astype(int) - pixels).max(-1) for k in some]
    return np.min(gaps, axis=0)


def opened(path):
    """A picture or film, of which the file is closed."""
    return Image.open(io.BytesIO(path.read_bytes()))


def middles(image, column, tile):
    """The pixel in the middle of each value of a tile, (8, 8, 3)."""
    (x, y), (w, h) = column.places[tile], column.size
    rows, columns = (np.floor((np.arange(8) + 0.5) * n / 8).astype(int) for n in (h, w))
    return np.asarray(image.convert("RGB")).astype(int)[y + rows[:, None], x + columns]


def shows(image, scene, run, rung, sample=0, limit=None, table=None, tolerance=0):
    """Whether all tiles are the values of `rung`; but for the corner under the name of the channel."""
    for column in scene.columns:
        values = run[column.name].values[rung, sample]
        reach = limit or 3 * values.std()
        for c in range(4):
            gap = nearest_colour(
                values[c], reach, middles(image, column, c), lut() if table is None else table
            )
            gap[-2:, :4] = 0
            if gap.max() > tolerance:
                return False
    return True


def test_the_picture_is_of_the_values(view, run, tmp_path):
    view.rung, view.sample = 3, 1
    path = view.save(tmp_path / "run.png")
    assert path == tmp_path / "run.png"
    image = opened(path)
    assert image.size[0] == 2 * (WIDTH + 2 * MARGIN)
    scene = view._scene(2.0)
    assert [column.name for column in scene.columns] == ["latent", "denoised"]
    assert shows(image, scene, run, 3, 1)
    assert not shows(image, scene, run, 2, 1) and not shows(image, scene, run, 3, 0)


def test_the_picture_has_the_colours_and_the_scale_that_are_chosen(run, tmp_path):
    ladder = run.drop_vars("denoised")
    view = tk.view(ladder)
    view.rung, view.colormap, view.scale = 4, "viridis", "fixed"
    image = opened(view.save(tmp_path / "run.png", width=928))
    most = max(3 * float(ladder.latent[k, 0].std()) for k in range(RUNGS))
    import matplotlib

    table = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255).round()
    assert image.width == 928
    assert shows(image, view._scene(1.0), ladder, 4, limit=most, table=table)
    view.colormap, view.scale = "tk", "rung"
    assert not shows(image, view._scene(1.0), ladder, 4)


def test_what_is_not_finite_is_no_colour_and_what_was_not_called_is_empty(run, tmp_path):
    latent = run.latent.copy(deep=True)
    latent[3, 0, 1, :4, :4] = np.nan
    view = tk.view(run.assign(latent=latent))
    view.rung = 3
    scene, image = view._scene(1.0), opened(view.save(tmp_path / "run.png", width=928))
    (x, y), (w, h) = scene.columns[0].places[1], scene.columns[0].size
    spot = np.asarray(image.convert("RGB"))[y + 2 : y + h // 2 - 2, x + 2 : x + w // 2 - 2].reshape(-1, 3)
    assert {tuple(c) for c in np.unique(spot, axis=0)} == {(255, 255, 255), (224, 224, 224)}
    view.rung = 0  # where the model is not called
    image, (x, y) = opened(view.save(tmp_path / "run.png", width=928)), scene.columns[1].places[0]
    assert np.all(np.asarray(image.convert("RGB"))[y + 4 : y + h - 4, x + 4 : x + w - 4] == 255)


def test_the_thumb_is_where_the_rung_is(view, tmp_path):
    for rung in (0, 2, RUNGS - 1):
        view.rung = rung
        image = np.asarray(opened(view.save(tmp_path / "run.png", width=928)).convert("RGB")).astype(int)
        rail = view._scene(1.0).rail
        x, y = rail.at[rung], rail.level[rung]
        thumb = image[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
        assert np.all(thumb == 0x22)
        other = rail.at[rung - 1 if rung else 1], rail.level[rung - 1 if rung else 1]
        assert not np.all(image[round(other[1]) - 3 : round(other[1]) + 4, round(other[0])] == 0x22)


def test_a_decoded_image_is_in_the_picture(run, tmp_path):
    view = tk.view(run, Colours())
    view.rung = 3
    scene, image = view._scene(1.0), opened(view.save(tmp_path / "run.png", width=928)).convert("RGB")
    x, y, side = (round(v) for v in scene.picture)
    shown = np.asarray(image.crop((x, y, x + side, y + side)).resize((8, 8), Image.Resampling.BOX))
    wanted = 255 * Colours().decode(run.denoised[3])[0, 4::8, 4::8]
    assert np.abs(shown - wanted).max() < 12  # blocks that are no whole pixels mix at their edges


def test_frame_k_of_a_gif_is_rung_k(view, run, tmp_path):
    view.rung = 2
    path = view.save(tmp_path / "run.gif", fps=10, progress=False)
    film, scene = opened(path), view._scene(1.0)
    assert film.n_frames == RUNGS and film.info["loop"] == 0 and film.size == scene.paper.size
    times = []
    for rung, frame in enumerate(ImageSequence.Iterator(film)):
        times.append(frame.info["duration"])
        seen = frame.convert("RGB")
        assert seen.getpixel((2, 2)) == (255, 255, 255)  # the paper does not flicker
        for name in ["latent", "denoised"] if 0 < rung < RUNGS - 1 else ["latent"]:
            some = view._scene(1.0)
            some.columns = [column for column in scene.columns if column.name == name]
            assert shows(seen, some, run, rung, tolerance=8)
            assert rung == 3 or not shows(seen, some, run, 3, tolerance=8)
    assert times == [100] * (RUNGS - 1) + [1000 * HOLD]
    assert view.rung == 2  # a film moves nothing
    data = path.read_bytes()
    assert data[10] & 0x80 and data.count(b"NETSCAPE2.0") == 1  # one palette, for all frames


def test_a_film_of_some_rungs_and_another_width(view, run, tmp_path):
    film = opened(view.save(tmp_path / "run.gif", rungs=slice(4, 0, -2), width=640, progress=False))
    assert film.n_frames == 2 and film.width == 640
    scene = view._scene(640 / 928)
    assert shows(film.convert("RGB"), scene, run, 4, tolerance=8)
    film.seek(1)
    assert shows(film.convert("RGB"), scene, run, 2, tolerance=8)
    only = opened(view.save(tmp_path / "one.gif", rungs=slice(1, 2), progress=False))
    assert only.n_frames == 1


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_video_comes_back_as_the_frames(view, tmp_path, suffix):
    width = 401  # odd, as the codecs do not like it
    path = view.save(tmp_path / f"run.{suffix}", width=width, progress=False)
    scene = view._scene(width / 928)
    size = [n + n % 2 for n in scene.paper.size]
    command = [_ffmpeg(path), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3).astype(int)
    assert len(frames) == RUNGS
    wanted = [np.asarray(scene.frame(k)).astype(int)[:, :, :] for k in range(RUNGS)]
    for k, frame in enumerate(frames):
        gaps = [np.abs(frame[: w.shape[0], : w.shape[1]] - w).mean() for w in wanted]
        assert np.argmin(gaps) == k and gaps[k] < 4
        assert np.abs(frame[:8] - 255).max() <= 2  # the paper stays white


def test_without_ffmpeg_the_error_says_what_works(view, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(RuntimeError, match=r"pip install imageio-ffmpeg.*Try: view\.save\(\"run\.gif\"\)"):
        view.save(tmp_path / "run.mp4", progress=False)
    assert not list(tmp_path.iterdir())


def test_an_ffmpeg_that_fails_is_quoted(view, tmp_path, monkeypatch):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho no such codec here >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match="no such codec here"):
        view.save(tmp_path / "run.mp4", width=320, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_a_film_that_breaks_off_leaves_what_was_there(view, tmp_path, monkeypatch, suffix):
    from toolkit.views.scene import Scene

    path, frame = tmp_path / f"run.{suffix}", Scene.frame
    path.write_text("as it was")

    def broken(scene, k):
        if k == 3:
            raise KeyboardInterrupt
        return frame(scene, k)

    monkeypatch.setattr(Scene, "frame", broken)
    view.rung = 3
    with pytest.raises(KeyboardInterrupt):
        view.save(path, width=320, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "as it was"


def test_what_cannot_be_saved_is_told(view, tmp_path):
    for name in ("run.tiff", "run"):
        with pytest.raises(
            ValueError, match=r'\.png, \.html, \.gif, \.mp4, \.webm\. Try: view\.save\("run\.png"\)'
        ):
            view.save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="mkdir"):
        view.save(tmp_path / "no" / "run.gif")
    for options in ({"fps": 0}, {"fps": "12"}, {"width": 100}, {"width": True}, {"rungs": slice(9, None)}):
        with pytest.raises(ValueError, match=r"Try: view\.save\("):
            view.save(tmp_path / "run.gif", **options)
    with pytest.raises(TypeError, match="a slice"):
        view.save(tmp_path / "run.gif", rungs=3)
    with pytest.raises(ValueError, match=r"no rungs to make a film of\. Try: view\.save\(\"run\.png\"\)"):
        tk.views.schedules().save(tmp_path / "run.gif")
    assert not list(tmp_path.iterdir())


def test_a_view_without_rungs_is_its_still_picture(tmp_path):
    view = tk.views.schedules()
    assert view.save(tmp_path / "view.png").read_bytes() == view._still()


def test_the_page_begins_where_the_view_is(view, tmp_path):
    view.rung, view.channel, view.colormap = 4, 2, "gray"
    text = view.save(str(tmp_path / "run.html")).read_text("utf-8")
    assert '"rung":4' in text and '"channel":2' in text and '["_lut",768]' in text
    assert text.replace('"rung":4', '"rung":0') != text
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]


def test_the_sides_of_the_comparator(run, tmp_path):
    view = tk.views.normalize(run, "channel")
    view.rung = 4
    image, scene = opened(view.save(tmp_path / "n.png", width=928)), view._scene(1.0)
    off, on = scene.columns
    values, sigma = run.latent.values[4, 0], float(run.sigma[4])
    for c in range(4):
        flat = (values[c] - values[c].mean()) / values[c].std(ddof=1)
        for column, wanted in ((off, values[c] / max(sigma, 1)), (on, flat)):
            gap = nearest_colour(wanted, 4.0, middles(image, column, c), lut())
            gap[-2:, :4] = 0
            assert gap.max() == 0
    film = opened(view.save(tmp_path / "n.gif", progress=False))
    assert film.n_frames == RUNGS


def test_the_comparer_shows_both_runs_and_their_difference(run, tmp_path):
    other = tk.testing.sample_dataset(steps=RUNGS - 1, size=8, samples=2, seed=1)
    view = tk.views.compare(run, other)
    view.rung, view.sample = 3, 1
    image, scene = opened(view.save(tmp_path / "c.png", width=928)), view._scene(1.0)
    a, b = run.latent.values[3, 1], other.latent.values[RUNGS - 1 - 3, 1]
    same, reach = 3 * max(a.std(), b.std()), np.quantile(np.abs(a - b), 0.995)
    for column, values, limit in zip(scene.columns, (a, b, a - b), (same, same, reach), strict=True):
        for c in range(4):
            gap = nearest_colour(values[c], limit, middles(image, column, c), lut())
            gap[-2:, :4] = 0
            assert gap.max() == 0
    view.focused = "B"
    assert view._scene(1.0).run.rungs.tolist() == list(range(RUNGS))
    assert opened(view.save(tmp_path / "c.gif", width=400, progress=False)).n_frames == RUNGS


def test_progress_is_tqdms(view, tmp_path, capsys):
    view.save(tmp_path / "run.gif", width=320, rungs=slice(0, 2))
    assert "2/2" in capsys.readouterr().err
    view.save(tmp_path / "run.gif", width=320, rungs=slice(0, 2), progress=False)
    assert capsys.readouterr().err == ""


def test_one_rung_many_channels_and_other_shapes(run, tmp_path):
    one = tk.view(tk.at(run, sigma=1))
    image = opened(one.save(tmp_path / "one.png", width=928))
    assert image.height < 800
    wide = tk.testing.ladder_dataset(steps=2, size=6).isel(y=slice(0, 3), channel=[0, 1, 2, 3] * 5)
    view = tk.view(wide.assign_coords(channel=[f"c{k}" for k in range(20)]))
    view.channel = 17
    scene = view._scene(1.0)
    assert scene.channels == [16, 17, 18, 19]
    w, h = scene.columns[0].size
    assert abs(w - 2 * h) <= 1
    assert opened(view.save(tmp_path / "wide.png", width=928)).size == scene.paper.size
