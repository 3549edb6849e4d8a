"""Three prompts on one canvas: network rows and time of `tk.regional`, beside Impact Pack's node.

    python benchmarks/regional.py [--device cpu|cuda] [--repeats 3] [--check] [--out FILE.json]

A random UNet of 0.79 M parameters on latents of (1, 4, 32, 32), in float32 under a state in float64; three
masks that cover the canvas, 20 steps of the schedule normal, cfg 1.5. The node is the algorithm of
`RegionalSamplerAdvanced` as `tk.comfy` has it, with its defaults: at every step a call of the base, whose
mask is empty here, and one of each region, 2 rows each. `tk.regional` asks for all regions, and the negative
that they share, in one call of 4 rows. Calls and rows are counted by the network itself. All runs take turns
within one process, on one thread; a ratio is between the bests of both. `--check` exits with 1 where
`tk.regional` in its usual mode is over the limit with any solver.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

import toolkit as tk
from toolkit.denoisers import Model, one_a_sample, predict

SHAPE = (1, 4, 32, 32)
STEPS, CFG, SCHEDULE = 20, 1.5, "normal"
SOLVERS = ("euler", "heun", "dpmpp_2m")
MODES = ("denoiser", "step")
LIMITS = {"cpu": 0.6, "cuda": 0.35}  # of the node's time, by mode "denoiser"
PROMPTS = (1, 2, 3)
TOKENS, WIDTH = 8, 32  # of a prompt's embedding
CONFIG = {
    "sample_size": SHAPE[-1],
    "in_channels": SHAPE[1],
    "out_channels": SHAPE[1],
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 8,
}


class UNet(Model):
    """A text-conditioned UNet with random weights; a prompt is an index of a table of random embeddings."""

    name, prediction = "UNet", "eps"
    levels = tk.Levels.scaled_linear()
    channels, shape = SHAPE[1], SHAPE[1:]

    def __init__(self, device: str):
        torch.manual_seed(0)
        self.device = torch.device(device)
        network = UNet2DConditionModel(**CONFIG)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.table = torch.randn(1 + len(PROMPTS), TOKENS, WIDTH).to(self.device)  # (prompt, token, width)
        self.parameters = sum(p.numel() for p in network.parameters())
        self.forwards = self.seen = 0

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list[int]:
        """Places in the table, one a sample; None is the first."""
        return one_a_sample(prompt, samples, lambda given, _: given or 0, name)

    def x0(self, x: torch.Tensor, sigma: float, conditions: list[int]) -> torch.Tensor:
        picked = self.table[torch.tensor(conditions, device=self.device)]

        def network(seen: torch.Tensor) -> torch.Tensor:
            return self.network(seen.float(), self.levels.time(sigma), picked).sample

        self.forwards, self.seen = self.forwards + 1, self.seen + len(x)
        return predict(self.prediction, network, x, sigma)


def runs(model: UNet, solver: str) -> dict[str, Callable[[], Any]]:
    """what -> a run of it, by one solver."""
    asked = {"solver": solver, "schedule": SCHEDULE, "steps": STEPS, "cfg": CFG, "progress": False}
    # the node is given masks at the size of the picture, and grows them by some of those pixels
    side, count = 8 * SHAPE[-1], len(PROMPTS)
    masks = [tk.box(k / count, 0.0, (k + 1) / count, 1.0, size=(side, side)) for k in range(count)]
    regions = [tk.Region(mask, prompt=p) for mask, p in zip(masks, PROMPTS, strict=True)]
    base, *own = (tk.comfy.KSamplerAdvanced(p, None, CFG, solver, SCHEDULE) for p in (PROMPTS[0], *PROMPTS))
    prompts = [tk.comfy.RegionalPrompt(mask, sampler) for mask, sampler in zip(masks, own, strict=True)]
    latent = torch.zeros(SHAPE)

    def node() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names its quirks, which are no matter of time
            return tk.comfy.regional_sampler_advanced(
                model, steps=STEPS, latent_image=latent, base_sampler=base, regional_prompts=prompts
            )

    def ours(mode: str) -> Callable[[], Any]:
        return lambda: tk.regional(model, regions, mode=mode, prompt=PROMPTS[0], **asked)

    return {
        "the node": node,
        **{f"tk.regional, {mode}": ours(mode) for mode in MODES},
        "tk.sample, one prompt": lambda: tk.sample(model, prompt=PROMPTS[0], **asked),
    }


def timed(run: Callable[[], Any], model: UNet) -> float:
    """Seconds of one call, the device's work in them."""
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


def measure(model: UNet, solver: str, repeats: int) -> list[dict[str, Any]]:
    """A row of the table for each run; they take turns, so that a slow while of the machine meets all."""
    table, took = [], {}
    asked = runs(model, solver)
    for what, run in asked.items():  # the first time is a warm-up, and is counted in calls and rows alone
        model.forwards = model.seen = 0
        run()
        table.append({"solver": solver, "what": what, "calls": model.forwards, "rows": model.seen})
        took[what] = []
    for _ in range(repeats):
        for what, run in asked.items():
            took[what].append(timed(run, model))
    for row in table:
        row["best_s"], row["median_s"] = min(took[row["what"]]), statistics.median(took[row["what"]])
    for row in table:
        row["ratio"] = row["best_s"] / table[0]["best_s"]
        row["ratio_of_medians"] = row["median_s"] / table[0]["median_s"]
        row["ratio_of_rows"] = row["rows"] / table[0]["rows"]
    return table


def network_alone(model: UNet, repeats: int) -> dict[int, float]:
    """Seconds of one call of the network by rows, the best of many: what no algorithm can save."""
    found = {}
    for rows in (1, 2, 4):
        x, conditions = torch.zeros((rows, *SHAPE[1:]), device=model.device), [0] * rows
        found[rows] = min(timed(lambda x=x, c=conditions: model.x0(x, 1.0, c), model)
                          for _ in range(10 * repeats))  # fmt: skip
    return found


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", choices=LIMITS, default="cpu")
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--check", action="store_true")
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here")
        return 2
    torch.set_num_threads(1)
    model = UNet(args.device)
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else args.device
    limit, over, table = LIMITS[model.device.type], False, []
    alone = network_alone(model, args.repeats)
    print(f"{model.parameters:,} parameters on {where}; limit of tk.regional, {MODES[0]}: {limit}")
    print("a call of the network: " + ", ".join(f"{n} rows {1000 * s:.2f} ms" for n, s in alone.items()))
    print(f"{'solver':10s} {'what':24s} {'calls':>6s} {'rows':>6s} {'best s':>8s} {'median s':>9s} "
          f"{'ratio':>6s} {'of medians':>11s} {'of rows':>8s}")  # fmt: skip
    for solver in SOLVERS:
        for row in measure(model, solver, args.repeats):
            table.append(row)
            over |= row["what"].endswith(MODES[0]) and row["ratio"] > limit
            print(f"{solver:10s} {row['what']:24s} {row['calls']:6d} {row['rows']:6d} {row['best_s']:8.3f} "
                  f"{row['median_s']:9.3f} {row['ratio']:6.3f} {row['ratio_of_medians']:11.3f} "
                  f"{row['ratio_of_rows']:8.3f}", flush=True)  # fmt: skip
    if args.out:
        told = {"device": where, "torch": torch.__version__, "parameters": model.parameters, "limit": limit,
                "network_s": alone, "runs": table}  # fmt: skip
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(args.check and over)


if __name__ == "__main__":
    sys.exit(main())
