"""What the notebooks need beside segkit's public names: settings, forms, figures, and a run's tables."""

# ruff: noqa: F401, I001
from IPython.display import display

from ..data.dataset import exclude, read_valid
from ..data.discovery import discover_split
from ..data.images import normalise
from ..files import read_table, write_table
from ..measure.cells import measure_cells
from ..measure.growth import areas_over_time, measure_growth
from ..measure.metrics import frame_parts
from ..measure.segment_dataset import segmented_frames
from ..model.checkpoint import with_openvino
from ..settings import check_dataset, check_whose_run, load_settings, record_settings
from .forms import ArrangeForm, ExperimentsForm, SettingsForm
from .machine import assumed_conditions, check_conditions, check_crop, check_installation, conditions_table
from .machine import dataset_verdict, machine_report, settings_table, training_estimate
from .plots import STUDENT, TEACHER, grey, overlay, show_crops, show_growth, show_histograms, show_over_time
from .plots import show_pictures, show_previews, show_rates, show_ratios, show_scores, show_split, show_training
from .report import read_scores, table_of_runs
from .widgets import LivePicture, browser, by_position, example_crops, example_pair, film_strip, middle_frames
from .widgets import show_best_and_worst, show_flagged, show_segmentation, student_pairs
