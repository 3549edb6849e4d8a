"""With fresh noise the stochastic solvers sample the right distribution: the variance of a Gaussian."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import PATHS

import toolkit as tk
from toolkit.measured import gaussian_grid, gaussian_variance
from toolkit.noise import Keyed
from toolkit.paths import Path

STOCHASTIC = [name for name, row in tk.SOLVERS.items() if row.stochastic]
# lcm's limit is 1/2 by construction, and the cfg_pp names solve no SDE
CORRECT = [name for name in STOCHASTIC if name != "lcm" and not tk.SOLVERS[name].uncond]
# these use VE's split of the step on FLOW too, as ComfyUI does: the state leaves the path
VE_ONLY = {"ddpm", "res_multistep_ancestral"}
CASES = [(name, path) for name in CORRECT for path in PATHS if path == "VE" or name not in VE_ONLY]
DOUBLED = (125, 250, 500, 1000)
SAMPLES = (1, 4, 50, 100)  # 20,000 elements that do not know of each other


@pytest.mark.parametrize(("name", "path"), CASES)
def test_the_bias_shrinks_when_the_steps_double(name, path):
    """Exactly, with no sampling error: see `variance_bias`."""
    biases = [abs(tk.testing.variance_bias(name, n, PATHS[path])) for n in (200, 400)]
    assert biases[0] > 1.8 * biases[1]
    assert biases[0] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), CASES)
def test_the_bias_shrinks_from_125_steps_to_1000(name, path):
    biases = [abs(tk.testing.variance_bias(name, n, PATHS[path])) for n in DOUBLED]
    assert all(more > 1.8 * less for more, less in pairwise(biases)), biases
    assert biases[-1] < 0.01


def drawn_variance(name: str, path: Path, steps: int) -> float:
    """Of 20,000 samples of a unit Gaussian, with the package's own keyed noise."""
    model = tk.GaussianMixture(np.zeros((1, 4, 50, 100)), 1.0, path=path)
    grid, noise = gaussian_grid(steps, path), Keyed(11, SAMPLES, rungs=steps)
    x = noise.start() * gaussian_variance(grid[0], path) ** 0.5
    with torch.no_grad():
        for step in tk.steps(tk.guide(model), tk.solver(name), x, grid, noise=noise):
            x = step.x_next
    return float(x.var()) / gaussian_variance(grid[-1], path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), CASES)
def test_20000_samples_have_the_variance_of_the_distribution(name, path):
    """Within 4 standard errors and the bias that is left at 1,000 steps."""
    bias, standard_error = tk.testing.variance_bias(name, 1000, PATHS[path]), (2 / 20_000) ** 0.5
    assert abs(drawn_variance(name, PATHS[path], 1000) - 1.0) < 4 * standard_error + abs(bias)


@pytest.mark.parametrize("name", ["lcm", "dpmpp_2m_sde", "er_sde"])
def test_the_exact_bias_is_that_of_samples(name):
    """The one that needs no sampling agrees with one that samples, at few steps, where the bias is large."""
    bias = tk.testing.variance_bias(name, 10, tk.VE)
    assert abs(drawn_variance(name, tk.VE, 10) - 1.0 - bias) < 4 * (2 / 20_000) ** 0.5 * (1 + bias)
    assert abs(bias) > 0.02


@pytest.mark.parametrize("name", sorted(VE_ONLY))
def test_what_a_name_gets_wrong_on_flow_is_said(name):
    assert tk.testing.variance_bias(name, 200, tk.FLOW) > 1.0
    assert "FLOW" in tk.SOLVERS[name].function.__doc__


def test_lcm_halves_the_variance_whatever_the_steps():
    assert tk.testing.variance_bias("lcm", 500) == pytest.approx(-0.5, abs=0.01)
