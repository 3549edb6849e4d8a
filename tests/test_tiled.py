"""A model on a canvas larger than its own: what its windows must add up to, images, records, bad input."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_regions import PerPixel, far
from test_resume import Make, goes_on
from torch.utils._python_dispatch import TorchDispatchMode

import toolkit as tk
from toolkit.tiling import Tiled, shares

QUIET = {"progress": False}
CANVAS = (8, 20)  # three digits side by side
THIRDS = ((0, 7), (7, 13), (13, 20))  # columns nearest to each of their windows


class Counted(PerPixel):
    """Knows how many rows it was asked for at a time."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def x0(self, x, sigma, conditions):
        assert len(x) == len(conditions)
        self.seen.append(len(x))
        return super().x0(x, sigma, conditions)


class Sloped(PerPixel):
    """What it answers depends on where in its window a pixel is."""

    def x0(self, x, sigma, conditions):
        there = torch.arange(x[0, 0].numel(), dtype=x.dtype).view(x.shape[-2:])
        return super().x0(x, sigma, conditions) + there


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def columns(*prompts, size=CANVAS, **options) -> list[tk.Region]:
    """Three regions, from left to right."""
    boxes = [tk.box(a / 20, 0.0, b / 20, 1.0, size=size) for a, b in THIRDS]
    return [tk.Region(box, prompt=p, **options) for box, p in zip(boxes, prompts, strict=True)]


@pytest.fixture(scope="module")
def wide(digits_model) -> Tiled:
    return tk.tiled(digits_model, CANVAS)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two canvases of three digits each, (sample, y, x): the brighter one where they overlap."""
    images, _ = tk.assets.digits("held-out")
    canvas = np.zeros((2, 32, 80), np.float32)
    for k in range(6):
        there = canvas[k // 3, :, 24 * (k % 3) :][:, :32]
        np.maximum(there, images[k], out=there)
    return canvas


# --- windows ----


@pytest.mark.parametrize(
    "size, window, stride, starts",
    [
        ((8, 20), (8, 8), None, ((0,), (0, 6, 12))),
        ((8, 24), (8, 8), 8, ((0,), (0, 8, 16))),  # side by side
        ((8, 24), (8, 8), 6, ((0,), (0, 6, 12, 16))),  # the last one flush with the edge
        ((11, 9), (4, 6), (3, 2), ((0, 3, 6, 7), (0, 2, 3))),
        ((4, 6), (4, 6), 1, ((0,), (0,))),
        ((3, 2), (1, 1), None, ((0, 1, 2), (0, 1))),
    ],
)
def test_where_windows_are(size, window, stride, starts):
    tiles = tk.tiled(PerPixel(), size, stride, window)
    assert (tiles.shape, tiles.windows.starts) == ((2, *size), starts)
    assert tiles.rows_each == len(tiles.windows) == len(starts[0]) * len(starts[1])
    assert tiles.windows.corners == [(y, x) for y in starts[0] for x in starts[1]]
    for n, w, at in zip(size, window, starts, strict=True):
        parts, total = shares(n, w, at), np.zeros(n)
        assert (parts > 0).all()
        for part, a in zip(parts, at, strict=True):
            total[a : a + w] += part.numpy()
        np.testing.assert_allclose(total, 1.0, atol=1e-15)


def test_the_answer_is_the_formula():
    """sum_i F_i^-1(q D_i(F_i x)) / sum_i F_i^-1(q) by hand, of a model that knows where its window ends."""
    model, x, sigma = Sloped(), normal(2, 2, 7, 11), 0.8

    def by_hand(q):
        above, below = np.zeros(x.shape), np.zeros((7, 11))
        for rows in (slice(0, 4), slice(2, 6), slice(3, 7)):
            for columns in (slice(0, 6), slice(3, 9), slice(5, 11)):
                above[..., rows, columns] += q * model.x0(x[..., rows, columns], sigma, [1, 3]).numpy()
                below[rows, columns] += q
        return above / below

    got = tk.guide(tk.tiled(model, (7, 11), (2, 3), (4, 6)), prompt=[1, 3]).denoise(x, sigma).x0
    weights = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (4, 6)))
    np.testing.assert_allclose(got, by_hand(weights), rtol=1e-13, atol=1e-13)
    assert np.abs(got.numpy() - by_hand(np.ones((4, 6)))).max() > 0.1  # flat weights are something else
    assert got.dtype == torch.float64


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=str)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "dpmpp_sde"])
def test_windows_of_a_model_of_pixels_are_that_model(path, solver):
    model = PerPixel(path=path)
    tiles = tk.tiled(model, (10, 14), (3, 5), (4, 6))
    asked = {
        "shape": (2, 2, 10, 14),
        "solver": solver,
        "steps": 6,
        "cfg": 2.0,
        "prompt": [1, 3],
        "negative": 2,
    }
    plain, tiled = (tk.sample(m, seed=3, **asked, **QUIET) for m in (model, tiles))
    assert far(tiled, plain) < 1e-12
    np.testing.assert_allclose(tiled.denoised, plain.denoised, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(tiled.nfe, plain.nfe)
    np.testing.assert_array_equal(tiled.rows, 9 * plain.rows)
    twice = tk.tiled(tk.tiled(model, (8, 10), 3, (4, 6)), (10, 14), 3)
    assert twice.rows_each == 3 * 3 * 2 * 3
    assert far(tk.sample(twice, seed=3, **asked, **QUIET), plain) < 1e-12


def test_one_window_is_the_model_itself(mixture, digits_model):
    same = tk.tiled(mixture, (16, 16))
    asked = {"steps": 5, "cfg": 3.0, "prompt": [1, 2], "shape": (2, 4, 16, 16), **QUIET}
    a, b = (tk.sample(m, **asked) for m in (same, mixture))
    for name in ("latent", "denoised", "rows"):
        np.testing.assert_array_equal(a[name], b[name])
    one, (images, _) = tk.tiled(digits_model, (8, 8)), tk.assets.digits("held-out")
    latent = digits_model.encode(images[:3])
    np.testing.assert_array_equal(one.encode(images[:3]), latent)
    np.testing.assert_array_equal(one.decode(latent), digits_model.decode(latent))
    np.testing.assert_array_equal(
        tk.guide(one, 3, cfg=2.0).denoise(latent, 1.0).x0,
        tk.guide(digits_model, 3, cfg=2.0).denoise(latent, 1.0).x0,
    )


@pytest.mark.parametrize("batch, seen", [(None, [12]), (1, [1] * 12), (5, [5, 5, 2]), (100, [12])])
def test_a_batch_is_at_most_so_many_rows(batch, seen):
    model, x = Counted(), normal(2, 2, 4, 9)
    bound = tk.guide(tk.tiled(model, (4, 9), 3, (4, 4), batch), prompt=[1, 3], cfg=1.5)
    got = bound.denoise(x, 0.7).x0
    assert (model.seen, bound.calls, bound.rows) == (seen, 1, 12)
    torch.testing.assert_close(
        got, tk.guide(model, [1, 3], cfg=1.5).denoise(x, 0.7).x0, rtol=1e-13, atol=1e-13
    )


def test_shares_are_sent_to_a_device_once():
    windows = tk.tiled(PerPixel(), (4, 9), 3, (4, 4)).windows
    parts = torch.zeros(2 * len(windows), 2, 4, 4, dtype=torch.float64, device="meta")
    assert windows.fuse(parts, torch.float64).shape == (2, 2, 4, 9)
    kept = windows._sent[parts.device]
    with Moved() as moved:
        windows.fuse(parts, torch.float64)
    assert windows._sent[parts.device] is kept and moved.count == 0
    assert all(share.is_meta for pair in kept for share in pair)


class Moved(TorchDispatchMode):
    """Counts copies from the host to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = (kwargs or {}).get("device")
        self.count += there is not None and torch.device(there) != args[0].device
        return func(*args, **(kwargs or {}))


def test_another_batch_on_a_replay_is_said():
    """3 windows are 6 rows under guidance: groups of 6 or more are all of them."""
    one, tiles = (
        normal(1, 2, 4, 9),
        {n: tk.tiled(PerPixel(), (4, 9), 3, (4, 4), n) for n in (None, 4, 5, 6, 9)},
    )
    asked = {"prompt": 1, "cfg": 2.0, "steps": 2, **QUIET}
    runs = {n: tk.unsample(model, one, **asked) for n, model in tiles.items()}
    assert {n: run.attrs["batch"] for n, run in runs.items()} == {n: n for n in tiles}
    for was, now in ((None, 6), (6, 9), (9, None), (4, 4)):
        assert tk.sample(tiles[now], runs[was], **QUIET).attrs["edited"] == []
    for was, now in ((4, None), (4, 5), (9, 4)):
        with pytest.warns(
            UserWarning, match=rf"batch={was}.*batch={now}.*Try: tk\.tiled\(\.\.\., batch={was}\)"
        ):
            tk.sample(tiles[now], runs[was], **QUIET)


def test_rows_are_network_rows():
    tiles = tk.tiled(PerPixel(), CANVAS, window=(8, 8))
    asked = {"steps": 3, "shape": (2, 2, *CANVAS), **QUIET}
    for more, rows in (({}, 1), ({"cfg": 2.0}, 2), ({"solver": "euler_cfg_pp"}, 2)):
        run = tk.sample(tiles, **asked, **more)
        np.testing.assert_array_equal(run.rows, 3 * 2 * rows * np.arange(4))
        np.testing.assert_array_equal(run.nfe, np.arange(4))
    run = tk.regional(tiles, columns(1, 2, 3), cfg=2.0, **asked)
    assert run.attrs["network_rows"] == 3 * 3 * 2 * 4
    tiles.denoise(normal(1, 2, *CANVAS), 1.0)
    assert (tiles.calls, tiles.rows) == (1, 3)

    class Foreign:
        """Neither a Model nor counted by one."""

        path, levels, channels = tk.VE, PerPixel().levels, 2

        def denoise(self, x, sigma):
            return 0.5 * x

    assert int(tk.sample(Foreign(), **asked).rows[-1]) == 6


# --- it is a model like another ----


@pytest.mark.parametrize("mode", ["denoiser", "step"])
def test_regions(mode):
    model = PerPixel()
    tiles = tk.tiled(model, CANVAS, window=(8, 8))
    regions = [
        *columns(1, 2, 3, feather=1.0)[:2],
        tk.Region(np.ones(CANVAS), prompt=3, strength=0.6, cfg=3.0),
    ]
    asked = {"mode": mode, "cfg": 2.0, "solver": "dpmpp_2m", "steps": 6, "shape": (2, 2, *CANVAS), **QUIET}
    plain, tiled = (tk.regional(m, regions, **asked) for m in (model, tiles))
    assert far(tiled, plain) < 1e-12
    np.testing.assert_array_equal(tiled.rows, 3 * plain.rows)
    np.testing.assert_array_equal(tiled.weight, plain.weight)


def test_the_regional_node():
    model = PerPixel()
    mask = torch.zeros(8 * CANVAS[0], 8 * CANVAS[1])
    mask[:, 80:] = 1.0
    base, three = (tk.comfy.KSamplerAdvanced(positive=p, cfg=2.0) for p in (0, 3))
    asked = {"steps": 5, "end_at_step": 5, "overlap_factor": 3, "latent_image": normal(1, 2, *CANVAS),
             "base_sampler": base, "regional_prompts": [tk.comfy.RegionalPrompt(mask, three)]}  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        plain, tiled = (
            tk.comfy.regional_sampler_advanced(m, **asked)
            for m in (model, tk.tiled(model, CANVAS, 6, (8, 8)))
        )
    np.testing.assert_allclose(tiled.latent[:-1], plain.latent[:-1], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(tiled.latent[-1], plain.latent[-1], rtol=1e-6, atol=1e-6)  # in float32
    assert tiled.attrs["network_rows"] == 3 * plain.attrs["network_rows"]


def test_a_run_that_stops_goes_on(tmp_path):
    tiles = tk.tiled(PerPixel(), CANVAS, window=(8, 8), batch=4)
    asked = {"solver": "dpmpp_2m", "steps": 5, "cfg": 2.0, "shape": (1, 2, *CANVAS)}
    goes_on(tiles, Make(tk.regional, tiles, columns(1, 2, 3), **asked), tmp_path, cuts=(1, 3))


@pytest.mark.parametrize("solver", ["obelm", "euler"])
def test_there_and_back(wide, pictures, solver):
    latent = wide.encode(pictures)
    trip = tk.round_trip(wide, latent, solver=solver, prompt=[2, 7], cfg=2.0, steps=6, **QUIET)
    assert float(trip.error.max()) < 1e-9
    regions = columns(9, 2, 5, feather=1.0)
    up = tk.unsample(wide, latent, solver=solver, regions=regions, cfg=2.0, steps=4, **QUIET)
    down = tk.sample(wide, start=up, **QUIET)
    np.testing.assert_allclose(down.latent[-1], latent, rtol=0, atol=1e-9 * float(latent.abs().max()))


def test_a_record_tells_it_from_the_plain_model(digits_model, wide):
    run = tk.sample(wide, prompt=[1, 2], shape=(2, 4, *CANVAS), steps=1, **QUIET)
    assert run.attrs["model"] == "digits in windows of 8 x 8, stride 6 x 6"
    assert run.attrs["fingerprint"] == wide.fingerprint == tk.tiled(digits_model, CANVAS, batch=7).fingerprint
    others = [tk.tiled(digits_model, *a) for a in ((CANVAS, 4), ((8, 26),), ((8, 8),))]
    assert len({digits_model.fingerprint, *(m.fingerprint for m in (wide, *others))}) == 5
    assert len(wide.fingerprint) == 16
    assert run.attrs["latent_scale"] == digits_model.latent_scale
    assert (wide.path, wide.levels, wide.prediction) == (tk.VE, digits_model.levels, "v")
    assert (wide.inner.labels, wide.device) == (digits_model.labels, digits_model.device)
    nameless = PerPixel()
    nameless.fingerprint = None
    assert tk.tiled(nameless, (4, 4), window=(2, 2)).fingerprint is None


def test_reprs(digits_model):
    tiles = tk.tiled(digits_model, CANVAS, (8, 4), batch=64)
    assert repr(tiles) == (
        "Tiled(digits, path=VE, latent=4 x 8 x 20, sigma=0.02917 to 14.61, prediction=v, classes=10, "
        "dtype=float32, windows=1 x 4 of 8 x 8, stride=8 x 4, batch=64)"
    )
    assert "<caption>digits in windows of 8 x 8, stride 8 x 4</caption>" in tiles._repr_html_()
    assert "<th>windows</th><td>1 x 4 of 8 x 8</td>" in tiles._repr_html_()


# --- images ----


def test_images_are_there_where_the_inner_model_has_them(mixture, wide):
    for name in ("encode", "decode"):
        assert hasattr(wide, name)
        assert not hasattr(tk.tiled(mixture, (16, 28)), name)
        assert "Returns" in Tiled.encode.__doc__
    with pytest.raises(TypeError, match="cannot encode an image"):
        tk.unsample(tk.tiled(mixture, (16, 28)), Image.new("L", (80, 32)), steps=3, **QUIET)


def test_a_canvas_of_digits_survives_the_vae(wide, pictures):
    latent = wide.encode(pictures)
    back = wide.decode(latent)
    assert (latent.shape, latent.dtype) == ((2, 4, *CANVAS), torch.float64)
    assert (back.shape, back.dtype) == ((2, 32, 80, 3), np.float32)
    assert 0.0 <= back.min() < 0.01 and 0.99 < back.max() <= 1.0
    assert -10 * np.log10(np.square(back[..., 0] - pictures).mean()) > 28.0


def test_an_image_comes_in_many_forms(wide, pictures):
    whole = np.rint(255 * pictures).astype(np.uint8)
    rgb = np.stack([whole[0], whole[1], 255 - whole[0]], -1)  # grey by PIL's weights is not the mean
    want = wide.encode(whole)
    one, two = (Image.fromarray(w) for w in whole)
    forms = [[one, two], [whole[0], whole[1]], [one, whole[1]], whole[..., None], torch.from_numpy(whole),
             np.repeat(whole[..., None], 3, -1), (whole / 255.0).astype(np.float32)]  # fmt: skip
    for form in forms:
        torch.testing.assert_close(wide.encode(form), want, rtol=0, atol=1e-4)
    rough = torch.from_numpy(whole / 255.0).bfloat16()
    torch.testing.assert_close(wide.encode(rough), wide.encode(rough.float()), rtol=0, atol=0)
    assert wide.encode(whole[0]).shape == wide.encode(rgb).shape == (1, 4, *CANVAS)
    small = tk.tiled(wide.inner, (8, 8))
    for form in (Image.fromarray(rgb[:, :32]), rgb[:, :32]):
        np.testing.assert_array_equal(small.encode(form), wide.inner.encode(form))
    few = tk.tiled(wide.inner, CANVAS, batch=2)
    torch.testing.assert_close(few.encode(whole), want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(few.decode(want), wide.decode(want), atol=1e-5)
    run = tk.sample(wide, one, steps=2, start_at_step=1, **QUIET)
    np.testing.assert_array_equal(wide.decode(run.latent[-1]), wide.decode(run.latent[-1].values))


def test_images_in_colour_are_blended_at_the_resolution_of_pixels():
    """The codec of the photographs works patch by patch: windows make what it makes of the whole."""
    model = tk.load("photographs")
    images, _ = model.images()
    canvas = np.concatenate([images[:1], images[1:, :, 64:]], 2)  # 256 x 448 px, 4 to a latent pixel
    tiles = tk.tiled(model, (64, 112), 17)
    latent = tiles.encode(canvas)
    np.testing.assert_allclose(latent, model.codec.analyse(canvas), rtol=0, atol=1e-12)
    whole = model.codec.synthesise(latent.numpy()).clip(0.0, 1.0)
    np.testing.assert_allclose(tiles.decode(latent), whole, rtol=0, atol=1e-6)
    assert tiles.windows.larger((4, 4)).starts == ((0,), (0, 68, 136, 192))


# --- the promise ----


@pytest.fixture(scope="module")
def judge():
    """A classifier of the real training digits."""
    from sklearn.svm import SVC

    images, labels = tk.assets.digits("train")
    return SVC(C=10.0).fit(images.reshape(len(images), -1), labels)


@pytest.mark.parametrize("feather", [0.0, 1.0], ids=["hard", "soft"])
def test_each_region_has_the_digit_that_was_asked_for(digits_model, judge, feather):
    """In 100 draws, each of three digits at random.

    A batch of 100 under one seed: the noise of a sample is keyed by the seed and the sample's number, so
    these are 100 independent draws, as those of 100 seeds would be, in 0.6 of the time.
    """
    wide = tk.tiled(digits_model, CANVAS, stride=6, batch=300)  # what the caches of a processor hold
    wanted = np.random.default_rng(0).integers(0, 10, (100, 3))
    asked = {"cfg": 2.0, "solver": "dpmpp_2m", "steps": 10, "shape": (100, *wide.shape)}
    save = tk.Save(what=["latent"], every=10)
    run = tk.regional(wide, columns(*wanted.T.tolist(), feather=feather), **asked, save=save, **QUIET)
    drawn = wide.decode(run.latent[-1])[..., 0]
    found = [judge.predict(drawn[:, :, 24 * k :][:, :, :32].reshape(100, -1)) for k in range(3)]
    right = (np.stack(found, 1) == wanted).mean(0)  # measured: 1, 0.99, 1
    assert (right >= 0.90).all()
    assert right.mean() >= 0.90


# --- bad input ----

FREE, FIXED = PerPixel(), tk.GaussianMixture(np.zeros((1, 3, 6, 8)), 1.0)
BAD = {
    "a function": (lambda x, sigma: x, {"size": (8, 8)}, TypeError, "model="),
    "a denoiser": (tk.guide(FIXED), {"size": (8, 8)}, TypeError, "before its conditions are bound"),
    "no channels": (PerPixel(channels=None), {"size": (8, 8), "window": (4, 4)}, ValueError, "many channels"),
    "a number": (FIXED, {"size": 20}, TypeError, "size=20: whole numbers"),
    "three numbers": (FIXED, {"size": (3, 8, 20)}, TypeError, "size="),
    "half a pixel": (FIXED, {"size": (8, 20.5)}, TypeError, "size="),
    "a flag": (FIXED, {"size": (True, 20)}, TypeError, "size="),
    "an empty canvas": (FREE, {"size": (0, 20), "window": (4, 4)}, ValueError, "size=(0, 20): 1 or more"),
    "a canvas too low": (FIXED, {"size": (5, 20)}, ValueError, "at least one window of 6 x 8"),
    "a canvas too narrow": (FREE, {"size": (9, 7), "window": (4, 8)}, ValueError, "one window of 4 x 8"),
    "no window": (FREE, {"size": (100, 20)}, ValueError, "window=None: this model takes any size"),
    "no window of a size": (FREE, {"size": (9, 9), "window": 4}, TypeError, "window=4"),
    "an empty window": (FREE, {"size": (9, 9), "window": (4, 0)}, ValueError, "window=(4, 0): 1 or more"),
    "another window": (FIXED, {"size": (9, 9), "window": (4, 4)}, ValueError, "takes 6 x 8 and no other"),
    "stride 0": (FIXED, {"size": (9, 9), "stride": 0}, ValueError, "stride=0: 1 or more"),
    "a stride of text": (FIXED, {"size": (9, 9), "stride": "6"}, TypeError, "stride='6'"),
    "gaps": (FIXED, {"size": (9, 19), "stride": 7}, ValueError, "stride=7: it leaves gaps between"),
    "gaps on one axis": (FIXED, {"size": (9, 19), "stride": (3, 9)}, ValueError, "stride=(3, 9)"),
    "batch 0": (FIXED, {"size": (9, 9), "batch": 0}, ValueError, "batch=0"),
    "half a batch": (FIXED, {"size": (9, 9), "batch": 0.5}, TypeError, "batch=0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_to_type(name):
    model, asked, kind, said = BAD[name]
    with pytest.raises(kind, match=re.escape(said)) as caught:
        tk.tiled(model, **asked)
    exec(str(caught.value).split("Try: ")[1], {"tk": tk, "model": model})


def test_bad_images_and_canvases(wide, pictures):
    for image in (pictures[:, :, :32], Image.new("L", (32, 32)), [pictures[0], pictures[0, :31]]):
        with pytest.raises(
            ValueError, match=re.escape("this model takes 32 x 80 pixels. Try: image.resize((80, 32))")
        ):
            wide.encode(image)
    for image, kind in (
        (pictures + 2.0, ValueError),
        ("digit.png", TypeError),
        ([], TypeError),
        ([1], TypeError),
    ):
        with pytest.raises(kind, match="image="):
            wide.encode(image)
    for call in (wide.decode, lambda x: tk.unsample(wide, x, steps=3, **QUIET)):
        with pytest.raises(ValueError, match=re.escape("(sample, 4, 8, 20)")):
            call(torch.zeros(1, 4, 8, 8))
    for shape in ((1, 4, 8, 26), (1, 4, 8, 8), (1, 3, 8, 20)):
        with pytest.raises(
            ValueError, match=re.escape("the canvas is (row, 4, 8, 20). Try: torch.zeros(1, 4, 8, 20)")
        ):
            tk.guide(wide).denoise(torch.zeros(shape), 1.0)
    with pytest.raises(ValueError, match="a class label from 0 to 9"):
        tk.sample(wide, prompt=11, **QUIET)
