"""Train a small U-Net to segment bacteria in time-lapses, and measure their growth. See segkit/README.md."""

from .data.dataset import Dataset, Frame, Problem, Split, split_by_position
from .data.discovery import discover
from .data.downloads import arrange
from .data.images import read_image, read_labels
from .data.label_review import review_teacher
from .data.synthetic import make_demo_dataset
from .errors import SegkitError
from .measure.cells import measure_cells
from .measure.growth import compare_growth, growth_rates
from .measure.metrics import dice, match_instances
from .measure.segment_dataset import segment_dataset
from .measure.tracks import link_cells
from .model.checkpoint import export_onnx, load_model
from .model.predict import Segmentation, segment
from .model.unet import UNet
from .settings import Settings
from .training.run_dir import History
from .training.trainer import fit

__all__ = ["Dataset", "Frame", "History", "Problem", "SegkitError", "Segmentation", "Settings", "Split", "UNet",
           "arrange", "compare_growth", "dice", "discover", "export_onnx", "fit", "growth_rates", "link_cells",
           "load_model", "make_demo_dataset", "match_instances", "measure_cells", "read_image", "read_labels",
           "review_teacher", "segment", "segment_dataset", "split_by_position"]
