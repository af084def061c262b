"""
Weights that a launcher divides among the processes (ZeRO-3, FSDP2), whole for what is not a training step.

In a step the forward of the whole model gathers them. Evaluating, restoring and saving call parts of the model, and read
weights without calling the layer they belong to; there every process holds all weights for a while.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainingArguments


def load_whole(args: TrainingArguments) -> None:
    """
    Let models be read whole in every process from now on. Under ZeRO-3 the host would divide them as they are read, and much
    is done with them before training divides them: texts are sampled, a warm start learnt, the reconstructor measured.
    """
    if args.deepspeed_plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def is_divided(wrapped: torch.nn.Module) -> bool:
    """Whether a model as the trainer wrapped it holds only a part of its weights in this process."""
    return _by_deepspeed(wrapped) or _by_fsdp(wrapped)


@contextmanager
def whole_weights(wrapped: torch.nn.Module, changed: bool = False) -> Iterator[None]:
    """
    All weights in every process; nothing to do where they are anyway. To be entered by all processes, and not twice.

    Args:
        wrapped (`nn.Module`): The model as the trainer wrapped it.
        changed (`bool`): Whether weights are read into it by [`read_into`], alike in every process.

    Source: under ZeRO-3 as TRL does for sampling: gathered, and without the hooks that would divide a layer's weights again
    behind its forward.
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
    elif _by_fsdp(wrapped) and not changed:  # what is gathered here is a copy; `read_into` writes to the parts
        units = [module for module in wrapped.modules() if _by_fsdp(module)]
        for unit in units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)  # one process may call a unit that another does not
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not wrapped, recurse=False)
                unit.reshard()
    else:
        yield


def read_into(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Whole tensors into the parameters and buffers of these names, which FSDP2 may have divided; others stay."""
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
