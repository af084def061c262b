"""
Arguments of `recipes/push_to_hub.py`.

No `from __future__ import annotations` here: the host's parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


@dataclass
class PushArguments:
    """What is sent, where to, and how."""

    folder: str = field(
        metadata={
            "help": "Folder that recipes/train.py, recipes/train_reconstructor.py or recipes/prepare_data.py wrote. Of it "
            "only the files of the model, or the blocks and their manifest, are sent."
        }
    )
    repo_id: str = field(metadata={"help": "`user/name` on the Hub, or `name` for the owner of the token."})
    private: bool | None = field(
        default=None,
        metadata={"help": "Whether a new repository is private; by default what the Hub does, which is public."},
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, made if it does not exist; `main` by default."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "By default `Upload` and what it is."})
    license: str | None = field(
        default=None, metadata={"help": "Licence you give a model under, an identifier of the Hub such as `mit`."}
    )
    evaluation_path: str | None = field(
        default=None,
        metadata={
            "help": "Output folder of recipes/evaluate.py whose report, plots and numbers go along, as `evaluation/`; by "
            "default the folder's own `evaluation/`, if it has one."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Write the exact folder to `output_dir`, print what would be sent, send nothing."},
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where the folder that is sent is written, new or empty; by default `outputs/hub/<name>` in a dry run, "
            "else nowhere that stays."
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
