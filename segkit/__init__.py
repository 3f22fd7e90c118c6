"""Teach a small U-Net to outline bacteria, and measure how they grow. See segkit/README.md."""

from .arrange import arrange
from .data import Dataset, Frame, Problem, Split, split_by_position
from .demo import make_demo_dataset
from .discover import discover
from .errors import SegkitError
from .export import export_onnx
from .growth import compare_growth, growth_rates
from .history import History
from .images import read_image, read_labels
from .model import UNet
from .model_file import load_model
from .outputs import segment_dataset
from .quality import review_teacher
from .scores import dice, match_instances
from .segmentation import Segmentation, segment
from .settings import Settings
from .train import fit

__all__ = [
    "Dataset", "Frame", "History", "Problem", "SegkitError", "Segmentation", "Settings", "Split", "UNet", "arrange",
    "compare_growth", "dice", "discover", "export_onnx", "fit", "growth_rates", "load_model", "make_demo_dataset",
    "match_instances", "read_image", "read_labels", "review_teacher", "segment", "segment_dataset", "split_by_position",
]
