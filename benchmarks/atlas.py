"""The solver atlas: every name there and back, how exact, how accurate, at what cost.

    python benchmarks/atlas.py [--small] [--models LABEL ...] [--out FILE] [--picture FILE] [--jobs 1]
                               [--check-only]

Writes the Dataset of `tk.atlas` (49 solvers, every inverse, karras), as netCDF 3 with float32 values, so that
SciPy alone reads it. 10, 20 and 50 steps at cfg 1, 3 and 7.5, but for fixed_point and defect, which take
hundreds of calls a run: 20 steps, on the photographs and the digits cfg 1. It is written after each model, so
that a run that is stopped keeps what it has finished.

Then it prints ComfyUI's 42 names on the mixture of the reference data (tests/data), VE and FLOW, cfg 1 and
7.5, images in the model and off it, 20 steps over the whole range of the model: the error of what "auto"
picks, and how far x_T is from the true ODE at cfg 1 where a name is deterministic and solves that ODE. Exit
status 1 where a limit is broken. `--small` is a smoke run: 6 solvers, 10 steps.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr
from PIL import Image

import toolkit as tk
from toolkit.atlases import DIMS, OURS, known_models

MODELS = (
    "sharp modes, in", "sharp modes, off", "power law, in", "power law, off", "photographs", "digits",
)  # fmt: skip
STEPS, CFGS = (10, 20, 50), (1.0, 3.0, 7.5)
QUICK = ("auto", "reverse", "offsets", "noise", "algebraic")
IMPLICIT = ("fixed_point", "defect")
DEAR = ("photographs", "digits")  # their calls take milliseconds
MIXTURE = Path(__file__).parent.parent / "tests" / "data" / "mixture.npz"
SMALL = ["euler", "dpmpp_2m", "heun", "uni_pc", "euler_ancestral", "obelm"]
ERROR, ACCURACY = 1e-9, 2e-2  # limits of the 42 names
COARSE = {"dpm_fast": 5e-2, "dpm_adaptive": 5e-2}  # accuracy of those that make their own levels


def measure(label: str, small: bool) -> xr.Dataset:
    """The atlas of one model."""
    torch.set_num_threads(1)
    case = known_models([label])
    if small:
        return tk.atlas(case, SMALL, QUICK, steps=(10,))
    direct = tk.atlas(case, None, ("auto", "reverse") if label == "digits" else QUICK, STEPS, CFGS)
    implicit = tk.atlas(case, None, IMPLICIT, (20,), CFGS[:1] if label in DEAR else CFGS, truth=1.0)
    facts = {name: direct[name] for name in ("variance_bias", "path")}
    both = xr.concat([direct.drop_vars(facts), implicit.drop_vars(facts)], "inverse", join="outer")
    return both.reindex(inverse=[*QUICK, *IMPLICIT]).assign(facts)


def joined(parts: list[xr.Dataset]) -> xr.Dataset:
    """Models side by side; NaN at what one of them did not take."""
    table = [part.drop_vars(("picked", "variance_bias", "path")) for part in parts]
    whole = xr.concat(table, "model", join="outer", combine_attrs="override")
    # the first one has every inverse
    facts = {name: parts[0][name] for name in ("picked", "variance_bias")}
    return whole.transpose(*DIMS).assign(facts)


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
    """ComfyUI's names by "auto": both paths, both kinds of images, 20 steps of the schedule normal."""
    names, cases = SMALL[:-1] if small else [n for n in tk.SOLVERS if n not in OURS], {}
    with np.load(MIXTURE) as data:
        means, std, weights = data["mix_means"], float(data["mix_within_std"]), data["mix_weights"]
        inside = data["image_batch2_f64"]
    images = {"in": inside, "off": inside + 0.5 * np.random.default_rng(0).standard_normal(inside.shape)}
    for path, which in product((tk.VE, tk.FLOW), images):
        model = tk.GaussianMixture(means, std, weights, path=path)
        cases[f"{path.name} {which}"] = (model, images[which], 0, 1)
    return tk.atlas(cases, names, ["auto"], [20], [1.0, 7.5], "normal", truth=1.0)


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
        over = ~(column <= ERROR) if kind == "error" else column > limits
        broken += [f"{n}: {kind} {column[i]:.1e}, {label}, cfg {cfg:g}"
                   for i, n in enumerate(ds.solver.values) if over[i]]  # fmt: skip
    print(f"limits: error {ERROR:g}, accuracy {ACCURACY:g} ({', '.join(COARSE)}: {max(COARSE.values()):g})")
    print("\n".join(["over the limit:", *broken]) if broken else "all within")
    return not broken


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--small", action="store_true")
    ask.add_argument("--models", nargs="+", choices=MODELS, metavar="LABEL", help=", ".join(MODELS))
    ask.add_argument("--out", type=Path, default=Path(__file__).parent / "atlas.nc")
    ask.add_argument("--picture", type=Path, help="where to draw it as well, for instance docs/atlas.png")
    ask.add_argument("--jobs", type=int, default=1, help="processes, a model each")
    ask.add_argument("--check-only", action="store_true", help="the 42 names alone; writes nothing")
    args = ask.parse_args()
    torch.set_num_threads(1)
    labels = args.models or MODELS[: 2 if args.small else None]
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
