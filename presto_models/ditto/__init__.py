"""Control at inference: DITTO and DITTO-2 steer a model by the noise it starts from, without training it."""

from presto_models.ditto.clap import ClapScorer
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.curve import Curve, read_curve
from presto_models.ditto.intensity import Intensity
from presto_models.ditto.inversion import Inversion
from presto_models.ditto.melody import Melody
from presto_models.ditto.notes import Notes, read_melody
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.painting import Inpaint, Loop, Outpaint
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.solver import StepReport, optimize
from presto_models.ditto.stitching import Joined, Seam, insert, loop, loop_edge, seam_jump, stitch
from presto_models.ditto.structure import Structure
from presto_models.ditto.text_match import AudioTextScorer, TextMatch

__all__ = [
    "AudioTextScorer",
    "Bound",
    "ClapScorer",
    "Control",
    "Curve",
    "DittoOptions",
    "Inpaint",
    "Intensity",
    "Inversion",
    "Joined",
    "Loop",
    "Made",
    "Melody",
    "Notes",
    "Optimized",
    "Outcome",
    "Outpaint",
    "Scene",
    "Seam",
    "StepReport",
    "Structure",
    "TextMatch",
    "insert",
    "loop",
    "loop_edge",
    "optimize",
    "read_curve",
    "read_melody",
    "seam_jump",
    "stitch",
]
