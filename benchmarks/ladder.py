"""Ladders of 10,000 rungs: time and memory beside the bare draw of as many numbers, in memory and streamed.

    python benchmarks/ladder.py [--check] [--rungs 10000]

Every figure is taken in a process of its own, with one thread. Times in memory are the best of several, since
a machine gives a process its memory slowly at times; the others beside a bare write in the same process.
Memory is the most that the process held beyond the start. `--check` exits with an error where a limit is
passed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SHAPE = (1, 4, 64, 64)
REPEATS = 9
LIMITS = {
    "draw": ("in memory, times the bare draw", 1.0),
    "memory": ("most memory, times the result", 1.2),
    "stream": ("streamed, most memory, MiB", 150.0),
    "read": ("one rung from disk, median ms", 2.0),
}


class Peak:
    """The most memory that this process holds while the block runs, in bytes beyond the start."""

    def __enter__(self) -> "Peak":
        self._on, self._start, self.most = True, self._now(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()
        self.most = max(self.most, self._now() - self._start)

    def _watch(self) -> None:
        while self._on:
            self.most = max(self.most, self._now() - self._start)
            time.sleep(0.002)

    @staticmethod
    def _now() -> int:
        with open("/proc/self/statm") as told:
            return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(run) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def model_and_image():
    """A model of Stable Diffusion's levels, and a latent of its size."""
    import torch

    import toolkit as tk

    torch.set_num_threads(1)
    model = tk.denoiser(lambda x, sigma: x, levels=tk.Levels.scaled_linear())
    return model, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def build(rungs: int, **save):
    import toolkit as tk

    model, image = model_and_image()
    kept = tk.Save(**save)
    return tk.ladder(model, image, schedule="karras", steps=rungs - 1, save=kept, progress=False)


def measure_draw(rungs: int, folder: Path) -> dict[str, float]:
    """Seconds of the ladder over those of ``torch.empty(...).normal_()``, the best of several of each."""
    import torch

    model_and_image()

    def draw() -> None:
        torch.empty((rungs, *SHAPE)).normal_()

    # one kind after the other: a ladder lies in large pages, which the system gathers slowly after small ones
    bare, ours = ([timed(run) for _ in range(REPEATS)] for run in (draw, lambda: build(rungs)))
    return {"draw": min(ours) / min(bare), "bare_s": min(bare), "ladder_s": min(ours),
            "ladder_median_s": statistics.median(ours)}  # fmt: skip


def measure_memory(rungs: int, folder: Path) -> dict[str, float]:
    """Most memory over the bytes of the result."""
    build(20)
    with Peak() as peak:
        made = build(rungs)
    return {"memory": peak.most / made.latent.nbytes, "result_MiB": made.latent.nbytes / 2**20}


def measure_stream(rungs: int, folder: Path) -> dict[str, float]:
    """Most memory of a streamed ladder, its time, and that of a bare write of the same bytes to one file."""
    import numpy as np

    build(20, store=folder / "warm.zarr")
    with Peak() as peak:
        took = timed(lambda: build(rungs, store=folder / "ladder.zarr"))
    block = np.random.default_rng(0).standard_normal((100, *SHAPE), np.float32).tobytes()

    def bare() -> None:
        with open(folder / "bare", "wb") as file:
            for _ in range(rungs // 100):
                file.write(block)

    return {"stream": peak.most / 2**20, "stream_s": took, "write_s": timed(bare)}


def measure_read(rungs: int, folder: Path) -> dict[str, float]:
    """Median and 95th percentile milliseconds of one rung from disk, at random."""
    import numpy as np

    import toolkit as tk

    build(rungs, store=folder / "ladder.zarr")
    ds = tk.open(folder / "ladder.zarr")
    picked = np.random.default_rng(0).integers(0, ds.sizes["step"], 200)
    took = [1000 * timed(lambda k=k: ds.latent[int(k)].values) for k in picked]
    return {"read": statistics.median(took), "read_p95": float(np.percentile(took, 95))}


MEASURES = {"draw": measure_draw, "memory": measure_memory, "stream": measure_stream, "read": measure_read}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rungs", type=int, default=10_000)
    parser.add_argument("--only", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = MEASURES[args.only](args.rungs, Path(folder))
        print(json.dumps(found))
        return 0
    failed = False
    for name in MEASURES:
        command = [sys.executable, __file__, "--only", name, "--rungs", str(args.rungs)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        found = json.loads(done.stdout.splitlines()[-1])
        text, limit = LIMITS[name]
        rest = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if k != name)
        print(f"{text:36s} {found[name]:7.3f}  limit {limit:g}   {rest}", flush=True)
        failed |= found[name] > limit
    return int(failed and args.check)


if __name__ == "__main__":
    sys.exit(main())
