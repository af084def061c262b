"""The private names of TRL that are used exist; a new release that moves them fails here first."""

import inspect

from tokforget._trl import _BaseConfig, _BaseTrainer, add_hooks, remove_hooks


def test_what_the_trainer_stands_on_is_there():
    assert {"_tag_names", "_name", "loss_is_scaled_for_ga"} <= set(dir(_BaseTrainer))
    assert "_VALID_DICT_FIELDS" in dir(_BaseConfig)
    assert list(inspect.signature(_BaseTrainer.create_model_card).parameters) == [
        "self",
        "model_name",
        "dataset_name",
        "tags",
    ]
    for name in (
        "_save_checkpoint",
        "_get_output_dir",
        "_save",
        "_load_from_checkpoint",
        "_load_best_model",
        "create_optimizer",
        "training_step",
        "_run_epoch",
        "_save_optimizer_and_scheduler",
        "_save_rng_state",
        "_load_optimizer_and_scheduler",
        "_load_rng_state",
    ):
        assert callable(getattr(_BaseTrainer, name))
    assert all(list(inspect.signature(of).parameters) == ["model"] for of in (add_hooks, remove_hooks))
    after_step = inspect.signature(_BaseTrainer._maybe_log_save_evaluate).parameters
    assert list(after_step)[:3] == ["self", "tr_loss", "grad_norm"]


def test_nothing_is_sent(base_folder, tokenizer, tmp_path, monkeypatch):
    """Also where the environment does not forbid it."""
    from trl.trainer import base_trainer

    from tests.training.test_forget_trainer import make_trainer

    sent = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: sent.append(args))
    monkeypatch.delenv("CI")
    make_trainer(base_folder, tokenizer, tmp_path)
    assert not sent
