"""What `import toolkit` takes beside importing torch and xarray alone, each in a process of its own.

    python benchmarks/imports.py [--repeats 7] [--check] [--out FILE.json]

Three imports take turns: torch and xarray; the package; the package with every public name touched, which
imports torch, xarray and all that the package is made of. A time is the processor's, user and system, from
before the first import to after the last, the best of some repeats: it does not count what other processes of
the machine take. `--check` exits with 1 where the package alone is over its limit.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

LINES = {
    "torch, xarray": "import torch, xarray",
    "toolkit": "import toolkit",
    "toolkit, every name": "import toolkit\nfor name in toolkit.__all__:\n    getattr(toolkit, name)",
}
HEAVY = ("diffusers", "transformers")
LIMIT = 1.15  # times torch and xarray
TIMED = """
import time
begin = time.process_time()
{lines}
took = time.process_time() - begin
import json, sys
print(json.dumps([took, [name for name in {heavy} if name in sys.modules]]))
"""


def once(lines: str) -> tuple[float, list[str]]:
    """Seconds of some imports in a fresh process, and which of the heavy packages they loaded."""
    code = TIMED.format(lines=lines, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, loaded = json.loads(done.stdout)
    return took, loaded


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--repeats", type=int, default=7)
    ask.add_argument("--check", action="store_true")
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    best, loaded = {}, {}
    for turn in range(1 + args.repeats):
        for name, lines in LINES.items():
            took, loaded[name] = once(lines)
            if turn:  # the first time reads the files from disk
                best[name] = min(took, best.get(name, took))
    ratios = {name: took / best["torch, xarray"] for name, took in best.items()}
    for name, took in best.items():
        heavy = ", ".join(loaded[name]) or "neither"
        print(f"{name:22s} {took:6.2f} s {ratios[name]:6.2f}   of {' and '.join(HEAVY)}: {heavy}")
    if args.out:
        told = {"seconds": best, "ratios": ratios, "loaded": loaded, "limit": LIMIT}
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(args.check and (ratios["toolkit"] > LIMIT or any(loaded.values())))


if __name__ == "__main__":
    sys.exit(main())
