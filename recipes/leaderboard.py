"""
Make the leaderboard from scratch: train a reconstructor, the policies of every seed and ablation, and a judge;
compare; write a table.

    python recipes/leaderboard.py --config recipes/leaderboard.yaml

A second run resumes after the finished steps. `--dry_run true` only prints the plan. Every step is a command of
another recipe. It is printed before it runs, and recorded in `leaderboard.json` with its seed and commit.
"""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
sys.path.append(os.getcwd())  # as in train.py: the check of the plan imports users' rewards

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.data.arguments import DataArguments
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.evaluation.baselines import CHEAP_BASELINES
from tokforget.evaluation.comparison import CEILING, FLOOR, KEEP_ALL
from tokforget.evaluation.report import BASELINE_RESULTS, EVALUATION_CONFIG, MODEL_RESULTS
from tokforget.files import write_json
from tokforget.local_paths import command_without_local_paths, shown_names
from tokforget.models.arguments import ModelArguments, ReconstructorArguments
from tokforget.parsing import parse_arguments, refuse
from tokforget.shipped import RECIPES, hardware_file, in_checkout, recipe_path, run_file, shipped_folder
from tokforget.training.config import ForgetConfig, ReconstructorConfig


POLICY, ABLATION = "policy", "ablation"
# Keys of an ablation that reuse data of the policy with the same seed.
SHARE_DATA, SHARE_START = "share_warm_start_data", "share_warm_start"
WARM_START = ForgetConfig.warm_start_dir
RECORD, TABLE = "leaderboard.json", "leaderboard.md"
# For each kind of step its recipe, its arguments, and a file that it writes at the end.
KINDS = {
    "reconstructor": ("train_reconstructor.py", (DataArguments, ReconstructorArguments, ReconstructorConfig),
                      "trainer_state.json"),
    "policy": ("train.py", (DataArguments, ModelArguments, ForgetConfig), "trainer_state.json"),
    "evaluation": ("evaluate.py", (EvaluationArguments,), MODEL_RESULTS),
}  # fmt: skip
KINDS[ABLATION] = KINDS[POLICY]  # trained after all policies, because it may start from one


@dataclass
class LeaderboardArguments:
    """
    Plan of a leaderboard. `reconstructor`, `policy` and `evaluation` are keys of the recipes; their `config` is a run
    file.
    """

    output_dir: str = field(metadata={"help": "Folder for everything: models, evaluation, record and table."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Training seeds of the policies."})
    reconstructor_seed: int = field(
        default=100, metadata={"help": "Seed of the reconstructor from which all policies start."}
    )
    judge_seed: int = field(
        default=101, metadata={"help": "Seed of the judge, a reconstructor from which no policy starts."}
    )
    # On the command line mappings are JSON strings, hence `str`; `__post_init__` converts them to dictionaries.
    common: str = field(
        default="{}", metadata={"help": "Keys for every step, such as the data; JSON or YAML mapping."}
    )
    reconstructor: str = field(
        default="{}", metadata={"help": "Keys of train_reconstructor.py, for the initial reconstructor and the judge."}
    )
    policy: str = field(default="{}", metadata={"help": "Keys of train.py."})
    evaluation: str = field(default="{}", metadata={"help": "Keys of evaluate.py."})
    ablations: str = field(
        default="{}",
        metadata={
            "help": "Ablations: names, each with the keys of train.py that differ from `policy`. `share_warm_start_data: true` reuses the "
            "sampled texts and target bits of the policy with the same seed, `share_warm_start: true` its warm start, too."
        },
    )
    ablation_seeds: list[int] | None = field(
        default=None, metadata={"help": "Training seeds of the ablations; those of the policies by default."}
    )
    jobs: int = field(
        default=1,
        metadata={"help": "Policies trained at once, each with `OMP_NUM_THREADS` threads; on one GPU leave it at 1."},
    )
    hardware: str = field(
        default="accelerate_configs/cpu.yaml",
        metadata={"help": "Hardware file of `accelerate launch`: a path, or a shipped name such as `cpu`."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Print the plan, run nothing, write nothing."})

    def __post_init__(self):
        for name in ("common", "reconstructor", "policy", "evaluation", "ablations"):
            try:
                value = json.loads(getattr(self, name))
            except json.JSONDecodeError as error:
                raise ValueError(f"`{name}` must be a mapping in JSON: {error}.") from error
            if not isinstance(value, dict):
                raise ValueError(f"`{name}` must be a mapping of keys to values, got {getattr(self, name)}.")
            setattr(self, name, value)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be one or more different numbers, got {self.seeds}.")
        self.ablation_seeds = self.seeds if self.ablation_seeds is None else self.ablation_seeds
        if not self.ablation_seeds or len(set(self.ablation_seeds)) < len(self.ablation_seeds):
            raise ValueError(f"`ablation_seeds` must be one or more different numbers, got {self.ablation_seeds}.")
        if self.jobs < 1:
            raise ValueError(f"`jobs` must be at least 1, got {self.jobs}.")
        if self.reconstructor_seed == self.judge_seed:
            raise ValueError(f"`judge_seed` must differ from `reconstructor_seed`, both are {self.judge_seed}.")
        for name, keys in self.ablations.items():
            if name in (POLICY, WARM_START, KEEP_ALL, FLOOR, CEILING) or not name.isidentifier():
                raise ValueError(
                    f"A ablation cannot be called {name!r}: letters, digits and `_`, and no scorer's name."
                )
            if not isinstance(keys, dict):
                raise ValueError(f"The ablation {name!r} must be a mapping of keys of train.py, got {keys!r}.")
            if keys.keys() & {SHARE_DATA, SHARE_START} and not set(self.ablation_seeds) <= set(self.seeds):
                raise ValueError(
                    f"The ablation {name!r} takes over from the policy of its seed, but `ablation_seeds` {self.ablation_seeds} are "
                    f"not all among `seeds` {self.seeds}."
                )


@dataclass
class Step:
    """A step of the plan: its name (also that of its folder), its kind, its seed, and the arguments of its command."""

    name: str
    kind: str
    seed: int | None
    folder: Path
    words: list[str]


# -- the plan ----------------------------------------------------------------------------------------------------------
def plan(args: LeaderboardArguments) -> list[Step]:
    """All steps in order. Keys override in this order: `common`, the plan's, the recipe's, the ablation's."""
    root, steps = Path(args.output_dir), []

    def add(name: str, kind: str, seed: int | None, *keys: dict) -> str:
        folder = root / name
        words: dict[str, list[str]] = {}
        for key, value in (pair for group in keys for pair in group.items()):
            if value is None:  # as in a run file, the key is left out
                words.pop(key, None)
            else:
                words[key] = [*map(str, value)] if isinstance(value, list) else [str(value)]
        words |= {"output_dir": [str(folder)]} | ({} if seed is None else {"seed": [str(seed)]})
        first = ["--config", *words.pop("config")] if "config" in words else []
        steps.append(Step(name, kind, seed, folder, first + [w for k, v in words.items() for w in (f"--{k}", *v)]))
        return str(folder)

    start = add("reconstructor", "reconstructor", args.reconstructor_seed, args.common, args.reconstructor)
    models = []
    for name, keys in {POLICY: {}, **args.ablations}.items():
        for seed in args.seeds if name == POLICY else args.ablation_seeds:
            own = {"reconstructor_name_or_path": start}
            taken = _taken_over(keys, root / f"{POLICY}_seed_{seed}")
            differing = {key: value for key, value in keys.items() if key not in (SHARE_DATA, SHARE_START)}
            kind = POLICY if name == POLICY else ABLATION
            folder = add(f"{name}_seed_{seed}", kind, seed, args.common, own, args.policy, taken, differing)
            models.append(f"{name}={folder}")
    # Also evaluate the policies after the warm start, from the same runs.
    if _has_warm_start(args):
        models += [f"{WARM_START}={root / f'{POLICY}_seed_{seed}' / WARM_START}" for seed in args.seeds]
    judge = add("judge", "reconstructor", args.judge_seed, args.common, args.reconstructor)
    own = {"model_path": models, "reconstructor_name_or_path": judge}
    add("evaluation", "evaluation", None, args.common, args.evaluation, own)
    return steps


def _taken_over(keys: dict, policy: Path) -> dict:
    """The keys of train.py that implement `share_warm_start_data` and `share_warm_start`."""
    taken = {}
    if keys.get(SHARE_DATA) or keys.get(SHARE_START):
        taken |= {"warm_start_data_path": policy / ForgetConfig.warm_start_data_dir, "sampled_texts": None}
    if keys.get(SHARE_START):
        taken |= {"policy_name_or_path": policy / WARM_START, "warm_start_steps": 0}
    return taken


def _has_warm_start(args: LeaderboardArguments) -> bool:
    keys = args.common | args.policy
    if "config" in keys:
        with suppress(ValueError):  # a missing file is reported when the plan is checked
            keys = yaml.safe_load(run_file(keys["config"]).read_text(encoding="utf-8")) | keys
    steps = keys.get("warm_start_steps")
    return (ForgetConfig.default_warm_start_steps if steps is None else int(steps)) > 0


def check(args: LeaderboardArguments, steps: list[Step]) -> None:
    """Parse every command as its recipe will, so that a wrong key is an error now and not after an hour."""
    try:
        hardware_file(args.hardware)
    except ValueError as error:
        refuse(f"`hardware`: {error}")
    takers = [name for name, keys in args.ablations.items() if keys.get(SHARE_DATA) or keys.get(SHARE_START)]
    if takers and not _has_warm_start(args):
        refuse(
            f"The ablation {takers[0]!r} takes over from the policy's warm start, but `policy` has `warm_start_steps` 0."
        )
    for step in steps:
        types = KINDS[step.kind][1]
        parse_arguments(types, [*step.words, *(["--use_cpu", "true"] if step.kind != "evaluation" else [])])


def commit() -> str | None:
    """The commit of this checkout, with `+` if files have changed; `None` for an installed package."""
    if not in_checkout():  # the working directory may be another repository
        return None
    try:
        words = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(
            words, cwd=shipped_folder(RECIPES), capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


_writing = threading.Lock()


# -- running -----------------------------------------------------------------------------------------------------------
def command(args: LeaderboardArguments, step: Step) -> str:
    """The command line of a step in a checkout."""
    recipe = f"recipes/{KINDS[step.kind][0]}"
    return shlex.join(["accelerate", "launch", "--config_file", args.hardware, recipe, *step.words])


def stands_on(later: Step, step: Step) -> bool:
    """Whether the step `later` reads the folder of `step`, or a folder in it."""
    paths = [Path(word.split("=")[-1]) for word in later.words]
    return any(path.is_relative_to(step.folder) for path in paths)


def is_finished(args: LeaderboardArguments, step: Step, record: dict) -> bool:
    """Whether the record has the step with the same command, and its folder is unchanged."""
    done = record["steps"].get(step.name)
    return (
        done is not None and done["command"] == command(args, step) and (step.folder / KINDS[step.kind][2]).is_file()
    )


def run(args: LeaderboardArguments, step: Step, record: dict) -> str | None:
    """Run a step and record it. Returns an error message if it failed, else `None`."""
    shutil.rmtree(step.folder, ignore_errors=True)  # left by an interrupted step, or by one with other keys
    line, began = command(args, step), time.time()
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    recipe = recipe_path(KINDS[step.kind][0])
    code = subprocess.run([*launcher, "--config_file", hardware_file(args.hardware), recipe, *step.words]).returncode
    if code:
        return (
            f"the step {step.name!r} ended with code {code}, its message is above. The same command resumes from here."
        )
    done = {
        "command": line, "seed": step.seed, "commit": commit(), "seconds": round(time.time() - began, 1),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }  # fmt: skip
    with _writing:  # another step may finish at the same time
        record["steps"][step.name] = done
        write_json(Path(args.output_dir, RECORD), record)
    return None


# -- the table ---------------------------------------------------------------------------------------------------------
def table_rows(evaluation: Path) -> list[dict]:
    """
    Rows of the evaluation, sorted by source, rate and bits. Models have `fewer_bits`: the fraction of bits saved
    compared with the best baseline without a language model. The policy also has its interval: the paired difference
    over texts, divided by the baseline's bits.
    """
    models, others = (
        json.loads((evaluation / name).read_text(encoding="utf-8"))["scorers"]
        for name in (MODEL_RESULTS, BASELINE_RESULTS)
    )
    rows = [row for row in models + others if row["scorer"] != KEEP_ALL]
    for row in models:
        cheap = [other for other in others if other["scorer"] in CHEAP_BASELINES
                 and (other["dataset"], other["rate"]) == (row["dataset"], row["rate"])]  # fmt: skip
        if not cheap:
            continue
        best = min(cheap, key=lambda other: other["bits_lost"])
        row |= {"best_cheap": best["scorer"], "fewer_bits": 1 - row["bits_lost"] / best["bits_lost"]}
        if row["scorer"] == POLICY:  # the first scorer of the evaluation, to which all differences refer
            row["fewer_bits_interval"] = [excess / best["bits_lost"] for excess in best["excess_bits_interval"]]
    return sorted(rows, key=lambda row: (row["dataset"], row["rate"], row["bits_lost"]))


def write_table(args: LeaderboardArguments, record: dict) -> None:
    folder, evaluation = Path(args.output_dir), Path(args.output_dir, "evaluation")
    config = json.loads((evaluation / EVALUATION_CONFIG).read_text(encoding="utf-8"))
    rows = record["table"] = table_rows(evaluation)
    write_json(folder / RECORD, record)
    lines = [
        "# Leaderboard", "",
        f"All scorers keep exactly the same number of tokens of the same held-out texts. One judge, seed {args.judge_seed}, "
        f"which no policy was trained with; policies: mean over the training seeds {', '.join(map(str, args.seeds))}. Bits "
        "lost are per original token, ± the standard deviation over training seeds (of baselines that draw: over draws), in "
        "brackets the 95 % interval by bootstrap over texts. *Gap*: the share of the way from random to a greedy oracle that "
        "searches with the judge. *Exact*: dropped tokens restored in free-running restoration. *Fewer*: than the best "
        "baseline that needs no language-model pass, named behind it. *Over the policy*: the difference, paired over texts. "
        "Time: of scoring, batched.",
    ]  # fmt: skip
    names = shown_names(dataset["dataset"] for dataset in config["datasets"])
    for dataset in config["datasets"]:
        for rate in config["arguments"]["rates"]:
            own = [row for row in rows if (row["dataset"], row["rate"]) == (dataset["dataset"], rate)]
            lines += ["", f"## {names[dataset['dataset']]}, rate {rate:g} ({dataset['texts']} texts)", "",
                      "| scorer | bits lost | over the policy | gap | exact | over the policy | µs per token | fewer |",
                      "|---|---|---|---|---|---|---|---|"]  # fmt: skip
            lines += ["| " + " | ".join(_cells(row, args)) + " |" for row in own]
    plots = sorted(path.name for path in evaluation.glob("*.png"))
    lines += ["", *(f"![{name}](evaluation/{name})" for name in plots), "", "## Commands", ""]
    for name, step in record["steps"].items():
        # The record keeps the exact command for resuming; the table, which others read, has no local paths.
        shown = command_without_local_paths(step["command"], args.output_dir)
        lines.append(f"* {name}, commit {step['commit']}, {step['seconds']:.0f} s: `{shown}`")
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(row: dict, args: LeaderboardArguments) -> list[str]:
    name = row["scorer"]
    spread = f" ± {row['bits_lost_std']:.3f}" if "bits_lost_std" in row else ""
    low, high = row["bits_lost_interval"]
    fewer = ""
    if "fewer_bits" in row:
        interval = row.get("fewer_bits_interval")
        between = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        fewer = f"{100 * row['fewer_bits']:.1f} %{between} ({row['best_cheap']})"
    return [
        f"**{name}**" if name == POLICY else f"{name} (ablation)" if name in args.ablations else name,
        f"{row['bits_lost']:.3f}{spread} [{low:.3f}, {high:.3f}]",
        _difference(row, "bits", 1),
        f"{100 * row['oracle_gap_closed']:.1f} %" if "oracle_gap_closed" in row else "–",
        f"{100 * row['exact_restored']:.1f} %",
        _difference(row, "exact", 100),
        f"{1e6 * row['seconds_per_token']:.1f}",
        fewer or "–",
    ]


def _difference(row: dict, what: str, unit: float) -> str:
    """The difference to the policy with its interval; empty in the policy's own row."""
    if row["scorer"] == POLICY or f"excess_{what}_interval" not in row:
        return "–"
    value, *interval = (unit * number for number in (row[f"excess_{what}"], *row[f"excess_{what}_interval"]))
    digits = 3 if unit == 1 else 1
    low, high = (f"{number:+.{digits}f}" for number in interval)
    return f"{value:+.{digits}f} [{low}, {high}]"


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((LeaderboardArguments,), argv, __doc__)
    steps, path = plan(args), Path(args.output_dir, RECORD)
    check(args, steps)
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"steps": {}}
    record |= {"arguments": asdict(args), "commit": commit()}
    numbers = {step.name: number for number, step in enumerate(steps, 1)}
    for _, stage in itertools.groupby(steps, lambda step: step.kind):
        waiting = []
        for step in stage:
            finished = is_finished(args, step, record)
            state = ", finished" if finished else ""
            print(f"[{numbers[step.name]}/{len(steps)}] {step.name}{state}\n  {command(args, step)}", flush=True)
            if finished or args.dry_run:
                continue
            waiting.append(step)
            for later in steps[numbers[step.name] :]:
                if stands_on(later, step):  # steps that depend on this one run again
                    record["steps"].pop(later.name, None)
        with ThreadPoolExecutor(args.jobs) as pool:
            for failure in pool.map(lambda step: run(args, step, record), waiting):
                if failure:
                    pool.shutdown(cancel_futures=True)
                    refuse(failure)
    if not args.dry_run:
        record["steps"] = {step.name: record["steps"][step.name] for step in steps}
        write_table(args, record)
        print(f"written: {path}\nwritten: {path.with_name(TABLE)}")


if __name__ == "__main__":
    main()
