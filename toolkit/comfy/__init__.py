"""ComfyUI, node by node: their parameters, defaults and numbers, quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample`` and ``tk.ladder`` do.
"""

from .batches import batch_unsampler_demofusion, batch_unsampler_iterative_mixer
from .unsampling import easy_unsampler, unsampler

__all__ = [
    "batch_unsampler_demofusion",
    "batch_unsampler_iterative_mixer",
    "easy_unsampler",
    "unsampler",
]
