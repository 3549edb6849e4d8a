"""Pictures of every view, light and dark, and what a look at them would find.

They lie in pytest's folder, or where TOOLKIT_PICTURES says:
``TOOLKIT_PICTURES=pictures pytest tests/browser/test_pictures.py``.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toolkit as tk
from browser.conftest import settled

LOOK = (Path(__file__).parent / "looks.js").read_text("utf-8")
PAPER = {"light": 255, "dark": 17}


@pytest.fixture(scope="module")
def photograph():
    """A photograph to noise, at guidance 1, with the model that decodes it."""
    model = tk.load("photographs")
    return unsampled(model, "dpmpp_2m", "karras", 20), model


def unsampled(model, solver, schedule, steps, **more):
    image = model.draw(1, "china", seed=0)
    asked = {"solver": solver, "schedule": schedule, "steps": steps, "progress": False}
    return tk.unsample(model, image, prompt="china", **asked, **more)


def compared(run, model):
    other = unsampled(model, "euler", "normal", 12, inverse="reverse")
    return tk.views.compare(run, other, model=model)


def regions(run, model):
    """Three on a photograph, with a hole and an overlap."""
    y, x = np.mgrid[:256, :256] / 255
    masks = {"sky": y < 0.56, "dahlia": np.hypot(y - 0.62, x - 0.5) < 0.3, "trees": (y > 0.6) & (x < 0.36)}
    prompts = {"sky": "china", "dahlia": "flower", "trees": "china"}
    made = [tk.Region(mask, prompt=prompts[name], name=name, feather=1.5) for name, mask in masks.items()]
    asked = {"solver": "dpmpp_2m", "schedule": "karras", "steps": 20, "shape": (1, *model.shape)}
    fused = tk.regional(model, made, **asked, progress=False)
    return tk.views.regions(made, model.decode(fused.latent[-1])[0], run=fused)


VIEWS = {
    "scrubber": lambda run, model: tk.views.scrub(run, model=model),
    "normalise": lambda run, model: tk.views.normalize(tk.testing.ladder_dataset(size=64), "channel"),
    "schedule": lambda run, model: tk.views.schedules(),
    "regions": regions,
    "compare": compared,
}


@pytest.fixture
def folder(tmp_path):
    path = Path(os.environ.get("TOOLKIT_PICTURES", tmp_path))
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_looks_as_it_should(opened, photograph, folder, name):
    view, pictures, faults = VIEWS[name](*photograph), {}, []
    if hasattr(view, "rung"):
        view.rung = 9
    for scheme, paper in PAPER.items():
        page = opened(view, 944, 1000, color_scheme=scheme, device_scale_factor=2)
        for width in (944, 700, 420):
            page.set_viewport_size({"width": width, "height": 1000})
            settled(page)
            found = page.locator(".tk-view").evaluate(LOOK)
            faults += [f"{scheme}, {width} wide: {fault}" for fault in found]
            if width == 944:
                page.locator(".tk-view").screenshot(path=folder / f"{name}-{scheme}.png")
        assert not faults, "\n".join(faults)
        with Image.open(folder / f"{name}-{scheme}.png") as picture:
            pictures[scheme] = np.asarray(picture.convert("L")).astype(int)
        share = (abs(pictures[scheme] - paper) <= 1).mean()
        assert 0.15 < share < 0.95, f"{share:.2f} of it is paper"
    assert pictures["light"].shape == pictures["dark"].shape  # nothing moves with the theme
    assert (abs(pictures["light"] - pictures["dark"]) > 60).mean() > 0.2
