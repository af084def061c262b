"""tokforget: learn which tokens of a prompt a language model can do without, and restore them."""

from importlib import import_module

from tokforget.optional import needed


__version__ = "0.1.0"

# Names are imported when used: `import tokforget` stays fast and touches nothing.
_EXPORTS = {
    "CompressedText": "compression.results",
    "Compressor": "compression.compressor",
    "EpisodeBatch": "training.episodes",
    "ForgetConfig": "training.config",
    "ForgetModel": "models.forget_model",
    "ForgetModelConfig": "models.forget_model",
    "ForgetTrainer": "training.forget_trainer",
    "KeepMaskPolicy": "models.policy",
    "Reconstructor": "models.reconstructor",
    "ReconstructorConfig": "training.config",
    "ReconstructorTrainer": "training.reconstructor_trainer",
    "RestoredText": "compression.results",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tokforget' has no attribute {name!r}")
    with needed(f"`tokforget.{name}`"):
        return getattr(import_module(f"tokforget.{_EXPORTS[name]}"), name)
