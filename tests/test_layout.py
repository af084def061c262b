"""Imports point down: the rooms of the package stay apart."""

import subprocess
import sys

from tests.support.layout import PACKAGE, ROOMS, arrows, circles, modules, points_up


def test_no_import_points_up():
    assert [arrow for arrow in arrows() if points_up(arrow)] == []


def test_modules_do_not_import_each_other_in_circles():
    assert circles() == []


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(ROOMS)


def test_a_planted_import_upwards_is_seen(tmp_path):
    package = tmp_path / "tokforget"
    for room in ("models", "training"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "training" / "loop.py").write_text("from tokforget.models import net\n")
    (package / "models" / "net.py").write_text("def late():\n    from tokforget.training.loop import step\n")
    up = [arrow for arrow in arrows(package) if points_up(arrow)]
    assert [(arrow.importer, arrow.imported, arrow.line) for arrow in up] == [("models.net", "training.loop", 2)]
    assert circles(package) == []  # one of the two is imported when used
    (package / "models" / "net.py").write_text("from tokforget.training import loop\n")
    assert sorted(circles(package)[0]) == ["models.net", "training.loop"]


def test_a_room_says_what_it_holds_and_no_more():
    for name in sorted(set(ROOMS) - {"", "metrics"}):
        lines = (PACKAGE / name / "__init__.py").read_text().strip()
        assert lines.startswith('"""') and lines.endswith('"""') and lines.count('"""') == 2, name


def test_compression_loads_without_transformers():
    code = (
        "import sys, tokforget.compression.compressor; print('transformers' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_modules_are_found():
    assert {"masking", "models.policy", "compression.compressor"} <= set(modules())
