"""ComfyUI, node by node: their parameters, defaults and numbers, quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample`` and ``tk.ladder`` do.
"""

from .unsampling import easy_unsampler, unsampler

__all__ = ["easy_unsampler", "unsampler"]
