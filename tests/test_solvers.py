"""Every row of the table of solvers: order by slope, resume, reversibility, and the reference numbers."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA, reference_mixture, relative, run

import toolkit as tk
from toolkit.noise import Keyed
from toolkit.schedules import DISCARD_PENULTIMATE
from toolkit.solvers import Solver
from toolkit.solvers.contract import Eval

DETERMINISTIC = [name for name, row in tk.SOLVERS.items() if not row.stochastic]
UPWARD = [name for name, row in tk.SOLVERS.items() if row.upward]
REVERSIBLE = [name for name, row in tk.SOLVERS.items() if row.reversible]


def seeded(shape):
    """A function (sigma, sigma_next) -> unit noise that repeats itself run by run."""
    generator = torch.Generator().manual_seed(42)
    return lambda s, t: torch.randn(shape, generator=generator, dtype=torch.float32).double()


ORDERS = [(name, k) for name, row in tk.SOLVERS.items() for k in range(len(row.measured))]


@pytest.mark.parametrize(("name", "k"), ORDERS)
def test_order_of_convergence(name, k):
    """Measured again: what the table prints, and the nominal order, of which a cold start keeps 2."""
    row, up, path = tk.SOLVERS[name], k > 1, (tk.VE, tk.FLOW)[k % 2]
    order = tk.testing.measured_order(name, path, up)
    assert order == pytest.approx(row.measured[k], abs=0.1)
    assert order > min(row.order, 2) - 0.25


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_every_order_that_is_stated_is_measured(name):
    """Down on both paths, and up where the solver goes up; a method without an order states none."""
    row = tk.SOLVERS[name]
    assert len(row.measured) == (0 if row.order is None else 4 if row.upward else 2)


@pytest.mark.parametrize("name", list(tk.SOLVERS))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(mixture, images, name, share):
    sigmas = tk.schedule(mixture, "karras", steps=10).sigma.values
    x = sigmas[0] * images["in"]
    noise = Keyed(7, x.shape)
    solver = tk.solver(name)
    *_, last = whole = list(tk.steps(tk.guide(mixture, 0), solver, x, sigmas, noise=noise))
    cut = max(1, int(share * len(whole)))
    *_, step = tk.steps(tk.guide(mixture, 0), solver, x, sigmas, noise=noise, stop=cut)
    rest = run(tk.guide(mixture, 0), solver, step.x_next, sigmas, noise=noise, past=step.past, start=cut)
    assert torch.equal(rest, last.x_next)


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_the_table_row_is_true(mixture, images, name):
    """Calls a step, memory, the unconditional answer, and whether noise is asked for, as the row states."""
    row, asked, unconditional = tk.SOLVERS[name], [], []
    model = tk.guide(mixture, 0)
    sigmas = tk.schedule(mixture, "karras", steps=8).sigma.values

    def noise(s, t):
        asked.append((s, t))
        return torch.zeros_like(images["in"])

    def denoise(x, sigma, uncond=False, inner=model.denoise):
        unconditional.append(uncond)
        return inner(x, sigma, uncond)

    model.denoise = denoise
    seen = list(tk.steps(model, row, images["in"], sigmas, noise=noise))
    if row.adaptive:  # rejected attempts are in it
        assert all(step.seen.calls in range(row.calls, 30, row.calls - 1) for step in seen)
    else:
        assert seen[min(4, len(seen) - 3)].seen.calls == row.calls
    assert max(len(step.past) for step in seen) == row.memory
    assert bool(asked) == row.stochastic
    assert all(t > 0 for _, t in asked)
    assert model.calls == sum(step.seen.calls for step in seen)
    assert any(unconditional) == row.uncond
    if row.own_grid or row.adaptive:
        assert (seen[0].span.s, seen[-1].span.t) == pytest.approx((sigmas[0], sigmas[-2]), rel=1e-6)
    else:
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


# uni_pc's end is the state at 0.001, and those with levels of their own end above 0
TO_ZERO = [n for n in DETERMINISTIC if tk.SOLVERS[n].to_zero and not n.startswith("uni_pc")]


@pytest.mark.parametrize("name", TO_ZERO)
def test_the_last_step_to_zero_is_the_denoised(mixture, images, name):
    *_, step = tk.steps(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.9, 0.5, 0.2, 0.0])
    assert torch.equal(step.x_next, step.seen.x0)


GRIDS = [[0.9, 0.5, 0.5, 0.5, 0.2, 0.0], [0.9, 0.9, 0.3, 0.0]]
REFUSING = ["obelm", "bdia"]


@pytest.mark.parametrize("name", [n for n in tk.SOLVERS if n not in REFUSING])
@pytest.mark.parametrize("grid", GRIDS)
def test_repeated_levels(mixture, images, name, grid):
    """`simple` repeats levels beyond 1,000 steps; a hop of no length moves nothing and breaks nothing."""
    draw = seeded(images["in"].shape)
    for step in tk.steps(tk.guide(mixture, 0), tk.solver(name), images["in"], grid, noise=draw):
        assert torch.isfinite(step.x_next).all()
        # the corrector of the hop before moves uni_pc there
        if step.span.s == step.span.t and name in TO_ZERO:
            assert torch.allclose(step.x_next, step.x, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_repeated_level_has_no_way_back(mixture, images, name, grid):
    with pytest.raises(ValueError, match="repeated level"):
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], grid)


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_a_step_up_after_a_step_down_is_the_identity(mixture, images, name, cfg):
    model, solver = tk.guide(mixture, 0, 1, cfg), tk.solver(name)
    sigmas = [0.9, 0.6, 0.35, 0.2]
    down = list(tk.steps(model, solver, images["in"], sigmas))
    last, before = down[-1], down[-2]
    if solver.pair:
        past = (Eval(last.span.t, last.x_next, aux=last.seen.aux),)
        up = next(tk.steps(model, solver, last.x_next, sigmas[::-1], past=past))
        assert relative(up.x_next, last.x) < 1e-12
        assert relative(up.seen.aux, before.seen.aux) < 1e-12
    else:
        past = (Eval(last.span.t, last.x_next),)
        up = next(tk.steps(model, solver, last.x, sigmas[::-1], past=past, start=1))
        assert relative(up.x_next, before.x) < 1e-12


def test_obelm_starts_as_it_is_told(mixture, images):
    sigmas = [0.9, 0.6, 0.35]
    first = next(tk.steps(tk.guide(mixture, 0), tk.solver("obelm", bootstrap="euler"), images["in"], sigmas))
    assert torch.equal(first.x_next, run(tk.guide(mixture, 0), tk.solver("euler"), images["in"], sigmas[:2]))
    with pytest.raises(ValueError, match="bootstrap"):
        tk.solver("obelm", bootstrap="eluer")


def test_noise_is_needed_where_it_is_drawn(mixture, images):
    with pytest.raises(ValueError, match=r"noise=None.*draws noise"):
        run(tk.guide(mixture, 0), tk.solver("euler_ancestral"), images["in"], [0.9, 0.5, 0.0])


@pytest.mark.parametrize("name", [n for n in UPWARD if tk.SOLVERS[n].to_zero])
def test_no_solver_starts_from_sigma_0(mixture, images, name):
    with pytest.raises(ValueError, match=r"sigmas=\(0\.0, 0\.1\).*alpha\*x.*Try: tk\.steps"):
        run(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.0, 0.1, 0.5])


@pytest.mark.parametrize("name", [n for n in tk.SOLVERS if n not in UPWARD])
def test_what_cannot_go_up_says_what_can(mixture, images, name):
    """An error that names another way, or numbers; never NaN."""
    with pytest.raises(ValueError, match=r"Try: tk\.unsample\(.*inverse=\"(offsets|noise)\""):
        tk.unsample(mixture, images["in"], solver=name, inverse="reverse", progress=False)
    draw = seeded(images["in"].shape)
    try:
        end = run(tk.guide(mixture, 0), tk.solver(name), images["in"], [0.1, 0.2, 0.5, 0.9], noise=draw)
    except ValueError as exc:
        assert "Try: " in str(exc)
    else:
        assert torch.isfinite(end).all()


def test_a_new_solver_is_one_function_and_one_row(mixture, images):
    """Ralston's method, registered for a moment: the tests of this file apply to it by themselves."""

    def ralston(model, x, span, past, noise):
        s, t = span.s, span.t
        D = model.denoise(x, s).x0
        if t == 0:
            return D, Eval(s, x, D)
        d, m = (x - D) / s, s + 2 * (t - s) / 3
        z = x + (m - s) * d
        return x + (t - s) * (d / 4 + 3 * (z - model.denoise(z, m).x0) / (4 * m)), Eval(s, x, D)

    tk.SOLVERS["ralston"] = row = Solver("ralston", ralston, 2, 2, measured=(2.0,) * 4, upward=True)
    try:
        for k in range(4):
            test_order_of_convergence("ralston", k)
        test_every_order_that_is_stated_is_measured("ralston")
        test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(mixture, images, "ralston", 0.4)
        test_the_table_row_is_true(mixture, images, "ralston")
        test_repeated_levels(mixture, images, "ralston", GRIDS[0])
        for inverse in ("auto", "fixed_point", "defect"):
            asked = {"solver": "ralston", "inverse": inverse, "schedule": "normal", "prompt": 0}
            assert float(tk.round_trip(mixture, images["in"], **asked, progress=False).error.max()) < 1e-11
        assert repr(row) == "tk.solver('ralston')"
        assert "ralston" in repr(tk.SOLVERS)
        tk.SOLVERS["ralston"] = replace(row, measured=(3.0,) * 4)
        with pytest.raises(AssertionError):  # a row that promises too much is found out
            test_order_of_convergence("ralston", 0)
    finally:
        del tk.SOLVERS["ralston"]


def test_a_new_stochastic_solver_gets_its_inverse(mixture, images):
    """Half of the noise taken out and put back, with two draws a step: the last of them is extracted."""

    def restless(model, x, span, past, noise):
        s, t = span.s, span.t
        early = 0.01 * s * noise(s, t)
        D = model.denoise(x + early, s).x0
        if t == 0:
            return D, Eval(s, x, D)
        return torch.lerp(D, x, 0.9 * t / s) + 0.4 * t * noise(s, t), Eval(s, x, D)

    tk.SOLVERS["restless"] = Solver("restless", restless, None, 1, stochastic=True)
    try:
        asked = {"solver": "restless", "prompt": 0, "negative": 1, "cfg": 7.5, "progress": False}
        trip = tk.round_trip(mixture, images["off"], **asked)
        assert (trip.attrs["inverse"], trip.attrs["noise_draws"]) == ("noise", 2)
        assert float(trip.error.max()) < 1e-11
    finally:
        del tk.SOLVERS["restless"]


# --- parity: numbers measured on the original samplers (data/README.md) ----

with np.load(DATA / "sample.npz") as _data:
    SAMPLE = dict(_data)
CASE = re.compile(r"(eps|flow)__(\w+?)__([a-z_]+?)__s(\d+)__cfg([\d.]+)__out_f(64|32)run$")
CASES = [key for key in SAMPLE if CASE.match(key)]


# relative error where it is not rounding alone: quadratures, levels and whole runs in float32 upstream
LOOSER = {
    "heunpp2": 1e-4, "deis": 5e-5, "ddpm": 1e-4, "dpmpp_3m_sde": 1.2e-4, "sa_solver_pece": 5e-5,
    "uni_pc": 1e-4, "uni_pc_bh2": 1e-4, "dpm_adaptive": 5e-6,
}  # fmt: skip
CHAOTIC = 5e-2  # dpm_adaptive at cfg 3: its accept or reject flips on the last bit
TREE = re.compile(r"dpmpp_(sde|2m_sde|3m_sde)")


def brownian(sigmas, shape, seed=42):
    """The reference's draws of the SDE names: increments of torchsde's tree over sigma, unit normal."""
    import torchsde

    positive = sigmas[sigmas > 0].astype(np.float32)
    ends = torch.tensor(float(positive.min())), torch.tensor(float(positive.max()))
    tree = torchsde.BrownianTree(ends[0], torch.zeros(shape), ends[1], entropy=seed)

    def draw(s, t):
        low, high = (torch.tensor(v, dtype=torch.float32) for v in sorted((float(s), float(t))))
        return (-tree(low, high) / (high - low).sqrt()).double()

    return draw


def test_there_are_cases_of_every_name_and_path():
    """ComfyUI's 42 names; those that end in _gpu have the numbers of their twin."""
    ours = {"midpoint", "fireflow", "uni_inv", *REVERSIBLE}
    comfy = set(tk.SOLVERS) - ours
    assert len(comfy) == 42
    assert {CASE.match(k)[2] for k in CASES} == {n for n in comfy if not n.endswith("_gpu")}
    for name in comfy:
        twin = tk.SOLVERS[name.removesuffix("_gpu")]
        assert (tk.SOLVERS[name].function, tk.SOLVERS[name].options) == (twin.function, twin.options)
    assert {CASE.match(k)[1] for k in CASES} == {"eps", "flow"}


@pytest.mark.filterwarnings("ignore:Should have t")  # torchsde compares float32 with its rounded text
@pytest.mark.parametrize("key", CASES)
def test_sampling_meets_the_reference(reference, key):
    kind, name, schedule, steps, cfg, _ = CASE.match(key).groups()
    model = reference_mixture(reference, tk.FLOW if kind == "flow" else tk.VE)
    grid = "dp" if name in DISCARD_PENULTIMATE else "std"
    sigmas = SAMPLE[f"{kind}__{schedule}__{grid}__s{steps}__sigmas"].astype(np.float64)
    noise = torch.from_numpy(SAMPLE["noise"]).double()
    x = sigmas[0] * noise if kind == "flow" else noise * math.sqrt(1 + sigmas[0] ** 2)
    draw = brownian(sigmas, x.shape) if TREE.match(name) else seeded(x.shape)
    got = run(tk.guide(model, 0, 1, float(cfg)), tk.solver(name), x, sigmas, noise=draw)
    limit = CHAOTIC if name == "dpm_adaptive" and cfg != "1" else LOOSER.get(name, 1e-5)
    assert relative(got, torch.from_numpy(SAMPLE[key]).double()) < limit
