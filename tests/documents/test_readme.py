"""The README's code runs, and its commands name things that exist."""

import re
from pathlib import Path

import pytest
from transformers import TrainingArguments

from recipes.leaderboard import LeaderboardArguments
from tokforget.data.arguments import DataArguments, PreparationArguments
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.hub.arguments import PushArguments
from tokforget.models.arguments import ModelArguments, ReconstructorArguments
from tokforget.parsing import parse_arguments
from tokforget.training.config import ForgetConfig, ReconstructorConfig


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# The code of "Share your model" needs a Hub: tests/hub/test_client.py runs it against one.
OFFLINE = re.sub(r"\n## Share your model\n.*?(?=\n## )", "\n", README, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", OFFLINE, re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


RECIPES = {
    "train.py": (DataArguments, ModelArguments, ForgetConfig),
    "train_reconstructor.py": (DataArguments, ReconstructorArguments, ReconstructorConfig),
    "prepare_data.py": (PreparationArguments,),
    "evaluate.py": (EvaluationArguments,),
    "run_baselines.py": (EvaluationArguments,),
    "push_to_hub.py": (PushArguments,),
    "leaderboard.py": (LeaderboardArguments,),
}
LAUNCHES = [c for c in COMMANDS if re.search(rf"recipes/({'|'.join(RECIPES)}) ".replace(".", r"\."), c)]


@pytest.mark.parametrize("command", LAUNCHES)
def test_commands_of_recipes_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    launcher, name, words = re.match(r"(.*)recipes/(\w+\.py)(.*)", command).groups()
    assert launcher == "python " or Path(re.search(r"--config_file (\S+)", launcher)[1]).is_file()
    types = RECIPES[name]
    trains = any(issubclass(kind, TrainingArguments) for kind in types)
    parse_arguments(types, [*words.split(), *(["--use_cpu"] if trains else [])])


def test_every_recipe_of_the_workflow_is_shown():
    shown = {re.search(r"recipes/(\w+\.py)", command)[1] for command in LAUNCHES}
    assert shown >= {"train.py", "train_reconstructor.py", "prepare_data.py", "evaluate.py"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_that_are_named_exist():
    for path in re.findall(r"(?:recipes|accelerate_configs|tokforget)/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / path).is_file(), path


def test_ci_calls_the_readme_test_command():
    assert "make test" in COMMANDS[1] and "make test" in (ROOT / ".ci" / "run").read_text()
