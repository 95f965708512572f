"""The trainer that all stages share, and distillation."""
