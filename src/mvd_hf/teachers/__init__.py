"""Frozen teachers for distillation: any supported model of the Hub, by name."""
