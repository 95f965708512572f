"""Supervised fine-tuning of a pre-trained encoder, and the preparation of a user's own videos for it."""
