"""``ds.ladder`` delegates, and is there on explicit import only."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import toolkit as tk
import toolkit.accessor


def test_methods_give_what_the_functions_give():
    ds = tk.testing.ladder_dataset()
    xr.testing.assert_identical(ds.ladder.at(sigma=7), tk.at(ds, sigma=7))
    xr.testing.assert_identical(ds.ladder.at(step=3), ds.isel(step=3))
    xr.testing.assert_identical(ds.ladder.normalized("channel"), tk.normalized(ds, "channel"))
    xr.testing.assert_identical(ds.ladder.moments(), tk.diagnostics.moments(ds))


CALLS = [  # method, its arguments, the function, what that gets after the Dataset
    ("view", {"model": "m"}, "view", {"model": "m"}),
    ("scrub", {}, "view", {"model": None}),
    ("normalize", {"mode": "global"}, "normalize", {"mode": "global"}),
    ("regions", {"model": "m"}, "regions", {"model": "m"}),
    ("to_html", {"path": "run.html"}, "to_html", {"model": None}),
]


@pytest.mark.parametrize(("method", "given", "function", "wanted"), CALLS)
def test_views_get_the_dataset_and_what_is_asked(monkeypatch, method, given, function, wanted):
    calls = []
    monkeypatch.setattr(tk.views, function, lambda *a, **k: calls.append((a, k)) or "widget")
    ds = tk.testing.ladder_dataset()
    assert getattr(ds.ladder, method)(**given) == "widget"
    (place, named) = calls[0]
    assert place[0] is ds and list(place[1:]) == [v for k, v in given.items() if k == "path"]
    assert named == wanted


def test_other_runs_and_steps_are_passed_on(monkeypatch):
    calls = []
    monkeypatch.setattr(tk.views, "compare", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(tk.views, "schedules", lambda *a, **k: calls.append((a, k)))
    a, b = tk.testing.ladder_dataset(), tk.testing.unsample_dataset(steps=7)
    a.ladder.compare(b, names=["a", "b"])
    b.ladder.schedules("model")
    assert [run is other for run, other in zip(calls[0][0], (a, b), strict=True)] == [True, True]
    assert calls[0][1] == {"names": ["a", "b"]} and calls[1] == (("model",), {"steps": 7})


def test_the_real_views_come(tmp_path):
    run = tk.testing.regional_dataset(steps=3, size=8)
    assert repr(run.ladder.scrub()) == repr(tk.view(run))
    assert repr(run.ladder.normalize()) == repr(tk.views.normalize(run))
    assert repr(run.ladder.regions()) == repr(tk.views.regions(run))
    assert repr(run.ladder.compare(run)) == repr(tk.views.compare(run, run))
    assert run.ladder.schedules().steps == 3
    path = run.ladder.save(tmp_path / "run.gif", width=320, progress=False)
    assert path.read_bytes()[:4] == b"GIF8"


class Colours:
    def __init__(self):
        self.shapes = []

    def decode(self, latent):
        assert "step" not in latent.dims
        self.shapes.append(latent.shape)
        return np.clip(
            0.5 + 0.1 * np.moveaxis(np.asarray(latent)[:, :3], 1, -1).repeat(2, 1).repeat(2, 2), 0, 1
        )


def test_decode_gives_images_of_all_rungs_one_at_a_time():
    run, model = tk.testing.unsample_dataset(steps=4, size=6, samples=2), Colours()
    images = run.ladder.decode(model)
    assert images.name == "image" and images.dims == ("step", "sample", "y", "x", "rgb")
    assert images.shape == (5, 2, 12, 12, 3) and images.dtype == np.float32
    assert model.shapes == [(2, 4, 6, 6)] * 5
    np.testing.assert_array_equal(images.sigma, run.sigma)
    np.testing.assert_allclose(images[3], Colours().decode(run.latent[3].drop_vars("step")), rtol=1e-6)
    seen = run.ladder.decode(model, of="denoised")
    assert seen.isnull().all(("sample", "y", "x", "rgb")).values.tolist() == [True, False, False, False, True]
    one = tk.at(run, sigma=1).ladder.decode(model)
    assert one.dims == ("sample", "y", "x", "rgb") and float(one.sigma) == float(tk.at(run, sigma=1).sigma)


def test_decode_says_what_it_cannot(monkeypatch):
    run = tk.testing.ladder_dataset(steps=4, size=6)
    with pytest.raises(ValueError, match=r"of='denoised'.*Try: ds\.ladder\.decode\(model, of=\"latent\"\)"):
        run.ladder.decode(Colours(), of="denoised")
    with pytest.raises(TypeError, match=r"no decode.*Try"):
        run.ladder.decode("model")
    with pytest.raises(ValueError, match="no rung of it is finite"):
        run.where(False).ladder.decode(Colours())
    monkeypatch.setattr("toolkit.decoding.MOST", 5 * 12 * 12 * 3 * 4 // 2)
    with pytest.raises(ValueError, match=r"isel\(step=slice\(None, None, 2\)\)\.ladder\.decode\(model\)"):
        run.ladder.decode(Colours())
    assert run.isel(step=slice(None, None, 3)).ladder.decode(Colours()).sizes["step"] == 2


def test_any_dataset_has_it_and_the_functions_complain():
    empty = xr.Dataset()
    assert isinstance(
        empty.ladder, toolkit.accessor.Ladder
    )  # a constructor that checked would raise RuntimeError
    with pytest.raises(ValueError, match="`latent`"):
        empty.ladder.moments()
    with pytest.raises(ValueError, match="`latent`"):
        empty.ladder.normalized("channel")
    with pytest.raises(TypeError, match="exactly one level"):
        empty.ladder.at()


def test_only_on_explicit_import():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import toolkit as tk\n"
        "ds = tk.testing.ladder_dataset()\n"
        "before = hasattr(ds, 'ladder')\n"
        "import toolkit.accessor\n"
        "print(before, hasattr(ds, 'ladder'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]
