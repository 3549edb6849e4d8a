"""Runs that nobody made to be looked at: each view draws them sensibly, or says why not before it exists."""

import json
import re

import numpy as np
import pytest
import xarray as xr

import toolkit as tk

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\''
BASE = tk.testing.unsample_dataset(steps=4, size=8)
VIEWS = {
    "scrub": tk.view,
    "normalize": tk.views.normalize,
    "compare": lambda ds: tk.views.compare(ds, ds),
    "regions": lambda ds: tk.views.regions([tk.Region(np.ones((8, 8)), name=EVIL)], run=ds),
}


def wide(height: int, width: int) -> xr.Dataset:
    values = np.random.default_rng(0).standard_normal((4, 1, 17, height, width))
    levels = {"sigma": ("step", [0.0, 0.1, 1.0, 10.0])}
    return xr.Dataset({"latent": (("step", "sample", "channel", "y", "x"), values)}, levels)


def spoilt(rows: slice, value: float) -> xr.Dataset:
    run = BASE.copy(deep=True)
    run.latent.values[rows] = value
    return run


DRAWN = {
    "names": BASE.assign_attrs(solver=EVIL, schedule=EVIL, prompt=EVIL, kind=EVIL),
    "names of channels": BASE.assign_coords(channel=[f"{EVIL}{c}" for c in range(4)]),
    "one row NaN": spoilt(slice(2, 3), np.nan),
    "one row Inf": spoilt(slice(2, 3), np.inf),
    "all NaN": spoilt(slice(None), np.nan),
    "one rung": BASE.isel(step=[2]),
    "17 channels, low and wide": wide(8, 128),
    "17 channels, high and narrow": wide(128, 8),
    "whole numbers": BASE.assign(latent=BASE.latent.round().astype(int)),
    "float16": BASE.astype("float16"),
}
REFUSED = {
    "no sample": (BASE.isel(sample=[]), "sample=0"),
    "no channel": (BASE.isel(channel=[]), "channel=0"),
    "complex": (BASE.assign(latent=BASE.latent.astype(complex)), "real numbers"),
    "no level": (BASE.assign_coords(sigma=("step", np.full(5, np.nan))), "finite level"),
    "no Dataset": (7, "Dataset"),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", DRAWN)
def test_it_is_drawn(case, view, tmp_path):
    """As a page, in which text is only ever text; as a picture, without a warning."""
    if "channels" in case and view == "regions":
        view = "scrub"  # its masks are square
    made = VIEWS[view](DRAWN[case])
    page = made.to_html(tmp_path / "run.html").read_text("utf-8")
    assert page.count("<script") == 3 == page.count("</script>")  # those of the page
    assert "<img" not in page
    (state,) = re.findall(r'<script type="application/json" id="state">(.*?)</script>', page, re.DOTALL)
    assert (EVIL in json.dumps(json.loads(state)).replace('\\"', '"')) == (
        "names" in case or view == "regions"
    )
    if case in ("one row NaN", "one row Inf", "all NaN", "one rung"):
        assert made.save(tmp_path / "run.png").stat().st_size > 5_000


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case, view):
    given, said = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=rf"{said}.*Try: tk\.view"):
        VIEWS[view](given)
