"""
Policy gradient on the bits that a frozen reader loses: masks over words, at the budget, decoded to output strings.

The reader's weights are fixed, no gradient goes through it, and its prompt does not show where words are missing.
Logged, averaged:

    policy_loss         its gradient is the policy gradient
    bits                mean bits of a target after the compressed text
    bits_full           the same after the whole text
    rate, rate_target   tokens of the re-encoded output string / original tokens, and the requested rate
    entropy             entropy of the policy per unit, nats
    advantage_std       standard deviation of a target's advantage, bits
    answer_kept         share of the targets whose answer is completely in the compressed text

With a reconstructor, which learns in the same loop from masks of a fraction of the texts:

    reconstruction_loss bits per dropped token, mean over those texts; the adapter minimises it
    bits_lost           the reconstructor's bits of dropped tokens, per token of the text
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from tokforget.compression.pieces import Pieces
from tokforget.compression.search import join
from tokforget.files import write_json
from tokforget.hub.cards import write_card
from tokforget.masking import keep_count, seeded_generator
from tokforget.models.folders import ADAPTER
from tokforget.models.forget_model import ForgetModel
from tokforget.models.reconstructor_folder import load_weights
from tokforget.models.unit_decisions import decide_units, pool_units, unit_sizes
from tokforget.parsing import as_record
from tokforget.readers.language_model import Reader
from tokforget.scoring import per_text_mean
from tokforget.training.episodes import leave_one_out_advantages
from tokforget.training.random_masks import draw_rates
from tokforget.training.reader_arguments import ReaderPolicyConfig
from tokforget.training.reader_texts import ReaderText, ReaderTexts, collate
from tokforget.training.resumable_trainer import InterruptibleTrainer
from tokforget.training.run_folder import RECORD, texts_per_step


class PassageTexts(Dataset):
    """Training set: the passages `(kind, text)` in which [`ReaderTexts`] finds targets, and ready-made `questions`."""

    def __init__(
        self, passages: Sequence[tuple[str, str]], texts: ReaderTexts, seed: int, questions: Sequence[ReaderText] = ()
    ):
        self.passages = [(kind, text) for kind, text in passages if texts.can_ask(text)]
        self.texts, self.seed, self.questions = texts, seed, list(questions)

    def __len__(self) -> int:
        return len(self.passages) + len(self.questions)

    def __getitem__(self, place: int) -> ReaderText:
        if place < len(self.passages):
            return self.texts(*self.passages[place], self.seed)
        return self.questions[place - len(self.passages)]


def rendered(text: ReaderText, keep: np.ndarray) -> str:
    """The output string of a mask `(U,)` over units, joined as [`Compressor`] does."""
    return join(text.text, text.pieces, keep)


class ReaderPolicyTrainer(InterruptibleTrainer):
    """
    Trains a policy over words from a reader's bits.

    Args:
        model ([`ForgetModel`]): Its policy must have `unit="word"` and `word_features`. Its reconstructor, if any, is
        trained too. args ([`ReaderPolicyConfig`]): Arguments of the run.
        train_dataset (`Dataset`): [`ReaderText`]s; see [`PassageTexts`].
        reader ([`Reader`]): The reader; it is not trained.
        processing_class (`PreTrainedTokenizerBase`): The policy's tokenizer; it is saved with the model.
        run_record (`dict`, *optional*): Every argument of the run, for `training_config.json`.

    Source: REINFORCE with a leave-one-out baseline, Ahmadian et al. 2024, arXiv 2402.14740. Differs: one advantage per
    target; the words of the answer's sentence get all of it, other words a part.
    """

    _tag_names = ["tokforget", "prompt-compression"]

    def __init__(
        self,
        model: ForgetModel,
        args: ReaderPolicyConfig,
        train_dataset,
        reader: Reader,
        processing_class,
        run_record: dict | None = None,
        **kwargs,
    ):
        if model.config.unit != "word" or not model.config.word_features:
            raise ValueError(
                "A reader's policy decides by words and is told their features: `unit='word'`, `word_features=True`."
            )
        args.remove_unused_columns = False
        if args.trained_part == "head":
            for name, parameter in model.policy.named_parameters():
                parameter.requires_grad_(name.startswith(("to_head.", "to_logit.", "direct.")))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=collate,
            **kwargs,
        )
        self.reader, self._figures = reader, {}
        self.run_record = (run_record or as_record(args)) | {"texts_per_step": texts_per_step(args)}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        texts, args = inputs["texts"], self.args
        unwrapped = self.accelerator.unwrap_model(model)
        policy = unwrapped.policy
        generators = self._generators(len(texts))
        rate = draw_rates(len(texts), args.min_rate, args.max_rate, generators)
        device = policy.inputs.weight.device
        batch = {name: value.to(device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        valid, unit_ids = batch["attention_mask"].bool(), batch["unit_ids"]
        num_units = batch["groups"].shape[1]
        plan = policy.first_plan(batch["input_ids"], valid, rate.to(device), batch["features"])
        logits, sizes = args.sharpness * pool_units(plan, unit_ids, num_units), unit_sizes(unit_ids, num_units)
        counts = keep_count(valid.sum(1), rate.to(device))
        own = [generator for generator in generators for _ in range(args.num_masks)]
        decisions = decide_units(
            logits, sizes, counts, policy.logit_bound, args.num_masks, own, batch["groups"], args.sentence_noise
        )
        advantages, found = torch.zeros_like(decisions.log_probs), {}
        if args.reader_weight:
            credit, found = self._credit(texts, decisions.actions.bool().cpu().numpy(), num_units)
            advantages = args.reader_weight * credit.to(device)
        reconstruction_loss = advantages.new_zeros(())
        if unwrapped.reconstructor is not None:
            reconstruction_loss, restored = self._reconstruct(unwrapped.reconstructor, batch, decisions.actions, valid)
            found |= {
                "reconstruction_loss": float(reconstruction_loss.detach()),
                "bits_lost": float(restored.nanmean()),
            }
            if args.reconstructor_weight:
                gained = leave_one_out_advantages(-100 * restored[:, None], args.num_masks)
                advantages = advantages + args.reconstructor_weight * gained.to(advantages)
        scale = advantages[advantages != 0].std() if (advantages != 0).sum() > 1 else advantages.new_ones(())
        units = (sizes > 0).sum().clamp(min=1) * args.num_masks
        loss = -(advantages / scale.clamp(min=1e-6) * decisions.log_probs).sum() / units
        entropy = decisions.entropy.sum() / units
        self._note(
            found
            | {
                "policy_loss": float(loss.detach()),
                "entropy": float(entropy.detach()),
                "rate_target": float((counts / valid.sum(1)).mean()),
            }
        )
        loss = loss - args.entropy_coef * entropy + reconstruction_loss
        return (loss, decisions) if return_outputs else loss

    def _reconstruct(self, reconstructor, batch: dict, actions: torch.Tensor, valid: torch.Tensor):
        """
        The loss of the texts that train the reconstructor (with the first mask of each), and the bits lost per token
        under every mask `(N,)`, nan for masks that were not scored.
        """
        args, num_texts = self.args, len(valid)
        learning = max(1, round(args.reconstructor_text_fraction * num_texts))
        keep = actions.bool().gather(1, batch["unit_ids"].clamp(min=0).repeat_interleave(args.num_masks, 0))
        ids, valid = (part.repeat_interleave(args.num_masks, 0) for part in (batch["input_ids"], valid))
        first = torch.arange(0, learning * args.num_masks, args.num_masks, device=ids.device)
        bits_lost = torch.full((len(ids),), torch.nan, device=ids.device)
        half = torch.autocast(ids.device.type, torch.bfloat16, enabled=self.reader.model.dtype is torch.bfloat16)
        with half:
            nll = reconstructor.token_nll(ids[first], keep[first], valid[first]).nll
            loss = per_text_mean(nll, ~keep[first] & valid[first]).mean()
            bits_lost[first] = (nll.detach().sum(1) / valid[first].sum(1)).to(bits_lost)
            if args.reconstructor_weight:
                rest = bits_lost.isnan().nonzero().squeeze(1)
                with torch.no_grad():
                    scored = reconstructor.token_nll(ids[rest], keep[rest], valid[rest]).nll
                bits_lost[rest] = (scored.sum(1) / valid[rest].sum(1)).to(bits_lost)
        return loss, bits_lost

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = {False: options.pop("lr"), True: self.args.reconstructor_learning_rate}
            parts: dict[bool, list] = {False: [], True: []}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    parts["reconstructor." in name].append(parameter)
            groups = [
                {"params": parts[of], "lr": rates[of], "weight_decay": self.args.weight_decay}
                for of in parts
                if parts[of]
            ]
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _generators(self, num_texts: int) -> list[torch.Generator]:
        """One generator per text, which depends only on the seed and on the text's number in the run."""
        return [seeded_generator(self.args.seed, number, 1) for number in self._number(num_texts)]

    def _credit(
        self, texts: list[ReaderText], keep: np.ndarray, num_units: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Advantage of every unit under every mask `(N, U)` in bits, and figures for the log."""
        args, num_masks = self.args, self.args.num_masks
        outputs = [
            rendered(text, keep[row * num_masks + n, : len(text.pieces)])
            for row, text in enumerate(texts)
            for n in range(num_masks)
        ]
        shown = outputs + [text.text for text in texts]
        pairs = [[(one.suffix, one.target) for one in text.asked] for text in texts]
        bits = self.reader.span_bits(list(zip(shown, [p for p in pairs for _ in range(num_masks)] + pairs)))
        credit = torch.zeros(len(outputs), num_units)
        spread, kept = [], []
        for row, text in enumerate(texts):
            here = slice(row * num_masks, (row + 1) * num_masks)
            of_masks = np.stack(bits[here])  # (M, K)
            advantages = leave_one_out_advantages(-torch.from_numpy(of_masks), num_masks).clamp(
                -args.most_bits, args.most_bits
            )
            near = torch.from_numpy(_near(text.pieces, text.sentences, text.asked)).double()  # (K, U)
            weight = near + args.far_credit * (1 - near)
            credit[here, : len(text.pieces)] = (advantages @ weight).float()
            spread.append(advantages.abs().mean())
            kept += [one.target.strip() in output for output in outputs[here] for one in text.asked]
        original = self.reader.counts([text.text for text in texts])
        counts = np.array(self.reader.counts(outputs)).reshape(-1, num_masks)
        figures = {
            "bits": float(np.concatenate(bits[: len(outputs)]).mean()),
            "bits_full": float(np.concatenate(bits[len(outputs) :]).mean()),
            "rate": float((counts / np.array(original)[:, None]).mean()),
            "advantage_std": float(torch.stack(spread).mean()),
            "answer_kept": float(np.mean(kept)),
        }
        return credit, figures

    def rewards(self, texts: list[ReaderText], keep: np.ndarray, num_masks: int) -> np.ndarray:
        """
        Reward of each mask `(B * num_masks,)`: the negative mean of the reader's bits over the targets of the text.
        """
        outputs = [
            rendered(text, keep[row * num_masks + n, : len(text.pieces)])
            for row, text in enumerate(texts)
            for n in range(num_masks)
        ]
        pairs = [[(one.suffix, one.target) for one in text.asked] for text in texts for _ in range(num_masks)]
        nothing = self.reader.span_bits([("", pairs[row * num_masks]) for row in range(len(texts))])
        bits = self.reader.span_bits(list(zip(outputs, pairs)))
        # Advantages are clipped, so that one very bad target does not outweigh the rest of the text.
        worst = [of_text + self.args.most_bits for of_text in nothing for _ in range(num_masks)]
        return -np.array([np.minimum(*pair).mean() for pair in zip(bits, worst)])

    def _note(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._figures.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: float(np.mean(values)) for name, values in self._figures.items()}
            self._figures.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)
        trained = sum(p.numel() for p in self.accelerator.unwrap_model(self.model).policy.parameters())
        write_json(folder / RECORD, self.run_record | {"trainable_parameters": {"policy": trained}})
        # A checkpoint is written under a temporary name.
        write_card(
            folder, "reader_policy.md", str(Path(self.args.output_dir, folder.name) if self._run_dir else folder)
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        model = self.accelerator.unwrap_model(model or self.model)
        model.load_policy(resume_from_checkpoint)
        if model.reconstructor is not None:
            load_weights(model.reconstructor, Path(resume_from_checkpoint, ADAPTER))


def _near(pieces: Pieces, sentences: np.ndarray, asked: Sequence) -> np.ndarray:
    """For each target and unit whether the unit is in a sentence that contains a part of the answer, `(K, U)`."""
    first, last = pieces.chars[:-1], pieces.chars[1:]
    rows = []
    for one in asked:
        touched = sentences[(first < one.end) & (last > one.start)]
        rows.append(np.isin(sentences, touched))
    return np.array(rows)
