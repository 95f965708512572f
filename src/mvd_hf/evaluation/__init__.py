"""Multi-view tests, probes on frozen features, metrics and reports."""
