"""The two models that the package carries: a small GPT-2, and a policy trained over it."""

from importlib import resources
from pathlib import Path


EMBEDDED = "embedded"


def base_model_path() -> str:
    """Folder of the small GPT-2 and its tokenizer that the package carries."""
    return str(resources.files("tokforget") / "assets" / "base_model")


PACKAGED = "assets/forget_model"


def forget_model_path() -> Path:
    """
    Folder of the trained model that the package carries.

    Raises:
        `FileNotFoundError`: If this installation carries none.
    """
    folder = Path(str(resources.files("tokforget") / PACKAGED))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"This installation of tokforget carries no trained model ({folder} is missing). Install tokforget again, "
            "or pass the folder or Hub id of a model: `Compressor.from_pretrained('outputs/quick_test')`."
        )
    return folder
