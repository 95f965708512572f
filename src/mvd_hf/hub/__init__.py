"""Checkpoints and data sets in and out: conversion, loading, export, cards and publishing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
