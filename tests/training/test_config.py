"""Arguments: precedence, aliases, and one line with exit code 2 for what cannot be."""

import pytest

from tests.support.recipes import call
from tokforget.data.arguments import DataArguments, PreparationArguments
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.models.arguments import ModelArguments
from tokforget.parsing import as_record, parse_arguments
from tokforget.training import config
from tokforget.training.config import ForgetConfig, ReconstructorConfig
from tokforget.training.reader_arguments import ReaderPolicyConfig


TYPES = (DataArguments, ModelArguments, ForgetConfig)
NEEDED = ["--dataset_name", "embedded", "--reconstructor_name_or_path", "embedded", "--use_cpu", "true"]


def parse(*words: str):
    return parse_arguments(TYPES, [*NEEDED, *words])


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text(
        "max_steps: 7\nnum_masks: 3\neval_rates: [0.25, 0.5]\npolicy_learning_rate: 1e-3\nmax_train_texts: null\n"
    )
    data, _, args = parse("--config", str(run), "--num_masks", "5")
    assert (args.max_steps, args.num_masks, args.eval_rates, args.policy_learning_rate) == (7, 5, [0.25, 0.5], 1e-3)
    assert data.max_train_texts is None and args.credit_decay == 0.3


@pytest.mark.parametrize(
    ("words", "group", "name", "value"),
    [
        (["--data_path", "x.txt"], 0, "dataset_name", "x.txt"),
        (["--reconstructor_path", "some/folder"], 1, "reconstructor_name_or_path", "some/folder"),
        (["--max_epochs", "2"], 2, "num_train_epochs", 2.0),
        (["--batch_size=30"], 2, "per_device_train_batch_size", 30),
        (["--learning_rate_policy", "0.5"], 2, "policy_learning_rate", 0.5),
        (["--learning_rate_reconstructor", "0.25"], 2, "reconstructor_learning_rate", 0.25),
        (["--reward_type", "simple"], 2, "reward_funcs", ["simple"]),
        (["--device", "cpu"], 2, "use_cpu", True),
        (["--output_dir", "there"], 2, "output_dir", "there"),
        (["--reward_funcs", "simple", "information_theoretic", "--reward_weights", "1", "2"], 2, "reward_weights", [1.0, 2.0]),
    ],
)  # fmt: skip
def test_names_people_know(words, group, name, value):
    assert getattr(parse(*words)[group], name) == value


def test_an_alias_in_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("batch_size: 30\ndevice: cpu\n")
    args = parse("--config", str(tmp_path / "run.yaml"))[2]
    assert args.per_device_train_batch_size == 30 and args.use_cpu


BAD = [
    (["--bath_size", "3"], "unknown key `bath_size`. Did you mean `batch_size`?"),
    (["--max_step", "3"], "unknown key `max_step`. Did you mean `max_steps`?"),
    (["--zzz", "3"], "unknown key `zzz`. `--help` lists the keys that exist."),
    (["--lesson_path", "x"], "unknown key `lesson_path`: it is called `warm_start_data_path` now."),
    (["--batch_size", "8"], "For one text of each batch pass `reconstructor_text_fraction: 0.125`"),
    (
        ["--warm_start_data_path", "x", "--sampled_texts", "3"],
        "brings its own sampled texts, and `sampled_texts` is 3",
    ),
    (["--max_steps", "many"], "invalid int value: 'many'"),
    (["--max_steps", "1.5"], "invalid int value: '1.5'"),
    (["--num_masks", "1"], "`num_masks` must be at least 2, got 1"),
    (["--min_rate", "0.9", "--max_rate", "0.5"], "`min_rate` <= `max_rate` < 1, got 0.9 and 0.5"),
    (["--eval_rates", "4"], "got 4.0. It is the fraction of tokens kept"),
    (["--max_train_texts", "0"], "`max_train_texts` must be at least 1, got 0"),
    (["--layout", "suffix"], "`layout` must be 'prefix' or 'infill'"),
    (["--min_length", "50", "--max_length", "20"], "no block is left"),
    (["--reward_weights", "1"], "got 2 `reward_funcs` and 1 `reward_weights`"),
    (["--early_stopping_patience", "2"], "needs `load_best_model_at_end: true`"),
    (["--learning_rate", "1"], "ambiguous"),
    (["--seed", "-1"], "`seed` must lie in [0, 4294967296), got -1"),
    (["--batch_size", "0"], "must be at least 1, got 0"),
    (["--per_device_train_batch_size", "-2"], "must be at least 1, got -2"),
    (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` must be at least 1, got 0"),
    (["--policy_learning_rate", "nan"], "`policy_learning_rate` must be finite and not negative, got nan"),
    (
        ["--reconstructor_learning_rate", "inf"],
        "`reconstructor_learning_rate` must be finite and not negative, got inf",
    ),
    (["--weight_decay", "nan"], "`weight_decay` must be finite and not negative, got nan"),
    (["--max_grad_norm", "-1"], "`max_grad_norm` must be finite and not negative, got -1"),
    (["--entropy_coef", "nan"], "`entropy_coef` must be finite and not negative, got nan"),
    (["--random_mask_fraction", "1"], "must lie in [0, 1), got 1.0"),
    (["--warm_start_steps", "-1"], "`warm_start_steps` must be at least 0, got -1"),
    (["--warm_start_texts", "0"], "`warm_start_texts` must be at least 1, got 0"),
    (["--warm_start_target", "oracle"], "must be 'self_information' or 'leave_one_out', got 'oracle'"),
    (["--credit_decay", "2"], "`credit_decay` must lie in [0, 1], got 2.0"),
    (["--ngram_buckets", "100"], "0 or a power of two, got 100"),
    (["--device", "tpu"], "must be cpu or cuda, got 'tpu'"),
    (["--activation_checkpointing", "true"], "`activation_checkpointing` is not supported"),
    (["--config"], "needs the path"),
    (["--config", "no/such.yaml"], "cannot be read"),
    (["--reward_funcs", "informative"], "Unknown reward 'informative'"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bath_size: 3", "unknown key `bath_size`"),
        ("max_steps: 1.5", "invalid int value: '1.5'"),
        ("num_masks: [2, 3]", "not used by the HfArgumentParser: ['3']"),
        ("num_masks:", "the key `num_masks`"),
        ("- a list", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("use_cpu: perhaps", "expected"),
        ("max_steps: 1\nseed: 2\nmax_steps: 3", "the run file has the key `max_steps` twice; leave out one of them"),
    ],
)
def test_a_run_file_is_checked_like_the_command_line(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        parse("--config", str(tmp_path / "run.yaml"))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1, error


def test_models_and_data_have_no_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(TYPES, [])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "required" in error and "--dataset_name" in error and "--reconstructor_name_or_path" in error


def test_the_script_fails_before_any_model_is_loaded():
    """The model does not exist; the bad key is what is reported."""
    words = ["--dataset_name", "x", "--reconstructor_path", "/no/such/model", "--num_mask", "3"]
    run = call("train", *words)
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1].startswith("train.py: error: unknown key `num_mask`")


def test_the_record_holds_every_argument_and_no_secret():
    record = as_record(*parse("--hub_token", "hf_secret"))
    assert record["dataset_name"] == "embedded" and record["num_masks"] == 4 and record["layout"]
    assert "hf_secret" not in str(record)
    assert "include_num_input_tokens_seen" in record, "only secrets are left out, not all that is called token"


def test_the_defaults_are_the_recipe_that_was_measured_best():
    args = parse()[2]
    assert (args.max_steps, args.per_device_train_batch_size, args.sampled_texts, args.default_warm_start_steps) == (
        240,
        16,
        4000,
        1000,
    )
    assert (args.policy_learning_rate, args.reconstructor_learning_rate, args.entropy_coef) == (5e-5, 5e-5, 0.02)
    assert args.reward_funcs == ["information_theoretic", "exact_runs"] and args.warm_start_target == "leave_one_out"
    assert parse("--max_epochs", "2")[2].max_steps == -1, "whoever asks for epochs has them"
    assert parse("--warm_start_data_path", "x")[2].sampled_texts == 0
    again = ForgetConfig(
        **{name: getattr(args, name) for name in ("output_dir", "max_steps", "num_train_epochs", "use_cpu")}
    )
    assert again.max_steps == 240


def test_training_preparation_and_evaluation_cut_alike():
    kinds = (DataArguments, PreparationArguments, EvaluationArguments)
    lengths = {(kind.max_length, kind.min_length) for kind in kinds}
    assert lengths == {(96, 32)}


@pytest.mark.parametrize("word", ["--help", "--help-all"])
def test_help_comes_in_groups_and_the_hosts_keys_behind_help_all(word, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(TYPES, [word], "A recipe.")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    groups = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    own = ["DataArguments", "BaseModelArguments", "ModelArguments", "BaseForgetConfig", "ForgetConfig"]
    assert set(own) <= set(groups) and ("TrainingArguments" in groups) == (word == "--help-all")
    assert ("--adam_beta1" in shown) == (word == "--help-all")
    assert (
        "--help-all" in shown
        and "--num_masks" in shown
        and "--num-masks" not in shown
        and "--reward_type" not in shown
    )
    assert (
        shown.index("DataArguments")
        < shown.index("--max_length")
        < shown.index("ForgetConfig:")
        < shown.index("--num_masks")
    )
    assert len(shown.splitlines()) < (250 if word == "--help" else 1000)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_compiling_is_refused_where_weights_are_sharded(name, tmp_path, monkeypatch):
    ReconstructorConfig(output_dir=str(tmp_path), use_cpu=True, torch_compile=True)
    monkeypatch.setattr(config, "parse_flag_from_env", lambda flag: flag == name)
    with pytest.raises(ValueError, match="`torch_compile` is not supported under DeepSpeed and FSDP"):
        ReconstructorConfig(output_dir=str(tmp_path), use_cpu=True, torch_compile=True)


def test_compiling_is_refused_for_a_policy_that_learns_from_a_reader(tmp_path):
    with pytest.raises(ValueError, match="`torch_compile` is not supported here"):
        ReaderPolicyConfig(output_dir=str(tmp_path), use_cpu=True, torch_compile=True)
