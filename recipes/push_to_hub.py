"""
Send a trained model, a reconstructor or prepared data to the Hub with its card, in one commit.

    python recipes/push_to_hub.py --folder outputs/quick_test --repo_id user/model --dry_run true

Log in first (`hf auth login`), or set HF_TOKEN. `--dry_run true` writes the folder and sends nothing.
`--help` lists every key. Load the result with `Compressor.from_pretrained("user/model")`,
`datasets.load_dataset("user/data")`.
"""

import logging
import os
import tempfile
from pathlib import Path


# tokforget sends no telemetry, not even that of the libraries below.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tokforget.recipe_keys import refuse_unknown_keys


if __name__ == "__main__":
    refuse_unknown_keys(__file__)  # before the slow imports

from tokforget.hub.arguments import PushArguments
from tokforget.parsing import parse_arguments, refuse


def print_folder(folder: Path, args: PushArguments, repo_type: str) -> None:
    """Print every file with its size, and the destination."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name in sorted(sizes):
        print(f"{sizes[name]:>13,}  {name}")
    private = {
        None: "private or public as the Hub's default",
        True: "private if it is new",
        False: "public if it is new",
    }
    print(
        f"{sum(sizes.values()):>13,}  bytes in {len(sizes)} files for the {repo_type} repository {args.repo_id}, branch "
        f"{args.revision or 'main'}, {private[args.private]}"
    )


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((PushArguments,), argv, __doc__)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    from tokforget.hub.client import HubError
    from tokforget.hub.staging import send, stage

    with tempfile.TemporaryDirectory(prefix="tokforget-") as temporary:
        folder = Path(args.output_dir or temporary)
        try:
            kind = stage(args.folder, folder, args.repo_id, args.license, args.evaluation_path)
        except (ValueError, OSError) as error:
            refuse(str(error))
        print_folder(folder, args, kind.repo_type)
        if args.dry_run:
            print(f"Nothing was sent. The folder is {folder}")
            return
        try:
            done = send(folder, kind, args.repo_id, args.private, args.revision, message=args.commit_message)
        except HubError as error:
            refuse(str(error))
    print(f"Pushed: {done.url}")


if __name__ == "__main__":
    main()
