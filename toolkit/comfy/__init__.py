"""ComfyUI, node by node: their parameters, defaults and numbers, quirks reproduced on purpose and named.

What these nodes cannot do, ``tk.unsample``, ``tk.sample``, ``tk.ladder`` and ``tk.regional`` do. A workflow
file is read as calls of all these by `read_workflow`; the small nodes between them are in ``tk.comfy.nodes``.
"""

from . import nodes
from .batches import batch_unsampler_demofusion, batch_unsampler_iterative_mixer
from .files import load_latent, save_latent
from .regional import regional_sampler_advanced
from .regions import KSamplerAdvanced, RegionalPrompt
from .sampling import ksampler, ksampler_advanced, sampler_custom
from .unsampling import easy_unsampler, unsampler
from .workflows import read_workflow

__all__ = [
    "KSamplerAdvanced",
    "RegionalPrompt",
    "batch_unsampler_demofusion",
    "batch_unsampler_iterative_mixer",
    "easy_unsampler",
    "ksampler",
    "ksampler_advanced",
    "load_latent",
    "nodes",
    "read_workflow",
    "regional_sampler_advanced",
    "sampler_custom",
    "save_latent",
    "unsampler",
]
