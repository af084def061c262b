"""
A recipe under FSDP2 without a GPU: torch shards on the CPU, too (gloo); it is Accelerate that does not ask it to.

    ACCELERATE_USE_CPU=true accelerate launch --config_file accelerate_configs/fsdp2.yaml --num_processes 2 tests/support/fsdp_on_cpu.py recipes/train.py ...

For the tests. It takes Accelerate's word "CPU" for "FSDP" and leaves out tokforget's refusal; everything else is what runs on
GPUs. Not a way to train: nothing here is fast, and no memory is saved worth the name.
"""

import os
import runpy
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from tokforget import launch


_begin = AcceleratorState.__init__


def _begin_sharded(self, *args, fsdp_plugin=None, **kwargs) -> None:
    _begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
    if hasattr(self, "fsdp_plugin"):
        self.distributed_type = DistributedType.FSDP


def main() -> None:
    AcceleratorState.__init__ = _begin_sharded
    launch.unsupported = lambda *args: None
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
