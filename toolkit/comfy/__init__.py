"""ComfyUI, node by node: each node's parameters, defaults and numbers, its quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample`` and ``tk.ladder`` do.
"""

from .unsampling import unsampler

__all__ = ["unsampler"]
