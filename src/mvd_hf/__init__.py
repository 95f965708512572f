"""mvd_hf: Masked Video Distillation (MVD, arXiv 2212.04500) for the Hugging Face ecosystem.

The public names stand in `__init__.pyi` and are imported when they are first used.
"""

from importlib.metadata import version

import lazy_loader

from .hub.registration import register_with_transformers

__version__ = version("mvd_hf")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_with_transformers()
