"""Control at inference: DITTO and DITTO-2 steer a model by the noise it starts from, without training it."""

from presto_models.ditto.clap import ClapScorer
from presto_models.ditto.control import Bound, Control
from presto_models.ditto.inversion import Inversion
from presto_models.ditto.options import DittoOptions
from presto_models.ditto.painting import Inpaint, Loop, Outpaint
from presto_models.ditto.result import Optimized, Outcome
from presto_models.ditto.scene import Made, Scene
from presto_models.ditto.solver import StepReport, optimize
from presto_models.ditto.stitching import Joined, Seam, insert, loop, loop_edge, seam_jump, stitch
from presto_models.ditto.text_match import AudioTextScorer, TextMatch

__all__ = [
    "Bound",
    "Control",
    "DittoOptions",
    "Made",
    "Optimized",
    "Outcome",
    "Scene",
    "StepReport",
    "optimize",
    "Inpaint",
    "Inversion",
    "Loop",
    "Outpaint",
    "TextMatch",
    "AudioTextScorer",
    "ClapScorer",
    "Joined",
    "Seam",
    "insert",
    "loop",
    "loop_edge",
    "seam_jump",
    "stitch",
]
