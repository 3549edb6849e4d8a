"""Solvers without a past: options, churn, the variance that fresh noise must keep, grids of their own."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import PATHS, relative, run

import toolkit as tk
from toolkit.noise import Keyed
from toolkit.solvers import Eval, Span
from toolkit.solvers.dpm import fast_orders

STD = 0.7  # of the Gaussian data whose denoiser is linear
DOWN_ONLY = ["euler_ancestral", "euler_cfg_pp", "euler_ancestral_cfg_pp", "ddpm", "lcm", "heunpp2", "seeds_2",
             "seeds_3", "dpmpp_sde", "dpm_2_ancestral", "dpmpp_2s_ancestral",
             "dpmpp_2s_ancestral_cfg_pp"]  # fmt: skip
MINE = [*DOWN_ONLY, "euler", "ddim", "heun", "dpm_2", "midpoint", "dpmpp_sde_gpu"]


def gaussian(path):
    """The exact denoiser of data N(0, STD^2): x0 = alpha STD^2/(alpha^2 STD^2 + sigma^2) x."""

    def answer(x, sigma):
        a = path.alpha(sigma)
        return x * (a * STD**2 / (a * a * STD**2 + sigma * sigma))

    return tk.denoiser(lambda x, sigma, *_: answer(x, sigma), path)


def variance(path, sigma: float) -> float:
    return (path.alpha(sigma) * STD) ** 2 + sigma * sigma


def coefficients(model, solver, span) -> list[float]:
    """A, B1, B2, B3 of y = A x + B1 n1 + B2 n2 + B3 n3: what one hop of a linear denoiser amounts to."""
    basis = torch.eye(4, dtype=torch.float64)[:, :, None, None, None]  # (what, sample, channel, y, x)
    draws = iter(basis[1:])
    y, _ = solver.step(model, basis[0], span, (), lambda s, t: next(draws))
    return y.flatten().tolist()


def variance_error(model, solver, sigmas) -> float:
    """By what factor, less 1, a whole run misses the variance of the last level."""
    levels = solver.grid(sigmas)
    now = variance(model.path, levels[0])
    for i in range(len(levels) - 1):
        a, *b = coefficients(model, solver, Span(levels, i, sigmas))
        now = a * a * now + sum(k * k for k in b)
    return abs(now / variance(model.path, levels[-1]) - 1.0)


@pytest.fixture(scope="module", params=["VE", "FLOW"])
def smooth(request):
    """A mixture with overlapping modes, whose flow has no scale below 0.5."""
    rng = np.random.default_rng(3)
    return tk.GaussianMixture(0.6 * rng.standard_normal((2, 1, 3, 3)), 0.8, path=PATHS[request.param])


def order(model, solver, up: bool = False, counts=(40, 80, 160)) -> float:
    """As `measured_order` has it on the path of `model`, over fewer steps."""
    return tk.testing.measured_order(solver, model.path, up, counts)


# --- fresh noise ----


@pytest.mark.parametrize("eta", [0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "paths"),
    [("euler_ancestral", "VE FLOW"), ("euler_cfg_pp", "VE FLOW"), ("dpm_2_ancestral", "VE FLOW"),
     ("dpmpp_2s_ancestral", "VE FLOW"), ("dpmpp_sde", "VE FLOW"), ("seeds_2", "VE FLOW"),
     ("seeds_3", "VE FLOW"), ("dpm_fast", "VE"), ("ddpm", "VE")],
)  # fmt: skip
def test_steps_that_shrink_keep_the_variance_at_any_eta(name, paths, eta):
    """What the deterministic part takes away and the noise gives back meet the level's own variance."""
    solver = tk.solver(name) if name == "ddpm" else tk.solver(name, eta=eta)
    for path in paths.split():
        model = gaussian(PATHS[path])
        few, many = (variance_error(model, solver, np.geomspace(0.95, 0.1, n + 1)) for n in (100, 200))
        assert many < 0.03
        assert many < 0.6 * few


NOISY = ["euler_ancestral", "euler_ancestral_cfg_pp", "ddpm", "lcm", "dpm_2_ancestral", "dpmpp_2s_ancestral",
         "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "seeds_2", "seeds_3", "dpm_fast"]  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("path", ["VE", "FLOW"])
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_pure_noise_stays_pure_noise_at_every_stage(name, path, eta):
    """Where all data is 0 the state is sigma times unit noise, exactly, whatever the length of the step."""
    seen = []

    def nothing(x, sigma, *_):
        seen.append((x.flatten().tolist(), sigma))
        return 0.0 * x

    options = {} if name in ("ddpm", "lcm") else {"eta": eta}
    span = Span((0.9, 0.3, 0.05), 0, range(6))  # dpm_fast: orders 3 and 2
    solver = tk.solver(name, **options)
    seen.append((coefficients(tk.denoiser(nothing, PATHS[path]), solver, span), 0.3))
    for (a, *b), sigma in seen:
        assert a * a * 0.81 + sum(k * k for k in b) == pytest.approx(sigma * sigma, rel=1e-12)


def test_lcm_has_the_variance_of_its_level():
    a, b, *_ = coefficients(gaussian(tk.FLOW), tk.solver("lcm"), Span((0.9, 0.4), 0))
    D = gaussian(tk.FLOW).denoise(torch.ones(1, 1, 1, 1, dtype=torch.float64), 0.9).x0
    assert (a, b) == pytest.approx((0.6 * float(D), 0.4), rel=1e-14)


@pytest.mark.parametrize("name", ["euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral",
                                  "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "seeds_2",
                                  "seeds_3"])  # fmt: skip
@pytest.mark.parametrize("path", ["VE", "FLOW"])
def test_s_noise_scales_every_draw_and_nothing_else(name, path):
    model, span = gaussian(PATHS[path]), Span((0.9, 0.4, 0.1), 0)
    a, *b = coefficients(model, tk.solver(name), span)
    scaled, *c = coefficients(model, tk.solver(name, s_noise=0.7), span)
    silent, _ = tk.solver(name, s_noise=0.0).step(
        model, torch.ones(1, 1, 1, 1, dtype=torch.float64), span, (), None
    )
    assert scaled == pytest.approx(a, rel=1e-14)
    assert float(silent) == pytest.approx(a, rel=1e-14)
    assert c == pytest.approx([0.7 * k for k in b], rel=1e-13)
    assert sum(k != 0 for k in b) == {"dpmpp_sde": 2, "seeds_2": 2, "seeds_3": 3}.get(name, 1)


def test_what_the_draws_are_for(mixture, images):
    """Intervals as asked: they overlap for dpmpp_sde, and follow one another for seeds."""
    asked = []

    def noise(s, t):
        asked.append((s, t))
        return torch.zeros_like(images["in"])

    def intervals(name):
        asked.clear()
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.9, 0.4], noise=noise)
        return list(asked)

    (s, m), (again, t) = intervals("dpmpp_sde")
    assert (s, again, t) == (0.9, 0.9, 0.4)
    assert m == np.float32(m)  # ComfyUI's Brownian path is asked at a float32 level
    middle = 0.5 * (mixture.path.half_log_snr(0.9) + mixture.path.half_log_snr(0.4))
    assert m == pytest.approx(mixture.path.from_half_log_snr(middle), rel=2e-7)
    for name in ("seeds_2", "seeds_3"):
        found = intervals(name)
        assert (found[0][0], found[-1][1]) == (0.9, 0.4)
        assert all(a[1] == b[0] for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [("dpmpp_sde", {"r": 0.35}, 2), ("seeds_2", {"r": 0.35}, 2), ("seeds_3", {}, 3),
     ("seeds_3", {"r1": 0.2, "r2": 0.8}, 2), ("dpmpp_2s_ancestral_cfg_pp", {"repaired": True}, 2)],
)  # fmt: skip
def test_order_without_noise(smooth, name, options, least):
    assert order(smooth, tk.solver(name, eta=0.0, **options)) == pytest.approx(least, abs=0.15)


def test_dpmpp_2s_ancestral_cfg_pp_has_no_limit_as_comfyui_has_it(smooth):
    assert abs(order(smooth, tk.solver("dpmpp_2s_ancestral_cfg_pp", eta=0.0))) < 0.3


def test_cfg_pp_without_guidance_is_the_plain_method(mixture, images):
    """Where U = D and eta is 0; and at eta 1 on VE, where both split alike."""
    model, x, sigmas = tk.guide(mixture, 0, 0), images["in"], [0.9, 0.5, 0.2, 0.0]
    plain = run(model, tk.solver("euler"), x, sigmas)
    assert relative(run(model, tk.solver("euler_cfg_pp"), x, sigmas), plain) < 1e-14
    one = run(model, tk.solver("euler_cfg_pp", eta=1.0), x, sigmas, noise=Keyed(1, x.shape))
    two = run(model, tk.solver("euler_ancestral_cfg_pp"), x, sigmas, noise=Keyed(1, x.shape))
    assert torch.equal(one, two)
    if mixture.path == tk.VE:
        ancestral = run(model, tk.solver("euler_ancestral"), x, sigmas, noise=Keyed(1, x.shape))
        assert relative(one, ancestral) < 1e-13


@pytest.mark.parametrize("name", ["euler_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"])
def test_cfg_pp_steps_by_the_unconditional_slope(mixture, images, name):
    """At cfg 7 the noise that is left in the state is the unconditional one."""
    model, x = tk.guide(mixture, 0, 1, 7.0), images["in"]
    s, t, path = 0.9, 0.4, mixture.path
    (y, seen), (D, U) = (
        tk.solver(name, eta=0.0).step(model, x, Span((s, t), 0), (), None),
        model.denoise(x, s, uncond=True),
    )
    assert torch.equal(seen.x0, D)
    if name == "euler_cfg_pp":
        want = path.alpha(t) * D + t * (x - path.alpha(s) * U) / s
    else:
        z = D + math.sqrt(t / s) * (x - U)
        D2, U2 = model.denoise(z, math.sqrt(s * t), uncond=True)
        want = (t / s) * (x + D - U2) + (1 - t / s) * D2
    assert relative(y, want) < 1e-14


@pytest.mark.parametrize("name", DOWN_ONLY)
@pytest.mark.parametrize("levels", [(0.2, 0.5), (0.0, 0.5), (0.5, 1.0)])
def test_no_way_up_is_said_so(mixture, images, name, levels):
    noise = Keyed(1, images["in"].shape)
    assert not tk.SOLVERS[name].upward
    with pytest.raises(ValueError, match=rf"sigmas=.*{levels[1]}.*goes down in sigma.*Try: tk\.solver"):
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], levels, noise=noise)


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_hop_of_no_length_moves_nothing(mixture, images, name, dtype):
    x = images["off"].to(dtype)
    noise = Keyed(3, x.shape, dtype)
    for levels in ((0.7, 0.7, 0.2, 0.0), (1.0, 1.0)):
        first = next(tk.steps(tk.guide(mixture, 0, 1, 3.0), tk.solver(name), x, levels, noise=noise))
        assert torch.allclose(first.x_next, x, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)


@pytest.mark.parametrize("eta", [1.3, 4.0])
def test_large_eta_stays_finite(mixture, images, eta):
    noise = Keyed(3, images["in"].shape)
    for name in ("euler_ancestral", "euler_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "seeds_3",
                 "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "seeds_2"):  # fmt: skip
        out = run(
            tk.guide(mixture, 0), tk.solver(name, eta=eta), images["in"], [1.0, 0.4, 0.2, 0.0], noise=noise
        )
        assert torch.isfinite(out).all()


def test_stages_must_lie_within_the_step(mixture, images):
    for name, options in (("seeds_2", {"r": 1.5}), ("seeds_3", {"r1": 0.8}), ("seeds_3", {"r2": 1.1})):
        with pytest.raises(ValueError, match=r"stage.*Try: tk\.solver"):
            run(tk.guide(mixture, 0), tk.solver(name, **options), images["in"], [0.9, 0.4])


# --- churn ----


@pytest.mark.parametrize("name", ["euler", "ddim", "heun", "heunpp2", "dpm_2"])
def test_churn_is_a_step_up_with_noise_before_the_step(images, name):
    """The variance at v is that of v, and the step, its Eval included, is the plain one from there."""
    model, levels = gaussian(tk.VE), (4.0, 2.0, 1.0, 0.5)
    x = images["in"]
    noise = Keyed(5, x.shape).at(0)(0.0, 0.0)
    gamma = 0.25  # S_churn/n
    v = 4.0 * (1 + gamma)
    y, seen = tk.solver(name, S_churn=0.75).step(model, x, Span(levels, 0), (), lambda s, t: noise)
    assert seen.sigma == v
    assert relative(seen.x, x + math.sqrt(v * v - 16.0) * noise) < 1e-15
    plain = (v, *levels[1:]) if name != "heunpp2" else levels
    if name != "heunpp2":  # whose first level stays unchurned in its weights
        assert torch.equal(y, tk.solver(name).step(model, seen.x, Span(plain, 0), (), None)[0])
    half = tk.solver(name, S_churn=0.75, s_noise=0.5).step(model, x, Span(levels, 0), (), lambda s, t: noise)
    assert relative(half[1].x, x + 0.5 * math.sqrt(v * v - 16.0) * noise) < 1e-15


def test_churned_runs_keep_the_variance():
    solver, model = tk.solver("heun", S_churn=20.0), gaussian(tk.VE)
    few, many = (variance_error(model, solver, np.geomspace(10.0, 0.1, n + 1)) for n in (100, 200))
    assert many < 2e-3
    assert many < 0.6 * few


def test_churn_has_a_ceiling_and_a_window(images):
    model, x, levels = gaussian(tk.VE), images["in"], (4.0, 2.0)

    def raised(**options):  # reads `levels` as it is when called
        solver = tk.solver("euler", S_churn=50.0, **options)
        return solver.step(model, x, Span(levels, 0), (), lambda s, t: torch.zeros_like(x))[1].sigma

    assert raised() == pytest.approx(4.0 * math.sqrt(2.0), rel=1e-15)
    assert raised(S_tmin=4.0, S_tmax=4.0) > 4.0
    assert raised(S_tmin=4.1) == raised(S_tmax=3.9) == 4.0
    levels = (4.0, 4.0)  # a hop of no length moves nothing, churn or not
    assert raised() == 4.0
    assert tk.solver("euler", S_churn=1.0).stochastic
    assert not tk.solver("euler", s_noise=0.5).stochastic
    with pytest.raises(ValueError, match=r"S_churn=50\.0.*upwards.*Try: tk\.solver"):
        run(model, tk.solver("heun", S_churn=50.0), x, [1.0, 2.0], noise=Keyed(1, x.shape))


# --- heunpp2 ----


def test_heunpp2_looks_at_the_grid(mixture, images):
    """Euler in the last hop, wherever it ends, two stages before it, three elsewhere; weights by level 0."""
    x, levels = images["in"], (0.9, 0.6, 0.4, 0.3)
    model, solver = tk.guide(mixture, 0), tk.solver("heunpp2")
    assert [step.seen.calls for step in tk.steps(model, solver, x, levels)] == [3, 2, 1]
    assert [step.seen.calls for step in tk.steps(model, solver, x, (*levels, 0.0))] == [3, 3, 2, 1]

    def slope(y, sigma):
        return (y - model.denoise(y, sigma).x0) / sigma

    def hop(i):
        return solver.step(model, x, Span(levels, i), (), None)[0]

    assert relative(hop(2), x + (0.3 - 0.4) * slope(x, 0.4)) < 1e-14
    d = slope(x, 0.6)
    w = 0.4 / (2 * 0.9)
    assert relative(hop(1), x - 0.2 * ((1 - w) * d + w * slope(x - 0.2 * d, 0.4))) < 1e-14
    d = slope(x, 0.9)
    z = x - 0.3 * d
    d2 = slope(z, 0.6)
    d3 = slope(z - 0.2 * d2, 0.4)
    w2, w3 = 0.6 / 2.7, 0.4 / 2.7
    assert relative(hop(0), x - 0.3 * ((1 - w2 - w3) * d + w2 * d2 + w3 * d3)) < 1e-14
    alone = solver.step(model, x, Span(levels[1:], 0), (), None)[
        0
    ]  # the same hop of a grid that begins there
    assert relative(alone, hop(1)) > 1e-4


def test_heunpp2_reaches_order_1_late(smooth):
    """Where the grid is coarse its weights cancel some of the error: the slope at 40 to 160 steps is 0.6."""
    assert order(smooth, tk.solver("heunpp2"), counts=(320, 640)) > 0.9


# --- dpm_fast ----


@pytest.mark.parametrize("n", range(2, 14))
def test_dpm_fast_spends_the_calls_of_the_grid_asked_for(mixture, images, n):
    sigmas = [*np.linspace(0.9, 0.1, n), 0.0]
    model = tk.guide(mixture, 0)
    steps = list(tk.steps(model, tk.solver("dpm_fast"), images["in"], sigmas))
    assert [step.seen.calls for step in steps] == fast_orders(n)
    assert model.calls == n
    assert len(steps) == n // 3 + 1
    levels = steps[0].span.levels
    assert (levels[0], levels[-1]) == (0.9, 0.1)
    assert np.diff(np.log(levels)) == pytest.approx([math.log(1 / 9) / len(steps)] * len(steps))


def test_dpm_fast_orders():
    assert [fast_orders(n) for n in (1, 2, 3, 4, 8, 9)] == [
        [1],
        [2],
        [2, 1],
        [3, 1],
        [3, 3, 2],
        [3, 3, 2, 1],
    ]


def test_dpm_fast_upwards_walks_from_the_first_positive_level():
    sigmas = [0.0, 0.1, 0.3, 0.5, 0.9]
    solver = tk.solver("dpm_fast")
    assert solver.grid(sigmas) == pytest.approx([0.1, 0.3, 0.9])
    assert solver.grid(np.array(sigmas[::-1])) == pytest.approx([0.9, 0.3, 0.1])


def test_dpm_fast_on_a_grid_of_its_own_already(mixture, images):
    """`steps` says n; a final 0 after it is denoised, and a cut run goes on bit for bit."""
    x, sigmas, model = images["in"], np.geomspace(0.9, 0.05, 8), tk.guide(mixture, 0)
    whole = list(tk.steps(model, tk.solver("dpm_fast"), x, sigmas))
    own = (*whole[0].span.levels, 0.0)
    frozen = list(tk.steps(model, tk.solver("dpm_fast", steps=7), x, own))
    assert [step.span.levels for step in frozen] == [own] * 4
    assert torch.equal(frozen[2].x_next, whole[-1].x_next)
    assert torch.equal(frozen[3].x_next, frozen[3].seen.x0)
    rest = run(model, tk.solver("dpm_fast"), whole[0].x_next, sigmas, start=1)
    assert torch.equal(rest, whole[-1].x_next)
    noise = Keyed(4, x.shape)
    noisy = run(model, tk.solver("dpm_fast", eta=0.7), x, sigmas, noise=noise)
    again = run(model, tk.solver("dpm_fast", eta=0.7, steps=7), x, own, noise=noise, stop=3)
    assert torch.equal(again, noisy)


def test_dpm_fast_says_what_it_cannot_do(mixture, images):
    model, x = tk.guide(mixture, 0), images["in"]
    for sigmas in ([0.9, 0.0], [0.9, 0.9], [0.9], [0.0, 0.9]):
        for name in ("dpm_fast", "dpm_adaptive"):
            with pytest.raises(ValueError, match=r"sigmas=.*positive levels.*Try: tk\.schedule"):
                run(model, tk.solver(name), x, sigmas)
    with pytest.raises(ValueError, match=r"steps=3.*2 hops.*steps=8"):
        run(model, tk.solver("dpm_fast", steps=3), x, [0.9, 0.5, 0.3, 0.1])
    run(model, tk.solver("dpm_fast", steps=8), x, [0.9, 0.5, 0.3, 0.1])
    with pytest.raises(ValueError, match=r"steps=None.*Try: tk\.solver"):
        tk.solver("dpm_fast").step(model, x, Span((0.9, 0.5), 0), (), None)


# --- dpm_adaptive ----


@pytest.mark.parametrize("up", [False, True])
def test_dpm_adaptive_keeps_its_tolerance(smooth, up):
    """Closer to the flow as the tolerance falls, up and down, ending at the last positive level."""
    x = torch.randn((2, 1, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [0.05, 0.9] if up else [0.9, 0.05]
    true = smooth.probability_flow(x, ends, tolerance=1e-12)[-1]
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        solver = tk.solver("dpm_adaptive", rtol=tolerance, atol=tolerance)
        sigmas = [0.0, *ends] if up else [*ends, 0.0]
        *_, last = tk.steps(tk.guide(smooth), solver, x, sigmas)
        assert last.span.t == ends[1]
        assert last.span.levels[0] == ends[0]
        assert last.span.i == last.span.n - 1
        errors.append(relative(last.x_next, true))
    assert errors[0] < 0.02
    assert errors[2] < 1e-5
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize("up", [False, True])
def test_the_hop_of_dpm_adaptive_has_order_3(smooth, up):
    assert order(smooth, tk.solver("dpm_adaptive"), up=up) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("sigmas", "options"),
    [
        ([0.9, 0.3, 0.05, 0.0], {}),
        ([0.0, 0.05, 0.9], {}),
        ([0.9, 0.05], {"eta": 0.5, "pcoeff": 0.2, "dcoeff": 0.1}),
    ],
)
def test_dpm_adaptive_cut_anywhere_goes_on_bit_for_bit(mixture, images, sigmas, options, dtype):
    x = images["off"].to(dtype)
    noise = Keyed(2, x.shape, dtype)
    solver, model = tk.solver("dpm_adaptive", rtol=0.03, **options), tk.guide(mixture, 0, 1, 2.0)
    whole = list(tk.steps(model, solver, x, sigmas, noise=noise))
    assert len(whole) > 6
    assert any(step.seen.calls > 3 for step in whole)  # some hop was tried again
    assert [step.span.i for step in whole] == list(range(len(whole)))
    assert all(a.span.t == b.span.s for a, b in pairwise(whole))
    for cut in (1, len(whole) // 2):
        *_, step = tk.steps(model, solver, x, sigmas, noise=noise, stop=cut)
        assert step.span.i == cut - 1
        rest = list(tk.steps(model, solver, step.x_next, sigmas, noise=noise, past=step.past, start=cut))
        assert rest[-1].span == whole[-1].span
        assert torch.equal(rest[-1].x_next, whole[-1].x_next)
    # the hops replayed on the levels it chose
    levels, y = whole[-1].span.levels, x
    for i, step in enumerate(whole):
        y, seen = solver.step(model, y, Span(levels, i), (), noise.at(i))
        assert torch.equal(y, step.x_next)
        assert (seen.sigma, seen.aux, seen.calls) == (step.seen.sigma, None, 3)


def chosen(model, x, levels, noise, rtol=0.05, atol=0.0078, p=0.0, i=1.0, d=0.0, eta=0.0):
    """The levels that the controller chooses, from the formulas as they are printed."""
    (s, end), h, k, history, prev, chosen = levels, 0.05, 1.5 if eta else 3.0, None, x, [levels[0]]

    def eps(y, sigma):
        return (y - model.denoise(y, sigma).x0) / sigma

    while math.log(s / end) > 1e-5:
        t = max(end, math.exp(math.log(s) - h))
        up = min(t, eta * t * math.sqrt(s * s - t * t) / s)
        to = max(end, math.sqrt(t * t - up * up))
        hop = math.log(s / to)
        a, b = s * math.exp(-hop / 3), s * math.exp(-2 * hop / 3)
        e = eps(x, s)
        e1 = eps(x - a * math.expm1(hop / 3) * e, a)
        u2 = x - b * math.expm1(2 * hop / 3) * e
        e2 = eps(u2 - 2 * b * (math.expm1(2 * hop / 3) / (2 * hop / 3) - 1) * (e1 - e), b)
        low = x - to * math.expm1(hop) * (e + 1.5 * (e1 - e))
        high = x - to * math.expm1(hop) * e - 1.5 * to * (math.expm1(hop) / hop - 1) * (e2 - e)
        delta = torch.clamp(rtol * torch.maximum(low.abs(), prev.abs()), min=atol)
        v = 1 / (float(((low - high) / delta).square().mean().sqrt()) + 1e-8)
        history = history or [v, v]
        q = v ** ((p + i + d) / k) * history[0] ** (-(p + 2 * d) / k) * history[1] ** (d / k)
        factor = 1 + math.atan(q - 1)
        h *= factor
        if factor >= 0.81:
            n = noise.at(len(chosen) - 1)(s, t) if eta else 0.0
            x, prev, s, history = high + n * math.sqrt(max(t * t - to * to, 0.0)), low, t, [v, history[0]]
            chosen.append(t)
    return chosen, x


@pytest.mark.parametrize(
    "options", [{}, {"pcoeff": 0.3, "icoeff": 0.7, "dcoeff": 0.2}, {"eta": 0.5}, {"rtol": 1e-3, "atol": 1e-3}]
)
def test_dpm_adaptive_chooses_the_levels_of_its_controller(mixture, images, options):
    x, noise, model = images["off"], Keyed(2, images["off"].shape), tk.guide(mixture, 0)
    steps = list(tk.steps(model, tk.solver("dpm_adaptive", **options), x, [0.9, 0.05], noise=noise))
    plain = {name.replace("coeff", ""): value for name, value in options.items()}
    levels, last = chosen(model, x, [0.9, 0.05], noise, **plain)
    assert len(levels) > 4
    assert steps[-1].span.levels == pytest.approx(levels, rel=1e-9)
    assert relative(steps[-1].x_next, last) < 1e-9


def test_dpm_adaptive_counts_the_calls_of_what_it_rejects(mixture, images):
    model = tk.guide(mixture, 0)
    steps = list(tk.steps(model, tk.solver("dpm_adaptive", h_init=3.0), images["in"], [0.9, 0.05]))
    assert steps[0].seen.calls > 3
    assert sum(step.seen.calls for step in steps) == model.calls


def test_dpm_adaptive_never_runs_for_ever(mixture, images):
    x = images["in"]

    def broken(y, sigma):
        return y * (math.nan if sigma < 0.5 else 0.5)

    def rough(y, sigma):
        return 1e3 * torch.sin(1e9 * y)

    def take(fn, **options):
        run(tk.denoiser(fn), tk.solver("dpm_adaptive", **options), x, [0.9, 0.1])

    with pytest.raises(FloatingPointError, match=r"sigma=0\.[5-9].*not finite.*Try: tk\.solver"):
        take(broken)
    with pytest.raises(FloatingPointError, match=r"sigma=0\.\d+.*has shrunk to.*Try: tk\.solver"):
        take(rough, rtol=1e-12, atol=1e-12)
    with pytest.raises(FloatingPointError, match="has shrunk to 0"):
        take(lambda y, sigma: 0.5 * y, h_init=0.0)
    with pytest.raises(ValueError, match=r"accept_safety=2\.0.*at most 1"):
        take(lambda y, sigma: 0.5 * y, accept_safety=2.0)
    with pytest.raises(ValueError, match=r"start=2.*past.*Try: tk\.steps"):
        run(tk.guide(mixture, 0), tk.solver("dpm_adaptive"), x, [0.9, 0.1], start=2, past=(Eval(0.5, x, x),))
