"""What recording costs on one thread: seconds a step of `tk.unsample` beside the network and diffusers' loop.

    python benchmarks/cpu.py [--repeats 7] [--check] [--out FILE.json] [--no-compile]

The UNet of `regional.py`, 0.79 M parameters, on latents of (1, 4, 32, 32), in float32 under a state in
float64, every rung recorded; `ratios.py` says how it is measured. The ratios are those of `gpu.py`; time is
the processor's, which does not count what other processes take. What is added to a network of 20 ms and more
is less than its times differ by from run to run, so the limits that `--check` holds are on what is added,
measured without the network. Regions at once save little here, where time goes by rows, and what the
compiler saves depends on the machine.
"""

import sys
from collections.abc import Sequence

import ratios

LIMITS = {"added, over the bare forward": 1.02, "added, over the diffusers loop": 1.01}


def main(given: Sequence[str] | None = None) -> int:
    ask = ratios.arguments(__doc__, "cpu", ["small"], [1], (5, 25), 7)
    return ratios.run(ask.parse_args(given), LIMITS)


if __name__ == "__main__":
    sys.exit(main())
