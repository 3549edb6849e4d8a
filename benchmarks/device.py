"""The public calls on the GPU: do they run, agree with the CPU, stay exact, and how much faster are they?

    python benchmarks/device.py [--device cuda] [--out benchmarks/device.json]

Runs every public call of a run (unsample with each inverse, sample, ladder, regions in both modes, what is
kept of a picture, the nodes, and the round trip of every solver by what "auto" picks) on the digits pipeline,
the photographs and a closed-form mixture, on the CPU and on the device, and writes: the relative difference
of the two results, the round-trip error on the device, and the ratio of the times in this run.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import toolkit as tk

SAMPLES = 64


def models(device: str) -> dict[str, tuple]:
    """name -> (model, images, prompts) on a device."""
    digits, labels = tk.assets.digits("held-out")
    model = tk.load(device=device)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn((8, 4, 16, 16), dtype=torch.float64, generator=generator)
    picked = means[torch.arange(SAMPLES) % 8]
    closed = tk.GaussianMixture(torch.stack([means, -means]).to(device), 0.35)
    latents = picked + 0.35 * torch.randn(picked.shape, dtype=torch.float64, generator=generator)
    prompts = [int(k) for k in labels[:SAMPLES]]
    # encoded on the CPU for both, so that what is compared is the run
    encoded = tk.load().encode(digits[:SAMPLES])
    photographs = tk.load("photographs", device=device)
    pictures, names = photographs.images()
    return {
        "digits": (model, encoded, prompts),
        "mixture": (closed, latents, 0),
        "photographs": (photographs, tk.load("photographs").encode(pictures), names),
    }


def calls(model, latent, prompt) -> dict[str, Callable[[], np.ndarray]]:
    """name -> a run that returns the array to compare."""
    quiet = {"progress": False, "steps": 20}

    def error(**asked) -> np.ndarray:
        return tk.round_trip(model, latent, prompt=prompt, truth=False, **asked, **quiet).error.values

    def streamed() -> np.ndarray:
        """What a store has that memory has not: copied from the device while the run goes on."""
        with tempfile.TemporaryDirectory() as folder:
            save = tk.Save(store=Path(folder) / "run.zarr")
            asked = {"solver": "dpmpp_2m", "prompt": prompt, **quiet}
            kept = tk.unsample(model, latent, **asked, save=save)
            return np.abs(kept.latent.values - tk.unsample(model, latent, **asked).latent.values)

    other = prompt[::-1] if isinstance(prompt, list) else 1
    soft = tk.box(0.0, 0.0, 0.5, 1.0)
    regions = [tk.Region(soft, prompt, feather=1), tk.Region(1.0 - soft, other, feather=1, seed=1)]
    late = tk.Region(soft * np.linspace(0.2, 1.0, 64), keep=True, differential=True)

    def edited() -> np.ndarray:
        up = tk.unsample(model, latent, solver="obelm", prompt=prompt, **quiet)
        return tk.sample(model, start=up, prompt=other, mask=soft, progress=False).latent.values

    def node() -> np.ndarray:
        sampler = tk.comfy.KSamplerAdvanced(prompt, cfg=1.0)
        asked = [tk.comfy.RegionalPrompt(soft, sampler), tk.comfy.RegionalPrompt(1.0 - soft, sampler)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its quirks
            run = tk.comfy.regional_sampler_advanced(
                model, latent_image=latent, base_sampler=sampler, regional_prompts=asked
            )
        return run.latent.values

    trips = {f"error {name}": lambda name=name: error(solver=name) for name in tk.SOLVERS}
    implicit = {f"error {i}": lambda i=i: error(solver="heun", inverse=i) for i in ("fixed_point", "defect")}
    return {
        "unsample offsets": lambda: tk.unsample(model, latent, prompt=prompt, **quiet).latent.values,
        "unsample obelm": lambda: (
            tk.unsample(model, latent, solver="obelm", prompt=prompt, **quiet).latent.values
        ),
        "unsample reverse": lambda: (
            tk.unsample(model, latent, inverse="reverse", prompt=prompt, **quiet).latent.values
        ),
        "sample": lambda: tk.sample(model, latent, solver="dpmpp_2m", prompt=prompt, **quiet).latent.values,
        "sample ancestral": lambda: (
            tk.sample(model, latent, solver="euler_ancestral", prompt=prompt, **quiet).latent.values
        ),
        "ladder": lambda: tk.ladder(model, latent, **quiet).latent.values,
        "comfy.unsampler": lambda: (
            tk.comfy.unsampler(model, 20, positive=prompt, latent_image=latent).latent.values
        ),
        "regional": lambda: tk.regional(model, regions, latent, solver="dpmpp_2m", **quiet).latent.values,
        "regional step": lambda: (
            tk.regional(model, regions, latent, mode="step", solver="dpmpp_sde", **quiet).latent.values
        ),
        "regional kept": lambda: (
            tk.regional(model, [late, *regions], latent, solver="heun", **quiet).latent.values
        ),
        "edited under a mask": edited,
        "comfy.regional_sampler_advanced": node,
        "error regions": lambda: error(solver="obelm", regions=regions),
        "error streamed": streamed,
        **trips,
        **implicit,
    }


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result of the second run, and its seconds: the first one warms up."""
    run()
    begin = time.perf_counter()
    out = run()  # ends in NumPy, so the device has finished
    return out, time.perf_counter() - begin


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here")
        return 2
    here, there, table = models("cpu"), models(args.device), []
    print(f"{'model':12s} {'call':36s} {'difference':>11s} {'times faster':>13s}")
    for name in here:
        for call, run in calls(*here[name]).items():
            want, slow = timed(run)
            got, fast = timed(calls(*there[name])[call])
            apart = (
                float(np.abs(got).max())
                if "error" in call
                else float(np.linalg.norm(got - want) / np.linalg.norm(want))
            )
            table.append({"model": name, "call": call, "difference": apart, "ratio": slow / fast})
            print(f"{name:12s} {call:36s} {apart:11.1e} {slow / fast:13.1f}")
    if args.out:
        where = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
        args.out.write_text(
            json.dumps({"device": where, "torch": torch.__version__, "runs": table}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
