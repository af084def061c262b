"""
The private or undocumented names of TRL that the trainers use, in one place. TRL has marked its base classes private
since 1.0: setup.py limits its version, and tests/test_trl.py checks the attributes that are used.
"""

from trl.models.utils import add_hooks, remove_hooks
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer


__all__ = ["_BaseConfig", "_BaseTrainer", "add_hooks", "remove_hooks"]
