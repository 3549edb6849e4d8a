"""Paths, the prediction table, guidance and the closed-form model, against formulas and reference numbers."""

import math

import numpy as np
import pytest
import torch
from conftest import reference_mixture

import toolkit as tk
from toolkit.denoisers import PREDICTIONS, predict
from toolkit.ode import probability_flow


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW])
def test_log_snr_and_back(path):
    for sigma in (0.003, 0.2, 0.5, 0.97):
        lam = path.half_log_snr(sigma)
        assert lam == pytest.approx(math.log(path.alpha(sigma) / sigma))
        assert path.from_half_log_snr(lam) == pytest.approx(sigma)
        assert path.log_snr(sigma) == pytest.approx(2 * lam)
        assert path.rho(sigma) == pytest.approx(sigma / path.alpha(sigma))


def test_the_ends_of_a_path_are_infinite_and_warn_of_nothing():
    np.testing.assert_array_equal(tk.FLOW.log_snr(np.array([0.0, 1.0])), [np.inf, -np.inf])
    assert tk.FLOW.half_log_snr(1.0) == -math.inf
    assert tk.VE.half_log_snr(0.0) == math.inf


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_an_ancestral_split_keeps_the_marginal(path, eta):
    """alpha and the total noise of the state at t are those of the path, whatever eta."""
    s, t = 0.8, 0.45
    down, scale, up = path.ancestral(s, t, eta)
    assert scale * path.alpha(down) == pytest.approx(path.alpha(t))
    assert (scale * down) ** 2 + up**2 == pytest.approx(t**2)
    assert up > 0


def test_an_ancestral_split_at_its_edges():
    assert tk.VE.ancestral(2.0, 1.0, 0.0) == (1.0, 1.0, 0.0)
    assert tk.VE.ancestral(2.0, 0.0, 1.0) == (0.0, 1.0, 0.0)
    assert tk.FLOW.ancestral(1.0, 0.5, 1.0)[0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="goes down in sigma"):
        tk.VE.ancestral(1.0, 2.0, 1.0)


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW])
def test_the_closed_form_denoiser_meets_the_reference(path, reference):
    """Twelve answers of an independent implementation."""
    kind = "ve" if path == tk.VE else "flow"
    model = reference_mixture(reference, path)
    rows = zip(*(reference[f"check_{kind}_{k}"] for k in ("mix_id", "sigma", "x", "x0hat")), strict=True)
    for m, sigma, x, want in rows:
        x = np.atleast_3d(x)[None] if x.ndim == 3 else x
        got = tk.guide(model, prompt=int(m)).denoise(torch.from_numpy(x), float(sigma)).x0
        np.testing.assert_allclose(got.numpy().reshape(want.shape), want, rtol=1e-10, atol=1e-12)


def test_tweedie(mixture, images):
    """D = (x + sigma^2 score)/alpha with the score by autograd of the log density: another way there."""
    sigma, alpha = 0.6, mixture.path.alpha(0.6)
    x = images["off"].clone().requires_grad_()
    var = alpha**2 * mixture.std**2 + sigma**2
    far = (x.flatten(1)[:, None] - alpha * mixture.means[2].flatten(1)).square().sum(-1)
    torch.logsumexp(mixture.weights[2].log() - far / (2 * var), dim=1).sum().backward()
    want = (images["off"] + sigma**2 * x.grad) / alpha
    got = tk.guide(mixture, prompt=2).denoise(images["off"], sigma).x0
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
def test_every_prediction_gives_the_same_x0(prediction, reference):
    """A network that predicts each quantity exactly, from its definition, must give x0 = D."""
    path = tk.FLOW if prediction == "flow" else tk.VE
    model = reference_mixture(reference, path)
    x, sigma = torch.from_numpy(reference["image_batch2_f64"]), 0.7
    x0 = model.denoise(x, sigma).x0
    eps = (x - path.alpha(sigma) * x0) / sigma
    root, edm = math.sqrt(1 + sigma**2), math.sqrt(0.25 + sigma**2)
    exact = {
        "eps": (eps, x / root),
        "v": ((eps - sigma * x0) / root, x / root),
        "flow": (eps - x0, x),
        "edm": ((x0 - 0.25 / edm**2 * x) * edm / (0.5 * sigma), x / edm),
        "x0": (x0, x / root),
    }  # fmt: skip
    answer, sees = exact[prediction]

    def network(seen):
        assert torch.allclose(seen, sees, rtol=1e-12)
        return answer

    assert torch.allclose(predict(prediction, network, x, sigma), x0, rtol=1e-10, atol=1e-12)


def test_guidance_is_one_batched_forward(mixture, images):
    x = images["in"]
    plain, guided = tk.guide(mixture, 0), tk.guide(mixture, 0, 1, 3.0)
    c, u = plain.denoise(x, 0.5).x0, tk.guide(mixture, 1).denoise(x, 0.5).x0
    answer = guided.denoise(x, 0.5)
    assert torch.allclose(answer.x0, u + 3.0 * (c - u), rtol=1e-12, atol=1e-12)
    assert torch.allclose(answer.uncond, u, rtol=1e-12, atol=1e-12)
    assert (plain.calls, plain.rows, guided.calls, guided.rows) == (1, 2, 1, 4)
    asked = tk.guide(mixture, 0, 1, 1.0)
    assert torch.allclose(asked.denoise(x, 0.5, uncond=True).uncond, u, rtol=1e-12, atol=1e-12)
    assert (asked.calls, asked.rows) == (1, 4)


def test_a_list_of_prompts_is_one_a_sample(mixture, images):
    both = tk.guide(mixture, [3, 1]).denoise(images["in"], 0.4).x0
    for k, prompt in enumerate((3, 1)):
        alone = tk.guide(mixture, prompt).denoise(images["in"][k : k + 1], 0.4).x0
        assert torch.allclose(both[k : k + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_prompt_is_resolved_once_a_run(reference, images, monkeypatch):
    """A text encoder may stand behind it; the size of the batch does not count."""
    asked, model = [], reference_mixture(reference)
    resolve = model.conditions
    monkeypatch.setattr(model, "conditions", lambda *args: asked.append(args) or resolve(*args))
    tk.sample(model, images["in"], prompt=0, negative=1, cfg=2.0, steps=3, progress=False)
    assert asked == [(0, 1, "prompt"), (1, 1, "negative")]
    asked.clear()
    tk.sample(model, images["in"], prompt=[0, 2], steps=3, progress=False)
    assert asked == [([0, 2], 2, "prompt"), (None, 1, "negative")]


def test_the_dtype_outside_is_that_of_x(mixture, images):
    assert mixture.denoise(images["in"].float(), 0.3).x0.dtype == torch.float32
    wide = mixture.denoise(images["in"], 0.3).x0
    assert wide.dtype == torch.float64
    assert torch.allclose(mixture.denoise(images["in"].float(), 0.3).x0.double(), wide, atol=1e-5)


def test_a_model_answers_by_itself_and_counts(reference, images):
    """Under its default condition; NumPy gets NumPy back, in its own dtype."""
    model = reference_mixture(reference)
    want = tk.guide(model, prompt=0).denoise(images["in"], 0.5).x0
    assert torch.equal(model.denoise(images["in"], 0.5).x0, want)
    got = model.denoise(images["in"].numpy().astype(np.float32), 0.5).x0
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    assert (model.calls, model.rows) == (2, 4)
    steps = list(tk.steps(model, tk.solver("heun"), images["in"], [1.0, 0.5, 0.0]))
    assert [step.seen.calls for step in steps] == [2, 1]


def test_the_exact_solution_of_one_gaussian():
    """One component at 0: x(sigma) = x0 sqrt((alpha^2 s^2 + sigma^2)/s^2), from the ODE by hand."""
    std, x0 = 0.7, torch.randn((2, 1, 4, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for path, top in ((tk.VE, 14.6), (tk.FLOW, 1.0)):
        model = tk.GaussianMixture(np.zeros((1, 1, 4, 4)), std, path=path)

        def spread(sigma, path=path):
            return math.sqrt(path.alpha(sigma) ** 2 * std**2 + sigma**2)

        low = 0.01
        found = model.probability_flow(x0 * spread(low) / std, [low, 0.3, top])
        for state, sigma in zip(found, (low, 0.3, top), strict=True):
            assert torch.allclose(state, x0 * spread(sigma) / std, rtol=1e-8)


def test_the_exact_solution_goes_both_ways(mixture, images):
    levels = [0.05, 0.4, 0.95]
    up = mixture.probability_flow(images["in"], levels, prompt=0)
    down = probability_flow(tk.guide(mixture, 0), up[-1], levels[::-1])
    assert torch.allclose(down[-1], images["in"], atol=1e-6)
    with pytest.raises(ValueError, match="sigmas"):
        mixture.probability_flow(images["in"], [0.0, 1.0])


def test_foreign_models_and_functions_count_too():
    class Foreign:
        path, levels, channels = tk.VE, tk.Levels.scaled_linear(), 2

        def denoise(self, x, sigma):
            return 0.5 * x

    x = torch.ones((3, 2, 4, 4), dtype=torch.float64)
    for model in (Foreign(), tk.denoiser(lambda x, sigma: tk.Denoised(0.5 * x, 0.1 * x))):
        bound = tk.guide(model)
        assert torch.equal(bound.denoise(x, 1.0).x0, 0.5 * x)
        assert (bound.calls, bound.rows) == (1, 3)
        with pytest.raises(ValueError, match="no conditions"):
            tk.guide(model, prompt=1)


def test_models_have_a_readable_repr(mixture):
    assert repr(mixture).startswith("GaussianMixture(path=")
    assert "<caption>GaussianMixture</caption>" in mixture._repr_html_()
    assert "dpmpp_2m" in repr(tk.SOLVERS)
    assert "karras" in tk.SCHEDULES._repr_html_()
