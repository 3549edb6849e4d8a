"""Multistep, predictor-corrector and reversible solvers: what is special about each of them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import PATHS, relative, run

import toolkit as tk
from toolkit.noise import Keyed
from toolkit.solvers.contract import Eval
from toolkit.solvers.multistep import _variable_weights
from toolkit.solvers.phi import phis
from toolkit.solvers.predictor import UNIPC_END, fitted

OFFSET = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "er_sde", "sa_solver", "sa_solver_pece")
NOISY = (*OFFSET, "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp")
CFG_PP = ("gradient_estimation_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp")


def walk(model, solver, x, sigmas, **options):
    return list(tk.steps(model, solver, x, sigmas, **options))


@pytest.fixture(scope="module", params=["VE", "FLOW"])
def smooth(request):
    """A mixture with overlapping modes; its `ladder` is the true ODE on a grid, solved once."""
    rng = np.random.default_rng(3)
    model = tk.GaussianMixture(0.6 * rng.standard_normal((2, 1, 3, 3)), 0.8, path=PATHS[request.param])
    known = {}

    def ladder(kind, n, up):
        """n steps from 0.7 to 0.25, or up, and a few beyond: uni_pc lowers its order at the end of a grid."""
        if (kind, n, up) not in known:
            u = np.arange(n + (3 if kind == "linear" else 5)) / n
            if kind == "linear":
                levels = 0.7 - 0.45 * u
            else:
                u = u + (0.15 * np.sin(2 * np.pi * u) / (2 * np.pi) if kind == "warped" else 0.0)
                levels = 0.7 * (0.25 / 0.7) ** u
            levels = levels[n::-1] if up else levels
            known[kind, n, up] = levels, model.probability_flow(start(), levels, tolerance=1e-13)
        return known[kind, n, up]

    model.ladder = ladder
    return model


def start():
    return torch.randn((2, 1, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slope(counts, errors) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


# --- order, with a past that is exact: a cold start hides all above 2 ---

EXACT = [
    ("lms", {}, "warped", 4, "both"),
    ("ipndm", {}, "linear", 4, "both"),
    ("ipndm", {}, "warped", 2, "both"),
    ("ipndm_v", {}, "even", 3, "both"),
    ("deis", {}, "even", 3, "both"),
    ("dpmpp_2m", {"textbook": True}, "warped", 2, "both"),
    ("dpmpp_3m_sde", {"eta": 0.0}, "even", 2, "down"),
    ("dpmpp_3m_sde", {"eta": 0.0, "textbook": True}, "even", 3, "down"),
    ("uni_pc", {}, "warped", 4, "down"),
    ("uni_pc_bh2", {}, "warped", 4, "down"),
    ("sa_solver", {"eta": 0.0}, "warped", 4, "down"),
    ("sa_solver_pece", {"eta": 0.0}, "warped", 4, "down"),
]


@pytest.mark.parametrize(
    ("name", "options", "kind", "order", "way"),
    EXACT,
)
def test_order_with_exact_history(smooth, name, options, kind, order, way):
    solver, counts = tk.solver(name, **options), (30, 60, 120)
    for up in (False, True) if way == "both" else (False,):
        errors = []
        for n in counts:
            levels, true = smooth.ladder(kind, n, up)
            model = tk.guide(smooth)
            x0 = [model.denoise(true[j], float(levels[j])).x0 for j in range(4)]
            past = tuple(Eval(float(levels[j]), true[j], x0[j]) for j in (3, 2, 1, 0))[: solver.memory]
            errors.append(relative(run(model, solver, true[4], levels, past=past, start=4, stop=n), true[n]))
        assert abs(slope(counts, errors) - order) < 0.4


def test_the_weights_of_ipndm_v_add_up_only_where_the_ratio_of_steps_is_constant():
    assert math.isclose(sum(_variable_weights([1.0, 1.0, 1.0, 1.0])), 1.0)
    assert math.isclose(sum(_variable_weights([1.0, 1.5, 1.5**2, 1.5**3])), 1.0)
    assert abs(sum(_variable_weights([1.0, 1.2, 1.0, 1.3])) - 1.0) > 0.01


@pytest.mark.parametrize("z", [-12.0, -1.0, -0.999, -1e-9, 0.0, 0.3, 2.5])
def test_phi_functions_to_rounding(z):
    exact = [float(sum(Fraction(z) ** j / math.factorial(j + k) for j in range(90))) for k in (1, 2, 3, 4)]
    assert phis(z, 4) == pytest.approx(exact, rel=5e-15)


def test_fitted_weights_solve_their_equations():
    nodes, wanted = [1.0, 0.0, -0.4, -3.0], [0.3, -1.0, 2.0, 0.5]
    v = fitted(nodes, wanted)
    assert [sum(w * r**m for w, r in zip(v, nodes, strict=True)) for m in range(4)] == pytest.approx(wanted)


# --- options, and names that are the same solver ---

GRID = [0.95, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0]


def test_eta_0_is_the_deterministic_solver(mixture, images):
    """DPM-Solver++(2M) SDE without noise is the 2M of the paper, whose clock on VE is ComfyUI's too."""
    model, x = tk.guide(mixture, 0), images["in"]
    paper = run(model, tk.solver("dpmpp_2m", textbook=True), x, GRID)
    assert relative(run(model, tk.solver("dpmpp_2m_sde", eta=0.0), x, GRID), paper) < 1e-13
    moved = relative(run(model, tk.solver("dpmpp_2m"), x, GRID), paper)
    assert moved > 1e-6 if mixture.path is tk.FLOW else moved < 1e-13
    for plain, noisy in (("res_multistep", "res_multistep_ancestral"),
                         ("res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp")):  # fmt: skip
        assert torch.equal(
            run(model, tk.solver(noisy, eta=0.0), x, GRID), run(model, tk.solver(plain), x, GRID)
        )


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_is_the_plain_solver_where_uncond_is_x0(mixture, images, name):
    model, plain = tk.guide(mixture, 0, 0), tk.solver(name.removesuffix("_cfg_pp"))
    got, want = run(model, tk.solver(name), images["in"], GRID), run(model, plain, images["in"], GRID)
    assert relative(got, want) < 1e-12
    apart = tk.guide(mixture, 0, 1)  # at cfg 1 too the unconditional answer is asked for
    assert relative(run(apart, tk.solver(name), images["in"], GRID), want) > 1e-3


@pytest.mark.parametrize(
    ("name", "option", "other"),
    [
        ("dpmpp_2m_sde", "solver_type", "heun"),
        ("dpmpp_3m_sde", "textbook", True),
        ("uni_pc", "variant", "bh2"),
        ("sa_solver", "pece", True),
        ("sa_solver", "simple_order_2", True),
        ("gradient_estimation", "gamma", 1.5),
        ("rex", "form", "data"),
        ("obelm", "form", "data"),
        ("rex", "increment", "euler"),
    ],
)
def test_an_option_changes_the_result_a_little(mixture, images, name, option, other):
    model, x = tk.guide(mixture, 0), images["in"]
    # a grid above 0: at 0 the denoised hides what two solvers differ by
    first, second = (
        run(model, tk.solver(name, **options), x, GRID[:-1], noise=Keyed(1, x.shape))
        for options in ({}, {option: other})
    )
    assert 1e-6 < relative(second, first) < 0.6


def test_the_twins_with_a_suffix_have_their_option(mixture, images):
    model, x = tk.guide(mixture, 0), images["in"]
    for twin, name, options in (
        ("dpmpp_2m_sde_heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", {}),
        ("uni_pc_bh2", "uni_pc", {"variant": "bh2"}),
        ("sa_solver_pece", "sa_solver", {"pece": True}),
    ):
        got, want = (
            run(model, s, x, GRID, noise=Keyed(1, x.shape))
            for s in (tk.solver(twin), tk.solver(name, **options))
        )
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match='solver_type="heun"'):
        tk.solver("dpmpp_2m_sde", solver_type="huen")


def test_gradient_estimation_at_gamma_1_is_euler_and_at_one_and_a_half_of_order_2(smooth):
    errors = []
    for n in (30, 60, 120):
        levels, true = smooth.ladder("even", n, False)
        got = {
            g: run(tk.guide(smooth), tk.solver("gradient_estimation", gamma=g), true[0], levels, stop=n)
            for g in (1.0, 1.5)
        }
        assert relative(got[1.0], run(tk.guide(smooth), tk.solver("euler"), true[0], levels, stop=n)) < 1e-13
        errors.append(relative(got[1.5], true[n]))
    assert abs(slope((30, 60, 120), errors) - 2) < 0.25


# --- noise ---


@pytest.mark.parametrize("name", [n for n in NOISY if not n.endswith("cfg_pp")])
@pytest.mark.parametrize("path", ["VE", "FLOW"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_keeps_the_marginal(name, path, eta):
    """Where D is the truth, x = alpha D + sigma eps stays so: new noise fills what a step forgets of eps."""
    clean = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    model = tk.denoiser(lambda x, sigma: clean, path=PATHS[path])
    solver = tk.solver(name, **({} if name == "er_sde" else {"eta": eta}))  # it has no eta
    sigmas = [0.95, 0.8, 0.62, 0.5, 0.3, 0.1]
    x, alpha = PATHS[path].mix(clean, torch.ones_like(clean), sigmas[0]), PATHS[path].alpha
    silent = walk(model, solver, x, sigmas, noise=lambda s, t: torch.zeros_like(clean))
    grown = []
    for step in silent:
        s, t = step.span.s, step.span.t
        kept = (step.x_next - alpha(t) * clean) / (step.x - alpha(s) * clean) * s
        past = silent[step.span.i - 1].past if step.span.i else ()
        loud = next(tk.steps(model, solver, step.x, sigmas, noise=lambda s, t: torch.ones_like(clean),
                             past=past, start=step.span.i))  # fmt: skip
        new = loud.x_next - step.x_next
        grown.append(float(new.max()))
        if name == "res_multistep_ancestral" and path == "FLOW":
            continue  # VE's split on FLOW, as in ComfyUI: the state leaves the path
        assert torch.allclose(kept**2 + new**2, torch.full_like(new, t * t), rtol=1e-12)
    assert max(grown) > 0.05


def test_sa_solver_draws_only_in_the_middle_of_the_clock(mixture, images):
    asked = []
    sigmas = tk.schedule(mixture, "karras", steps=20).sigma.values

    def noise(s, t):
        asked.append(t)
        return torch.zeros_like(images["in"])

    run(tk.guide(mixture, 0), tk.solver("sa_solver"), images["in"], sigmas, noise=noise)
    high, low = mixture.levels.percent(0.2), mixture.levels.percent(0.8)
    assert asked == [float(t) for t in sigmas[1:] if high >= t >= low]
    assert 2 < len(asked) < 18


# --- levels: FLOW's 1, repeated ones, upwards ---


@pytest.mark.parametrize("name", [*OFFSET, "dpmpp_2m"])
@pytest.mark.parametrize("grid", [[1.0, 0.6, 0.3, 0.0], [1.0, 1.0, 0.6, 0.0]])
def test_the_first_sigma_of_1_is_a_little_less_on_flow(mixture, images, name, grid):
    options = {"textbook": True} if name == "dpmpp_2m" else {}
    seen = walk(tk.guide(mixture, 0), tk.solver(name, **options), images["in"], grid,
                noise=Keyed(0, images["in"].shape))  # fmt: skip
    top = float(np.float32(mixture.levels.percent(1e-4))) if mixture.path is tk.FLOW else 1.0
    for step in seen:
        assert step.seen.sigma == (top if step.span.s == 1.0 else step.span.s)
        assert torch.isfinite(step.x_next).all()


def test_the_textbook_climb_to_flow_1_is_finite(images):
    model = tk.denoiser(lambda x, sigma: 0.5 * x, path=tk.FLOW)
    top = run(model, tk.solver("dpmpp_2m", textbook=True), images["in"], [0.1, 0.4, 0.7, 1.0])
    assert torch.isfinite(top).all()


@pytest.mark.parametrize("name", [*NOISY, *CFG_PP, "edict", "rex"])
def test_a_hop_of_no_length_moves_nothing(mixture, images, name):
    model, x = tk.guide(mixture, 0, 1, 3.0), images["in"]
    steps = walk(model, tk.solver(name), x, [0.9, 0.9, 0.5, 0.5, 0.5, 0.2, 0.1, 0.0], noise=Keyed(0, x.shape))
    for step in steps:
        assert torch.isfinite(step.x_next).all()
        if step.span.s == step.span.t:
            assert torch.equal(step.x_next, step.x)


@pytest.mark.parametrize("name", [*NOISY, *CFG_PP])
def test_no_way_up(mixture, images, name):
    with pytest.raises(ValueError, match=r'sigmas=\(0\.1, 0\.5\).*Try: tk\.solver\("euler"\)'):
        run(
            tk.guide(mixture, 0), tk.solver(name), images["in"], [0.1, 0.5, 0.9], noise=Keyed(0, (2, 1, 1, 1))
        )


# --- uni_pc ---


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("above", [[0.9, 0.6, 0.35, 0.2, 0.1], [0.9]])
def test_uni_pc_ends_at_a_thousandth(mixture, images, name, above):
    """A final 0 is 0.001 in all of it; FLOW's result is divided by alpha there. One step is Euler's."""
    model, solver = tk.guide(mixture, 0), tk.solver(name)
    *_, last = walk(model, solver, images["in"], [*above, 0.0])
    at_end = run(model, solver, images["in"], [*above, UNIPC_END])
    alpha = 0.999 if mixture.path is tk.FLOW else 1.0
    assert last.span.t == 0.0
    assert relative(last.x_next, at_end / alpha) < 1e-15
    assert relative(last.x_next, last.seen.x0) > 1e-8  # not the denoised
    assert model.calls == 2 * len(above)
    if above == [0.9]:
        assert relative(at_end, run(model, tk.solver("euler"), images["in"], [0.9, UNIPC_END])) < 1e-15


def test_pece_keeps_its_second_evaluation(mixture, images):
    """Two calls from the second step on, at one level; what is kept is x0 at the corrected state."""
    asked = []

    class Spy(type(tk.guide(mixture))):
        def denoise(self, x, sigma, uncond=False):
            out = super().denoise(x, sigma, uncond)
            asked.append((sigma, out.x0))
            return out

    spy = Spy(mixture, 0)
    steps = walk(spy, tk.solver("sa_solver_pece"), images["in"], GRID, noise=Keyed(0, images["in"].shape))
    assert [step.seen.calls for step in steps] == [1, 2, 2, 2, 2, 2]
    assert [sigma for sigma, _ in asked] == [GRID[0], *np.repeat(GRID[1:-1], 2)]
    assert all(step.seen.x0 is asked[2 * k][1] for k, step in enumerate(steps))
    assert torch.equal(steps[-1].x_next, asked[-1][1])


# --- fireflow, uni_inv ---


@pytest.mark.parametrize(("name", "order"), [("fireflow", 2), ("uni_inv", 1)])
@pytest.mark.parametrize("up", [False, True])
def test_one_call_a_step_for_a_kept_slope(smooth, name, order, up):
    errors = []
    for n in (30, 60, 120):
        levels, true = smooth.ladder("even", n, up)
        model = tk.guide(smooth)
        steps = walk(model, tk.solver(name), true[0], levels, stop=n)
        assert model.calls == n + 1
        assert [step.seen.x0 is None for step in steps] == [False] + [True] * (n - 1)
        errors.append(relative(steps[-1].x_next, true[n]))
    assert abs(slope((30, 60, 120), errors) - order) < 0.25


def test_uni_inv_nears_eulers_inverse(smooth):
    """Up by uni_inv and down by euler: order 2, where each alone is of order 1 (2504.13109)."""
    errors = []
    for n in (30, 60, 120):
        levels, true = smooth.ladder("even", n, True)
        model = tk.guide(smooth)
        top = run(model, tk.solver("uni_inv"), true[0], levels)
        errors.append(relative(run(model, tk.solver("euler"), top, levels[::-1]), true[0]))
    assert slope((30, 60, 120), errors) > 1.75


# --- reversible ---

PAIRS = [
    ("edict", {}),
    *(("rex", {"form": f, "increment": i}) for f in ("sigma", "data") for i in ("midpoint", "euler")),
]


@pytest.mark.parametrize(("name", "options"), PAIRS)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
@pytest.mark.parametrize("first", ["down", "up"])
def test_a_pair_comes_back(mixture, images, name, options, cfg, first):
    """There and back over three hops, FLOW's 1 among them: the state and its partner, which has left it."""
    model, solver = tk.guide(mixture, 0, 1, cfg), tk.solver(name, **options)
    levels = [1.0, 0.8, 0.6, 0.5] if first == "down" else [0.5, 0.6, 0.8, 1.0]
    there = walk(model, solver, images["in"], levels)
    back = walk(model, solver, there[-1].x_next, levels[::-1], past=there[-1].past)
    for near, far in zip(back, [*there[-2::-1], None], strict=True):
        x, partner = (far.x_next, far.seen.aux) if far else (images["in"], images["in"])
        assert relative(near.x_next, x) < 1e-12
        assert relative(near.seen.aux, partner) < 1e-12
    assert relative(there[-1].seen.aux, there[-1].x_next) > 1e-9
    calls = {"edict": 2, "rex": 2 if options.get("increment") == "euler" else 4}[name]
    assert {step.seen.calls for step in (*there, *back)} == {calls}


@pytest.mark.parametrize(
    ("name", "options"), [("obelm", {"form": "data"}), ("bdia", {}), ("bdia", {"gamma": 0.8})]
)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_two_states_come_back(mixture, images, name, options, cfg):
    model, solver = tk.guide(mixture, 0, 1, cfg), tk.solver(name, **options)
    levels = [1.0, 0.8, 0.6, 0.5]
    there = walk(model, solver, images["in"], levels)
    # from the last two states: the first hop up is the pair itself
    past = (Eval(levels[-1], there[-1].x_next),)
    back = walk(model, solver, there[-1].x, levels[::-1], past=past, start=1)
    assert relative(back[-1].x_next, images["in"]) < 1e-12
    assert [step.seen.calls for step in there] == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [("obelm", {"form": "data"}, 2), ("bdia", {}, 2), ("rex", {}, 2), ("rex", {"form": "data"}, 2)],
)
@pytest.mark.parametrize("up", [False, True])
def test_order_of_the_reversible_ones(smooth, name, options, order, up):
    errors = []
    for n in (30, 60, 120):
        levels, true = smooth.ladder("even", n, up)
        got = run(tk.guide(smooth), tk.solver(name, **options), true[0], levels, stop=n)
        errors.append(relative(got, true[n]))
    assert slope((30, 60, 120), errors) > order - 0.25


@pytest.mark.parametrize("name", ["obelm", "bdia"])
def test_two_states_need_two_levels(mixture, images, name):
    with pytest.raises(
        ValueError, match=rf"{name} cannot be reversed over a repeated level.*Try: tk\.schedule"
    ):
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.9, 0.5, 0.5, 0.0])
