"""What the notebooks need beside segkit's public names: settings, forms, figures, and a run's tables."""

# ruff: noqa: F401, F403
from IPython.display import display

from ..data.dataset import exclude, read_valid
from ..data.discovery import discover_split
from ..data.images import normalise
from ..files import read_table, write_table
from ..measure.cells import cells_of_frame
from ..measure.growth import areas_over_time, measure_growth
from ..measure.metrics import frame_parts
from ..measure.segment_dataset import scale_text, worst_frames
from ..measure.single_cell import measure_single_cells, which_estimate
from ..measure.track_dataset import doubtful_links, link_dataset, write_ctc
from ..settings import STARTER, check_dataset, check_whose_run, load_settings, record_settings
from .pictures import *
from .plots import *
from .report import *
from .widgets import *
