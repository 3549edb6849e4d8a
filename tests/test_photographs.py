"""The photographs: a linear autoencoder, an exact prior over its latents, and runs that come back."""

import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import toolkit as tk
from toolkit.pipelines.photographs import CHANNELS, CREDITS, FLOOR
from toolkit.spectral import dct

QUICK = {"schedule": "karras", "steps": 20, "progress": False}


@pytest.fixture(scope="module")
def model():
    return tk.load("photographs")


@pytest.fixture(scope="module")
def images(model):
    return model.images()


@pytest.fixture(scope="module")
def latent(model, images):
    return model.encode(images[0])


def psnr(got, want) -> np.ndarray:
    """dB, of each image."""
    return -10 * np.log10(np.square(got - want).mean((1, 2, 3)))


def test_what_it_is(model, images, latent):
    assert repr(model).startswith("photographs(path=VE, latent=16 x 64 x 64")
    assert "prompts=china/flower/both" in repr(model)
    assert (model.shape, model.channels, model.latent_scale) == ((16, 64, 64), CHANNELS, 1.0)
    assert model.levels.sigma_max == pytest.approx(14.6146, rel=1e-4)
    shown, prompts = images
    assert (shown.shape, shown.dtype, prompts) == ((2, 256, 256, 3), np.float32, ["china", "flower"])
    assert 0 <= shown.min() < 0.05 < 0.95 < shown.max() <= 1
    assert (latent.shape, latent.dtype) == ((2, 16, 64, 64), torch.float64)
    np.testing.assert_allclose(latent.std((0, 2, 3)), 1.0, atol=1e-3)  # unit std, channel by channel


def test_the_authors_are_named(model):
    assert model.credits == CREDITS
    for words in ("danielbuechele", "6061409035", "vultilion", "6056698931", "CC BY 2.0"):
        assert words in " ".join(model.credits)
    for link in re.findall(r"https://\S+?(?=[,)])", " ".join(model.credits)):
        assert link in type(model).__doc__


def test_the_autoencoder_is_good_enough(model, images, latent):
    """34.0 and 37.1 dB: 16 numbers for the 48 of a patch."""
    back = model.decode(latent)
    assert (back.shape, back.dtype) == ((2, 256, 256, 3), np.float32)
    assert psnr(back, images[0]).min() >= 33.5
    assert back.min() >= 0.0
    assert back.max() <= 1.0


def test_the_autoencoder_is_exact_in_its_own_space(model):
    """encode(decode(z)) = z, and decode(encode(.)) an orthogonal projector: self-adjoint, idempotent."""
    codec, rng = model.codec, np.random.default_rng(0)
    z = rng.standard_normal((2, CHANNELS, 3, 5))
    image = codec.synthesise(z)
    assert image.shape == (2, 12, 20, 3)
    np.testing.assert_allclose(codec.analyse(image), z, atol=1e-12)
    np.testing.assert_allclose(codec.basis.T @ codec.basis, np.eye(CHANNELS), atol=1e-12)

    def project(p):
        mean = codec.synthesise(np.zeros((1, CHANNELS, 3, 5)))
        return codec.synthesise(codec.analyse(p + mean)) - mean

    p, q = rng.standard_normal((2, 1, 12, 20, 3))
    assert np.vdot(project(p), q) == pytest.approx(np.vdot(p, project(q)), rel=1e-10)
    np.testing.assert_allclose(project(project(p)), project(p), atol=1e-12)
    assert np.linalg.norm(project(p)) < 0.8 * np.linalg.norm(p)  # a third of the numbers is kept


def test_the_channels_are_in_an_order_to_look_at(model, images, latent):
    """Colours first, brightness at their head and bright side up; structure after them, by its variance."""
    grey = (
        torch.from_numpy(images[0].mean(-1)).double().unflatten(1, (64, 4)).unflatten(3, (64, 4)).mean((2, 4))
    )
    bright = torch.corrcoef(torch.stack([latent[:, 0].flatten(), grey.flatten()]))[0, 1]
    assert float(bright) > 0.99
    # diagonal neighbours of a colour are alike, those of a structure are not
    alike = (latent[..., 1:, 1:] * latent[..., :-1, :-1]).mean((0, 2, 3))
    assert min(alike[:3]) > 0.7 > 0.35 > max(abs(alike[3:]))
    assert np.all(np.diff(model.codec.std[3:]) < 0)


def test_a_photograph_is_typical_of_its_prior(model, latent):
    """Of a residual with the model's own spectrum: squared, over the variance, it is 1 on average."""
    rest = dct(latent) - dct(model.means)
    ratio = (rest.square() / model.variances).mean((1, 2, 3))
    np.testing.assert_allclose(ratio, 1.0, atol=0.03)
    assert float(model.variances.min()) >= FLOOR
    # and one alone has the whole of it: no draw is the photograph, none is far from it
    drawn = model.draw(2, ["china", "flower"], seed=1)
    share = (drawn - latent).flatten(1).norm(dim=1) / latent.flatten(1).norm(dim=1)
    assert bool(((share > 0.2) & (share < 0.6)).all())


def test_samples_are_of_what_was_asked_for(model, images):
    run = tk.sample(model, prompt=["china", "flower"], solver="dpmpp_2m", seed=1, **QUICK)
    drawn = model.decode(run.latent[-1])
    assert psnr(drawn, images[0]).min() > 17
    assert psnr(drawn, images[0][::-1]).max() < 11
    again = tk.sample(model, prompt="china", solver="dpmpp_2m", seed=2, **QUICK)
    assert not np.allclose(model.decode(again.latent[-1]), drawn[:1], atol=0.1)


def test_the_two_without_a_prompt(model):
    """None and "both" are the mixture; where it is decided, it says what the one photograph says."""
    x = model.draw(2, ["china", "flower"], seed=0)
    alone = tk.guide(model, ["china", "flower"]).denoise(x, 2.0).x0
    for prompt in (None, "both"):
        assert torch.allclose(tk.guide(model, prompt).denoise(x, 2.0).x0, alone, atol=1e-12)
    # on FLOW pure noise decides nothing: seeds give one or the other
    flow = tk.load("photographs", path=tk.FLOW)
    assert (flow.path, flow.levels.sigma_max) == (tk.FLOW, 1.0)
    run = tk.sample(flow, shape=(6, *flow.shape), solver="dpmpp_2m", steps=12, progress=False)
    far = (torch.from_numpy(run.latent[-1].values)[:, None] - flow.means).flatten(2).norm(dim=2)
    assert set(far.argmin(1).tolist()) == {0, 1}


@pytest.mark.parametrize(("solver", "path"), [("dpmpp_2m", "VE"), ("obelm", "VE"), ("heun", "FLOW")])
def test_there_and_back(latent, solver, path):
    model = tk.load("photographs", path=getattr(tk, path))
    prompts = ["china", "flower"]
    trip = tk.round_trip(model, latent, solver=solver, prompt=prompts, truth=False, steps=20, progress=False)
    assert float(trip.error.max()) < 1e-11
    np.testing.assert_allclose(trip.std_ratio, 1.0, atol=0.1)  # as much noise as there should be


def test_the_noise_of_a_photograph_is_accurate(model, latent):
    """The truth is known: 9e-4 over karras, where `normal` leaves 3.6e-2 in its first hop, 0.03 to 0.23."""
    error = {
        name: tk.round_trip(
            model, latent[:1], prompt="china", solver="dpmpp_2m", schedule=name, progress=False
        )
        for name in ("karras", "normal")
    }
    assert float(error["karras"].accuracy[0]) < 2e-3
    assert 1e-2 < float(error["normal"].accuracy[0]) < 5e-2


def test_images_of_every_kind_encode_alike(model, images, latent):
    eight = (255 * images[0]).round().astype(np.uint8)
    pictures = [Image.fromarray(a) for a in eight]
    for same in (pictures, eight, list(images[0]), torch.from_numpy(images[0])):
        assert torch.allclose(model.encode(same), latent, atol=1e-5)
    assert torch.allclose(model.encode(pictures[0]), latent[:1], atol=1e-5)
    assert model.encode(images[0][0, ..., 0]).shape == (1, 16, 64, 64)  # grey
    run = tk.unsample(model, pictures[0], prompt="china", steps=2, progress=False)
    np.testing.assert_allclose(run.latent[0], latent[:1], atol=1e-5)
    for rung in (run.latent[0], run.latent[0].transpose("y", "x", "sample", "channel")):
        np.testing.assert_allclose(model.decode(rung), model.decode(latent[:1]), atol=1e-5)


def test_the_fingerprint_is_of_the_photographs(model):
    again = tk.load("photographs")
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.means, model.means)
    assert torch.equal(again.variances, model.variances)
    assert len(model.fingerprint) == 16


def test_what_it_does_not_take_is_refused(model, latent):
    for prompt, line in (("chin", 'prompt="china"'), ("Flower", 'prompt="flower"'), (0, "prompt=")):
        with pytest.raises(ValueError, match=rf'prompt=.*"china", "flower", "both".*Try: {line}'):
            tk.guide(model, prompt)
    with pytest.raises(ValueError, match=r"image=\(427, 640\).*256 x 256 pixels.*Try: image\.resize"):
        model.encode(np.zeros((427, 640, 3), np.uint8))
    with pytest.raises(ValueError, match=r"image=.*0\.\.1"):
        model.encode(np.full((256, 256, 3), 2.0))
    with pytest.raises(ValueError, match=r"latent=.*16 channels"):
        model.decode(latent[:, :4])
    with pytest.raises(ValueError, match=r'dtype=torch.float16: .*float64.*Try: tk\.load\("photographs"\)'):
        tk.load("photographs", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"option='revision': .*path, levels"):
        tk.load("photographs", revision="main")
    with pytest.raises(TypeError, match=r"path='FLOW': tk\.VE or tk\.FLOW"):
        tk.load("photographs", path="FLOW")
    with pytest.raises(ValueError, match=r'tk\.load\("photographs"\)'):
        tk.load("photograph")
    assert tk.load("photographs", dtype=torch.float64, device="cpu").device == torch.device("cpu")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'Try: pip install "unsampling-toolkit\[notebooks\]"'):
        tk.load("photographs")


def test_the_views_show_photographs(model, latent, tmp_path):
    """The page and the strip: sixteen channels, and the picture that the model decodes."""
    prompts = ["china", "flower"]
    up = tk.unsample(model, latent, prompt=prompts, schedule="karras", steps=8, progress=False)
    page = tk.to_html(up, tmp_path / "run.html", model=model)
    assert page.stat().st_size > 100_000
    shown = tk.view(up, model=model)
    assert "16 channels" in repr(shown)
    strip = Image.open(
        io.BytesIO(tk.views.strip(up, tk.sample(model, start=up, progress=False), model=model))
    )
    colours = np.asarray(strip.convert("RGB"), np.float64)[:, : strip.width // 6].reshape(-1, 3)
    assert colours.std(0).min() > 20  # the photograph is at its left end
