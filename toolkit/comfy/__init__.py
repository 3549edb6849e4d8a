"""ComfyUI, node by node: their parameters, defaults and numbers, quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample``, ``tk.ladder`` and ``tk.regional`` do.
"""

from .batches import batch_unsampler_demofusion, batch_unsampler_iterative_mixer
from .regional import regional_sampler_advanced
from .regions import KSamplerAdvanced, RegionalPrompt
from .unsampling import easy_unsampler, unsampler

__all__ = [
    "KSamplerAdvanced",
    "RegionalPrompt",
    "batch_unsampler_demofusion",
    "batch_unsampler_iterative_mixer",
    "easy_unsampler",
    "regional_sampler_advanced",
    "unsampler",
]
