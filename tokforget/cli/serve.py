"""`tokforget serve`: its arguments, and their conversion to the settings of the service."""

import argparse
import re
import sys

from tokforget.cli.files import UserError
from tokforget.optional import MissingPackage


HELP = """
/v1/compress, /v1/compress_messages and, with --base-model, /v1/restore take JSON with the arguments of the Python interface. The
page at / shows the kept text, and /docs lists every argument. It needs the extra: pip install 'tokforget[serve]'

  tokforget serve
  curl http://127.0.0.1:8000/v1/compress -H 'Content-Type: application/json' -d '{"texts": "A text.", "rate": 0.5}'
  tokforget serve --host 0.0.0.0 --token-file token --workers 4

By default only this machine can reach it; change that with --host. The token is read from --token-file or from the variable
TOKFORGET_TOKEN. After SIGTERM or Ctrl-C running requests are finished.
"""
# Settings that messages of the library may name; in the messages they become options of this command.
_NAMES = ("host", "port", "token_file", "without_token", "workers", "queue", "max_body_mb", "timeout", "read_timeout", "stop_timeout",
          "batch_ms", "backend", "device", "base_model")  # fmt: skip


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", metavar="FOLDER", help="a trained model's folder or Hub id (default: the packaged model)"
    )
    command.add_argument("--base-model", metavar="NAME", help="folder or id of the base model; enables /v1/restore")
    command.add_argument("--device", metavar="cpu|cuda", help="where the policy runs (default: cpu)")
    command.add_argument(
        "--backend",
        choices=("numpy", "torch", "onnx", "onnx-int8"),
        help="library that computes the policy (default: NumPy)",
    )
    command.add_argument("--count-with", action="append", default=[], metavar="VOCABULARY", dest="vocabularies",
                         help="a tokenizer that requests may name as count_tokens, repeatable: a tokenizer.json, a folder with one, a Hub id, "
                              "or a name of tiktoken")  # fmt: skip
    group = command.add_argument_group("access")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, help="port; 0 for any free one (default: %(default)s)")
    group.add_argument("--token-file", metavar="FILE", help="file with the token that requests must send")
    group.add_argument("--without-token", action="store_true", help="accept everybody who can reach --host")
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME", dest="allowed_hosts",
                       help="a host name that requests may use, repeatable (default: on this machine its own names, else any)")  # fmt: skip
    group = command.add_argument_group("limits")
    for name, kind, default, metavar, text in (
        ("workers", int, 1, "N", "processes that compress"),
        ("queue", int, 64, "N", "most waiting requests; the next is answered with 503"),
        ("max-body-mb", float, 2.0, "MIB", "most bytes of a request, in MiB"),
        ("timeout", float, 60.0, "S", "most seconds until a request is answered"),
        ("read-timeout", float, 10.0, "S", "seconds in which a client must send a request, and read an answer"),
        ("stop-timeout", float, 30.0, "S", "seconds for running requests after a stop signal"),
        ("batch-ms", float, 2.0, "MS", "milliseconds that a request waits for others with the same settings"),
    ):
        group.add_argument(
            f"--{name}", type=kind, default=default, metavar=metavar, help=f"{text} (default: {default:g})"
        )
    command.add_argument("--quiet", "-q", action="store_true", help="print no line at the start and at the end")


def serve(args: argparse.Namespace) -> int:
    """Serve until a stop signal; returns the exit code."""
    try:
        from tokforget.service.server import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "tokforget" or isinstance(error, MissingPackage):
            raise
        raise MissingPackage(
            f"`tokforget serve` needs the package {error.name!r}: pip install 'tokforget[serve]'", name=error.name
        ) from error
    from tokforget.service.settings import Settings, read_token

    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    given |= {name: tuple(given[name]) for name in ("vocabularies", "allowed_hosts")}
    say = (lambda line: None) if args.quiet else _say
    try:
        run(Settings(**given, token=read_token(args.token_file)), say)
    except (ValueError, TypeError) as error:
        raise UserError(re.sub(rf"`({'|'.join(_NAMES)})`", _as_option, str(error))) from error
    return 0


def _as_option(match: re.Match) -> str:
    return f"`--{match[1].replace('_', '-')}`"


def _say(line: str) -> None:
    sys.stderr.write(f"tokforget: {line}\n")
    sys.stderr.flush()
