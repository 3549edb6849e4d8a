"""What recording costs on a GPU: seconds a step of `tk.unsample` beside the network and diffusers' loop.

    python benchmarks/gpu.py [--size sd15 sdxl] [--batch 1 8] [--repeats 5] [--check] [--out FILE.json]
    python benchmarks/gpu.py --device cpu --size tiny --batch 1 --no-compile    # shows that it runs

UNets of the size of Stable Diffusion 1.5, on latents of 4x64x64, and of SDXL, on 4x128x128, with random
weights in bfloat16 under a state in float64, every rung recorded; `ratios.py` says how it is measured. The
device is waited for before and after each run, never within. Three regions are one forward of three times
the batch, and beside it the same run by `max_rows`, one region a forward; their limit is for a batch of 1.
Memory is the most that torch had of the device, weights and all. `--check` exits with 1 where a ratio is
over its limit.
"""

import sys
from collections.abc import Sequence

import ratios

LIMITS = {
    "over the bare forward": 1.02,
    "over the diffusers loop": 1.0,
    "compiled, over the diffusers loop": 0.75,
    "three regions at once over one by one": 0.45,
}


def main(given: Sequence[str] | None = None) -> int:
    ask = ratios.arguments(__doc__, "cuda", ["sd15", "sdxl"], [1, 8], (10, 50), 5)
    return ratios.run(ask.parse_args(given), LIMITS)


if __name__ == "__main__":
    sys.exit(main())
