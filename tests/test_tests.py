"""The suite itself: every test can fail."""

import ast
from pathlib import Path


TESTS = Path(__file__).parent
# Calls that fail when what they are given is not as it should be.
CHECKS = {"raises", "warns", "assert_close", "assert_allclose"}


def can_fail(function: ast.FunctionDef, checks: set[str]) -> bool:
    """Whether it asserts, expects an error or a warning, or calls one of the functions `checks`, which do."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if name in CHECKS | checks:
                return True
    return False


def silent_tests(source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    helpers = {f.name for f in functions if not f.name.startswith("test_") and can_fail(f, set())}
    return [f.name for f in functions if f.name.startswith("test_") and not can_fail(f, helpers)]


def test_every_test_asserts_something():
    found = {path.name: silent_tests(path.read_text()) for path in TESTS.rglob("test_*.py")}
    assert {name: tests for name, tests in found.items() if tests} == {}


def test_a_test_that_asserts_nothing_is_seen():
    source = "def check(x):\n    assert x\n\ndef test_one():\n    run()\n\ndef test_two():\n    check(run())\n"
    assert silent_tests(source) == ["test_one"]
