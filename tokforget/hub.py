"""
The card of a model folder, filled from what the run recorded there. What is not recorded is not written.
"""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from tokforget.data import EMBEDDED


def template_path(name: str) -> Path:
    """A template of `hub_cards/`: beside the package in a checkout, inside it once installed as a wheel."""
    package = Path(__file__).parent
    for folder in (package / "hub_cards", package.parent / "hub_cards"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"The card template {name} is missing from the installation; install tokforget again.")


def write_card(folder: Path, template: str = "model.md") -> None:
    """
    Write `README.md` into a folder from what lies beside it: `config.json`, `training_config.json`, `eval_results.json`.

    Args:
        template (`str`): `model.md` for policy and reconstructor, `reconstructor.md` for a reconstructor alone.
    """
    config, training = _read(folder / "config.json"), _read(folder / "training_config.json")
    base = config.get("base_model_name_or_path") or training.get("base_model_name_or_path")
    on_hub = base and base != EMBEDDED and not Path(base).exists()
    whole = training.get("use_peft") is False
    data = ModelCardData(
        library_name="transformers" if whole else "peft",
        tags=["tokforget", "trl", *([] if whole else ["lora"]), "prompt-compression"],
        base_model=base if on_hub else None,
        base_model_relation=("finetune" if whole else "adapter") if on_hub else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template_path(template)),
        config=config,
        training=training,
        results=_read(folder / "eval_results.json"),
    )
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
