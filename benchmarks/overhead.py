"""What a recorded step costs beyond the model, in units of a bare Euler loop measured in the same run.

    python benchmarks/overhead.py [--repeats 7] [--check]

The model returns 0.5*x on a state of (1, 4, 32, 32) in float64, on one thread. A run of `tk.sample` records
every row in memory; the cost of a step is the slope between a short and a long run, so that what a run costs
once (reading its arguments, labelling its Dataset) is not in it, less the model's own calls. The bare loop is
Euler's formula and nothing else: no record, no history, no check; its model call is taken off as well.
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
LIMITS = {"euler": 7.0, "dpmpp_2m": 7.0, "heun": 8.0, "lms": 12.0}  # times the bare loop


def seconds_a_step(run, repeats: int) -> float:
    """The slope of `run(steps)` between SHORT and LONG steps, the best of some repeats of each."""
    best = {}
    for steps in (SHORT, LONG):
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run(steps)
            times.append(time.perf_counter() - begin)
        best[steps] = min(times)
    return (best[LONG] - best[SHORT]) / (LONG - SHORT)


def bare(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler's formula in a loop."""
    sigmas = np.geomspace(14.6, 0.03, steps + 1).tolist()
    for s, t in itertools.pairwise(sigmas):
        denoised = 0.5 * x
        x = x + (t - s) * ((x - denoised) / s)
    return x


def model_alone(x: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        0.5 * x


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
        loop = seconds_a_step(lambda n: bare(x, n), args.repeats) - call
    print(f"{'solver':16s} {'us a step':>10s} {'x bare':>8s} {'limit':>6s}")
    print(f"{'bare loop':16s} {1e6 * loop:10.1f} {1.0:8.1f}")
    over = False
    for name, row in tk.SOLVERS.items():

        def run(steps: int, name=name) -> None:
            sigmas = np.geomspace(14.6, 0.03, steps + 1)
            tk.sample(model, x, solver=name, sigmas=sigmas, progress=False)

        cost = seconds_a_step(run, args.repeats) - row.calls * call
        limit = LIMITS.get(name)
        over |= limit is not None and cost > limit * loop
        print(f"{name:16s} {1e6 * cost:10.1f} {cost / loop:8.1f} {limit or '':>6}")
    return int(args.check and over)


if __name__ == "__main__":
    sys.exit(main())
