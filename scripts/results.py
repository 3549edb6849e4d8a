"""The table that `make demo` ends with: `python scripts/results.py FOLDER`: what notebook 01 left."""

import json
import sys
from pathlib import Path

COLUMNS = {"cfg": 5, "solver": 10, "inverse": 11, "model calls": 13, "round-trip error": 18, "seconds": 9}

folder = Path(sys.argv[1])
results = json.loads((folder / "results.json").read_text("utf-8"))

print(f"\nA handwritten {results['digit']} to noise and back, {results['steps']} steps\n")
print("".join(f"{name:>{width}}" for name, width in COLUMNS.items()))
for row in results["runs"]:
    cells = [f"{row['cfg']:g}", row["solver"], row["inverse"], row["calls"]]
    cells += [f"{row['error']:.1e}", f"{row['seconds']:.2f}"]
    print("".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)))
print("\ncalls: there and back; error: relative distance of the latent that came back from the one given\n")
for name, what in results["files"].items():
    print(f"  {folder / name!s:<24}  {what}")
