"""Figures, feature maps and the demo page."""
