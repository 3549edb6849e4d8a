"""There and back: what `auto` picks returns the image, by replaying and not by copying; what it costs."""

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import DATA

import toolkit as tk
from toolkit.roundtrip import relative

DETERMINISTIC = [name for name, row in tk.SOLVERS.items() if not row.stochastic]
REVERSIBLE = [name for name, row in tk.SOLVERS.items() if row.reversible]
quiet = {"progress": False}


def back(model, up, **options) -> np.ndarray:
    """The image that a replay returns."""
    return tk.sample(model, start=up, **quiet, **options).latent[-1].values


def error(model, up, **options) -> float:
    return float(relative(back(model, up, **options), up.latent[0].values).max())


def edited(up, **variables):
    """The record with some of its arrays changed."""
    return up.assign({k: (up[k].dims, v, up[k].attrs) for k, v in variables.items()})


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("which", ["in", "off"])
@pytest.mark.parametrize("schedule", ["normal", "karras"])
def test_auto_returns_the_image(mixture, images, name, cfg, which, schedule):
    asked = {"prompt": 0, "negative": 1, "cfg": cfg, "schedule": schedule, "steps": 20}
    trip = tk.round_trip(mixture, images[which], solver=name, truth=False, **asked, **quiet)
    # the algebraic inverse keeps a pair of states, and under guidance loses digits where the parasite grows
    assert float(trip.error.max()) < (1e-9 if trip.attrs["inverse"] == "algebraic" and cfg > 1 else 1e-11)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_noise_is_that_of_the_true_ode(mixture, images, name):
    trip = tk.round_trip(mixture, images["in"], solver=name, prompt=0, steps=20, **quiet)
    assert float(trip.accuracy.max()) < 2e-2
    assert np.all(np.abs(trip.std_ratio - 1.0) < 0.1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_replay_replays(mixture, images, name):
    """Move x_T by 1e-3 and the image moves; so it does for another prompt; no other row is read."""
    up = tk.unsample(mixture, images["in"], solver=name, prompt=0, steps=8, **quiet)
    image = back(mixture, up)
    latent = up.latent.values.copy()
    latent[-1] *= 1.001
    assert relative(back(mixture, edited(up, latent=latent)), image).min() > 1e-7
    latent = up.latent.values.copy()
    latent[:-1] = 0.0
    np.testing.assert_array_equal(back(mixture, edited(up, latent=latent)), image)
    other = tk.sample(mixture, start=up, prompt=2, **quiet)
    assert relative(other.latent[-1].values, image).min() > 1e-3
    assert other.attrs["edited"] == ["prompt"]
    assert relative(back(mixture, up, cfg=3.0, negative=1), image).min() > 1e-4


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "obelm"])
def test_calls_are_those_of_the_method(mixture, images, name):
    """N positive intervals: the midpoint climb 2 N and the recording N; obelm N + 1 up and N - 1 down."""
    n = 11  # 12 steps of a schedule that ends at 0
    trip = tk.round_trip(mixture, images["in"], solver=name, prompt=0, steps=12, truth=False, **quiet)
    there, returning = trip.calls.values
    a_step = tk.SOLVERS[name].calls
    if name == "obelm":
        assert (there, returning) == (n + 1, n - 1)
    else:
        assert (there, returning) == (2 * n + a_step * n, a_step * n)


def test_any_solver_that_climbs_will_do(mixture, images):
    for via in [n for n, row in tk.SOLVERS.items() if row.upward]:
        up = tk.unsample(mixture, images["in"], via=via, prompt=0, cfg=3.0, negative=1, steps=10, **quiet)
        assert up.attrs["via"] == via
        assert error(mixture, up) < 1e-11


def test_offsets_hold_for_a_stochastic_solver_with_keyed_noise(mixture, images):
    up = tk.unsample(
        mixture,
        images["in"],
        solver="euler_ancestral",
        inverse="offsets",
        prompt=0,
        seed=3,
        steps=10,
        **quiet,
    )
    assert error(mixture, up) < 1e-11


@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in REVERSIBLE])
def test_reverse_is_close_at_cfg_1_and_closer_with_more_steps(mixture, images, name):
    """Not exact: its own last step returns D and not x/alpha, a floor of 4e-3 for this mixture on VE."""
    asked = {"solver": name, "inverse": "reverse", "prompt": 0, **quiet}
    few, many = (error(mixture, tk.unsample(mixture, images["in"], steps=n, **asked)) for n in (15, 60))
    assert 1e-4 < many < 0.1
    assert many < 0.6 * few


def test_reverse_warns_under_guidance(mixture, images):
    with pytest.warns(UserWarning, match="cfg 4"):
        up = tk.unsample(mixture, images["in"], inverse="reverse", prompt=0, negative=1, cfg=4.0, **quiet)
    assert error(mixture, up) > 0.1


def test_the_climb_starts_at_alpha_x_and_the_replay_undoes_it(mixture, images):
    up = tk.unsample(mixture, images["in"], prompt=0, steps=5, **quiet)
    np.testing.assert_array_equal(up.latent[0], images["in"])
    np.testing.assert_array_equal(up.latent[1], float(up.alpha[1]) * images["in"].numpy())
    down = tk.sample(mixture, start=up, **quiet)
    np.testing.assert_array_equal(down.sigma, up.sigma[::-1])
    np.testing.assert_array_equal(down.latent[-1], down.latent[-2] / float(up.alpha[1]))
    assert int(down.nfe[-1]) == int(down.nfe[-2])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_grid_of_ones_own(mixture, images, name):
    """Rising, from above 0: row 0 is alpha x there, and the replay ends there."""
    up = tk.unsample(
        mixture, images["in"], solver=name, sigmas=[0.02, 0.1, 0.3, 0.7, 0.95], prompt=0, **quiet
    )
    np.testing.assert_array_equal(up.latent[0], float(up.alpha[0]) * images["in"].numpy())
    assert error(mixture, up) < 1e-11
    shifted = tk.unsample(
        mixture, images["in"], solver=name, sigma_shift=1e-4, end_at_step=3, prompt=0, steps=9, **quiet
    )
    assert float(shifted.sigma[0]) == 1e-4
    assert shifted.sizes["step"] == 7
    assert error(mixture, shifted) < 1e-8  # the lowest hop multiplies the rounding of x - D by sigma_1/1e-4


@pytest.mark.parametrize("name", ["euler", "obelm"])
def test_one_positive_level_is_a_hop_and_nothing_else(mixture, images, name):
    up = tk.unsample(mixture, images["in"], solver=name, steps=4, end_at_step=3, prompt=0, **quiet)
    assert (up.sizes["step"], int(up.nfe[-1])) == (2, 0)
    assert error(mixture, up) < 1e-15


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_another_dtype_replay_what_they_hold(mixture, images, dtype):
    """The recording pass starts from what will be read back: offsets stay exact in any dtype."""
    up = tk.unsample(mixture, images["in"], prompt=0, cfg=3.0, negative=1, save=tk.Save(dtype=dtype), **quiet)
    assert up.latent.dtype == dtype
    assert up.offset.dtype == "float64"
    assert error(mixture, up) < 1e-11


def test_the_second_state_is_what_makes_obelm_exact(mixture, images):
    up = tk.unsample(mixture, images["off"], solver="obelm", prompt=0, **quiet)
    np.testing.assert_array_equal(up.aux[-1], up.latent[-2])
    assert error(mixture, up) < 1e-11
    without = tk.sample(mixture, start=up.drop_vars("aux"), **quiet)
    assert "aux dropped" in without.attrs["edited"][0]
    assert float(relative(without.latent[-1].values, images["off"].numpy()).max()) > 1e-4


@pytest.mark.parametrize("name", ["heun", "obelm"])
def test_a_batch_returns_with_its_own_prompts(mixture, images, name):
    three = torch.cat([images["in"], images["off"][:1]])
    up = tk.unsample(mixture, three, solver=name, prompt=[0, 2, 1], negative=3, cfg=2.0, steps=10, **quiet)
    assert error(mixture, up) < 1e-9


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_mask_keeps_the_rest_as_it_was(mixture, images, name):
    mask = torch.zeros(16, 16, dtype=torch.float64)
    mask[4:12, 4:12], mask[3, 4:12] = 1.0, 0.5
    up = tk.unsample(mixture, images["in"], solver=name, prompt=0, mask=mask, steps=10, **quiet)
    outside = up.latent[-1].values[..., 12:, :]
    np.testing.assert_allclose(outside, float(up.alpha[-1]) * images["in"].numpy()[..., 12:, :], atol=1e-12)
    assert error(mixture, up) < 1e-11


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_replay_from_the_store_is_that_from_memory(mixture, images, name, tmp_path):
    asked = {"solver": name, "prompt": 0, "negative": 1, "cfg": 3.0, "steps": 8, **quiet}
    kept = tk.unsample(mixture, images["in"], **asked)
    tk.unsample(mixture, images["in"], **asked, save=tk.Save(store=tmp_path / "run.zarr", every=3))
    xr.testing.assert_identical(
        tk.sample(mixture, start=kept, **quiet),
        tk.sample(mixture, start=tk.open(tmp_path / "run.zarr"), **quiet),
    )


def test_a_network_that_is_off_by_1e_7_does_not_break_offsets(mixture, images):
    """Bit-identical inputs make it exact; other kernels make it nearly so, at cfg 1."""
    up = tk.unsample(mixture, images["in"], solver="dpmpp_2m", prompt=0, **quiet)
    bound = tk.guide(mixture, 0)
    other = tk.denoiser(
        lambda x, s: bound.denoise(x, s).x0 * (1 + 1e-7), path=mixture.path, levels=mixture.levels
    )
    returned = tk.sample(other, start=up.assign_attrs(prompt=None), **quiet).latent[-1].values
    assert 0 < float(relative(returned, images["in"].numpy()).max()) < 1e-6


def test_another_model_is_an_edit(mixture, images):
    up = tk.unsample(mixture, images["in"], prompt=0, steps=4, **quiet)
    other = tk.GaussianMixture(
        mixture.means * 1.1, mixture.std, mixture.weights, mixture.path, mixture.levels
    )
    assert "model" in tk.sample(other, start=up, **quiet).attrs["edited"]


def test_the_reference_data_is_described():
    assert "ComfyUI" in (DATA / "README.md").read_text()
