"""Videos to training clips: sources, decoding, frame sampling, augmentation, masks and batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
