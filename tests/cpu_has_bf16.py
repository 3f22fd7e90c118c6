"""Ends with 0 where PRECISION=auto is bf16 on this CPU, else with 1: `make test` asks."""

import sys

import torch

from segkit.devices import has_fast_bf16

if __name__ == "__main__":
    sys.exit(not has_fast_bf16(torch.device("cpu")))
