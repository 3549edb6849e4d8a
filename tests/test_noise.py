"""The noise of a ladder: the bits of a rung do not depend on how many there are, on batch, or on blocks."""

import hashlib

import numpy as np
import pytest
import torch
import xarray as xr

import toolkit as tk
from toolkit.noise import START, Keyed

COUPLINGS = ["independent", "shared", "markov"]
LEVELS = 10_000
SIGMAS = np.concatenate([[0.0], np.geomspace(0.01, 80.0, LEVELS - 1)]).tolist()
SHAPE = (1, 3, 3)


def picture(samples: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(1)
    return torch.randn((5, *SHAPE), generator=made, dtype=torch.float64)[:samples]


def ladder(rungs: int = LEVELS, samples: int = 5, **asked) -> xr.Dataset:
    model = tk.denoiser(lambda x, sigma: x)
    return tk.ladder(model, picture(samples), sigmas=SIGMAS[:rungs], seed=4, progress=False, **asked)


@pytest.fixture(scope="module", params=COUPLINGS)
def whole(request) -> xr.Dataset:
    """10,000 rungs of a batch of 5."""
    return ladder(coupling=request.param)


@pytest.mark.parametrize("rungs", [2, 10, 100, 5000])
@pytest.mark.parametrize("samples", [1, 5])
def test_a_rung_has_the_same_bits_in_every_ladder(rungs, samples, whole):
    few = ladder(rungs, samples, coupling=whole.attrs["coupling"])
    want = whole.isel(step=slice(0, rungs), sample=slice(0, samples))
    for name in ("latent", "mean", "std", "sigma"):
        np.testing.assert_array_equal(few[name], want[name])


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("block", [1, 100])
def test_blocks_do_not_touch_the_bits(block, stored, whole, tmp_path, monkeypatch):
    rungs = (10 * block if block > 1 else 50) if stored else LEVELS  # files take their time
    monkeypatch.setattr(tk.record, "BLOCK", block * picture(5).numel() * 4)
    save = tk.Save(store=tmp_path / "run.zarr" if stored else None)
    made = ladder(rungs, coupling=whole.attrs["coupling"], save=save).load()
    xr.testing.assert_equal(made, whole.isel(step=slice(0, rungs)))


def test_a_part_of_a_schedule_has_the_bits_of_the_whole():
    """By name of the schedule: rungs are counted from the clean end, those that are left out too."""
    model, asked = tk.denoiser(lambda x, sigma: x), {"schedule": "karras", "steps": 1000, "progress": False}
    for coupling in COUPLINGS:
        full = tk.ladder(model, picture(2), coupling=coupling, **asked)
        part = tk.ladder(model, picture(2), coupling=coupling, start_at_step=100, every=7, **asked)
        picked = [*range(0, 900, 7), 900]
        np.testing.assert_array_equal(part.latent, full.latent[picked])


def test_no_two_draws_are_equal():
    """5 samples, 10,000 rungs and the start noise, by the hash of what is drawn."""
    noise = Keyed(0, (5, 4, 4, 4), torch.float32)
    drawn = [noise.draw(rung) for rung in range(LEVELS)] + [noise.draw(0, START)]
    found = {hashlib.sha256(one.numpy().tobytes()).digest() for batch in drawn for one in batch}
    assert len(found) == 5 * (LEVELS + 1)


def test_no_two_rungs_are_equal(whole):
    rows = whole.latent.values[1:].reshape(-1, 9)
    assert len(np.unique(rows, axis=0)) == 5 * (LEVELS - 1)


def test_independent_rungs_are_those_draws():
    made, noise = ladder(200, save=tk.Save(dtype="float64")), Keyed(4, (5, *SHAPE))
    for rung in (1, 2, 57, 199):
        drawn = (made.latent[rung].values - picture(5).numpy()) / SIGMAS[rung]
        np.testing.assert_allclose(drawn, noise.draw(rung), atol=1e-10)
