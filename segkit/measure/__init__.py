"""Metrics, inference on datasets, cells, growth."""
