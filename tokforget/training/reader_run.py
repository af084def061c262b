"""
The whole training of a reader's policy: texts, count tables, warm start, policy gradient. It can resume at any point.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import set_seed

from tokforget.files import CONFIG
from tokforget.models.forget_model import ForgetModel, ForgetModelConfig
from tokforget.models.loading import lasting_name
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.reconstructor_folder import load_trainable, recorded_layout
from tokforget.parsing import as_record
from tokforget.readers.language_model import Reader
from tokforget.readers.tasks import read_corpus
from tokforget.readers.word_counts import WordCounts
from tokforget.training.natural_gradient import gather, take_step
from tokforget.training.reader_arguments import ReaderPolicyArguments, ReaderPolicyConfig
from tokforget.training.reader_questions import question_text, read_questions
from tokforget.training.reader_targets import RATES, TargetWeights, choose_weights, read_weights, target_scores
from tokforget.training.reader_texts import SEPARATOR, ReaderText, ReaderTexts, draw_stretches
from tokforget.training.reader_trainer import PassageTexts, ReaderPolicyTrainer
from tokforget.training.reader_warm_start import fit_ranking
from tokforget.training.run_folder import take_folder


WARM_START = "warm_start"
_MAX_LENGTH = 512
SELF_INFORMATION = "self_information.npz"
NATURAL_GRADIENT = "natural_gradient.npz"
TARGET_WEIGHTS = "target_weights.json"


def fresh_policy(
    reader: Reader,
    hidden_size: int = 48,
    ngram_buckets: int = 0,
    name: str = "",
    reconstructor: Reconstructor | None = None,
    dilations: Sequence[int] = (1, 2),
) -> ForgetModel:
    """
    A new, untrained policy over words that uses the tokenizer and the frozen embeddings of a reader; with a
    reconstructor, if one is given.
    """
    embeddings, tokenizer = reader.model.get_input_embeddings(), reader.tokenizer
    rows, width = embeddings.weight.shape
    facts = {"base_model_name_or_path": name, "marker_token_id": tokenizer.eos_token_id or 0, "has_adapter": False}
    if reconstructor is not None:
        adapter = reconstructor.model.peft_config["default"]
        facts = {
            "base_model_name_or_path": adapter.base_model_name_or_path,
            "base_model_revision": adapter.revision,
            "layout": reconstructor.layout,
            "marker_token_id": reconstructor.marker_token_id,
        }
    config = ForgetModelConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        vocab_size=rows, base_hidden_size=width, hidden_size=hidden_size, dilations=list(dilations), ngram_buckets=ngram_buckets,
        unit="word", word_features=True, **facts,
    )  # fmt: skip
    model = ForgetModel(config, reconstructor)
    if reconstructor is None:
        model.policy.tokens.attach(embeddings)
    return model


def _reconstructor(run: ReaderPolicyArguments, reader: Reader) -> Reconstructor | None:
    if run.reconstructor_path is None:
        return None
    found = load_trainable(
        run.reconstructor_path,
        reader.tokenizer,
        recorded_layout(run.reconstructor_path) or run.layout,
        lora_rank=run.lora_rank,
        lora_alpha=run.lora_alpha,
        lora_target_modules=run.lora_target_modules,
    )
    if found.base_model.get_input_embeddings().weight.shape != reader.model.get_input_embeddings().weight.shape:
        raise ValueError(
            f"`reconstructor_path` {run.reconstructor_path!r} and the reader {run.reader_name_or_path!r} have different embeddings: both "
            "must be one base model, since the policy's tokens are those of both."
        )
    return found


def _max_length(run: ReaderPolicyArguments, reconstructor: Reconstructor) -> int:
    room = reconstructor.max_tokens or _MAX_LENGTH
    if run.max_length is not None and run.max_length > room:
        raise ValueError(
            f"`max_length` {run.max_length}: the reconstructor's context has room for texts of {room} tokens; pass no more."
        )
    return run.max_length or min(room, _MAX_LENGTH)


def _restorable(passages, reader: Reader, max_length: int) -> list[tuple[str, str]]:
    """Passages of at most `max_length` tokens. Prints how many are left out; raises `ValueError` if none remains."""
    lengths = reader.counts([text for _, text in passages])
    fitting = [passage for passage, length in zip(passages, lengths) if length <= max_length]
    if not fitting:
        raise ValueError(
            f"Every text has more than `max_length` {max_length} tokens, {min(lengths)} at least: pass more, or shorter `text_characters`."
        )
    if len(fitting) < len(passages):
        print(
            f"{len(passages) - len(fitting)} of {len(passages)} texts have more than {max_length} tokens and are left out."
        )
    return fitting


def train_reader_policy(
    run: ReaderPolicyArguments, args: ReaderPolicyConfig, checkpoint: str | None = None
) -> ReaderPolicyTrainer:
    """
    Run a training and return its trainer. The run's folder then holds the model, its checkpoints, and the policy of
    the warm start.
    """
    set_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    reader = Reader.from_pretrained(run.reader_name_or_path, device, batch_tokens=run.batch_tokens)
    folder, record = Path(args.output_dir), as_record(run, args)
    if args.process_index == 0:  # before any file of another run could be used
        take_folder(folder, record, args.overwrite_output_dir, resumed=checkpoint is not None)
    counts = _word_counts(run, folder)
    passages = draw_stretches(
        read_corpus(run.corpus, "train", run.kinds), run.texts_per_kind, run.text_characters, args.seed
    )
    reconstructor = _reconstructor(run, reader)
    if reconstructor is not None:
        record["max_length"] = _max_length(run, reconstructor)
        passages = _restorable(passages, reader, record["max_length"])
    name = lasting_name(run.reader_name_or_path)
    model = fresh_policy(reader, run.policy_hidden_size, run.ngram_buckets, name, reconstructor, run.policy_dilations)
    started = run.policy_name_or_path or (folder / WARM_START if (folder / WARM_START / CONFIG).is_file() else None)
    if started is not None:
        model.load_policy(started)
    else:
        model.policy.words.fit(text for _, text in passages)
        if model.policy.ngrams is not None:
            model.policy.ngrams.fit(reader.token_ids([text for _, text in passages]))
    texts = ReaderTexts(
        reader.tokenizer, model.policy.words.rarity(), counts, args.lookups_per_text, args.question_share
    )
    questions = [
        question_text(texts, question, max(run.text_characters), args.seed)
        for question in read_questions(
            run.questions, read_corpus(run.corpus, "train", run.kinds), run.corpus_questions, args.seed
        )
    ]
    if reconstructor is not None:
        questions = [one for one in questions if len(one.input_ids) <= record["max_length"]]
    if started is None and run.warm_start_steps:
        _warm_start(model, reader, texts, passages[: run.warm_start_texts], questions, run, args)
        model.save_pretrained(folder / WARM_START)
        reader.tokenizer.save_pretrained(folder / WARM_START)
    asked = PassageTexts(passages, texts, args.seed, questions)
    trainer = ReaderPolicyTrainer(model, args, asked, reader, processing_class=reader.tokenizer, run_record=record)
    if (
        run.natural_texts and args.reader_weight
    ):  # a resumed run repeats it from the file; the checkpoint then replaces the weights
        _natural_step(trainer, asked, run, folder)
    trainer.has_folder = True
    if args.max_steps:
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir, _internal_call=True)
    return trainer


def _warm_start(
    model: ForgetModel,
    reader: Reader,
    texts: ReaderTexts,
    passages,
    questions: list[ReaderText],
    run: ReaderPolicyArguments,
    args: ReaderPolicyConfig,
) -> None:
    folder = Path(args.output_dir)
    read = [text for _, text in passages] + [one.text for one in questions]
    bits = dict(zip(read, _self_information(reader, read, folder / SELF_INFORMATION)))
    if run.target_weights is not None:
        weights = read_weights(run.target_weights)
    else:
        weights = _target_weights(reader, texts, passages, bits, run.target_texts, folder / TARGET_WEIGHTS)
    # Each text twice: its targets and whether there is a question are drawn anew each time.
    made = [texts(kind, text, f"warm start {turn}") for turn in range(2) for kind, text in passages]
    made = [text for text in made if text is not None] + questions
    pairs = list(_among_others(texts, made, bits, [text for _, text in passages], run.other_passages, args.seed))
    made = [text for text, _ in pairs]
    targets = [target_scores(text, own, weights.get(text.kind, [TargetWeights()] * len(RATES))) for text, own in pairs]
    losses = fit_ranking(model, made, targets, run.warm_start_steps, args.min_rate, args.max_rate, args.seed)
    print(
        f"Warm start on {len(made)} texts: mean square {np.mean(losses[:10]):.3f} in the first ten steps, {np.mean(losses[-10:]):.3f} in the last."
    )


def _among_others(
    texts: ReaderTexts,
    made: Sequence[ReaderText],
    bits: dict[str, np.ndarray],
    passages: Sequence[str],
    most_others: int,
    seed: int,
) -> Iterator[tuple[ReaderText, np.ndarray]]:
    """
    Texts and the bits of their tokens; those with a question stand among up to `most_others` other passages, at a
    random place. Alone, the first sentences of a text are a good guess; in a prompt of several passages they are not.
    """
    generator = random.Random(f"other passages {seed}")
    between = np.zeros(len(texts.tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]))
    for text in made:
        number = generator.randint(0, most_others) if text.question is not None else 0
        others = [one for one in generator.sample(passages, min(number, len(passages))) if one != text.text]
        place = generator.randint(0, len(others))
        all_bits = [bits[one] for one in (*others[:place], text.text, *others[place:])]
        joined = [np.asarray(part) for one in all_bits for part in (between, one)][1:]
        yield (texts.among(text, others, place) if others else text), np.concatenate(joined)


def _target_weights(
    reader: Reader, texts: ReaderTexts, passages, bits: dict[str, np.ndarray], per_kind: int, path: Path
) -> dict[str, list[TargetWeights]]:
    """Weights of the warm-start targets for each kind, chosen on its first `per_kind` texts."""
    asked: dict[str, list] = {}
    for kind, text in passages:
        made = texts.without_question(kind, text, "weights") if len(asked.setdefault(kind, [])) < per_kind else None
        if made is not None:
            asked[kind].append(made)
    chosen = [text for of_kind in asked.values() for text in of_kind]
    return choose_weights(reader, chosen, [np.asarray(bits[text.text]) for text in chosen], path) if chosen else {}


def _natural_step(trainer: ReaderPolicyTrainer, asked: PassageTexts, run: ReaderPolicyArguments, folder: Path) -> None:
    args, policy = trainer.args, trainer.model.policy
    texts = [asked[place] for place in range(min(run.natural_texts, len(asked)))]
    moments = gather(
        policy, texts, partial(trainer.rewards, num_masks=run.natural_masks), folder / NATURAL_GRADIENT, run.natural_masks,
        (args.min_rate, args.max_rate), args.sharpness, args.sentence_noise, args.seed,
    )  # fmt: skip
    facts = take_step(policy, moments, run.natural_step)
    trainer.run_record["natural_gradient"] = facts
    said = "a step was taken" if facts["step"] else "no step was taken, because left-out texts do not confirm it"
    print(f"Natural gradient of {len(texts)} texts, {run.natural_masks} masks each: correlation with the advantages of left-out texts "
          f"{facts['correlation']:.3f}; {said}.")  # fmt: skip


def _self_information(reader: Reader, texts: list[str], path: Path) -> list[np.ndarray]:
    """Bits of every token of each text; stored in the run's folder because they take minutes to compute."""
    lengths = np.array(reader.counts(texts))
    if path.is_file():
        with np.load(path) as stored:
            if np.array_equal(stored["lengths"], lengths):
                return np.split(stored["bits"], np.cumsum(lengths)[:-1])
    bits = reader.token_bits([""] * len(texts), texts, "Self-information")
    np.savez(path, lengths=lengths, bits=np.concatenate(bits).astype(np.float32))
    return bits


def _word_counts(run: ReaderPolicyArguments, folder: Path) -> WordCounts:
    """Word counts of the first training texts of each kind; stored in the run's folder."""
    path = folder / "word_counts.json"
    if not path.is_file():
        seen: Counter = Counter()

        def counted():
            for kind, text in read_corpus(run.corpus, "train", run.kinds):
                seen[kind] += 1
                if seen[kind] <= run.count_texts:
                    yield text

        WordCounts.of_texts(counted()).save(path)
    return WordCounts.load(path)
