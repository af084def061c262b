"""What is shown of a run's logs: a line each, whose first figure falls when something is learnt."""

import pytest

from tests.training.test_forget_trainer import make_trainer
from tokforget.training.log_lines import log_line


STEP = {"loss": 3.26, "grad_norm": 0.2, "bits_lost": 1.234, "exact_restored": 0.315, "rate": 0.5012, "reward": -1.5, "policy_loss": 0.01,
        "tokens_per_second": 12345.6}  # fmt: skip


def test_a_line_by_hand():
    assert (
        log_line(STEP, 10, 240)
        == "step 10/240: bits_lost 1.234, exact 31.5%, rate 0.501, reward -1.500, 12,346 tokens/s"
    )
    assert log_line({"loss": 2.0, "bits_lost": 1.0}, 1, 2) == "step 1/2: bits_lost 1.000, loss 2.000"
    assert log_line({"train_runtime": 5.0, "train_loss": 1.0}, 2, 2) is None
    measured = {"eval_bits_lost": 1.5, "eval_bits_lost_0.3": 2.0, "eval_exact_restored_0.3": 0.25, "eval_bits_lost_0.5": 1.0,
                "eval_exact_restored_0.5": 0.5}  # fmt: skip
    assert (
        log_line(measured, 4, 8)
        == "step 4/8, evaluation: bits_lost 1.500 (0.3: 2.000 bits, 25.0% exact; 0.5: 1.000 bits, 50.0% exact)"
    )


@pytest.mark.parametrize("bar", [False, True])
def test_a_run_shows_lines_and_keeps_everything(bar, base_folder, tokenizer, tmp_path, capsys):
    trainer = make_trainer(base_folder, tokenizer, tmp_path, max_steps=2, logging_steps=1, disable_tqdm=not bar,
                           eval_strategy="steps", eval_steps=2)  # fmt: skip
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines] == ["step 1/2", "step 2/2", "step 2/2, evaluation"]
    assert "bits_lost" in lines[0] and "{" not in "".join(lines)
    assert {"policy_loss", "grad_norm", "frac_undecided"} <= trainer.state.log_history[0].keys()
