"""The embedded model is real: what it weighs, what it draws, and that exact inverses are exact on it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit as tk

FOLDER = Path(tk.__file__).parent / "assets" / "digits"


@pytest.fixture(scope="module")
def held_out(digits_model):
    """Four digits the model never saw, encoded, and their labels."""
    images, labels = tk.assets.digits("held-out")
    return digits_model.encode(images[:4]), [int(k) for k in labels[:4]], images[:4]


def test_the_folder_is_small_and_safe():
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 6_000_000
    assert not [p for p in files if p.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "DiTPipeline"


def test_what_it_is(digits_model):
    assert (digits_model.shape, digits_model.classes, digits_model.path) == ((4, 8, 8), 10, tk.VE)
    assert digits_model.network.dtype == torch.float32
    assert digits_model.levels.sigma_max == pytest.approx(14.6146, rel=1e-4)
    assert len(digits_model.fingerprint) == 16


def test_the_splits_do_not_meet():
    every, train, held = (tk.assets.digits(s) for s in ("all", "train", "held-out"))
    assert len(train[0]) + len(held[0]) == len(every[0]) == 1797
    seen = {image.tobytes() for image in train[0]}
    # the data set itself holds a few pairs of equal images; none of them is split
    assert sum(image.tobytes() in seen for image in held[0]) == 0
    assert np.bincount(held[1]).min() > 25
    assert (every[0].dtype, every[0].min(), every[0].max()) == (np.float32, 0.0, 1.0)
    with pytest.raises(ValueError, match="held-out"):
        tk.assets.digits("test")


def test_held_out_digits_survive_the_vae(digits_model):
    images, _ = tk.assets.digits("held-out")
    back = digits_model.decode(digits_model.encode(images))[..., 0]
    psnr = -10 * np.log10(np.square(back - images).mean())
    assert psnr >= 28.0


def test_it_draws_the_digit_that_is_asked_for(digits_model):
    """A smaller run of `quality_digits`: 100 samples, judged by a classifier of the real training digits."""
    from sklearn.svm import SVC

    images, labels = tk.assets.digits("train")
    judge = SVC(gamma="scale", C=10).fit(images.reshape(len(images), -1), labels)
    asked = [k for k in range(10) for _ in range(10)]
    run = tk.sample(
        digits_model, prompt=asked, cfg=2.0, solver="dpmpp_2m", save=tk.Save(every=20), progress=False
    )
    drawn = digits_model.decode(run.latent[-1])[..., 0]
    assert (
        judge.predict(drawn.reshape(100, -1)) == asked
    ).mean() >= 0.94  # 97 % of 500 is the figure to hold


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("name", ["obelm", "euler", "dpmpp_2m", "heun", "lms", "midpoint"])
def test_there_and_back(digits_model, held_out, name, cfg):
    latent, labels, _ = held_out
    trip = tk.round_trip(digits_model, latent, solver=name, prompt=labels, cfg=cfg, steps=20, progress=False)
    assert float(trip.error.max()) < 1e-9


def test_the_image_comes_back_as_an_image(digits_model, held_out):
    latent, labels, images = held_out
    up = tk.unsample(digits_model, latent, prompt=labels, steps=20, progress=False)
    down = tk.sample(digits_model, start=up, progress=False)
    np.testing.assert_allclose(digits_model.decode(down.latent[-1]), digits_model.decode(latent), atol=1e-6)
    assert np.sqrt(np.square(digits_model.decode(down.latent[-1])[..., 0] - images).mean()) < 0.06
    # the top is noise of about its level: images that the model never saw come out somewhat below it
    ratio = up.latent[-1].values.std((1, 2, 3)) / float(up.sigma[-1])
    assert np.all((ratio > 0.5) & (ratio < 1.2))


def test_text_labels_and_the_null_class(digits_model):
    x = torch.ones((1, 4, 8, 8), dtype=torch.float64)
    three = tk.guide(digits_model, prompt=3).denoise(x, 1.0).x0
    assert torch.equal(tk.guide(digits_model, prompt="3").denoise(x, 1.0).x0, three)
    assert not torch.equal(tk.guide(digits_model).denoise(x, 1.0).x0, three)
