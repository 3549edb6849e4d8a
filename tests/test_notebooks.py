"""Each notebook through papermill, with other parameters than its own; and how the stored ones must look."""

import json
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import tiny
import xarray as xr
from PIL import Image, ImageOps

import toolkit as tk

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
LONGEST = 40  # lines: no cell is longer than a screen
MOST = 1_500_000  # bytes, as it is stored
EXECUTED = 10_000_000  # bytes, as papermill leaves it


def execute(name: str, folder: Path, **parameters) -> Path:
    """Run a notebook in an empty folder of its own; returns where its files are."""
    (source,) = [path for path in NOTEBOOKS if path.stem == name]
    made, away = folder / "made", folder / "elsewhere"
    away.mkdir()
    parameters |= {"out_dir": str(made)}
    run = papermill.execute_notebook(
        source, folder / source.name, parameters, kernel_name="python3", progress_bar=False, cwd=away
    )
    told = [
        o for cell in run.cells if cell.cell_type == "code" for o in cell.outputs if o.get("name") == "stderr"
    ]
    assert not told, "a notebook says nothing on stderr"
    assert not list(away.iterdir()), "nothing is left beside out_dir"
    assert (folder / source.name).stat().st_size < EXECUTED, "with all that its widgets hold"
    return made


def test_unsample_with_another_digit(tmp_path: Path):
    made = execute("01_unsample", tmp_path, digit=7, which=1, steps=8, guidance=3.0)
    results = json.loads((made / "results.json").read_text("utf-8"))
    assert (results["digit"], results["which"], results["steps"]) == (7, 1, 8)
    assert [(row["solver"], row["inverse"], row["cfg"]) for row in results["runs"]] == [
        ("euler", "reverse", 1.0),
        ("dpmpp_2m", "reverse", 1.0),
        ("obelm", "algebraic", 1.0),
        ("euler", "reverse", 3.0),
        ("dpmpp_2m", "reverse", 3.0),
        ("euler", "offsets", 3.0),
        ("obelm", "algebraic", 3.0),
    ]
    for row in results["runs"]:
        assert row["calls"] > 0 and row["seconds"] >= 0
        assert row["error"] > 1e-3 if row["inverse"] == "reverse" else row["error"] <= 1e-9

    run = tk.open(made / "unsample.zarr")
    assert (run.attrs["solver"], run.attrs["prompt"], run.sizes["step"]) == ("obelm", 7, 9)
    assert np.isfinite(run.latent.values).all()
    page = (made / "unsample.html").read_text("utf-8")
    assert "Content-Security-Policy" in page and "https://" not in page
    with Image.open(made / "strip.png") as strip:
        assert strip.width > 3 * strip.height


def test_noise_ladder_with_other_images(tmp_path: Path):
    made = execute("02_noise_ladder", tmp_path, samples=12, steps=9, channel=2, seed=5, rungs=50)
    couplings, others = ("independent", "shared", "markov"), ["long.zarr", "stopped.zarr", "ladder.html"]
    files = sorted([*(f"{coupling}.zarr" for coupling in couplings), *others])
    assert sorted(path.name for path in made.iterdir()) == files
    assert tk.open(made / "long.zarr").sizes["step"] == 50
    assert tk.open(made / "stopped.zarr").sizes["step"] == 10
    for coupling in couplings:
        ladder = tk.open(made / f"{coupling}.zarr")
        assert (ladder.attrs["coupling"], ladder.attrs["seed"]) == (coupling, 5)
        assert dict(ladder.sizes) == {"step": 10, "sample": 12, "channel": 4, "y": 8, "x": 8}


def test_regions_with_other_digits(tmp_path: Path):
    asked = {
        "wanted": [7, 0, 4],
        "which": 0,
        "changed": 6,
        "steps": 8,
        "seed": 3,
        "samples": 1,
        "feather": 0.5,
    }
    made = execute("03_regions", tmp_path, **asked)
    stores = ["edit.zarr", "regions.zarr", "unsample_dpmpp_2m.zarr", "unsample_obelm.zarr"]
    assert sorted(path.name for path in made.iterdir()) == sorted([*stores, "strip.png"])

    run, up, edit = (tk.open(made / f"{name}.zarr") for name in ("regions", "unsample_dpmpp_2m", "edit"))
    assert [region["prompt"] for region in run.attrs["regions"]] == [7, 0, 4]
    assert dict(run.sizes) == {"step": 9, "sample": 1, "channel": 4, "y": 8, "x": 20, "region": 4}
    assert (run.attrs["model_calls"], run.attrs["network_rows"]) == (8, 8 * 3 * 4)
    np.testing.assert_allclose(run.weight.sum("region"), 1.0, atol=1e-12)
    assert [region["prompt"] for region in edit.attrs["regions"]] == [7, [6], 4]
    assert edit.attrs["edited"] == ["regions", "mask"]

    # outside the mask the edit is the record, at every level; inside it is another digit
    apart = abs(edit.latent.values - up.latent.values[::-1])
    outside = edit.mask.values[0] == 0
    assert outside.sum() == 8 * 12
    assert apart[..., outside].max() == 0.0
    assert apart[-1][..., ~outside].mean() > 0.1
    with Image.open(made / "strip.png") as strip:
        assert strip.width > 1.4 * strip.height


def test_solver_atlas_of_other_solvers_and_of_the_stored_table(tmp_path: Path):
    """Run anew with other parameters, and drawn from the table that `benchmarks/atlas.py` wrote."""
    for name in ("anew", "stored"):
        (tmp_path / name).mkdir()
    asked = {"models": ["power law, off"], "solvers": ["heun", "lcm", "edict"], "steps": 6, "guidance": 3.0}
    made = execute("04_solver_atlas", tmp_path / "anew", **asked)
    assert sorted(path.name for path in made.iterdir()) == ["atlas.nc", "atlas.png", "photographs.png"]
    with xr.open_dataset(made / "atlas.nc", engine="scipy") as ds:
        assert ds.solver.values.tolist() == ["heun", "lcm", "edict"]
        assert ds.cfg.values.tolist() == [1.0, 3.0]
    table = NOTEBOOKS[0].parent.parent / "benchmarks" / "atlas.nc"
    drawn = execute("04_solver_atlas", tmp_path / "stored", table=str(table))
    assert not (drawn / "atlas.nc").exists()
    with Image.open(drawn / "atlas.png") as chart:
        assert chart.width > 1500


def test_views_of_another_photograph(tmp_path: Path):
    made = execute("05_views", tmp_path, photo="flower", steps=10, rungs=40, seed=1)
    names = ["compare.png", "ladder.zarr", "scrub.gif", "scrub.html", "scrub.png"]
    assert sorted(path.name for path in made.iterdir()) == names
    assert tk.open(made / "ladder.zarr").sizes["step"] == 41
    with Image.open(made / "scrub.gif") as film:
        assert film.n_frames == 11
    with Image.open(made / "scrub.png") as now, Image.open(made / "compare.png") as beside:
        assert now.width == beside.width == 1856


def test_real_models_on_stable_diffusion_with_the_workflow_of_a_file(tmp_path: Path):
    folder, file = tiny.save("sd1", tmp_path / "model"), tmp_path / "photo.png"
    Image.fromarray(np.arange(90 * 120 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 120, 3)).save(file)
    source = Path(__file__).parent / "data" / "workflows" / "unsample.json"
    graph = tk.comfy.read_workflow(source)
    asked = {"model_id": str(folder), "image": str(file), "edited": "a dog", "cfg": 3.0, "steps": 3}
    made = execute("06_real_models", tmp_path, **asked, workflow=str(source), change={"steps": 3})
    files = ["edited.png", "noise.latent", "regions.png", "strip.png", "unsample.zarr"]
    assert sorted(path.name for path in made.iterdir()) == files

    run, model = tk.open(made / "unsample.zarr"), tk.load(folder)
    assert (run.attrs["model"], run.attrs["prompt"]) == (str(folder), "")
    assert dict(run.sizes) == {"step": 4, "sample": 1, "channel": 4, "y": 8, "x": 8}
    photo = ImageOps.fit(Image.open(file), (64, 64))
    np.testing.assert_allclose(run.latent[0], model.encode(photo), rtol=0, atol=1e-6)
    noise = tk.comfy.load_latent(made / "noise.latent")
    np.testing.assert_allclose(noise * 0.18215, run.latent[-1], rtol=1e-6)
    with Image.open(made / "regions.png") as canvas:
        assert canvas.size == (96, 64)

    # what it prints of the workflow is what running it by hand gives
    by_hand = graph.run(model, image_path=photo, steps=3)
    printed = "".join(
        output.get("text", "")
        for cell in nbformat.read(tmp_path / "06_real_models.ipynb", 4).cells
        for output in cell.get("outputs", [])
    )
    assert graph.to_code(load=False) in printed
    for name in ("unsampled", "sampled"):
        last = tk.in_space(by_hand[name], "model").latent[-1]
        far = float(np.linalg.norm(last - run.latent[0]) / np.linalg.norm(run.latent[0]))
        (row,) = [line for line in printed.splitlines() if line.startswith(f"{name}  ")]
        assert float(row.split()[3]) == pytest.approx(far, rel=0.06)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_fit_to_be_read_and_compared(path: Path):
    notebook = nbformat.read(path, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size < MOST
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"widgets", "papermill"} & notebook.metadata.keys()
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= LONGEST
    assert all(cell.execution_count for cell in cells), "stored with its outputs, which nbval compares"
    assert not [
        o for cell in cells for o in cell.outputs if o.get("name") == "stderr" or o.output_type == "error"
    ]
