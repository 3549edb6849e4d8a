"""ComfyUI, node by node: their parameters, defaults and numbers, quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample`` and ``tk.ladder`` do.
"""

from .unsampling import unsampler

__all__ = ["unsampler"]
