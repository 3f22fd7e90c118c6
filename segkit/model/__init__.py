"""The student: network, model files, targets, inference, post-processing."""
