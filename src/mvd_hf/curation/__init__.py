"""Checks of a data set before training: unreadable files, near-duplicates, splits without leaks, official splits."""
