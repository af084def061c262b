"""The models that the package carries: a compressor for real text, a small GPT-2, and a policy trained over it."""

from importlib import resources
from pathlib import Path


# The small GPT-2, and with it the small compressor, by name.
EMBEDDED = "embedded"
READER_MODEL = "assets/reader_model"
FORGET_MODEL = "assets/forget_model"


def base_model_path() -> str:
    """Folder of the small GPT-2 and its tokenizer that the package carries."""
    return str(resources.files("tokforget") / "assets" / "base_model")


def reader_model_path() -> Path:
    """
    Folder of the compressor for real text, which [`Compressor`] loads by default. It drops whole words, with or
    without a question, and was trained on the bits that SmolLM2-135M-Instruct loses. Its adapter restores text with
    that model, which is not in the package.

    Raises:
        `FileNotFoundError`: If this installation carries none.
    """
    return _carried(READER_MODEL)


def forget_model_path() -> Path:
    """
    Folder of the small model (`"embedded"`) over the small GPT-2. It was trained in the joint loop, drops single
    tokens, and restores them.

    Raises:
        `FileNotFoundError`: If this installation carries none.
    """
    return _carried(FORGET_MODEL)


def _carried(name: str) -> Path:
    folder = Path(str(resources.files("tokforget") / name))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"This installation of tokforget carries no trained model ({folder} is missing). Install tokforget again, "
            "or pass the folder or Hub id of a model: `Compressor.from_pretrained('outputs/quick_test')`."
        )
    return folder
