"""
One evaluation, from its arguments to its folder: load, compare, read, time, write. Each step is a method, in this
order.

Several processes (`accelerate launch --num_processes N`) divide the batches of the comparison; process 0 does the
rest.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from rich.console import Console

import tokforget
from tokforget.data.blocks import BlockCollator, data_fingerprint, load_blocks
from tokforget.evaluation.arguments import EvaluationArguments
from tokforget.evaluation.baselines import ScorerContext, baselines
from tokforget.evaluation.comparison import KEEP_ALL, Comparison, judge, print_table, rows_of
from tokforget.evaluation.continuations import Continuations
from tokforget.evaluation.questions import Reading, compress_contexts, read_all
from tokforget.evaluation.report import (
    BASELINE_RESULTS,
    DOWNSTREAM,
    EVALUATION_CONFIG,
    MODEL_RESULTS,
    SAMPLES,
    SPEED,
    TRAINING_LOG,
    write_report,
)
from tokforget.evaluation.scorers import Policy, Scorer
from tokforget.evaluation.speed import break_even, load_target, measure_speed
from tokforget.evaluation.text_quality import TextQuality
from tokforget.files import TRAINER_STATE, TRAINING, write_json
from tokforget.launch import check_evaluation
from tokforget.models.forget_model import ForgetModel
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.reconstructor_folder import load_reconstructor
from tokforget.readers.language_model import load_reader, load_tokenizer
from tokforget.readers.questions import load_questions
from tokforget.readers.words import decode
from tokforget.scoring import mask_bits


class EvaluationRun:
    """
    An evaluation. Building it loads the models and the judge.

    Args:
        args ([`EvaluationArguments`]): What to compare and measure.
        console (`rich.console.Console`, *optional*): Prints the tables.

    Raises:
        `ValueError`, `OSError`: If a model, the judge or a source cannot be loaded.
    """

    def __init__(self, args: EvaluationArguments, console: Console | None = None):
        self.args, self.console = args, console or Console()
        # The launcher sets an environment variable that TrainingArguments read and PartialState does not.
        self.state = PartialState(cpu=args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"))
        check_evaluation(self.state.num_processes)
        self.device = self.state.device
        judge_path = args.reconstructor_name_or_path or args.models[0][1]
        self.tokenizer = load_tokenizer(judge_path)
        self.judge_path = judge_path
        self.reconstructor = load_reconstructor(judge_path, self.tokenizer, args.layout).to(self.device)
        self.reconstructor.check_max_length(args.max_length)
        self.training_seeds: list[int | None] = []
        self.policies = [self._load_policy(label, path) for label, path in args.models]
        self.rows: list[dict] = []
        self.samples: list[dict] = []
        self.datasets: list[dict] = []
        self.scorer_context: ScorerContext | None = None

    def _load_policy(self, label: str, path: str) -> Policy:
        model = ForgetModel.from_pretrained(path, with_reconstructor=False).to(self.device)
        theirs = load_tokenizer(path)
        if theirs.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"The policy {path} reads another vocabulary than the judge {self.judge_path}: their tokens cannot be compared."
            )
        record = Path(path, TRAINING)
        self.training_seeds.append(
            json.loads(record.read_text(encoding="utf-8")).get("seed") if record.is_file() else None
        )
        return Policy(model, label)

    # -- compare -------------------------------------------------------------------------------------------------------
    def compare(self, dataset_name: str) -> list[dict]:
        """Compare all scorers at all rates on one source; returns the rows."""
        args = self.args
        blocks = load_blocks(
            dataset_name, self.tokenizer, args.max_length, args.min_length, args.dataset_config, args.text_column
        )
        if args.split not in blocks:
            raise ValueError(f"{dataset_name} has no split {args.split!r}, but {', '.join(blocks)}.")
        order = torch.randperm(len(blocks[args.split]), generator=torch.Generator().manual_seed(0)).tolist()
        chosen = order[: args.max_texts]
        batches = self._batches(blocks[args.split].select(chosen))
        seeds = [args.seed + i for i in range(args.num_random_seeds)]
        scorer_context = ScorerContext(self.reconstructor, self.tokenizer, blocks["train"]["input_ids"], seeds)
        self.scorer_context = (
            self.scorer_context or scorer_context
        )  # questions and speed use the tables of the first source
        scorers: list[Scorer] = [*self.policies, *baselines(args.scorers, scorer_context)]
        comparisons = judge(scorers, self.reconstructor, batches, args.rates)
        rows = rows_of(comparisons, args.seed)
        fingerprint = data_fingerprint(blocks)
        self.datasets.append({
            "dataset": dataset_name, "split": args.split, "texts": len(chosen), "max_length": args.max_length,
            "tokens": int(sum(valid.sum() for _, valid in batches)), "data_fingerprint": fingerprint,
        })  # fmt: skip
        if self.state.is_main_process:
            self._describe(
                rows, comparisons, batches, scorer_context, self._following(blocks[args.split], chosen), dataset_name
            )
        common = {"dataset": dataset_name, "seed": args.seed, "data_fingerprint": fingerprint}
        rows = [row | common for row in rows]
        self.rows += rows
        return rows

    def _batches(self, blocks) -> list[tuple[torch.Tensor, torch.Tensor]]:
        collate = BlockCollator(self.reconstructor.marker_token_id)
        rows = [collate(blocks.select(range(at, min(at + self.args.batch_size, len(blocks)))))
                for at in range(0, len(blocks), self.args.batch_size)]  # fmt: skip
        return [(b["input_ids"].to(self.device), b["attention_mask"].to(self.device).bool()) for b in rows]

    def _following(self, blocks, chosen: list[int]) -> dict[int, str]:
        """The beginning of the next block, for each chosen block that has a next block in its document."""
        documents, following = blocks["document"], {}
        for place, at in enumerate(chosen):
            if self.args.continuation_tokens and at + 1 < len(documents) and documents[at + 1] == documents[at]:
                ids = blocks[at + 1]["input_ids"][: self.args.continuation_tokens]
                following[place] = decode(ids, self.tokenizer)
        return following

    def _describe(
        self, rows, comparisons, batches, scorer_context: ScorerContext, following: dict[int, str], dataset: str
    ) -> None:
        """
        Add measurements of the decoded texts to each row, collect the samples of the heat map, append the keep-all
        row.
        """
        args = self.args
        quality = TextQuality(batches, self.tokenizer, scorer_context.vocabulary)
        places = list(following)
        texts = [text for text, _ in quality.texts]
        continuations = None
        if places:
            reader, reader_tokenizer = self._reader()
            continuations = Continuations(
                reader, reader_tokenizer, [texts[at] for at in places], [following[at] for at in places]
            )
        shown = {policy.name for policy in self.policies} or {comparisons[0].scorer}
        for row, entry in zip(rows, comparisons):
            row |= quality.row(entry)
            if continuations is not None:
                compressed = quality.compressed_texts(entry)
                row |= continuations.row([compressed[at] for at in places], args.seed)
            if entry.scorer in shown and args.heatmap_texts:
                samples = quality.samples(entry, scorer_context.vocabulary, args.heatmap_texts)
                self.samples += [sample | {"dataset": dataset, "text": at + 1} for at, sample in enumerate(samples)]
        kept_whole = np.array([[0.0, 0.0, 0.0, len(ids)] for ids in quality.ids])
        keep_all = [Comparison(KEEP_ALL, 1.0, [kept_whole], [v.cpu() for _, v in batches],
                               [ids.cpu() for ids, _ in batches])]  # fmt: skip
        row = rows_of(keep_all, args.seed)[0] | quality.row(keep_all[0])
        if continuations is not None:
            row |= continuations.row([texts[at] for at in places], args.seed)
        rows.append({key: value for key, value in row.items() if key != "seconds_per_token"})

    # -- downstream ------------------------------------------------------------------------------------------------------
    def _reader(self):
        name = self.args.reader_name_or_path
        if name is None:
            # Load it again, because the judge's copy has the adapter in it.
            base = self.reconstructor.base_model.config.name_or_path
            return load_reader(base).to(self.device), self.tokenizer
        return load_reader(name).to(self.device), load_tokenizer(name)

    def read(self) -> list[dict]:
        """Answer the questions from full, no and compressed contexts; returns the rows."""
        args, rows = self.args, []
        if not args.questions:
            return rows
        reader, reader_tokenizer = self._reader()
        scorers = [*self.policies, *baselines(args.question_scorers, self.scorer_context)]
        chosen = list({scorer.name: scorer for scorer in reversed(scorers)}.values())[::-1]  # the first of each name
        for path in args.questions:
            reading = Reading(
                load_questions(path),
                reader,
                reader_tokenizer,
                args.max_questions,
                args.max_new_tokens,
                args.batch_size,
            )
            if not reading.questions:
                raise ValueError(f"No question of {path} fits the reader: all {reading.too_long} are too long for it.")
            compress = lambda scorer, contexts, rate: compress_contexts(  # noqa: E731
                scorer,
                contexts,
                self.tokenizer,
                rate,
                args.max_length,
                self.reconstructor.marker_token_id,
                self.device,
            )
            rows += read_all(reading, Path(path).stem, chosen, args.rates, compress, args.seed)
        return rows

    # -- speed -------------------------------------------------------------------------------------------------------------
    def time(self) -> dict | None:
        """Time compression, first token and whole request; compares the policy with self-information by the target."""
        args = self.args
        if args.speed_target is None:
            return None
        target = load_target(args.speed_target).to(self.device)
        asked = _TargetSurprisal(target, self.reconstructor.marker_token_id)
        scorers = [*self.policies[:1], self.scorer_context.frequency, asked]
        ids = [i for row in self.scorer_context.training_texts for i in row]
        rows = measure_speed(
            scorers, target, ids, args.speed_lengths, args.speed_rate, args.speed_new_tokens, args.speed_batch_sizes,
            args.speed_repeats,
        )  # fmt: skip
        even = [break_even(rows, scorer.name, batch) for batch in args.speed_batch_sizes for scorer in scorers]
        return {"rows": rows, "break_even": even}

    # -- write -----------------------------------------------------------------------------------------------------------
    def write(self, downstream: list[dict], speed: dict | None) -> list[Path]:
        """Write all JSON files, then the report and the plots; returns their paths."""
        args, folder = self.args, Path(self.args.output_dir)
        labels = {label for label, _ in args.models}
        write_json(folder / EVALUATION_CONFIG, {
            "arguments": asdict(args),
            "models": [
                {"label": label, "path": path, "seed": seed}
                for (label, path), seed in zip(args.models, self.training_seeds)
            ],
            "reconstructor": self.judge_path, "layout": self.reconstructor.layout,
            "reader": self.reconstructor.base_model.config.name_or_path,
            "datasets": self.datasets, "mask_bits_at_half": mask_bits(1, 2), "threads": torch.get_num_threads(),
            "tokforget_version": tokforget.__version__, "torch_version": torch.__version__,
            "num_processes": self.state.num_processes, "device": str(self.device),
        })  # fmt: skip
        common = {"layout": self.reconstructor.layout, "seed": args.seed}
        write_json(folder / MODEL_RESULTS, {"scorers": [r for r in self.rows if r["scorer"] in labels], **common})
        write_json(
            folder / BASELINE_RESULTS, {"scorers": [r for r in self.rows if r["scorer"] not in labels], **common}
        )
        optional = {
            DOWNSTREAM: {"rows": downstream} if downstream else None,
            SPEED: speed,
            SAMPLES: self.samples or None,
            TRAINING_LOG: self._training_log(),
        }
        for name, content in optional.items():
            (folder / name).unlink(missing_ok=True)  # left by an earlier evaluation in this folder
            if content is not None:
                write_json(folder / name, content)
        return write_report(folder)

    def _training_log(self) -> list[dict] | None:
        path = self.args.training_log
        if path is None:
            inside = Path(self.args.models[0][1], TRAINER_STATE) if self.args.models else None
            path = inside if inside is not None and inside.is_file() else None
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))["log_history"]

    def show(self) -> None:
        for dataset in dict.fromkeys(row["dataset"] for row in self.rows):
            self.console.rule(dataset)
            print_table(
                [row for row in self.rows if row["dataset"] == dataset and row["scorer"] != KEEP_ALL], self.console
            )


class _TargetSurprisal:
    """Self-information under the target itself: the cost of Selective Context with the model that reads the prompt."""

    name, needs_rate = "self_information_of_target", False

    def __init__(self, target, marker: int):
        self.reconstructor = Reconstructor(target, "prefix", marker)
        self.vocab_size = target.get_input_embeddings().weight.shape[0]

    def score(self, input_ids: torch.Tensor, valid: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return self.reconstructor.self_information(input_ids % self.vocab_size, valid)


def run_evaluation(args: EvaluationArguments) -> EvaluationRun:
    """Run all steps in order. Errors are raised before anything is written."""
    run = EvaluationRun(args)
    for dataset_name in args.dataset_name:
        run.compare(dataset_name)
    if run.state.is_main_process:
        downstream, speed = run.read(), run.time()
        run.show()
        for path in run.write(downstream, speed):
            run.console.print(f"written: {path}")
    return run
