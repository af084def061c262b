"""
Gather weights that are sharded over the processes (ZeRO-3, FSDP2) for work outside a training step.

In a step the forward pass of the whole model gathers them. Evaluation, restoring and saving call parts of the model,
and read weights without calling their layer, so every process must hold all weights for that time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainingArguments


def load_whole(args: TrainingArguments) -> None:
    """
    Make every process load complete models from now on. Under ZeRO-3 Transformers would shard them while loading, but
    sampling, the warm start and the first evaluation need complete weights before training shards them.
    """
    if args.deepspeed_plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def is_divided(wrapped: torch.nn.Module) -> bool:
    """Whether a model, as the trainer wrapped it, holds only a shard of its weights in this process."""
    return _by_deepspeed(wrapped) or _by_fsdp(wrapped)


@contextmanager
def whole_weights(wrapped: torch.nn.Module, changed: bool = False) -> Iterator[None]:
    """
    Context in which every process holds all weights. It does nothing for weights that are not sharded. All processes
    must enter it, and it must not be nested.

    Args:
        wrapped (`nn.Module`): The model as the trainer wrapped it.
        changed (`bool`): Whether [`read_into`] writes weights into it, the same in every process.

    Source: under ZeRO-3 as TRL does for sampling: weights are gathered, and the hooks that would shard a layer again
    after its forward pass are removed.
    """
    if _by_deepspeed(wrapped):
        import deepspeed

        from tokforget._trl import add_hooks, remove_hooks

        with deepspeed.zero.GatheredParameters(list(wrapped.parameters()), modifier_rank=0 if changed else None):
            remove_hooks(wrapped)
            try:
                yield
            finally:
                add_hooks(wrapped)
    elif _by_fsdp(wrapped) and not changed:  # these gathered weights are copies; `read_into` writes to the shards
        units = [module for module in wrapped.modules() if _by_fsdp(module)]
        for unit in units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)  # processes may call different units
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not wrapped, recurse=False)
                unit.reshard()
    else:
        yield


def read_into(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """
    Copy complete tensors into the parameters and buffers of these names, which FSDP2 may have sharded; others stay.
    """
    if any(hasattr(parameter, "device_mesh") for parameter in module.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        module.load_state_dict(weights, strict=False)


def _by_deepspeed(wrapped: torch.nn.Module) -> bool:
    divides = getattr(wrapped, "zero_optimization_partition_weights", None)
    return divides is not None and divides()


def _by_fsdp(module: torch.nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)
