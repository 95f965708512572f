"""Checks of a data set before training: unreadable files, near-duplicates, splits without leaks, official splits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
