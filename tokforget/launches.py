"""
Which launch configuration has been run where, on what and when: the table of `tokforget env` and of the README.

Nothing heavy is imported here: `env` must not wait for torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """
    One file of `accelerate_configs/`.

    Args:
        config (`str`): Its name.
        where (`str`), when (`str`): Machine and day of the last run; `"-"` for none.
        seen (`str`): What was seen, or that nothing was.
    """

    config: str
    where: str
    when: str
    seen: str


_CPU, _GLOO, _DAY = "CPU, 1 process", "CPU, 2 processes (gloo)", "2026-11-26"

LAUNCHES = (
    Launch("cpu", _CPU, _DAY, "trains, evaluates, saves"),
    Launch(
        "single_gpu",
        "one H200",
        "2026-11-27",
        "reconstructor, joint loop and evaluation in bfloat16; masks, bits and gradients of the CPU (tests/test_gpu.py); "
        "a joint step waits for the host, 1.3 % of the GPU's peak; torch.compile never run",
    ),
    Launch("multi_gpu", _GLOO, _DAY, "the weights of one process to 1e-6; NCCL never run"),
    Launch("deepspeed_zero1", _GLOO, _DAY, "bitwise the weights of multi_gpu; on GPUs never run"),
    Launch("deepspeed_zero2", _GLOO, _DAY, "the weights of multi_gpu to 1e-4; on GPUs never run"),
    Launch("deepspeed_zero3", _GLOO, _DAY, "the weights of multi_gpu to 1e-4, resumes bitwise; on GPUs never run"),
    Launch(
        "fsdp2",
        f"{_GLOO}, made to by tests/fsdp_on_cpu.py",
        _DAY,
        "the weights of multi_gpu to 1e-6, resumes bitwise; on GPUs never run; otherwise refused on the CPU",
    ),
)


def as_markdown() -> str:
    """The table as it stands in the README."""
    rows = [f"| `{run.config}` | {run.where} | {run.when} | {run.seen} |" for run in LAUNCHES]
    return "\n".join(["| configuration | run on | when | seen |", "|---|---|---|---|", *rows])


def as_facts() -> dict[str, str]:
    """The table as lines of `tokforget env`."""
    return {
        f"launch {run.config}": run.seen if run.where == "-" else f"{run.where}, {run.when}: {run.seen}"
        for run in LAUNCHES
    }
