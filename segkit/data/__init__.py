"""Datasets: images, labels, frames; found, arranged, reviewed, made."""
