"""The pictures of `docs/views`, as the browser tests take them: `make pictures`, after a view changed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
KEPT = [
    "scrubber-light",
    "scrubber-dark",
    "normalise-light",
    "schedule-light",
    "regions-light",
    "compare-light",
]
WIDTH = 1416  # pixels, one and a half for each of the page


def main() -> None:
    """Take all of them, keep some, in 256 colours."""
    with tempfile.TemporaryDirectory() as folder:
        test = [sys.executable, "-m", "pytest", "tests/browser/test_pictures.py"]
        subprocess.run(test, cwd=ROOT, env=os.environ | {"TOOLKIT_PICTURES": folder}, check=True)
        (ROOT / "docs" / "views").mkdir(exist_ok=True)
        for name in KEPT:
            with Image.open(Path(folder) / f"{name}.png") as taken:
                height = round(taken.height * WIDTH / taken.width)
                small = taken.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
            target = ROOT / "docs" / "views" / f"{name}.png"
            small.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
            print(target.relative_to(ROOT), f"{target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
