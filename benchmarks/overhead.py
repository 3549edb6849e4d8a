"""What a recorded step costs beyond the model, in units of a bare Euler loop measured in the same run.

    python benchmarks/overhead.py [--repeats 7] [--check]

The model returns 0.5*x on a state of (1, 4, 32, 32) in float64, on one thread. A run of `tk.sample` records
every row in memory; the cost of a step is the slope between a short and a long run, so that what a run costs
once (reading its arguments, labelling its Dataset) is not in it, less the model's own calls. The bare loop is
Euler's formula and nothing else: no record, no history, no check; its model call is taken off as well. A step
is a row of the record: dpm_fast makes fewer than asked for, dpm_adaptive as many as its tolerance wants.
`--check` exits with 1 where a solver is over its limit.
"""

import argparse
import itertools
import sys
import time

import numpy as np
import torch

import toolkit as tk

SHAPE = (1, 4, 32, 32)
SHORT, LONG = 100, 1100
TOLERANCES = {SHORT: 1e-6, LONG: 1e-9}  # of dpm_adaptive, which chooses its steps
LIMITS = {"euler": 7.0, "dpmpp_2m": 7.0, "heun": 8.0, "lms": 12.0}  # times the bare loop


def seconds_a_step(run, repeats: int, call: float = 0.0) -> float:
    """The slope of `run(steps) -> (steps made, model calls)` between SHORT and LONG, best of some repeats.

    `call` seconds are taken off a model call.
    """
    best, made = {}, {}
    for steps in (SHORT, LONG):
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            made[steps] = run(steps)
            times.append(time.perf_counter() - begin)
        best[steps] = min(times)
    (few, few_calls), (many, many_calls) = made[SHORT], made[LONG]
    return (best[LONG] - best[SHORT] - (many_calls - few_calls) * call) / (many - few)


def bare(x: torch.Tensor, steps: int) -> tuple[int, int]:
    """Euler's formula in a loop."""
    sigmas = np.geomspace(14.6, 0.03, steps + 1).tolist()
    for s, t in itertools.pairwise(sigmas):
        denoised = 0.5 * x
        x = x + (t - s) * ((x - denoised) / s)
    return steps, steps


def model_alone(x: torch.Tensor, steps: int) -> tuple[int, int]:
    for _ in range(steps):
        0.5 * x
    return steps, steps


def recorded(model, name: str, x: torch.Tensor, steps: int) -> tuple[int, int]:
    """A run of `tk.sample` with every row kept."""
    solver = tk.solver(name)
    if solver.adaptive:
        solver = tk.solver(name, rtol=0.0, atol=TOLERANCES[steps])
    run = tk.sample(model, x, solver=solver, sigmas=np.geomspace(14.6, 0.03, steps + 1), progress=False)
    return run.sizes["step"] - 1, int(run.nfe[-1])


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--repeats", type=int, default=7)
    ask.add_argument("--check", action="store_true")
    args = ask.parse_args()
    torch.set_num_threads(1)
    model = tk.denoiser(lambda x, sigma: 0.5 * x)
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        call = seconds_a_step(lambda n: model_alone(x, n), args.repeats)
        loop = seconds_a_step(lambda n: bare(x, n), args.repeats, call)
    print(f"{'solver':30s} {'us a step':>10s} {'x bare':>8s} {'limit':>6s}")
    print(f"{'bare loop':30s} {1e6 * loop:10.1f} {1.0:8.1f}")
    over = False
    for name in tk.SOLVERS:
        cost = seconds_a_step(lambda n, name=name: recorded(model, name, x, n), args.repeats, call)
        limit = LIMITS.get(name)
        over |= limit is not None and cost > limit * loop
        print(f"{name:30s} {1e6 * cost:10.1f} {cost / loop:8.1f} {limit or '':>6}")
    return int(args.check and over)


if __name__ == "__main__":
    sys.exit(main())
