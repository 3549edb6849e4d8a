"""Every row of the table of solvers: order by slope, resume, reversibility, and the reference numbers."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import DATA, PATHS, reference_mixture

import toolkit as tk
from toolkit.noise import Keyed
from toolkit.solvers import Solver
from toolkit.solvers.contract import Eval

DETERMINISTIC = [name for name, row in tk.SOLVERS.items() if not row.stochastic]
STOCHASTIC = [name for name, row in tk.SOLVERS.items() if row.stochastic]
UPWARD = [name for name, row in tk.SOLVERS.items() if row.upward]
REVERSIBLE = [name for name, row in tk.SOLVERS.items() if row.reversible]


def relative(got, want) -> float:
    return float(torch.linalg.norm(got - want) / torch.linalg.norm(want))


def run(model, solver, x, sigmas, **options):
    """The last state of a run."""
    for step in tk.steps(model, solver, x, sigmas, **options):
        x = step.x_next
    return x


def seeded(shape):
    """A function (sigma, sigma_next) -> unit noise that repeats itself run by run."""
    generator = torch.Generator().manual_seed(42)
    return lambda s, t: torch.randn(shape, generator=generator, dtype=torch.float32).double()


@pytest.fixture(scope="module", params=["VE", "FLOW"])
def smooth(request):
    """A mixture with overlapping modes, whose flow has no scale below 0.5."""
    rng = np.random.default_rng(3)
    return tk.GaussianMixture(0.6 * rng.standard_normal((2, 1, 3, 3)), 0.8, path=PATHS[request.param])


def measured_order(model, solver, low, high, up) -> float:
    """The slope of log error over log steps between 40 and 160 steps, on levels even in log sigma."""
    x = torch.randn((2, 1, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, last = (low, high) if up else (high, low)
    true = model.probability_flow(x, [first, last], tolerance=1e-12)[-1]
    counts = (40, 80, 160)
    errors = [
        relative(run(tk.guide(model), solver, x, np.geomspace(first, last, n + 1)), true) for n in counts
    ]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("up", [False, True])
def test_order_of_convergence(smooth, name, up):
    """At least the nominal order, at most 2 of it from a cold start, less a quarter."""
    row = tk.SOLVERS[name]
    if up and not row.upward:
        pytest.fail(f"{name} is deterministic and has no step upwards: say in its row which inverse works")
    order = measured_order(smooth, tk.solver(name), 0.05, 0.9, up)
    assert order > min(row.order, 2) - 0.25
    assert order < row.order + 1.5  # an error that vanishes is an error of the test


@pytest.mark.parametrize("name", STOCHASTIC)
def test_order_of_the_deterministic_part(smooth, name):
    assert measured_order(smooth, tk.solver(name, eta=0.0), 0.05, 0.9, False) > tk.SOLVERS[name].order - 0.25


@pytest.mark.parametrize("name", list(tk.SOLVERS))
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(mixture, images, name, cut):
    sigmas = tk.schedule(mixture, "karras", steps=10).sigma.values
    x = sigmas[0] * images["in"]
    noise = Keyed(7, x.shape)
    solver = tk.solver(name)
    whole = run(tk.guide(mixture, 0), solver, x, sigmas, noise=noise)
    *_, step = tk.steps(tk.guide(mixture, 0), solver, x, sigmas, noise=noise, stop=cut)
    rest = run(tk.guide(mixture, 0), solver, step.x_next, sigmas, noise=noise, past=step.past, start=cut)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_the_table_row_is_true(mixture, images, name):
    """Calls a step, memory, and whether noise is asked for, as the row states them."""
    row, asked = tk.SOLVERS[name], []
    model = tk.guide(mixture, 0)
    sigmas = tk.schedule(mixture, "karras", steps=8).sigma.values

    def noise(s, t):
        asked.append((s, t))
        return torch.zeros_like(images["in"])

    seen = list(tk.steps(model, row, images["in"], sigmas, noise=noise))
    assert seen[4].seen.calls == row.calls
    assert max(len(step.past) for step in seen) == row.memory
    assert bool(asked) == row.stochastic
    assert all(t > 0 for _, t in asked)
    assert model.calls == sum(step.seen.calls for step in seen)
    assert [step.span.t for step in seen] == pytest.approx(sigmas[1:])


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_nothing_is_promoted_or_demoted(mixture, images, name):
    sigmas = tk.schedule(mixture, steps=4).sigma.values
    for dtype in (torch.float64, torch.float32):
        x = images["in"].to(dtype)
        out = run(
            tk.guide(mixture, 0), tk.solver(name), x, sigmas, noise=lambda s, t, x=x: torch.ones_like(x)
        )
        assert out.dtype == dtype
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_the_state_handed_in_is_left_alone(mixture, images, name):
    x = images["in"].clone()
    list(
        tk.steps(
            tk.guide(mixture, 0),
            tk.solver(name),
            x,
            [0.9, 0.5, 0.1, 0.0],
            noise=lambda s, t: torch.ones_like(x),
        )
    )
    assert torch.equal(x, images["in"])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_last_step_to_zero_is_the_denoised(mixture, images, name):
    *_, step = tk.steps(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.9, 0.5, 0.2, 0.0])
    assert torch.equal(step.x_next, step.seen.x0)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("grid", [[0.9, 0.5, 0.5, 0.5, 0.2, 0.0], [0.9, 0.9, 0.3, 0.0]])
def test_repeated_levels(mixture, images, name, grid):
    """`simple` repeats levels beyond 1,000 steps; a hop of no length moves nothing and breaks nothing."""
    if tk.SOLVERS[name].reversible:
        with pytest.raises(ValueError, match="repeated level"):
            run(tk.guide(mixture, 0), tk.solver(name), images["in"], grid)
        return
    steps = list(tk.steps(tk.guide(mixture, 0), tk.solver(name), images["in"], grid))
    for step in steps:
        assert torch.isfinite(step.x_next).all()
        if step.span.s == step.span.t:
            assert torch.allclose(step.x_next, step.x, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_a_step_up_after_a_step_down_is_the_identity(mixture, images, name, cfg):
    model, solver = tk.guide(mixture, 0, 1, cfg), tk.solver(name)
    sigmas = [0.9, 0.6, 0.35, 0.2]
    down = list(tk.steps(model, solver, images["in"], sigmas))
    last = down[-1]
    past = (Eval(last.span.t, last.x_next),)
    *_, up = tk.steps(model, solver, last.x, sigmas[::-1], past=past, start=1, stop=2)
    assert relative(up.x_next, down[1].x) < 1e-12


def test_obelm_starts_as_it_is_told(mixture, images):
    sigmas = [0.9, 0.6, 0.35]
    first = next(tk.steps(tk.guide(mixture, 0), tk.solver("obelm", bootstrap="euler"), images["in"], sigmas))
    assert torch.equal(first.x_next, run(tk.guide(mixture, 0), tk.solver("euler"), images["in"], sigmas[:2]))
    with pytest.raises(ValueError, match="bootstrap"):
        tk.solver("obelm", bootstrap="eluer")


def test_noise_is_needed_where_it_is_drawn(mixture, images):
    with pytest.raises(ValueError, match=r"noise=None.*draws noise"):
        run(tk.guide(mixture, 0), tk.solver("euler_ancestral"), images["in"], [0.9, 0.5, 0.0])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_no_solver_starts_from_sigma_0(mixture, images, name):
    with pytest.raises(ValueError, match=r"sigmas=\(0\.0, 0\.1\).*alpha\*x.*Try: tk\.steps"):
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.0, 0.1, 0.5])


def test_a_new_solver_is_one_function_and_one_row(smooth):
    """Ralston's method, registered for a moment: the tests of this file apply to it by themselves."""

    def ralston(model, x, span, past, noise):
        s, t = span.s, span.t
        D = model.denoise(x, s).x0
        if t == 0:
            return D, Eval(s, x, D)
        d, m = (x - D) / s, s + 2 * (t - s) / 3
        z = x + (m - s) * d
        return x + (t - s) * (d / 4 + 3 * (z - model.denoise(z, m).x0) / (4 * m)), Eval(s, x, D)

    tk.SOLVERS["ralston"] = Solver("ralston", ralston, order=2, calls=2, upward=True)
    try:
        assert measured_order(smooth, tk.solver("ralston"), 0.05, 0.9, True) > 1.75
        x = torch.ones((1, 1, 3, 3), dtype=torch.float64)
        assert float(tk.round_trip(smooth, x, solver="ralston", steps=6, progress=False).error.max()) < 1e-12
        assert "ralston" in repr(tk.SOLVERS)
    finally:
        del tk.SOLVERS["ralston"]


# --- parity: numbers measured on the original samplers (data/README.md) ----

with np.load(DATA / "sample.npz") as _data:
    SAMPLE = dict(_data)
CASE = re.compile(r"(eps|flow)__(\w+?)__([a-z_]+?)__s(\d+)__cfg([\d.]+)__out_f(64|32)run$")
CASES = [key for key in SAMPLE if CASE.match(key)]


def test_there_are_cases_of_every_name_and_path():
    assert {CASE.match(k)[2] for k in CASES} == {"euler", "euler_ancestral", "heun", "lms", "dpmpp_2m"}
    assert {CASE.match(k)[1] for k in CASES} == {"eps", "flow"}


@pytest.mark.parametrize("key", CASES)
def test_sampling_meets_the_reference(reference, key):
    kind, name, schedule, steps, cfg, _ = CASE.match(key).groups()
    path = tk.FLOW if kind == "flow" else tk.VE
    model = reference_mixture(reference, path)
    sigmas = SAMPLE[f"{kind}__{schedule}__std__s{steps}__sigmas"].astype(np.float64)
    noise = torch.from_numpy(SAMPLE["noise"]).double()
    x = sigmas[0] * noise if kind == "flow" else noise * math.sqrt(1 + sigmas[0] ** 2)
    got = run(tk.guide(model, 0, 1, float(cfg)), tk.solver(name), x, sigmas, noise=seeded(x.shape))
    assert relative(got, torch.from_numpy(SAMPLE[key]).double()) < 5e-6
