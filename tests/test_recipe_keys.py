"""The keys of recipes as their sources tell them: those of the parser, to the last, and told before torch is imported."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tokforget import parsing
from tokforget.cli.recipes import RECIPES
from tokforget.recipe_keys import find_mistake, known_keys
from tokforget.shipped import recipe_path


ROOT = Path(__file__).parents[1]


@pytest.fixture
def parser_of(monkeypatch):
    """The parser that a recipe makes of its dataclasses."""

    class Made(Exception):
        pass

    def stop(words, parser):
        raise Made(parser)

    def parser(script: str):
        with monkeypatch.context() as patched, pytest.raises(Made) as made:
            patched.setattr(parsing, "_without_aliases", stop)
            import_module(f"recipes.{Path(script).stem}").main([])
        return made.value.args[0]

    return parser


@pytest.mark.parametrize("script", sorted(recipe.script for recipe in RECIPES.values()))
def test_the_source_knows_the_keys_that_the_parser_knows(script, parser_of, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = known_keys(recipe_path(script))
    assert known - {"--help-all"} == set(parser_of(script)._option_string_actions) - {"--help-all"}
    assert len(known) > 10 and ("--policy_learning_rate" in known) == (script == "train.py")


@pytest.mark.parametrize(
    ("words", "content"),
    [
        (["--max_stepz", "5"], ""),
        (["--zzz=5", "--max_stepz"], ""),
        (["--lesson_path", "x"], ""),
        (["--data-paths", "x"], ""),
        (["--data_path", "x", "--help", "--use_cpus"], ""),
        (["--max_stepz", "1"], "bath_size: 3\nmax_steps: 2"),
        ([], "variants: {}"),
        ([], "1: 2"),
        (["--config", "no_such_file"], ""),
        (["--config=no/such.yaml", "--max_stepz", "5"], ""),
    ],
)
def test_the_line_is_the_parsers(words, content, tmp_path, capsys, monkeypatch):
    from recipes import train

    if content:
        (tmp_path / "run.yaml").write_text(content)
        words = ["--config", str(tmp_path / "run.yaml"), *words]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit):
        train.main(words)
    line = find_mistake(recipe_path("train.py"), words)
    assert capsys.readouterr().err == f"train.py: error: {line}\n"


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ([], ""),
        (
            [
                "--config",
                "quick_test",
                "--max_steps=5",
                "--per-device-train-batch-size",
                "2",
                "--no_dataloader_pin_memory",
            ],
            "",
        ),
        (["--data_path", "x", "--device", "cpu", "--help"], ""),
        # Mistakes that only the parser can tell.
        (["--max_steps", "many", "loose", "--config"], ""),
        ([], "- a list"),
        ([], "a: ["),
        ([], "\udcff: 1"),
        ([], "max_steps: 1.5"),
    ],
)
def test_all_else_is_left_to_the_parser(words, content, tmp_path):
    if content:
        (tmp_path / "run.yaml").write_text(content, encoding="utf-8", errors="surrogateescape")
        words = [*words, "--config", str(tmp_path / "run.yaml")]
    assert find_mistake(recipe_path("train.py"), words) is None


@pytest.mark.parametrize(
    "source",
    [
        "parse_arguments((Missing,))",
        "from no_such_package import A\nparse_arguments((A,))",
        "from tokforget.no_such_module import A\nparse_arguments((A,))",
        "class A(make_base()):\n    x: int = 1\nparse_arguments((A,))",
        "class A:\n    x: int = 1\nparse_arguments(types)",
        "class A:\n    x: int = 1\nbegin((A,))\nparse_arguments((A,))",
        "not python",
    ],
)
def test_a_source_that_says_too_little_refuses_nothing(source, tmp_path):
    (tmp_path / "recipe.py").write_text(source)
    assert known_keys(tmp_path / "recipe.py") is None
    assert find_mistake(tmp_path / "recipe.py", ["--no_such_key", "1"]) is None


def test_fields_are_read_as_the_parser_reads_them(tmp_path):
    (tmp_path / "recipe.py").write_text(
        "class Base:\n    on: bool = True\n    off: bool = field(default=True)\n    kept: int = 1\n"
        "class A(Base):\n    shared: ClassVar[int] = 3\n    made: int = field(init=False)\n    off: bool = False\n"
        "    other_name: int = field(default=1, metadata={'aliases': ['-o'], 'help': '- a sign'})\n"
        "parse_arguments((A,))"
    )
    assert known_keys(tmp_path / "recipe.py") == {
        "-h", "--help", "--help-all", "--config", "--on", "--no_on", "--no-on", "--off", "--kept", "--other_name",
        "--other-name", "-o",
    }  # fmt: skip


@pytest.mark.parametrize(
    "start", [["recipes/train.py"], ["-m", "tokforget", "train"], ["-m", "tokforget", "train", "--accelerate_config", "cpu"]],
    ids=" ".join,
)  # fmt: skip
def test_a_mistyped_key_costs_no_import_of_torch(start):
    words = [sys.executable, "-X", "importtime", *start, "--config", "quick_test", "--max_stepz", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    imported = set(re.findall(r"^import time:.*\| *([\w.]+)$", done.stderr, re.MULTILINE))
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout) == (2, "")
    assert told == [
        "train.py: error: unknown key `max_stepz`. Did you mean `max_steps`? `--help` lists the keys that exist."
    ]
    assert "tokforget.recipe_keys" in imported and not imported & {"torch", "transformers", "accelerate", "numpy"}


def test_the_help_of_a_script_lists_the_keys_that_stand_in_it(capsys):
    """`python recipes/leaderboard.py`: its dataclass belongs to a module called `__main__`."""
    import dataclasses

    kind = dataclasses.make_dataclass(
        "Mine", [("mine", int, dataclasses.field(default=1, metadata={"help": "My key."}))]
    )
    kind.__module__, kind.__doc__ = "__main__", "My keys."
    with pytest.raises(SystemExit):
        parsing.parse_arguments((kind,), ["--help"])
    assert "--mine MINE My key. (default: 1)" in " ".join(capsys.readouterr().out.split())
