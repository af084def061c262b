"""
Arguments of the reader benchmark.

No `from __future__ import annotations` here: Transformers' parser reads the annotations as types.
"""

from dataclasses import dataclass, field

from tokforget.parsing import check_at_least
from tokforget.rates import check_rate


QUESTION_FREE = [
    "random_tokens", "random_words", "random_sentences", "head", "tail", "head_tail", "stop_words", "idf_words",
    "self_information_tokens", "self_information_words", "self_information_sentences", "hand_made", "hand_made_attention",
    "iterative_pruning", "phrases", "policy_tokens", "policy_words",
]  # fmt: skip
WITH_QUESTION = ["overlap_sentences", "bm25_sentences", "question_perplexity", "policy_question"]


CORPUS_TASKS = ("lookup", "later_use", "title", "lead", "answers")


@dataclass
class ReaderArguments:
    """Reader, tasks, compressors and rates of the reader benchmark."""

    output_dir: str = field(
        metadata={"help": "Folder for the JSON files, the report and the plots; a run resumes there."}
    )
    reader_name_or_path: str = field(
        metadata={
            "help": "The reader, a causal language model: a folder, a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or "
            "`embedded`. `make smollm2` makes a folder without the Hub."
        }
    )

    # Tasks
    questions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files of questions: SQuAD form, yes-no, multiple choice, LongBench, rows with context and answer."
        },
    )
    max_questions: int = field(default=300, metadata={"help": "Questions per file, every n-th of it."})
    other_passages: int = field(
        default=0,
        metadata={
            "help": "With a number, each file of questions is measured a second time: every passage among this many others of the "
            "file, in random order, as in a prompt with retrieved passages."
        },
    )
    corpus: str | None = field(
        default=None,
        metadata={
            "help": "Folder of .jsonl(.gz) files with `text`, `source` and `kind`. Words are counted in its training sources; "
            "its tasks use the test sources."
        },
    )
    corpus_tasks: list[str] = field(
        default_factory=lambda: ["lookup", "later_use"],
        metadata={
            "help": "Tasks on the corpus: `lookup`, `later_use`, and on whole documents `title`, `lead` and `answers`, to questions at the "
            "end of a text (`Q: ... A: ...`)."
        },
    )
    kinds: list[str] = field(default_factory=list, metadata={"help": "Kinds of the corpus; all by default."})
    texts_per_kind: int = field(default=20, metadata={"help": "Passages per kind; 0 for no tasks on the corpus."})
    passage_characters: int = field(default=1000, metadata={"help": "Length of a passage of the corpus."})
    document_characters: int = field(
        default=3000, metadata={"help": "Longest passage of the tasks on whole documents."}
    )
    lookups_per_text: int = field(default=6, metadata={"help": "Lookups in each passage."})
    lookup_draws: int = field(
        default=1,
        metadata={
            "help": "Draws of lookups. Each is a task; the report shows how far these tasks agree on the order of compressors."
        },
    )
    count_texts: int = field(default=200, metadata={"help": "Training texts per kind for the word counts."})
    counts_path: str | None = field(
        default=None, metadata={"help": "Word counts of another run, instead of a corpus."}
    )

    # Compressors
    rates: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.7], metadata={"help": "Rates in (0, 1)."})
    compressors: list[str] = field(
        default_factory=lambda: [*QUESTION_FREE, *WITH_QUESTION],
        metadata={
            "help": "Names, or import paths `module:function` of a callable `text, budget -> text`; all by default."
        },
    )
    model_path: str | None = field(
        default=None,
        metadata={"help": "Policy of the compressors policy_*, a folder or id; the packaged one by default."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of random compressors, lookups and intervals."})

    # Oracle and cost
    oracle_items: int = field(
        default=0, metadata={"help": "Questions for which the best mask is searched with the reader itself."}
    )
    oracle_steps: int = field(
        default=40, metadata={"help": "Batches of eight proposals per question and rate in the oracle's search."}
    )
    cost_prompt_tokens: list[int] = field(
        default_factory=lambda: [256, 1024],
        metadata={"help": "Prompt lengths in tokens for which whole requests are timed; 0 for none."},
    )
    batch_tokens: int = field(default=4096, metadata={"help": "Most tokens of a forward pass of the reader."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is a GPU."})

    def __post_init__(self):
        for name, least in (("max_questions", 1), ("other_passages", 0), ("texts_per_kind", 0), ("passage_characters", 100), ("document_characters", 100), ("lookups_per_text", 1), ("lookup_draws", 1),
                            ("count_texts", 1), ("oracle_items", 0), ("oracle_steps", 0), ("batch_tokens", 1)):  # fmt: skip
            check_at_least(self, name, least)
        self.cost_prompt_tokens = [length for length in self.cost_prompt_tokens if length]
        if any(length < 0 for length in self.cost_prompt_tokens):
            raise ValueError(
                f"`cost_prompt_tokens` must be lengths, got {self.cost_prompt_tokens}; 0 leaves the cost out."
            )
        unknown = [task for task in self.corpus_tasks if task not in CORPUS_TASKS]
        if unknown or not self.corpus_tasks:
            raise ValueError(f"`corpus_tasks` must be some of {', '.join(CORPUS_TASKS)}, got {self.corpus_tasks}.")
        if not self.rates:
            raise ValueError("`rates` is empty; pass at least one rate.")
        for rate in self.rates:
            check_rate(rate, "rates")
            if rate == 1:
                raise ValueError("`rates` must be below 1; the full passage is measured in any case.")
        if not self.questions and self.corpus is None:
            raise ValueError("There is nothing to read: pass `questions`, `corpus`, or both.")
        if self.corpus is None and self.counts_path is None:
            raise ValueError("Words must be counted on texts that are not measured: pass `corpus` or `counts_path`.")
