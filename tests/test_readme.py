"""The README's code runs, and its commands name things that exist."""

import re
from pathlib import Path

import pytest

from tokforget.config import DataArguments, ForgetConfig, ModelArguments, parse_arguments


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [c for c in COMMANDS if "recipes/train.py" in c])
def test_training_commands_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    launcher, _, words = command.partition("recipes/train.py")
    assert Path(re.search(r"--config_file (\S+)", launcher)[1]).is_file()
    parse_arguments((DataArguments, ModelArguments, ForgetConfig), [*words.split(), "--use_cpu"])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(COMMANDS), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_that_are_named_exist():
    for path in re.findall(r"(?:recipes|accelerate_configs|tokforget)/[\w/]+\.(?:py|yaml)", README):
        assert (ROOT / path).is_file(), path


def test_ci_calls_the_readme_test_command():
    assert "make test" in COMMANDS[1] and "make test" in (ROOT / ".ci" / "run").read_text()
