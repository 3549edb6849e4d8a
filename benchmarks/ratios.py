"""What `cpu.py` and `gpu.py` measure: a recorded step beside the network alone and beside diffusers' loop.

Pipelines are made in memory, with random weights, from the configurations of Stable Diffusion; prompts are
random embeddings, so that there is no text encoder. All are asked without guidance: one network row a sample
and step. A step is the slope between a short and a long run, so that what a run costs once is not in it; the
whole of a long run is told as well. All runs of a table take turns, and each counts with its best.
"""

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from ladder import Peak
from regional import CONFIG, TOKENS

import toolkit as tk
from toolkit.pipelines.adapter import Condition

# the networks by size; a prompt has as many tokens as its text encoder gives
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "tiny": (CONFIG | {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4}, TOKENS),
    "small": (CONFIG, TOKENS),  # 0.79 M parameters
    "tinyxl": (CONFIG | {
        "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": (1, 2),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 1304,
    }, TOKENS),
    "sd15": ({
        "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }, 77),
    "sdxl": ({
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }, 77),
}  # fmt: skip
# no images are made; but a pipeline has one, of 8 x 8 pixels a latent
VAE = {
    "latent_channels": 4, "block_out_channels": (8,) * 4, "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
POOLED = 1280  # of SDXL's second text encoder
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
REGIONS = 3
HOLLOW = (20, 220)  # steps of a run whose network answers at once
# ratio -> (the run, what it is held against, which batch has the limit; None: each)
RATIOS = {
    "over the bare forward": ("unsample", "forward", None),
    "over the diffusers loop": ("unsample", "diffusers", None),
    "compiled, over the diffusers loop": ("unsample, compiled", "diffusers", None),
    "to a store, over the diffusers loop": ("unsample, store", "diffusers", None),
    "three regions at once over one by one": ("regions", "regions, one by one", 1),
}

# the same of what is added to the network's time by one and by the other, each measured without it
ADDED = ("added, over the bare forward", "added, over the diffusers loop")


def pipeline(size: str, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of one of the sizes, without texts."""
    config, _ = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):  # a large network is made in seconds there, and in minutes on one core
        unet = UNet2DConditionModel(**{"in_channels": 4, "out_channels": 4, **config}).to(dtype).eval()
    scheduler = DDIMScheduler(set_alpha_to_one=False, steps_offset=1, **BETAS)
    vae = AutoencoderKL(**VAE).to(device, dtype)
    parts = {"vae": vae, "text_encoder": None, "tokenizer": None, "unet": unet, "scheduler": scheduler}
    if config.get("addition_embed_type"):
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None,
                                         add_watermarker=False)  # fmt: skip
    else:
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


class Case:
    """A network with a batch of latents, and its runs: functions of the number of steps to the calls made."""

    def __init__(self, size: str, batch: int, device: str, dtype: torch.dtype, compiled: bool, store: Path):
        self.pipe, self.size, self.batch, self.store = pipeline(size, device, dtype), size, batch, store
        config, tokens = SIZES[size]
        self.device, side = torch.device(device), config["sample_size"]
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
        self.x = draw(batch, 4, side, side).to(self.device, torch.float64)
        self.prompts = []
        for number in range(REGIONS):
            told = {"encoder_hidden_states": draw(1, tokens, config["cross_attention_dim"])}
            if config.get("addition_embed_type"):
                told["text_embeds"] = draw(1, POOLED)
            told = {name: value.to(self.device, dtype) for name, value in told.items()}
            self.prompts.append(Condition(f"prompt {number}", told))
        self.model = tk.load(self.pipe)
        self.runs: dict[str, Callable[[int], int]] = {
            "forward": self.forward,
            "diffusers": self.diffusers,
            "unsample": partial(self.unsample, self.model),
            "unsample, store": partial(self.unsample, self.model, store=True),
            "regions": partial(self.regional, self.model),
            "regions, one by one": partial(self.regional, tk.load(self.pipe, max_rows=batch)),
        }
        if compiled:
            self.runs["unsample, compiled"] = partial(self.unsample, tk.load(self.pipe, compile=True))

    def wait(self) -> None:
        """Until the device has nothing more to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def told(self) -> dict[str, torch.Tensor]:
        """The first prompt, one a sample."""
        return {name: torch.cat([value] * self.batch) for name, value in self.prompts[0].tensors.items()}

    def bound(self) -> dict[str, Any]:
        """The first prompt as ours takes it; a negative is encoded though guidance is off."""
        return {"prompt": self.prompts[0], "negative": self.prompts[0]}

    def forward(self, steps: int) -> int:
        """The network and nothing else."""
        told, x = self.told(), self.x.to(self.pipe.unet.dtype)
        time_ = torch.full((self.batch,), 500.0, device=self.device)
        if "text_embeds" in told:
            side = 8 * x.shape[-1]
            ids = torch.tensor(
                [[side, side, 0, 0, side, side]] * self.batch, device=self.device, dtype=x.dtype
            )
            told["added_cond_kwargs"] = {"text_embeds": told.pop("text_embeds"), "time_ids": ids}
        with torch.no_grad():
            for _ in range(steps):
                self.pipe.unet(x, time_, return_dict=False, **told)
        return steps

    def diffusers(self, steps: int) -> int:
        """The pipeline's own loop, which records nothing."""
        told = self.told()
        asked = {"prompt_embeds": told["encoder_hidden_states"]}
        if "text_embeds" in told:
            asked["pooled_prompt_embeds"] = told["text_embeds"]
        self.pipe(**asked, latents=self.x.to(self.pipe.unet.dtype), num_inference_steps=steps,
                  guidance_scale=1.0, output_type="latent")  # fmt: skip
        return steps

    def unsample(self, model: Any, steps: int, store: bool = False) -> int:
        """Upwards, every rung recorded."""
        with tempfile.TemporaryDirectory(dir=self.store) as folder:
            save = tk.Save(store=Path(folder) / "run.zarr") if store else tk.Save()
            run = tk.unsample(model, self.x, inverse="reverse", steps=steps, **self.bound(),
                              save=save, progress=False)  # fmt: skip
            return int(run.nfe[-1])

    def regional(self, model: Any, steps: int) -> int:
        """From noise to one picture of three prompts."""
        side = self.x.shape[-1]
        edges = [k / REGIONS for k in range(REGIONS + 1)]
        regions = [tk.Region(tk.box(a, 0.0, b, 1.0, size=(side, side)), prompt=prompt)
                   for a, b, prompt in zip(edges[:-1], edges[1:], self.prompts, strict=True)]  # fmt: skip
        run = tk.regional(model, regions, shape=self.x.shape, steps=steps, **self.bound(),
                          progress=False)  # fmt: skip
        return int(run.nfe[-1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A random network makes no noise of an image, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure(case: Case, steps: tuple[int, int], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds a model call: the slope, and of the whole long run; and its calls."""
    # one thread is timed by its processor, which does not count what other processes take
    clock = time.perf_counter if case.device.type == "cuda" else time.process_time
    best: dict[tuple[str, int], float] = {}
    calls: dict[tuple[str, int], int] = {}
    with quiet():
        for turn in range(1 + repeats):
            for name, run in case.runs.items():
                for n in steps:
                    case.wait()
                    begin = clock()
                    calls[name, n] = run(n)
                    case.wait()
                    took = clock() - begin
                    if turn:  # the first time is a warm-up, and compiles
                        best[name, n] = min(took, best.get((name, n), took))
    few, many = steps
    return {
        name: {
            "s_call": (best[name, many] - best[name, few]) / (calls[name, many] - calls[name, few]),
            "s_whole": best[name, many] / calls[name, many],
            "calls": calls[name, many],
        }
        for name in case.runs
    }


def added(case: Case, repeats: int) -> dict[str, float]:
    """Seconds a step of what is not the network, which answers at once here: no noise of its own hides it."""
    runs, unet = case.runs, case.pipe.unet
    forward = unet.forward
    unet.forward = lambda x, *args, **options: (torch.zeros_like(x),)
    case.runs = {name: runs[name] for name in ("diffusers", "unsample")}
    try:
        found = measure(case, HOLLOW, 3 * repeats)
    finally:
        case.runs, unet.forward = runs, forward
    return {name: row["s_call"] for name, row in found.items()}


def memory(case: Case, steps: int) -> dict[str, float]:
    """The most memory that a run needs beyond what was there, in MiB: of the device, or of the process."""
    found = {}
    with quiet():
        for name in ("diffusers", "unsample"):
            gc.collect()
            if case.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                case.runs[name](steps)
                found[name] = torch.cuda.max_memory_allocated() / 2**20
            else:
                with Peak() as peak:
                    case.runs[name](steps)
                found[name] = peak.most / 2**20
    return found


def waits(case: Case, steps: tuple[int, int]) -> float | None:
    """How often a step of an unsample waits for the device, beside once for the hop before; None on a CPU."""
    if case.device.type != "cuda":
        return None
    counts = []
    for n in steps:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                case.runs["unsample"](n)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(w.message) for w in told))
    return (counts[1] - counts[0]) / (steps[1] - steps[0])


def table(case: Case, steps: tuple[int, int], repeats: int) -> dict[str, Any]:
    """All figures of one network and batch."""
    runs = measure(case, steps, repeats)
    ratios = {
        name: {"a_step": runs[a]["s_call"] / runs[b]["s_call"],
               "whole": runs[a]["s_whole"] / runs[b]["s_whole"]}
        for name, (a, b, _) in RATIOS.items() if a in runs
    }  # fmt: skip
    more, alone = added(case, repeats), runs["forward"]["s_call"]
    told = (alone + more["unsample"]) / alone, (alone + more["unsample"]) / (alone + more["diffusers"])
    ratios |= {name: {"a_step": ratio, "whole": None} for name, ratio in zip(ADDED, told, strict=True)}
    parameters = sum(p.numel() for p in case.pipe.unet.parameters())
    return {"size": case.size, "batch": case.batch, "shape": list(case.x.shape), "parameters": parameters,
            "runs": runs, "added_s": more, "ratios": ratios, "peak_mib": memory(case, steps[1]),
            "waits_a_step": waits(case, steps)}  # fmt: skip


def shown(found: dict[str, Any], limits: dict[str, float]) -> bool:
    """Prints a table; whether a ratio is over its limit."""
    over = False
    print(f"\n{found['size']}, {found['parameters']:,} parameters, latents {found['shape']}")
    for name, row in found["runs"].items():
        step, whole = 1000 * row["s_call"], 1000 * row["s_whole"]
        print(f"  {name:40s} {step:10.3f} ms a call {whole:9.3f} of {row['calls']}")
    for name, ratio in found["ratios"].items():
        only = RATIOS[name][2] if name in RATIOS else None
        limit = limits.get(name) if only in (None, found["batch"]) else None
        over |= limit is not None and ratio["a_step"] > limit
        told = "" if limit is None else f"limit {limit}"
        whole = " " * 22 if ratio["whole"] is None else f"{ratio['whole']:12.3f} the whole"
        print(f"  {name:40s} {ratio['a_step']:10.4f} a step {whole}   {told}")
    most, more = found["peak_mib"], found["added_s"]
    print(f"  {'added to the network, us a step':40s} {1e6 * more['unsample']:10.1f} "
          f"beside {1e6 * more['diffusers']:.1f} of the pipeline")  # fmt: skip
    print(
        f"  {'most memory, MiB':40s} {most['unsample']:10.1f} beside {most['diffusers']:.1f} of the pipeline"
    )
    if found["waits_a_step"] is not None:
        print(f"  {'waits for the device':40s} {found['waits_a_step']:10.2f} a step", flush=True)
    return over


def arguments(doc: str, device: str, sizes: list[str], batches: list[int], steps: tuple[int, int],
              repeats: int) -> argparse.ArgumentParser:  # fmt: skip
    """The options, with what a script asks where they are not given."""
    ask = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device", choices=["cpu", "cuda"], default=device)
    ask.add_argument("--size", choices=list(SIZES), nargs="+", default=sizes)
    ask.add_argument("--batch", type=int, nargs="+", default=batches)
    ask.add_argument("--steps", type=int, nargs=2, default=steps, metavar=("SHORT", "LONG"))
    ask.add_argument("--repeats", type=int, default=repeats)
    ask.add_argument("--no-compile", dest="compiled", action="store_false")
    ask.add_argument("--check", action="store_true")
    ask.add_argument("--out", type=Path, default=None)
    return ask


def run(args: argparse.Namespace, limits: dict[str, float]) -> int:
    """Measures, prints and writes; the exit code."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --size tiny shows that the script runs")
        return 2
    if args.device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    where = torch.cuda.get_device_name() if args.device == "cuda" else "cpu, one thread"
    print(f"{where}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}; "
          f"steps {args.steps[0]} and {args.steps[1]}, best of {args.repeats}")  # fmt: skip
    over, tables = False, []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.size:
            for batch in args.batch:
                case = Case(size, batch, args.device, dtype, args.compiled, Path(folder))
                tables.append(table(case, tuple(args.steps), args.repeats))
                over |= shown(tables[-1], limits)
                del case
                torch.compiler.reset()
                gc.collect()
                if args.device == "cuda":
                    torch.cuda.empty_cache()
    if args.out:
        told = {"device": where, "dtype": str(dtype), "torch": torch.__version__, "steps": list(args.steps),
                "repeats": args.repeats, "limits": limits, "tables": tables}  # fmt: skip
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(args.check and over)


if __name__ == "__main__":
    sys.exit("run cpu.py or gpu.py")
