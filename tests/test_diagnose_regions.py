"""The figure of regions: what it draws is the Dataset's, of any run with regions; bad input."""

import io
import itertools
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import toolkit as tk
from toolkit.diagnostics import figures, regional

D = tk.diagnostics
QUIET = {"progress": False}
SIZE = (8, 8)


def halves(**options) -> list[tk.Region]:
    """Left and right, with a column of the base between them."""
    boxes = [tk.box(a, 0.0, b, 1.0, size=SIZE) for a, b in ((0.0, 0.45), (0.55, 1.0))]
    named = zip(boxes, (3, 7), ("left", "right"), strict=True)
    return [tk.Region(box, prompt=p, feather=1.0, name=name, **options) for box, p, name in named]


def drawn(figure: Figure) -> dict:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def data(axes) -> dict[str, np.ndarray]:
    """Points of the lines by name, without what is drawn beside the data."""
    lines = [line for line in axes.get_lines() if not line.get_label().startswith(("_target", "_cut"))]
    return {line.get_label(): line.get_xydata() for line in lines}


def png(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def run(digits_model):
    return tk.regional(digits_model, halves(), cfg=2.0, steps=4, shape=(3, 4, *SIZE), **QUIET)


@pytest.fixture(scope="module")
def changing(digits_model):
    """Shares that are others at each level: one joins late, and one is grey that says when."""
    ramp = np.linspace(0.0, 1.0, 8)[None].repeat(8, 0)
    late = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE), prompt=3, strength=0.5, name="late")
    regions = [late, tk.Region(ramp, prompt=7, differential=True, name="ramp")]
    return tk.regional(digits_model, regions, steps=6, **QUIET)


# --- what is drawn ----


def test_panels_are_the_datasets(run):
    axes = drawn(D.plot_regions(run))
    low = run.isel(step=3)
    assert list(axes) == [
        f"Who says how much, at σ {float(low.sigma):.3g}",
        "The same along the dashed line",
        "How far they disagree",
        "What the seams are like",
    ]
    _, cut, conflict, seams = axes.values()
    for name, points in data(cut).items():
        row = int(re.search(r"y = (\d+)", cut.get_xlabel())[1])
        np.testing.assert_array_equal(points[:, 0], np.arange(8))
        np.testing.assert_array_equal(points[:, 1], low.weight.sel(region=name)[row])
    for name, points in data(conflict).items():
        np.testing.assert_array_equal(points[:, 0], run.sigma[:4])
        np.testing.assert_allclose(points[:, 1], run.conflict.sel(region=name)[:4].median("sample"))
    assert list(data(cut)) == list(data(conflict)) == ["base", "left", "right"]
    (points,) = data(seams).values()
    np.testing.assert_allclose(points[:, 1], run.seam_gradient[:4].median("sample"))
    assert "median of 3 samples" in conflict.texts[0].get_text().replace("\n", " ")
    assert [conflict.get_xlabel(), conflict.get_ylabel()] == ["noise level σ", "rms in the latent"]


def test_the_map_mixes_colours_by_share(run):
    axes = next(iter(drawn(D.plot_regions(run)).values()))
    image = axes.get_images()[0].get_array()
    assert image.shape == (*SIZE, 3)
    left, right = (np.array(matplotlib.colors.to_rgb(c)) for c in figures.CATEGORIES[:2])
    grey = np.array(matplotlib.colors.to_rgb(figures.CATEGORIES[-1]))
    base = regional.PALE * grey + 1 - regional.PALE
    weight = run.weight[3].values
    np.testing.assert_allclose(image, np.einsum("ryx,rc->yxc", weight, [base, left, right]), atol=1e-12)
    np.testing.assert_allclose(image[0, 0], left, atol=0.02)
    assert [text.get_text() for text in axes.texts if text.get_text() in ("left", "right")] == [
        "left",
        "right",
    ]
    places = [text.get_position()[0] for text in axes.texts if text.get_text() in ("left", "right")]
    assert places[0] < 3 and places[1] > 4


def test_colours_and_dashes_tell_regions_apart():
    looks = [look for _, look in regional._looks(["base", *map(str, range(12))])]
    pairs = [(look["color"], str(look["linestyle"])) for look in looks]
    assert len(set(pairs)) == len(pairs)
    # as eyes without red or green cones see them (Machado et al. 2009, severity 1)
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    deutan = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    colours = np.array([matplotlib.colors.to_rgb(look["color"]) for look in looks[1:5]])  # the base is pale
    for seen in (protan, deutan):
        for a, b in itertools.combinations(colours @ np.transpose(seen), 2):
            assert np.abs(a - b).max() > 0.15


@pytest.mark.parametrize("mode", ["denoiser", "step"])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_both_modes(digits_model, mode, solver):
    made = tk.regional(digits_model, halves(), mode=mode, solver=solver, steps=3, **QUIET)
    assert png(D.plot_regions(made)).std() > 10


def test_shares_that_change_from_level_to_level(changing):
    axes = drawn(D.plot_regions(changing))
    assert len(axes) == 6
    first, low, cut, shares, *_ = axes.values()
    assert first.get_title(loc="left").endswith(f"σ {float(changing.sigma[0]):.3g}")
    assert not np.allclose(first.get_images()[0].get_array(), low.get_images()[0].get_array())
    mean = changing.weight.mean(("y", "x"))
    for name, points in data(shares).items():
        np.testing.assert_allclose(points[:, 1], mean.sel(region=name)[:6], atol=1e-12)
    assert set(data(cut)) == set(data(shares)) == {"base", "late", "ramp"}
    conflict = data(axes["How far they disagree"])
    assert len(conflict["late"]) < len(conflict["ramp"]) == 6, "one that has not joined has no opinion"


def test_a_long_record_is_read_by_blocks(changing, monkeypatch):
    whole = png(D.plot_regions(changing))
    monkeypatch.setattr(regional, "BLOCK", 1)
    np.testing.assert_array_equal(png(D.plot_regions(changing)), whole)


def test_masks_that_differ_by_sample(digits_model):
    masks = np.stack([tk.box(0, 0, 0.5, 1, size=SIZE), tk.box(0.5, 0, 1, 1, size=SIZE)])
    region = tk.Region(masks, prompt=3, name="half")
    made = tk.regional(digits_model, [region], steps=3, shape=(2, 4, *SIZE), **QUIET)
    maps = []
    for sample in (None, 0, 1):
        axes = drawn(D.plot_regions(made, sample=sample))
        maps.append(next(iter(axes.values())).get_images()[0].get_array())
        points = data(axes["How far they disagree"])["half"]
        wanted = made.conflict.sel(region="half")[:3]
        wanted = wanted.median("sample") if sample is None else wanted.isel(sample=sample)
        np.testing.assert_allclose(points[:, 1], wanted)
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_allclose(maps[2], maps[1][:, ::-1], atol=1e-12)
    text = axes["How far they disagree"].texts[0].get_text().replace("\n", " ")
    assert text.endswith("sample 1")


def test_a_level_of_ones_own(changing):
    axes = drawn(D.plot_regions(changing, sigma=3.0))
    near = changing.isel(step=int(np.abs(changing.sigma.values - 3.0).argmin()))
    title = list(axes)[1]
    assert title.endswith(f"σ {float(near.sigma):.3g}")
    cut = data(axes["The same along the dashed line"])
    np.testing.assert_array_equal(cut["ramp"][:, 1], near.weight.sel(region="ramp")[4])


def test_regions_one_above_the_other_are_cut_downwards(digits_model):
    top = tk.Region(tk.box(0.0, 0.0, 1.0, 0.5, size=SIZE), prompt=3, feather=1.0)
    axes = drawn(D.plot_regions(tk.regional(digits_model, [top], steps=2, **QUIET)))
    cut = axes["The same along the dashed line"]
    assert cut.get_xlabel() == "y [latent pixels], at x = 4"
    assert np.diff(data(cut)["region 1"][:, 1]).min() < -0.2


def test_an_unsample_and_its_replay(digits_model):
    latent = digits_model.encode(tk.assets.digits("held-out")[0][:2])
    up = tk.unsample(digits_model, latent, solver="obelm", regions=halves(), steps=4, **QUIET)
    rest = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE), keep=True, name="kept")
    down = tk.sample(digits_model, start=up, regions=[rest, halves()[1]], **QUIET)
    for made in (up, down):
        axes = drawn(D.plot_regions(made))
        points = data(axes["How far they disagree"])["right"]
        assert np.isfinite(points).all() and (points[:, 0] > 0).all()
    assert "kept" in data(axes["The same along the dashed line"])


def test_from_a_store(digits_model, tmp_path):
    store = tmp_path / "run.zarr"
    made = tk.regional(digits_model, halves(), steps=3, save=tk.Save(store=store), **QUIET)
    np.testing.assert_array_equal(png(D.plot_regions(tk.open(store))), png(D.plot_regions(made)))


def test_the_run_is_left_as_it_was(run):
    before = run.copy(deep=True)
    D.plot_regions(run, sample=1, sigma=1.0)
    assert run.identical(before)


def test_without_pyplot_and_torch(digits_model, tmp_path):
    store = tmp_path / "run.zarr"
    tk.regional(digits_model, halves(), steps=2, save=tk.Save(store=store), **QUIET)
    code = (
        "import sys\n"
        "import toolkit as tk\n"
        f"tk.diagnostics.plot_regions(tk.open({str(store)!r})).savefig('/dev/null', format='png')\n"
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- bad input ----


@pytest.mark.parametrize(
    "given, kind, said",
    [
        (lambda run: (run.latent,), TypeError, "ds='DataArray': a Dataset of a run with regions"),
        (lambda run: (run.drop_vars("weight"),), ValueError, "weight is not there"),
        (
            lambda run: (tk.testing.ladder_dataset(),),
            ValueError,
            "weight, conflict, seam_gradient is not there",
        ),
        (lambda run: (run, 3), ValueError, "sample=3: a whole number from 0 to 2"),
        (lambda run: (run, -1), ValueError, "sample=-1"),
        (lambda run: (run, True), ValueError, "sample=True"),
        (lambda run: (run, None, "low"), TypeError, "sigma='low': a noise level"),
        (lambda run: (run, None, np.nan), TypeError, "sigma=nan"),
    ],
)
def test_bad_input_says_what_to_type(run, digits_model, given, kind, said):
    with pytest.raises(kind, match=re.escape(said)) as caught:
        D.plot_regions(*given(run))
    line = str(caught.value).split("Try: ")[1]
    made = eval(line, {"tk": tk, "model": digits_model, "regions": halves()})
    assert isinstance(made, Figure)


def test_the_node_has_no_shares_to_draw(digits_model):
    import torch

    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1.0
    base, three = (tk.comfy.KSamplerAdvanced(positive=p, cfg=2.0) for p in (0, 3))
    with pytest.warns(UserWarning, match="RegionalSamplerAdvanced"):
        made = tk.comfy.regional_sampler_advanced(
            digits_model, steps=2, end_at_step=2, latent_image=torch.zeros(1, 4, 8, 8), base_sampler=base,
            regional_prompts=[tk.comfy.RegionalPrompt(mask, three)])  # fmt: skip
    with pytest.raises(ValueError, match=r"a run of tk\.regional"):
        D.plot_regions(made)
