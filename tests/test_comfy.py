"""ComfyUI's nodes: their numbers, and their quirks by name."""

import re

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import DATA, reference_mixture

import toolkit as tk

with np.load(DATA / "unsample.npz") as _data:
    REFERENCE = dict(_data)
KEY = re.compile(
    r"(?P<kind>eps|flow)(?P<batch>_batch2)?__(?P<sampler>\w+?)__(?P<sch>[a-z_]+?)__s(?P<s>\d+)__end(?P<end>\d+)__cfg(?P<cfg>[\d.]+)"
    r"__norm(?P<norm>\d)__mask(?P<mask>\d)__out_f64run$"
)
CASES = [key for key in REFERENCE if key.endswith("out_f64run")]


@pytest.fixture(scope="module")
def models(reference):
    return {kind: reference_mixture(reference, path) for kind, path in (("eps", tk.VE), ("flow", tk.FLOW))}


def case(key):
    """The node's parameters of a reference key."""
    m = KEY.match(key)
    assert m, f"a key that is not understood: {key}"
    image = REFERENCE["image_batch2" if m["batch"] else "image"]
    latent = {"samples": torch.from_numpy(image).double()}
    if m["mask"] == "1":
        latent["noise_mask"] = torch.from_numpy(REFERENCE["noise_mask_image_res"])
    return m["kind"], {
        "steps": int(m["s"]),
        "end_at_step": int(m["end"]),
        "cfg": float(m["cfg"]),
        "sampler_name": m["sampler"],
        "scheduler": m["sch"],
        "normalize": "enable" if m["norm"] == "1" else "disable",
        "positive": 0,
        "negative": 1,
        "latent_image": latent,
    }


@pytest.mark.parametrize("key", CASES)
def test_the_unsampler_meets_the_reference(models, key):
    kind, asked = case(key)
    got = tk.comfy.unsampler(models[kind], **asked).latent[-1].values
    want = REFERENCE[key].astype(np.float64)
    masked = "noise_mask" in asked["latent_image"]
    # upstream's step is float32, and a mask multiplies its rounding by sigma_last/1e-4
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < (3e-3 if masked else 2e-4)


def test_the_reference_covers_masks_batches_normalising_and_both_paths():
    found = [KEY.match(k).groupdict() for k in CASES if KEY.match(k)]
    for part, values in {
        "kind": {"eps", "flow"},
        "norm": {"0", "1"},
        "mask": {"0", "1"},
        "end": {"0", "5"},
    }.items():
        assert values <= {f[part] for f in found}, part
    assert any(f["batch"] for f in found)


def node(model, images, **asked):
    return tk.comfy.unsampler(
        model, latent_image={"samples": images["in"], **asked.pop("extra", {})}, positive=0, **asked
    )


def test_quirks_are_named_when_they_hold(models, images):
    flow = models["flow"]
    assert node(models["eps"], images).attrs["quirks"] == ["sigma_shift"]
    assert "flow_over_alpha" in node(flow, images).attrs["quirks"]
    assert "range_clamped" in node(models["eps"], images, end_at_step=99).attrs["quirks"]
    assert "normalized_whole" in node(models["eps"], images, normalize="enable").attrs["quirks"]
    assert "end_from_bottom" in node(models["eps"], images, scheduler="beta", steps=200).attrs["quirks"]
    masks = torch.zeros(2, 16, 16)
    masks[0, :8], masks[1, 8:] = 0.5, 1.0
    quirks = node(models["eps"], images, extra={"noise_mask": masks}).attrs["quirks"]
    assert {"mask_passed_on", "mask_fitted_twice", "mask_complement_float32"} <= set(quirks)


def test_easy_unsampler_is_the_same_with_a_pipe(models, images):
    """Its pipe gets the output LATENT with all keys of the input's; what was optional_* stays out."""
    latent = {"samples": images["in"], "noise_mask": torch.ones(16, 16), "batch_index": [0, 1]}
    pipe = {"model": models["eps"], "positive": 0, "negative": 1, "samples": latent, "seed": 7}
    asked = {"steps": 6, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "normalize": "enable"}
    plain = tk.comfy.unsampler(models["eps"], positive=0, negative=1, latent_image=latent, **asked)
    after, run = tk.comfy.easy_unsampler(pipe, **asked)
    np.testing.assert_array_equal(run.latent, plain.latent)
    assert (run.attrs["node"], plain.attrs["node"]) == ("unSampler", "Unsampler")
    assert after["samples"]["samples"].dtype == torch.float32
    np.testing.assert_array_equal(after["samples"]["samples"], plain.latent[-1].values.astype(np.float32))
    assert after["samples"]["batch_index"] == [0, 1]
    assert {k: v for k, v in after.items() if k != "samples"} == {
        k: v for k, v in pipe.items() if k != "samples"
    }
    assert pipe["samples"] is latent
    empty, other = tk.comfy.easy_unsampler(
        steps=3,
        optional_model=models["flow"],
        optional_positive=2,
        optional_negative=1,
        optional_latent=images["in"],
    )
    assert list(empty) == ["samples"]
    assert other.attrs["path"] == "FLOW"
    won = tk.comfy.easy_unsampler(pipe, steps=3, optional_positive=2)[1]
    assert won.attrs["prompt"] == 2


@pytest.mark.parametrize("missing", ["model", "positive", "negative", "samples"])
def test_easy_unsampler_says_what_is_missing(models, images, missing):
    pipe = {"model": models["eps"], "positive": 0, "negative": 1, "samples": images["in"]}
    del pipe[missing]
    with pytest.raises(TypeError, match=r"optional_\w+=None.*Try: tk\.comfy\.easy_unsampler\("):
        tk.comfy.easy_unsampler(pipe)
    with pytest.raises(TypeError, match="a dict"):
        tk.comfy.easy_unsampler([1])


@pytest.mark.parametrize("name", ["ays_sd1", "beta57", "kamas"])
def test_schedulers_are_comfyuis_nine(models, images, name):
    with pytest.raises(ValueError, match=r"scheduler=.*Try: "):
        node(models["eps"], images, scheduler=name)


def test_a_flow_model_comes_out_multiplied_by_minus_ten_thousand(models, images):
    run = node(models["flow"], images)
    state = run.latent[-1].values * (1.0 - 1.0001)
    plain = tk.unsample(
        models["flow"],
        images["in"],
        inverse="reverse",
        schedule="simple",
        sigma_shift=1e-4,
        prompt=0,
        progress=False,
    )
    assert np.linalg.norm(state - plain.latent[-1].values) / np.linalg.norm(state) < 1e-3
    assert abs(run.latent[-1].values).max() > 1e4


def test_several_masks_all_go_to_the_first_samples(models, images):
    """Fitted twice: sample b takes mask floor(b / channels), so a batch of two sees the first mask only."""
    masks = torch.zeros(2, 16, 16)
    masks[0, :8], masks[1, 8:] = 1.0, 1.0
    run = node(models["eps"], images, extra={"noise_mask": masks}, steps=4)
    np.testing.assert_array_equal(run.mask.values, np.stack([masks[0].numpy()] * 2))
    np.testing.assert_allclose(run.latent[-1].values[1, :, 12:], images["in"][1, :, 12:], atol=1e-5)


def test_rows_are_in_the_space_of_the_vae(reference, images):
    model = reference_mixture(reference)
    plain = node(model, images, steps=5)
    model.latent_scale = 0.18215
    scaled = tk.comfy.unsampler(model, steps=5, positive=0, latent_image=images["in"] / 0.18215)
    np.testing.assert_allclose(scaled.latent.values * 0.18215, plain.latent.values, rtol=1e-6, atol=1e-7)
    assert scaled.attrs["latent_space"] == "vae"
    normal = tk.comfy.unsampler(
        model, steps=5, positive=0, normalize="enable", latent_image=images["in"] / 0.18215
    )
    assert normal.latent[-1].values.std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    assert "normalized_vae_space" in normal.attrs["quirks"]


def test_it_is_recorded_behind_its_device(models, images, behind_a_device):
    """From a GPU rows are taken one hop late, so the record must know where the states are."""

    def run():
        asked = {"steps": 4, "positive": 0, "negative": 1, "cfg": 2.0}
        return tk.comfy.unsampler(models["eps"], sampler_name="heun", latent_image=images["in"], **asked)

    behind_a_device(run)


def test_the_input_is_left_alone(models, images):
    given = {"samples": images["in"].clone(), "noise_mask": torch.ones(16, 16)}
    tk.comfy.unsampler(models["eps"], steps=2, positive=0, latent_image=given)
    assert torch.equal(given["samples"], images["in"])
    assert sorted(given) == ["noise_mask", "samples"]


@pytest.mark.parametrize(
    "name", ["euler_ancestral", "ddim", "uni_pc", "heunpp2", "euler_cfg_pp", "midpoint", "obelm"]
)
def test_samplers_that_do_not_run_upwards_are_refused_with_what_does_it(models, images, name):
    """The line to type brings the image back."""
    with pytest.raises(ValueError, match=r"sampler_name=.*upwards.*here \w+ brings its image back") as said:
        node(models["eps"], images, sampler_name=name)
    assert str(said.value).endswith(f'Try: tk.unsample(model, latent, solver="{name}")')
    asked = {"solver": name, "prompt": 0, "steps": 5, "progress": False}
    assert float(tk.round_trip(models["eps"], images["in"], **asked).error.max()) < 1e-11


def test_a_sampler_that_is_not_there_gets_the_closest(models, images):
    with pytest.raises(ValueError, match=r'no such sampler_name.*Try: .*sampler_name="euler"'):
        node(models["eps"], images, sampler_name="elur")


# --- the space of the VAE


def test_a_picture_is_in_model_space_when_it_is_encoded(digits_model):
    from PIL import Image

    pixels = tk.assets.digits()[0][0]
    picture = Image.fromarray((np.asarray(pixels) * 255).astype(np.uint8).squeeze())
    encoded = digits_model.encode(picture)
    by_picture = tk.comfy.unsampler(digits_model, steps=3, positive=0, latent_image=picture)
    by_latent = tk.comfy.unsampler(
        digits_model, steps=3, positive=0, latent_image=encoded / digits_model.latent_scale
    )
    xr.testing.assert_allclose(by_picture, by_latent, rtol=1e-6, atol=1e-6)
    bound = tk.comfy.unsampler(
        tk.guide(digits_model, 0), steps=3, latent_image=encoded / digits_model.latent_scale
    )
    np.testing.assert_allclose(bound.latent[0], by_latent.latent[0], rtol=1e-12)


def test_a_latent_with_a_shift_goes_in_and_comes_out(reference):
    model = reference_mixture(reference)
    model.latent_scale, model.latent_shift = 0.3611, 0.1159
    latent = torch.from_numpy(reference["image_batch2_f64"])
    run = tk.comfy.unsampler(model, steps=4, positive=0, latent_image=latent / 0.3611 + 0.1159)
    plain = tk.comfy.unsampler(reference_mixture(reference), steps=4, positive=0, latent_image=latent)
    np.testing.assert_allclose(run.latent, plain.latent.values / 0.3611 + 0.1159, rtol=1e-6, atol=1e-6)
    back = tk.in_space(run, "model")
    np.testing.assert_allclose(back.latent, plain.latent, rtol=1e-6, atol=1e-6)
    zeros = tk.comfy.unsampler(model, steps=4, positive=0, latent_image=torch.zeros_like(latent))
    np.testing.assert_allclose(zeros.latent[0], 0.1159, rtol=1e-12)  # zeros are not transformed on the way in
