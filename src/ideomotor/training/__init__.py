"""The engine: learner, run, optim, checkpoint, log."""

from ideomotor.training.checkpoint import SaveError, load_model, read_model_info, save_model
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import Learner, LearnerState, seed_of
from ideomotor.training.optim import OptimConfig
from ideomotor.training.run import Run, Stopped

__all__ = [
    "Learner",
    "LearnerState",
    "OptimConfig",
    "Run",
    "SaveError",
    "Stopped",
    "config_from_json",
    "config_to_json",
    "load_model",
    "read_model_info",
    "save_model",
    "seed_of",
]
