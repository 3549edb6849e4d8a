"""Runs that are killed: their table, and a process that runs them in forks of its own and kills these.

Imports take seconds, a fork takes milliseconds: `Killer` starts one such process and tells it what to run.
Nothing in it may start a thread before it forks, so it runs nothing itself.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import toolkit as tk
import toolkit.record

SHAPE = (4, 6, 6)
QUIET = {"progress": False}
WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link")  # as the interpreter names them

# what a run imports when it needs it; before a fork that costs once
LATE = ("zarr.codecs", "xarray.backends.zarr", "toolkit.runs", "toolkit.ladders", "safetensors.torch")


def mixture() -> tk.GaussianMixture:
    return tk.GaussianMixture(np.random.default_rng(7).standard_normal((2, 3, *SHAPE)), 0.5)


def picture(samples: int = 1) -> torch.Tensor:
    made = torch.Generator().manual_seed(3)
    return torch.randn((samples, *SHAPE), generator=made, dtype=torch.float64)


def seen(step: Any) -> dict[str, Any]:
    """What `Save.fn` adds in some of the runs."""
    return {"largest": step.x.abs().amax((1, 2, 3)), "seen": step.seen.x0, "hop": step.span.t - step.span.s}


class Kind:
    """A kind of run: a function of (store, hops), the same in every process."""

    def __init__(self, call: Callable, *given: Callable, steps: int = 6, passes: int = 1,
                 kept: dict | None = None, **asked: Any):  # fmt: skip
        self.call, self.given, self.asked, self.steps = call, given, asked, steps
        self.passes, self.kept = passes, kept or {}

    def __call__(self, store: Path | None = None, steps: int | None = None, **kept: Any) -> xr.Dataset:
        asked = {"steps": steps or self.steps, **self.asked, **QUIET}
        save = tk.Save(**{**self.kept, **kept}, store=store)
        with blocks_of(3), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the steps were solved to")  # on so coarse a grid
            return self.call(mixture(), *(make() for make in self.given), **asked, save=save)


@contextlib.contextmanager
def blocks_of(rungs: int):
    """Ladders of two small images in blocks of so many rungs."""
    before, toolkit.record.BLOCK = toolkit.record.BLOCK, rungs * picture(2).numel() * 4
    try:
        yield
    finally:
        toolkit.record.BLOCK = before


def two() -> torch.Tensor:
    return picture(2)


def up() -> xr.Dataset:
    return tk.unsample(mixture(), picture(), solver="deis", steps=6, prompt=0, cfg=2.0, **QUIET)


ROUGH = tk.solver("dpm_adaptive", rtol=0.3, atol=0.3)  # few rows
GUIDED = {"prompt": 0, "negative": 1, "cfg": 3.0}
RUNS = {
    "ladder, independent": Kind(tk.ladder, two, steps=40, normalize="channel"),
    "ladder, shared": Kind(tk.ladder, two, steps=40, coupling="shared", kept={"dtype": "float64"}),
    "ladder, markov": Kind(tk.ladder, two, steps=40, coupling="markov", kept={"every": 3}),
    "offsets": Kind(tk.unsample, picture, passes=2, solver="dpmpp_2m", **GUIDED),
    "offsets, float32": Kind(tk.unsample, picture, passes=2, solver="deis", kept={"dtype": "float32"}),
    "offsets, what": Kind(tk.unsample, two, passes=2, solver="heun", kept={"what": ["denoised"]}),
    "algebraic": Kind(tk.unsample, two, solver="obelm", normalize="channel", **GUIDED),
    "noise": Kind(tk.unsample, picture, passes=2, solver="dpmpp_sde", coupling="markov", steps=5),
    "growing": Kind(tk.unsample, picture, passes=2, solver=ROUGH, steps=3, kept={"every": 3}),
    "growing sample": Kind(tk.sample, solver="dpm_adaptive", prompt=0, steps=3, kept={"every": 2}),
    "sample": Kind(tk.sample, solver="dpmpp_3m_sde", steps=9, **GUIDED),
    "sample, every": Kind(tk.sample, solver="ipndm", steps=9, kept={"every": 3, "dtype": "float32"}),
    "sample, fn": Kind(tk.sample, solver="dpmpp_2m", steps=7, kept={"fn": seen, "every": 2}),
    "replay": Kind(tk.sample, up, steps=None),
    "fixed point": Kind(tk.unsample, picture, solver="euler", inverse="fixed_point", steps=4),
}  # fmt: skip


class Killer:
    """A process that runs members of `RUNS`, each in a fork, to the end or until it is killed."""

    def __enter__(self) -> "Killer":
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         env=env)  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, name: str, store: Path, *, steps: int | None = None, slow: float = 0.0,
            after: float | None = None, strike: int | None = None) -> dict[str, Any]:  # fmt: skip
        """Runs `name` into `store`, each model call and each rung `slow` seconds slower.

        `after` : seconds from the begin of the run to its kill. `strike` : the file operation, from 0, before
        which it is killed. Without them it runs to the end.

        Returns how it ended: whether it was `killed`, its `seconds` and the file `operations` it made.
        """
        asked = {"name": name, "store": str(store), "steps": steps, "slow": slow, "after": after,
                 "strike": strike}  # fmt: skip
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["ended"] in (0, -signal.SIGKILL), "the run failed, see above"
        return {**answer, "killed": answer["ended"] != 0}


def serve() -> None:
    """Answers every line of stdin by a run, until there are no more."""
    for module in LATE:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        begun, told = os.pipe()
        began, child = time.monotonic(), os.fork()
        if child == 0:
            os.close(begun)
            _child(asked, told)
        os.close(told)
        os.read(begun, 1)
        if asked["after"] is not None:
            time.sleep(asked["after"])
            os.kill(child, signal.SIGKILL)  # it is not reaped yet, so nothing else has its number
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        with open(begun, "rb") as pipe:
            operations = int(pipe.read() or -1)
        ended = os.waitstatus_to_exitcode(status)
        print(json.dumps({"ended": ended, "seconds": seconds, "operations": operations}), flush=True)


def _child(asked: dict[str, Any], told: int) -> None:
    """One run, in a process of its own; never returns."""
    try:
        torch.set_num_threads(1)
        _slow_down(asked["slow"])
        count = 0

        def watch(event: str, args: tuple) -> None:
            nonlocal count
            if event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
                if "__pycache__" in str(args[0]):
                    return
                if count == asked["strike"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(watch)
        os.write(told, b".")
        RUNS[asked["name"]](Path(asked["store"]), asked["steps"])
        os.write(told, str(count).encode())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _slow_down(seconds: float) -> None:
    """Model calls, and blocks of ladders, take so much longer."""

    def slower(fast: Callable) -> Callable:
        def call(*args: Any) -> Any:
            time.sleep(seconds)
            return fast(*args)

        return call

    if seconds:
        tk.GaussianMixture.x0 = slower(tk.GaussianMixture.x0)
        toolkit.record.Recorder.block = slower(toolkit.record.Recorder.block)


if __name__ == "__main__":
    serve()
