"""The baseline of DITTO that is trained: an adaptor beside a frozen model, in the manner of Music ControlNet."""

from presto_models.ditto.adaptor.baseline import adaptor_guided
from presto_models.ditto.adaptor.model import AdaptedDiT, Adaptor, AdaptorConfig, load_adaptor, save_adaptor

__all__ = ["AdaptedDiT", "Adaptor", "AdaptorConfig", "adaptor_guided", "load_adaptor", "save_adaptor"]
