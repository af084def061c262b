"""
Check that the launcher and the run agree: on the number of processes, on the precision, on sharding.

`accelerate launch` and `torchrun` pass their settings to a script in environment variables. Where these contradict the
arguments of the run, Transformers trains something that nobody asked for. Here such a run ends with one line and exit
code 2, before anything is loaded.
"""

import logging
import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainingArguments

from tokforget.parsing import refuse, say


logger = logging.getLogger(__name__)

ON_CPU = (
    "ACCELERATE_USE_CPU=true accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2 "
    "--mixed_precision no"
)
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """
    Refuse a launch that cannot work with any arguments. Call it before parsing them, because parsing starts processes.
    """
    problem = _only_process(environ)
    if _asks(environ, "ACCELERATE_USE_DEEPSPEED"):
        import torch

        compiles = not torch.cuda.is_available() or environ.get("DS_ACCELERATOR") == "cpu"
        problem = problem or _deepspeed_ignored(environ) or _missing_for_deepspeed(environ, compiles)
    if problem:
        refuse(problem)


def check_run(args: TrainingArguments, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a run whose launcher and arguments contradict each other."""
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    problem = (
        copies(args.world_size, environ)
        or _other_precision(precision, environ)
        or unsupported(args.device.type, args.n_gpu, precision, environ)
    )
    if problem:
        refuse(problem)


def check_libraries(args: TrainingArguments) -> None:
    """
    Refuse trackers and optimizers that are missing or unknown: Transformers would notice only after loading
    everything.
    """
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (RuntimeError, ImportError, AssertionError, ValueError) as error:
        refuse(f"`report_to` {' '.join(args.report_to)}: {error} Or pass `--report_to none`.")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        refuse(f"`optim` {getattr(args.optim, 'value', args.optim)}: {error}. Or leave it out.")
    except (ValueError, AttributeError, TypeError):
        pass  # an optimizer that needs the model; its errors show when it is made


def say_device(args: TrainingArguments, environ: Mapping[str, str] = os.environ) -> None:
    """Print one line if a run is on the CPU and nobody asked for that, for instance with a hardware file for a GPU."""
    if args.device.type == "cpu" and not args.use_cpu and not _asks(environ, "ACCELERATE_USE_CPU"):
        say("There is no GPU here: this run is on the CPU. `--use_cpu true` says that it is meant to be.")


def check_evaluation(num_processes: int, environ: Mapping[str, str] = os.environ) -> None:
    """The same check for an evaluation. It always computes in float32, and warns if the launcher asks for less."""
    problem = copies(num_processes, environ)
    if problem:
        refuse(problem)
    wanted = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted != "no":
        logger.warning("The launcher asks for %s; evaluation computes in float32 all the same.", wanted)


def copies(num_processes: int, environ: Mapping[str, str]) -> str | None:
    """The error message if the launcher started processes that do not know of each other; else `None`."""
    started = int(environ.get("WORLD_SIZE", "1"))
    if num_processes == 1 < started:
        return (
            f"{started} processes were started, but each would run alone, and all of them write the same output folder: there "
            f"is no GPU, or `use_cpu` was not passed. On the CPU launch with `{ON_CPU} ...`, or pass `--use_cpu true`."
        )
    return None


def emulates_bf16() -> bool:
    """Whether this is an x86 CPU without bfloat16 instructions; False where torch cannot tell."""
    import torch

    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return told.get("architecture") == "x86_64" and not (told["avx512_bf16"] or told["amx_bf16"])


def unsupported(device: str, num_gpus: int, precision: str, environ: Mapping[str, str]) -> str | None:
    """The error message if the device does not support what was asked for; else `None`."""
    if precision == "fp16" and device != "cuda":
        return f"`fp16` needs a CUDA GPU, and this run is on {device}. Leave it out, or try `--bf16 true`."
    if precision == "bf16" and device == "cpu" and emulates_bf16():
        return (
            "`bf16` on this CPU would be emulated, at a hundredth of the speed of float32: it has neither AVX512-BF16 nor AMX. "
            "Leave it out."
        )
    if num_gpus > 1:
        return (
            f"One process sees {num_gpus} GPUs and would spread each batch over them without telling. Launch with `accelerate "
            f"launch --config_file accelerate_configs/multi_gpu.yaml --num_processes {num_gpus} ...`, or show it one GPU: "
            "`CUDA_VISIBLE_DEVICES=0`."
        )
    if _asks(environ, "ACCELERATE_USE_FSDP") and device == "cpu":
        return (
            "FSDP was asked for, but Accelerate shards nothing without a GPU: it would train plain copies. Launch with "
            f"`{ON_CPU} ...`, or with accelerate_configs/deepspeed_zero2.yaml, which shards on the CPU, too."
        )
    return None


def _other_precision(precision: str, environ: Mapping[str, str]) -> str | None:
    wanted = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # "no" is the launcher's default, and the run overrides it; any other value would silently override the run.
    if wanted in ("no", precision):
        return None
    agree = f", or `--{wanted} true` to the run" if wanted in ("bf16", "fp16") else ""
    return (
        f"The launcher asks for mixed precision {wanted!r}, the run for {precision!r}, and the launcher would have its way. "
        f"Pass `--mixed_precision no` to `accelerate launch`{agree}."
    )


def _only_process(environ: Mapping[str, str]) -> str | None:
    """
    The error message if several processes were asked for and one was started: `MULTI_CPU` without MPI, or `--cpu`.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_PORT" in environ
    if launched and not any(name in environ for name in ("WORLD_SIZE", *_MPI_SIZES)):
        return (
            "The launcher was asked for several processes and started this one alone, as Accelerate does with `MULTI_CPU` or "
            f"`--cpu`. Launch with `{ON_CPU} ...`; for one process pass `--num_processes 1`, and unset MASTER_PORT."
        )
    return None


def _deepspeed_ignored(environ: Mapping[str, str]) -> str | None:
    if _asks(environ, "ACCELERATE_USE_CPU"):
        return (
            "DeepSpeed was asked for, but under ACCELERATE_USE_CPU Accelerate leaves it out and trains plain copies. Unset that "
            "variable and pass `--use_cpu true` to the run."
        )
    return None


def _missing_for_deepspeed(environ: Mapping[str, str], compiles: bool) -> str | None:
    if find_spec("deepspeed") is None:
        return 'DeepSpeed is not installed. Install it: `pip install -e ".[deepspeed]"`.'
    if not compiles:
        return None
    # On the CPU it compiles its communication at the first launch.
    compiler = environ.get("CXX", "c++")
    if shutil.which(compiler, path=environ.get("PATH")) is None:
        return (
            f"DeepSpeed compiles its communication on the CPU, and there is no C++ compiler {compiler!r}. Install one (Debian, "
            "Ubuntu: `apt-get install g++`), or name yours in the variable CXX."
        )
    if shutil.which("ninja", path=environ.get("PATH")) is None:
        return "DeepSpeed compiles its communication on the CPU, and `ninja` is not on the PATH. Install it: `pip install ninja`."
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return (
            "DeepSpeed compiles its communication on the CPU and needs Python's headers (Debian, Ubuntu: `apt-get install "
            "python3-dev`)."
        )
    return None


def _asks(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "false").lower() in ("1", "true", "yes")
