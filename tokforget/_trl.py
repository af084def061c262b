"""
The names of TRL that the trainer stands on and that are private, or undocumented, in one place. TRL keeps its bases
underscored since 1.0; setup.py holds the ceiling, and tests/test_trl.py the attributes that are used.
"""

from trl.models.utils import add_hooks, remove_hooks
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer


__all__ = ["_BaseConfig", "_BaseTrainer", "add_hooks", "remove_hooks"]
