"""``ds.ladder`` delegates, and is there on explicit import only."""

import subprocess
import sys

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


def test_views_get_the_dataset_the_path_and_the_model(monkeypatch):
    calls = []
    monkeypatch.setattr(tk.views, "view", lambda *a, **k: calls.append((a, k)) or "widget", raising=False)
    monkeypatch.setattr(tk.views, "to_html", lambda *a, **k: calls.append((a, k)) or "page", raising=False)
    ds = tk.testing.ladder_dataset()
    assert ds.ladder.view(model="m") == "widget" and ds.ladder.to_html("run.html") == "page"
    assert calls[0][0][0] is ds and calls[0][1] == {"model": "m"}
    assert calls[1][0][0] is ds and calls[1][0][1] == "run.html" and calls[1][1] == {"model": None}


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
