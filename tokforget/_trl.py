"""
The private names of TRL that the trainer stands on, in one place. TRL keeps its bases underscored since 1.0; setup.py
holds the ceiling, and tests/test_trl.py the attributes that are used.
"""

from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer


__all__ = ["_BaseConfig", "_BaseTrainer"]
