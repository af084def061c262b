"""
Policy and reconstructor as one `PreTrainedModel`, with one forward pass for the trainer and one folder on disk.

    config.json, model.safetensors (only the policy), adapter/ (PEFT), tokenizer files, README.md, training_config.json
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from tokforget.files import ADAPTER, CONFIG, WEIGHTS, replacing
from tokforget.hub.cards import PLOT, write_card
from tokforget.hub.client import Uploaded, upload
from tokforget.hub.staging import EVALUATION, RECORDS, share
from tokforget.masking import Generators, keep_count
from tokforget.models.folder_checks import check_safetensors, check_shapes
from tokforget.models.folders import MODEL_TYPE, check_model_folder, local_folder
from tokforget.models.loading import load_adapter, load_base_model
from tokforget.models.policy import KeepMaskPolicy, floating
from tokforget.models.reconstructor import Reconstructor
from tokforget.models.reconstructor_folder import load_trainable, load_weights, save_weights
from tokforget.models.sharded_weights import read_into


class ForgetModelConfig(PreTrainedConfig):
    """
    Shape of the policy, layout of the reconstructor, and its base model.

    The fields of the policy are those of [`KeepMaskPolicy`]. `has_adapter` is false for a policy trained without a
    reconstructor, which compresses but cannot restore. `base_model_name_or_path` is an id, a folder, or `"embedded"`
    for the packaged model.
    """

    model_type = MODEL_TYPE

    base_model_name_or_path: str = ""
    base_model_revision: str | None = None
    layout: str = "prefix"
    marker_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    vocab_size: int = 0
    base_hidden_size: int = 0
    hidden_size: int = 128
    dilations: list[int] | None = None
    kernel_size: int = 5
    head_size: int = 64
    window: int = 24
    logit_bound: float = 8.0
    ngram_buckets: int = 2**18
    unit: str = "token"
    word_features: bool = False
    has_adapter: bool = True

    def __post_init__(self, **kwargs):
        self.dilations = [1, 2, 4, 8, 1] if self.dilations is None else self.dilations
        super().__post_init__(**kwargs)

    def build_policy(self) -> KeepMaskPolicy:
        if self.vocab_size < 1 or self.base_hidden_size < 1:
            raise ValueError(
                f"The policy needs to know the base model's vocabulary, got vocab_size={self.vocab_size} and "
                f"base_hidden_size={self.base_hidden_size}. Build the model with `ForgetModel.from_base`."
            )
        return KeepMaskPolicy(
            vocab_size=self.vocab_size,
            base_hidden_size=self.base_hidden_size,
            hidden_size=self.hidden_size,
            dilations=tuple(self.dilations),
            kernel_size=self.kernel_size,
            head_size=self.head_size,
            window=self.window,
            logit_bound=self.logit_bound,
            ngram_buckets=self.ngram_buckets,
            unit=self.unit,
            word_features=self.word_features,
        )


@dataclass
class ForgetOutput(ModelOutput):
    """
    Result of a forward pass for both losses; `N = texts * num_masks` episodes.

    Args:
        actions, log_probs, entropy, keep_logits (`torch.Tensor` of shape `(N, T)`): See [`Decisions`].
        token_nll (`torch.FloatTensor` of shape `(N, T)`): Bits of the dropped tokens of each episode.
        token_correct (`torch.BoolTensor` of shape `(N, T)`): True for a dropped token that the reconstructor ranks
            first.
        bits_per_dropped (`torch.FloatTensor` of shape `(N' + R,)`): Mean bits of the dropped tokens in each row that
            trains the reconstructor; the last `R` rows have random masks. Their mean is the reconstruction loss.
    """

    actions: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    keep_logits: torch.Tensor | None = None
    token_nll: torch.Tensor | None = None
    token_correct: torch.Tensor | None = None
    bits_per_dropped: torch.Tensor | None = None


class ForgetModel(PreTrainedModel):
    """The policy and, for training or restoring, the reconstructor."""

    config_class = ForgetModelConfig
    base_model_prefix = "tokforget"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: ForgetModelConfig, reconstructor: Reconstructor | None = None):
        super().__init__(config)
        self.policy = config.build_policy()
        # Before a PEFT model is attached, because `post_init` would silently initialise its LoRA weights again.
        self.post_init()
        self.reconstructor = reconstructor
        if reconstructor is not None:
            self.policy.tokens.attach(reconstructor.base_model.get_input_embeddings())

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing to do: the policy's modules initialise themselves."""

    def tie_weights(self, *args, **kwargs) -> None:
        """
        Nothing to do: the reconstructor ties its own weights, and Transformers cannot find them inside a PEFT model.
        """

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.policy.tokens

    # -- one forward ---------------------------------------------------------------------------------------------------
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        rate: torch.Tensor,
        num_masks: int = 1,
        generator: Generators | None = None,
        random_texts: torch.Tensor | None = None,
        random_keep_mask: torch.Tensor | None = None,
        learning: torch.Tensor | None = None,
        in_step: bool = False,
    ) -> ForgetOutput:
        """
        Decide, mask and score. Texts that are not `learning` are scored without a gradient for the reconstructor.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`), attention_mask (`torch.LongTensor` of shape `(B, T)`):
                Texts, padded on the right.
            rate (`torch.FloatTensor` of shape `(B,)`): Requested rates.
            num_masks (`int`): Episodes per text.
            generator (`torch.Generator`, or a list of one for each episode, *optional*): Samples the keep masks;
                without it the best tokens are kept.
            random_texts (`torch.LongTensor` of shape `(R,)`, *optional*), random_keep_mask (`torch.BoolTensor` of shape
                `(R, T)`, *optional*): Further rows for the reconstructor: index of the text, and its mask.
            learning (`torch.BoolTensor` of shape `(B,)`, *optional*): Texts whose masks train the reconstructor; all by
                default. The others are only scored.
            in_step (`bool`): Use one forward pass of the reconstructor for all rows, because processes that gather its
                weights layer by layer must make the same passes.

        Returns:
            [`ForgetOutput`]: Decisions and scores of the `B * num_masks` episodes.
        """
        valid = attention_mask.bool()
        counts = keep_count(valid.sum(1), rate)
        decisions = self.policy.decide(input_ids, valid, rate, counts, num_masks=num_masks, generator=generator)
        keep_mask = decisions.actions.bool()
        episode_ids, episode_valid = input_ids.repeat_interleave(num_masks, 0), valid.repeat_interleave(num_masks, 0)
        num_episodes = len(episode_ids)
        if random_texts is not None and len(random_texts):
            episode_ids = torch.cat([episode_ids, input_ids[random_texts]])
            episode_valid = torch.cat([episode_valid, valid[random_texts]])
            keep_mask = torch.cat([keep_mask, random_keep_mask & valid[random_texts]])
        rows = (episode_ids, keep_mask, episode_valid)
        trains = torch.ones(len(episode_ids), dtype=torch.bool, device=episode_ids.device)
        if learning is not None:
            trains[:num_episodes] = learning.repeat_interleave(num_masks)
        learnt = trains.nonzero().squeeze(1)  # indices, because a GPU counts a mask in every use, and the host waits
        nll, correct = self._score(rows, learnt, trains, in_step)
        num_dropped = (~keep_mask & episode_valid).sum(1)
        return ForgetOutput(
            actions=decisions.actions,
            log_probs=decisions.log_probs,
            entropy=decisions.entropy,
            keep_logits=decisions.keep_logits,
            token_nll=nll[:num_episodes],
            token_correct=correct[:num_episodes],
            bits_per_dropped=(nll.sum(1) / num_dropped.clamp(min=1))[learnt],
        )

    def _score(
        self,
        rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        learnt: torch.Tensor,
        trains: torch.Tensor,
        in_step: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `nll` and `correct` of [`TokenScores`] for all rows, with a gradient only for rows in `trains` `(N + R,)`, whose
        indices are `learnt`.
        """
        if in_step:
            scores = self.reconstructor.token_nll(*rows, in_groups=False)
            return scores.nll, scores.correct
        if len(learnt) in (0, len(trains)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and len(learnt) > 0):
                scores = self.reconstructor.token_nll(*rows)
            return scores.nll, scores.correct
        others = (~trains).nonzero().squeeze(1)
        with_gradient = self.reconstructor.token_nll(*(part[learnt] for part in rows))
        with torch.no_grad():
            without = self.reconstructor.token_nll(*(part[others] for part in rows))
        back = torch.cat([learnt, others]).argsort()
        return (
            torch.cat([with_gradient.nll, without.nll])[back],
            torch.cat([with_gradient.correct, without.correct])[back],
        )

    @torch.no_grad()
    def keep_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """The best keep mask `(B, T)` at exactly the budget of `rate` `(B,)`."""
        valid = attention_mask.bool()
        return self.policy.decide(input_ids, valid, rate, keep_count(valid.sum(1), rate)).actions.bool()

    # -- building ------------------------------------------------------------------------------------------------------
    @classmethod
    def from_base(
        cls,
        reconstructor_name_or_path: str,
        tokenizer: PreTrainedTokenizerBase,
        revision: str | None = None,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        layout: str = ForgetModelConfig.layout,
        lora_target_modules: Sequence[str] | None = None,
        **config,
    ) -> "ForgetModel":
        """
        A new policy over a causal language model with a new adapter, or over an adapter folder to train further. See
        [`load_trainable`] for the other arguments and the errors.

        Args:
            **config: Fields of [`ForgetModelConfig`].

        Returns:
            [`ForgetModel`]: The untrained model.
        """
        reconstructor = load_trainable(
            reconstructor_name_or_path,
            tokenizer,
            layout,
            revision,
            lora_rank,
            lora_alpha,
            lora_target_modules=lora_target_modules,
        )
        adapter = reconstructor.model.peft_config["default"]
        embeddings = reconstructor.base_model.get_input_embeddings()
        config = ForgetModelConfig(
            base_model_name_or_path=adapter.base_model_name_or_path,
            base_model_revision=adapter.revision,
            layout=layout,
            marker_token_id=reconstructor.marker_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=embeddings.weight.shape[0],
            base_hidden_size=embeddings.weight.shape[1],
            **config,
        )
        return cls(config, reconstructor)

    # -- the model folder ----------------------------------------------------------------------------------------------
    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
        **kwargs,
    ) -> None:
        """
        Write config, policy and adapter. Each file is written atomically; weights are safetensors.

        A trainer with sharded weights passes the gathered ones as `state_dict`, with this model's names. With
        `push_to_hub` the folder's model files, including its tokenizer and records if it has them, are sent to
        `repo_id` (by default the name of the folder); see [`share`].
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.tokens.refresh()
        state = self.state_dict() if state_dict is None else state_dict
        self.config.architectures = [type(self).__name__]
        policy = {
            name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith("policy.")
        }
        policy["policy.tokens.table"] = self.policy.tokens.table.half().cpu()  # whatever the precision of the model
        with replacing(folder / WEIGHTS) as partial:
            save_file(policy, partial, metadata={"format": "pt"})
        if self.reconstructor is not None:
            prefix = "reconstructor."
            (folder / ADAPTER).mkdir(exist_ok=True)
            gathered = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            save_weights(self.reconstructor, folder / ADAPTER, gathered)
        # The config last, because a folder without a config is not recognised as a model.
        with replacing(folder / CONFIG) as partial:
            self.config.to_json_file(partial)
        if push_to_hub:
            name = repo_id or folder.absolute().name
            share(folder, name, private, revision, token, commit_message, with_tokenizer=False)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> Uploaded:
        """
        Send config, policy and adapter. Send the tokenizer with its own `push_to_hub`; [`Compressor`] needs both.
        Other files in the repository stay, except the card and the records of other weights. `recipes/push_to_hub.py`
        sends the whole folder of a run.

        Returns:
            [`Uploaded`]: Id, commit and address.

        Raises:
            [`HubError`]: If it is not certain that every file arrived.
        """
        with tempfile.TemporaryDirectory(prefix="tokforget-") as folder:
            self.save_pretrained(folder)
            write_card(folder, name=repo_id)
            return upload(folder, repo_id, "model", private, revision, token, commit_message or "Upload model",
                          owned=(*RECORDS, PLOT, f"{EVALUATION}/*"), mark=RECORDS[0])  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config: ForgetModelConfig | None = None,
        with_reconstructor: bool = True,
        base_model: str | Path | None = None,
        is_trainable: bool = False,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        **kwargs,
    ) -> "ForgetModel":
        """
        Load a model folder, local or on the Hub.

        Args:
            with_reconstructor (`bool`): False loads only the policy: no base model, no adapter, no PEFT.
            base_model (`str` or `Path`, *optional*): Id or folder of the base model, if it differs from the config.
            is_trainable (`bool`): Whether the adapter will be trained further.
            dtype (`torch.dtype` or `str`, *optional*): Type of all weights, such as `torch.bfloat16` or `"bfloat16"`;
                float32 by default.

        Raises:
            `ValueError`: If the folder is no tokforget model, or its weights are broken or of another shape.
        """
        dtype = floating(dtype if dtype is not None else kwargs.pop("torch_dtype", None))
        folder = local_folder(
            pretrained_model_name_or_path,
            revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        check_model_folder(folder, with_adapter=with_reconstructor)
        config = config or ForgetModelConfig.from_pretrained(folder)
        reconstructor = None
        if with_reconstructor:
            name = config.base_model_name_or_path if base_model is None else str(base_model)
            base = load_base_model(name, config.base_model_revision if base_model is None else None)
            rows, width = base.get_input_embeddings().weight.shape
            if (rows, width) != (config.vocab_size, config.base_hidden_size):
                raise ValueError(
                    f"{folder} was trained over embeddings ({config.vocab_size}, {config.base_hidden_size}), but "
                    f"{name!r} has ({rows}, {width})."
                )
            peft_model = load_adapter(str(folder / ADAPTER), base, is_trainable=is_trainable)
            reconstructor = Reconstructor(peft_model, config.layout, config.marker_token_id)
        model = cls(config, reconstructor)
        model.load_policy(folder)
        return model.to(dtype).train(is_trainable)

    def load_policy(self, folder: str | Path) -> None:
        """Read the policy's weights from a model folder into this model."""
        path = Path(folder, WEIGHTS)
        own = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        check_shapes(path, check_safetensors(path), {name: tuple(tensor.shape) for name, tensor in own.items()})
        # The count is an integer here, and was a float in older folders.
        read_into(self, {name: tensor.to(own[name].dtype) for name, tensor in load_file(path).items()})

    def load_weights(self, folder: str | Path) -> None:
        """Read policy and adapter of a checkpoint into this model, in place."""
        check_model_folder(Path(folder))
        self.load_policy(folder)
        load_weights(self.reconstructor, Path(folder, ADAPTER))


AutoConfig.register(ForgetModelConfig.model_type, ForgetModelConfig)
AutoModel.register(ForgetModelConfig, ForgetModel)
