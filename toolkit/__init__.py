"""Run diffusion backwards, rung by rung, and keep every step as labelled data.

    >>> import toolkit as tk
    >>> model = tk.load()
    >>> run = tk.unsample(model, model.encode(tk.assets.digits()[0][0]), prompt=0, steps=5, progress=False)
    >>> dict(run.sizes)["step"]
    6

A table of contents: each name is imported when it is first asked for, so that a recorded run can be opened,
drawn and diagnosed without torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "paths": ["VE", "FLOW"],
    "levels": ["Levels"],
    "schedules": ["SCHEDULES", "schedule"],
    "gits": ["fit_schedule"],
    "denoisers": ["Denoised", "Denoiser", "GaussianMixture", "denoiser", "guide"],
    "spectral": ["SpectralMixture"],
    "pipelines": ["load"],
    "tiling": ["tiled"],
    "solvers": ["SOLVERS", "solver"],
    "loop": ["steps"],
    "regions": ["Region", "box"],
    "runs": ["sample", "unsample"],
    "canvas": ["regional"],
    "ladders": ["ladder"],
    "roundtrip": ["round_trip"],
    "atlases": ["atlas"],
    "dataset": ["Save", "at", "normalized"],
    "reading": ["open", "to_netcdf"],
    "spaces": ["in_space"],
    "views": ["view", "to_html"],
}
_MODULES = ["assets", "comfy", "diagnostics", "testing", "views"]
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted([*_WHERE, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
