"""
Arguments of `recipes/push_to_hub.py`.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


@dataclass
class PushArguments:
    """What to send to the Hub, where to, and how."""

    folder: str = field(
        metadata={
            "help": "Folder that recipes/train.py, recipes/train_reconstructor.py or recipes/prepare_data.py wrote. Only "
            "the files of the model, or the blocks and their manifest, are sent."
        }
    )
    repo_id: str = field(metadata={"help": "`user/name` on the Hub, or `name` for the owner of the token."})
    private: bool | None = field(
        default=None,
        metadata={"help": "Whether a new repository is private; by default the Hub decides (public)."},
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, created if it does not exist; `main` by default."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "By default `Upload` and the kind of folder."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of a model, as an identifier of the Hub such as `mit`."}
    )
    evaluation_path: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of recipes/evaluate.py whose report, plots and numbers are sent too, as `evaluation/`; "
            "by default the folder's own `evaluation/`, if it has one."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Write the folder to `output_dir` and print what would be sent, but send nothing."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "New or empty folder for a copy of what is sent; by default `outputs/hub/<name>` in a dry run, else a "
            "temporary folder."
        },
    )

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"`repo_id` must be `user/name` or `name`, got {self.repo_id!r}: {error}") from error
        if self.commit_message is not None and not self.commit_message.strip():
            raise ValueError("`commit_message` must not be empty; leave it out for the default.")
        if self.dry_run and self.output_dir is None:
            self.output_dir = f"outputs/hub/{self.repo_id.split('/')[-1]}"
