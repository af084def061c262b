"""
`tokforget export`: write a model's policy as a graph for ONNX Runtime, into the model's folder or with a copy of it.
"""

import argparse
import sys
from pathlib import Path

from tokforget.cli.files import UserError


HELP = """
Writes policy.onnx for ONNX Runtime, and policy.int8.onnx with --precision int8 or both; `--backend onnx` then uses it. It needs the
extra: pip install "tokforget[onnx]"

  tokforget export --format onnx -o with_onnx && tokforget compress notes.txt --model with_onnx --backend onnx
  tokforget export --format onnx --precision both outputs/my_model --in-place

A graph is only valid with the weights in its folder. With other weights it is refused and must be written again.
"""
PRECISIONS = {"fp32": ("onnx",), "int8": ("onnx-int8",), "both": ("onnx", "onnx-int8")}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", metavar="MODEL",
                         help="a trained model's folder or Hub id, or `embedded` (default: the packaged model)")  # fmt: skip
    command.add_argument("--format", required=True, choices=("onnx",), help="format of the graph")
    command.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32",
                         help="fp32 gives the model's scores; int8 is a third of its size, with other scores (default: fp32)")  # fmt: skip
    where = command.add_mutually_exclusive_group()
    where.add_argument("--output", "-o", metavar="FOLDER", help="folder for a copy of the model with the graph")
    where.add_argument("--in-place", action="store_true", help="add the graph to the model's own folder")
    command.add_argument("--overwrite", action="store_true", help="replace existing files")
    command.add_argument("--quiet", "-q", action="store_true", help="do not print the written files")


def export(args: argparse.Namespace) -> int:
    """Write the graphs and print their paths on standard error; returns the exit code."""
    from tokforget.models.folders import export_onnx, local_folder
    from tokforget.packaged import EMBEDDED, forget_model_path, reader_model_path

    if args.output is None and not args.in_place:
        raise UserError(
            "`export` needs a place to write to: pass `-o FOLDER` for a copy of the model with its graph, or `--in-place` for the "
            "model's own folder."
        )
    if args.output is not None and Path(args.output).exists() and not Path(args.output).is_dir():
        raise UserError(f"`--output` {args.output} is a file: pass a folder, which may be a new one.")
    packaged = {None: reader_model_path, EMBEDDED: forget_model_path}
    try:
        folder = packaged[args.model]() if args.model in packaged else local_folder(args.model)
        target = None if args.in_place else Path(args.output)
        written = export_onnx(folder, target, PRECISIONS[args.precision], args.overwrite)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not args.quiet:
        for path in written:
            sys.stderr.write(f"tokforget: {path}: {path.stat().st_size:,} bytes\n")
    return 0
