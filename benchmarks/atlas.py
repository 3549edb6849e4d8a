"""The solver atlas: every name there and back, how exact, how accurate, at what cost.

    python benchmarks/atlas.py [--small] [--models LABEL ...] [--out FILE] [--picture FILE] [--jobs 1]
                               [--check-only]

Writes the Dataset of `tk.atlas` (49 solvers, "auto" and "reverse", karras), as netCDF 3 with float32 values,
so that SciPy alone reads it. The benchmark models A and B take 10, 20 and 50 steps; the photographs and the
digits, whose calls are dear, 20. It is written after each model, so that a run that is stopped keeps what it
has finished.

Then it prints ComfyUI's 42 names on model A (sharp modes), VE and FLOW, cfg 1 and 7.5, images in the model
and off it, 20 levels over the whole range of the model: the error of what "auto" picks, and how far x_T is
from the true ODE at cfg 1 where a name is deterministic and solves that ODE. Exit status 1 where a limit is
broken. Accuracy is held to its limit on images in the model; off it, where the flow is stiff, the climb does
not get there in 20 levels, and it is only printed. FLOW takes the schedule normal: karras puts half of its
levels below 0.1 there. `--small` is a smoke run: 6 solvers, 10 steps.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr
from PIL import Image

import toolkit as tk
from toolkit.atlases import OURS, known_models

STEPS = {
    "sharp modes, in": (10, 20, 50),
    "sharp modes, off": (10, 20, 50),
    "power law, in": (10, 20, 50),
    "power law, off": (10, 20, 50),
    "digits": (20,),
    "photographs": (20,),
}
SMALL = ["euler", "dpmpp_2m", "heun", "uni_pc", "euler_ancestral", "obelm"]
ERROR, ACCURACY = 1e-9, 2e-2  # limits of the 42 names
COARSE = {"dpm_fast": 5e-2, "dpm_adaptive": 5e-2}  # accuracy of those that make their own levels


def measure(label: str, small: bool) -> xr.Dataset:
    """The atlas of one model."""
    torch.set_num_threads(1)
    case = known_models([label])
    return tk.atlas(case, SMALL if small else None, steps=(10,) if small else STEPS[label])


def joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """Models side by side; NaN at the steps that one of them did not take."""
    table = [part.drop_vars(("picked", "variance_bias", "path")) for part in parts]
    whole = xr.concat(table, "model", join="outer", combine_attrs="override")
    dims = [d for d in parts[0].error.dims if d != "model"]
    return whole.transpose(*dims, "model").assign(
        {name: parts[0][name] for name in ("picked", "variance_bias")}
    )


def write(ds: xr.Dataset, path: Path) -> None:
    """netCDF 3, float32: SciPy, which is always there, reads it."""
    plain = {k: v if isinstance(v, (str, int, float)) else json.dumps(v) for k, v in ds.attrs.items()}
    real = {name: {"dtype": "float32"} for name, v in ds.data_vars.items() if v.dtype.kind == "f"}
    ds.assign_attrs(plain).to_netcdf(path, format="NETCDF3_64BIT", engine="scipy", encoding=real)


def draw(ds: xr.Dataset, path: Path) -> None:
    """The picture for the README, in 256 colours."""
    file = BytesIO()
    tk.views.atlas_chart(ds, model="sharp modes, in", cfg=1.0).savefig(file, format="png")
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def names42(small: bool) -> xr.Dataset:
    """ComfyUI's names by "auto" on model A: both paths, both kinds of images, 20 levels."""
    names, parts = SMALL[:-1] if small else [n for n in tk.SOLVERS if n not in OURS], []
    for path, schedule in ((tk.VE, "karras"), (tk.FLOW, "normal")):
        model, images = tk.testing.sharp_modes(path)
        cases = {f"{path.name} {which}": (model, images[which], 3, None) for which in ("on", "off")}
        asked = {"inverses": ["auto"], "steps": [20], "cfgs": [1.0, 7.5], "schedule": schedule, "truth": 1.0}
        parts.append(tk.atlas(cases, names, **asked))
    return joined(parts)


def report(ds: xr.Dataset) -> bool:
    """Print the table; True where every limit holds."""
    ds = ds.isel(inverse=0, steps=0, drop=True)
    labels = ds.model.values.tolist()
    columns = [("error", label, cfg) for cfg in (1.0, 7.5) for label in labels]
    columns += [("accuracy", label, 1.0) for label in labels]
    values = {c: ds[c[0]].sel(model=c[1], cfg=c[2]).values for c in columns}
    print(f"{'':31}" + "".join(f"{c[0]:>10}" for c in columns))
    print(f"{'':31}" + "".join(f"{c[1]:>10}" for c in columns))
    print(f"{'':31}" + "".join(f"{f'cfg {c[2]:g}':>10}" for c in columns))
    for i, name in enumerate(ds.solver.values):
        cells = (values[c][i] for c in columns)
        print(f"{name:31}" + "".join(f"{'' if np.isnan(v) else f'{v:.1e}':>10}" for v in cells))
    print(f"{'worst':31}" + "".join(f"{np.nanmax(values[c]):>10.1e}" for c in columns))
    limits = np.array([COARSE.get(name, ACCURACY) for name in ds.solver.values])
    broken = []
    for (kind, label, cfg), column in values.items():
        if kind == "accuracy" and label.endswith("off"):
            continue
        over = ~(column <= ERROR) if kind == "error" else column > limits
        broken += [f"{n}: {kind} {column[i]:.1e}, {label}, cfg {cfg:g}"
                   for i, n in enumerate(ds.solver.values) if over[i]]  # fmt: skip
    print(f"limits: error {ERROR:g}, accuracy {ACCURACY:g} ({', '.join(COARSE)}: {max(COARSE.values()):g})")
    print("accuracy is held to it on images in the model alone")
    print("\n".join(["over the limit:", *broken]) if broken else "all within")
    return not broken


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--small", action="store_true")
    ask.add_argument("--models", nargs="+", choices=STEPS, metavar="LABEL", help=", ".join(STEPS))
    ask.add_argument("--out", type=Path, default=Path(__file__).parent / "atlas.nc")
    ask.add_argument("--picture", type=Path, help="where to draw it as well, for instance docs/atlas.png")
    ask.add_argument("--jobs", type=int, default=1, help="processes, a model each")
    ask.add_argument("--check-only", action="store_true", help="the 42 names alone; writes nothing")
    args = ask.parse_args()
    torch.set_num_threads(1)
    labels = args.models or (list(STEPS)[:2] if args.small else list(STEPS))
    if not args.check_only:
        done = []
        with ProcessPoolExecutor(args.jobs) as pool:
            for part in pool.map(measure, labels, [args.small] * len(labels)):
                done.append(part)
                write(joined(done), args.out)
        if args.picture:
            draw(joined(done), args.picture)
        print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")
    return 0 if report(names42(args.small)) else 1


if __name__ == "__main__":
    sys.exit(main())
