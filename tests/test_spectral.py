"""The mixture with a spectrum against its formula written out, and the two benchmark models."""

import math

import numpy as np
import pytest
import torch
from conftest import PATHS
from scipy.fft import dctn, idctn

import toolkit as tk
from toolkit.spectral import dct, dct_matrix, inverse_dct

SHAPE = (2, 4, 6)  # channel, y, x: not square, so that no axis can stand for another
CONDITIONS = {"left": [0, 1], "right": [2], 7: [3, 1]}
ALL = (0, 1, 2, 3)
LEVELS = {"VE": (1e-3, 0.05, 0.7, 4.0, 1e4), "FLOW": (1e-3, 0.2, 0.6, 0.97, 1.0)}


def transform(x, basis):
    return np.asarray(x) if basis == "dct" else dctn(x, axes=(-2, -1), norm="ortho")


def parts(basis="pixel"):
    """Means where the state lives, variances of the coefficients over two decades, weights."""
    rng = np.random.default_rng(0)
    waves = np.hypot(*np.mgrid[: SHAPE[1], : SHAPE[2]])
    variances = 0.5 * rng.uniform(0.5, 2.0, (4, *SHAPE)) / (1.0 + waves) ** 2
    return 0.3 * rng.standard_normal((4, *SHAPE)), variances, np.array([1.0, 2.0, 0.5, 4.0])


def mixture(path="VE", basis="pixel") -> tk.SpectralMixture:
    return tk.SpectralMixture(*parts(), CONDITIONS, basis, PATHS[path])


def written_out(x, sigma, inside, path, basis):
    """x0 of one state (channel, y, x) by the formula, component by component, in NumPy."""
    means, variances, weights = parts()
    alpha = path.alpha(sigma)
    z, found, log_r = transform(x, basis), [], []
    for k in inside:
        mean, v = transform(means[k], basis), alpha**2 * variances[k] + sigma**2
        log_r.append(math.log(weights[k]) - 0.5 * np.sum((z - alpha * mean) ** 2 / v + np.log(v)))
        found.append(mean + alpha * variances[k] / v * (z - alpha * mean))
    r = np.exp(np.array(log_r) - max(log_r))
    out = np.tensordot(r / r.sum(), np.stack(found), 1)
    return out if basis == "dct" else idctn(out, axes=(-2, -1), norm="ortho")


def states(model, sigma, n=3):
    noise = np.random.default_rng(1).standard_normal((n, *SHAPE))
    return model.path.mix(model.draw(n, seed=4), torch.from_numpy(noise), sigma)


def test_the_transform_is_scipy_s():
    x = np.random.default_rng(2).standard_normal((3, *SHAPE))
    want = dctn(x, axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(dct(torch.from_numpy(x)), want, atol=1e-14)
    np.testing.assert_allclose(inverse_dct(torch.from_numpy(want)), x, atol=1e-14)
    assert torch.allclose(dct_matrix(7) @ dct_matrix(7).T, torch.eye(7, dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("path", ["VE", "FLOW"])
def test_the_denoiser_is_its_formula(path, basis):
    model = mixture(path, basis)
    for sigma in LEVELS[path]:
        x = states(model, sigma)
        for prompt, inside in {None: ALL, **CONDITIONS}.items():
            got = tk.guide(model, prompt).denoise(x, sigma).x0
            want = [written_out(row.numpy(), sigma, sorted(inside), model.path, basis) for row in x]
            np.testing.assert_allclose(got, np.stack(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["VE", "FLOW"])
def test_the_score_is_that_of_the_density(path):
    """Tweedie: D = (x + sigma^2 grad log p)/alpha, the gradient by autograd of the density in pixels."""
    model, sigma = mixture(path), 0.6
    means, variances, weights = map(torch.from_numpy, parts())
    given, alpha = states(model, sigma), model.path.alpha(sigma)
    x, v = given.clone().requires_grad_(), alpha**2 * variances + sigma**2
    far = (dct(x)[:, None] - alpha * dct(means)).square() / v + v.log()
    torch.logsumexp((weights / weights.sum()).log() - 0.5 * far.sum((2, 3, 4)), dim=1).sum().backward()
    got = model.denoise(given, sigma).x0
    assert torch.allclose(got, (given + sigma**2 * x.grad) / alpha, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", ["VE", "FLOW"])
def test_the_ends_of_the_levels(path):
    """Little noise gives the state itself, and nothing but noise gives the mean of the condition."""
    model, weights = mixture(path), parts()[2]
    low, top = LEVELS[path][0], LEVELS[path][-1]
    x = states(model, low)
    assert torch.allclose(model.denoise(x, low).x0, x / model.path.alpha(low), atol=1e-3)
    assert torch.equal(mixture("VE").denoise(x, 0.0).x0.round(decimals=12), x.round(decimals=12))
    mean = torch.from_numpy(np.average(parts()[0][:2], axis=0, weights=weights[:2]))
    far = tk.guide(model, "left").denoise(states(model, top), top).x0
    assert torch.allclose(far, mean.expand_as(far), atol=2e-3 if path == "VE" else 1e-12)


def test_a_far_state_has_no_nan():
    for sigma in (1e-3, 1.0):
        out = mixture().denoise(1e6 * torch.ones((1, *SHAPE), dtype=torch.float64), sigma).x0
        assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_isotropic_it_is_the_other_closed_form(basis):
    means, _, weights = parts()
    ours = tk.SpectralMixture(means, 0.09, weights, basis=basis)
    other, x = tk.GaussianMixture(means, 0.3, weights), states(ours, 0.5)
    for sigma in (0.05, 0.5, 5.0):
        assert torch.allclose(ours.denoise(x, sigma).x0, other.denoise(x, sigma).x0, atol=1e-12)


def test_conditions_one_a_sample_and_guidance():
    model, sigma = mixture(), 0.7
    x, prompts = states(model, sigma), ["right", None, 7]
    both = tk.guide(model, prompts, "left", 2.5).denoise(x, sigma)
    for i, prompt in enumerate(prompts):
        u, c = (tk.guide(model, p).denoise(x[i : i + 1], sigma).x0 for p in ("left", prompt))
        assert torch.allclose(both.x0[i : i + 1], u + 2.5 * (c - u), atol=1e-12)
        assert torch.allclose(both.uncond[i : i + 1], u, atol=1e-12)
    plain = tk.SpectralMixture(*parts())
    assert plain.conditions([2, np.int64(0)], 2) == [(2,), (0,)]
    assert plain.conditions(None, 1) == [ALL]


def test_many_components_are_taken_in_parts(monkeypatch):
    x = states(mixture(), 0.7)
    want = mixture().denoise(x, 0.7).x0
    monkeypatch.setattr("toolkit.spectral.CHUNK", x.numel())
    assert torch.allclose(mixture().denoise(x, 0.7).x0, want, rtol=1e-14, atol=1e-14)


def test_tables_of_old_levels_are_dropped_and_never_mistaken():
    model = mixture()
    x = states(model, 0.5)
    for sigma in (0.5, 0.6, 0.7, 0.8, 0.5):
        assert torch.equal(model.denoise(x, sigma).x0, mixture().denoise(x, sigma).x0)
    assert len(model._tables) == 3


def test_the_exact_solution_of_one_component():
    """x(sigma) = alpha M + sqrt(v(sigma)/v(low)) (x - alpha M), coefficient by coefficient, by hand."""
    for path, top in (("VE", 14.6), ("FLOW", 1.0)):
        model, low = mixture(path, "dct"), 0.02
        x = states(model, low)
        mean, var = (torch.from_numpy(a[2]) for a in parts()[:2])

        def exact(sigma, model=model, x=x, mean=mean, var=var, low=low):
            alpha, first = model.path.alpha(sigma), model.path.alpha(low)
            ratio = ((alpha**2 * var + sigma**2) / (first**2 * var + low**2)).sqrt()
            return alpha * mean + ratio * (x - first * mean)

        found = model.probability_flow(x, [low, 0.3, top], prompt="right")
        for state, sigma in zip(found, (low, 0.3, top), strict=True):
            assert torch.allclose(state, exact(sigma), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_draws_are_of_the_model(basis):
    model = mixture(basis=basis)
    means, variances, weights = parts()
    drawn = transform(model.draw(4000, "right").numpy(), basis)
    np.testing.assert_allclose(drawn.mean(0), transform(means[2], basis), atol=0.06)
    np.testing.assert_allclose(drawn.var(0) / variances[2], 1.0, atol=0.15)
    # the components of the mixture by their weights: the nearest mean tells, on well separated ones
    apart = tk.SpectralMixture(30 * means, variances, weights, CONDITIONS, basis)
    far = np.square(apart.draw(2000).numpy()[:, None] - 30 * means).sum((2, 3, 4)).argmin(1)
    np.testing.assert_allclose(np.bincount(far) / 2000, weights / weights.sum(), atol=0.03)


def test_the_denoiser_is_the_mean_of_what_was_drawn():
    """Its squared error on draws is the posterior variance, sum of V sigma^2/(V + sigma^2)."""
    model, sigma = mixture(basis="dct"), 0.4
    x0 = model.draw(2000, "right", seed=2)
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal(x0.shape))
    got = tk.guide(model, "right").denoise(x0 + sigma * noise, sigma).x0
    var = parts()[1][2]
    want = (var * sigma**2 / (var + sigma**2)).sum()
    assert float((got - x0).square().sum((1, 2, 3)).mean()) == pytest.approx(want, rel=0.03)


def test_a_draw_does_not_depend_on_how_many():
    model = mixture()
    assert torch.equal(model.draw(5, seed=3)[:2], model.draw(2, seed=3))
    assert not torch.equal(model.draw(1, seed=3), model.draw(1, seed=4))
    many = model.draw(2, ["right", "left"])
    assert torch.equal(many[0], model.draw(1, "right")[0])


def test_what_it_says_of_itself():
    model = mixture()
    assert repr(model).startswith("SpectralMixture(path=VE, latent=2 x 4 x 6")
    assert "components=4, conditions=3, basis=pixel" in repr(model)
    same, other = mixture(), mixture(basis="dct")
    assert model.fingerprint == same.fingerprint != other.fingerprint
    x = states(model, 0.5)
    assert model.denoise(x.float(), 0.5).x0.dtype == torch.float32
    assert model.denoise(x.numpy(), 0.5).x0.dtype == np.float64
    run = tk.sample(model, prompt="left", steps=3, progress=False)
    assert (run.attrs["model"], run.attrs["fingerprint"]) == ("SpectralMixture", model.fingerprint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"means": np.zeros(SHAPE)}, r"means=.*\(K, channel, y, x\)"),
        ({"means": np.full((1, *SHAPE), np.nan)}, "means=.*finite"),
        ({"means": "mean"}, "means=.*real numbers"),
        ({"variances": 0.0}, "variances='values from 0 to 0': positive"),
        ({"variances": np.inf}, "variances=.*finite"),
        ({"variances": np.ones((2, 3, 4, 6))}, "variances=.*shape of the means"),
        ({"variances": np.ones((1, 4, *SHAPE))}, "variances=.*shape of the means"),
        ({"weights": [1.0, 1.0]}, r"weights=.*\(4,\)"),
        ({"weights": [1.0, 1.0, 0.0, 1.0]}, "weights=.*positive"),
        ({"basis": "fourier"}, "basis=.*pixel, dct"),
        ({"path": "VE"}, "path=.*tk.FLOW"),
        ({"levels": 14.6}, "levels="),
        ({"conditions": ["left"]}, "conditions=.*mapping"),
        ({"conditions": {"left": []}}, "conditions=.*one or more components"),
        ({"conditions": {"left": [4]}}, "conditions=.*0 to 3"),
        ({"conditions": {"left": [0.5]}}, "conditions=.*0 to 3"),
        ({"conditions": {1.5: [0]}}, "conditions=1.5.*text or a whole number"),
    ],
)
def test_what_makes_no_mixture_is_refused(change, says):
    means, variances, weights = parts()
    given = {"means": means, "variances": variances, "weights": weights, **change}
    with pytest.raises((ValueError, TypeError), match=rf"{says}[\s\S]*Try: "):
        tk.SpectralMixture(**given)


@pytest.mark.parametrize(
    ("prompt", "line"),
    [("lefty", 'Try: prompt="left"'), (8, "Try: prompt=7"), (True, "Try: prompt="), (7.0, "Try: prompt=7"),
     ({}, "Try: prompt="), ("7", "Try: prompt=7"), (["left", "righ"], 'Try: prompt="right"')],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(prompt, line):
    with pytest.raises(ValueError, match=rf'prompt=.*"left", "right", 7.*{line}'):
        tk.guide(mixture(), prompt)


def test_what_cannot_be_drawn_is_refused():
    for arguments in ({"n": 0}, {"n": 1.5}, {"seed": -1}, {"prompt": "up"}, {"n": 3, "prompt": ["left"]}):
        with pytest.raises((ValueError, TypeError), match="Try: "):
            mixture().draw(**arguments)


# --- the two benchmark models ----

MODES, SPECTRA = "sharp_modes", "power_law"
# (model, images): the std of the true x_T over 14.6
SPREAD = {(MODES, "on"): 0.99, (MODES, "off"): 4.4, (SPECTRA, "in"): 1.009, (SPECTRA, "off"): 1.284}
# model, images, cfg, solver: round-trip error and x_T error of the naive reverse over 20 hops
REVERSE = [
    (MODES, "on", 1.0, "euler", 3.5e-2, 8.7e-2),
    (MODES, "on", 1.0, "heun", 4.5e-4, 1.4e-2),
    (MODES, "on", 1.0, "midpoint", 4.7e-4, 9.8e-4),
    (MODES, "on", 7.5, "euler", 1.4, None),
    (MODES, "off", 7.5, "midpoint", 4.7, None),
    (SPECTRA, "in", 1.0, "euler", 9.8e-2, 8.0e-2),
    (SPECTRA, "in", 1.0, "heun", 8.3e-4, 1.1e-2),
    (SPECTRA, "in", 1.0, "midpoint", 6.3e-4, 5.9e-4),
    (SPECTRA, "off", 1.0, "euler", 0.42, 8.0e-2),
]


@pytest.fixture(scope="module")
def benchmarks():
    return {name: getattr(tk.testing, name)() for name in (MODES, SPECTRA)}


@pytest.fixture(scope="module")
def truth(benchmarks):
    """The true x_T of each set of images at cfg 1."""
    found = {}
    for name, kind in SPREAD:
        model, images = benchmarks[name]
        levels = [model.levels.sigma_min, model.levels.sigma_max]
        found[name, kind] = model.probability_flow(images[kind], levels, prompt=3, tolerance=1e-6)[-1]
    return found


def far(got, want) -> float:
    """Relative L2 distance over all samples."""
    return float(np.linalg.norm(np.asarray(got) - np.asarray(want)) / np.linalg.norm(want))


@pytest.mark.parametrize(("name", "kind"), SPREAD)
def test_the_true_noise_of_the_benchmarks(truth, name, kind):
    assert float(truth[name, kind].std()) / 14.6 == pytest.approx(SPREAD[name, kind], rel=0.01)


@pytest.mark.parametrize(("name", "kind", "cfg", "solver", "error", "top"), REVERSE)
def test_the_published_numbers(benchmarks, truth, name, kind, cfg, solver, error, top):
    """Two digits of each, on karras from 0.03 to 14.6: only the same model, images and solver give them."""
    model, images = benchmarks[name]
    falling = tk.schedule(model, "karras", steps=21).sigma.values[:-1]  # 21 levels; the last one is 0
    denoiser, given = tk.guide(model, 3, cfg=cfg), torch.from_numpy(images[kind])
    x = given
    for step in tk.steps(denoiser, tk.solver(solver), x, falling[::-1].copy()):
        x = step.x_next
    if top is not None:
        assert far(x, truth[name, kind]) == pytest.approx(top, rel=0.05)
    for step in tk.steps(denoiser, tk.solver(solver), x, falling):
        x = step.x_next
    assert far(x, given) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("name", [MODES, SPECTRA])
def test_the_benchmarks_on_both_paths(name):
    for path in PATHS.values():
        model, images = getattr(tk.testing, name)(path)
        assert model.path == path == model.levels.path
        for kind, given in images.items():
            assert (given.dtype, given.shape[1:]) == (np.float64, model.shape), kind
            trip = tk.round_trip(model, given, prompt=3, steps=4, truth=False, progress=False)
            assert float(trip.error.max()) < 1e-12
    assert len(model.conditions(None, 1)[0]) == len(model.means)
    assert {len(inside) for inside in model.prompts.values()} == {len(model.means) // len(model.prompts)}
    with pytest.raises(TypeError, match="path="):
        getattr(tk.testing, name)("VE")
