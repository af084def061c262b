"""
The reader benchmark: how well a frozen reader works with compressed passages, for every compressor, rate and task.

    retention = (bits_none - bits_compressed) / (bits_none - bits_full), from totals over items

Each compressor, rate and task has a file in the run's folder, which is written atomically. A run that was interrupted,
or is extended, computes only the missing files.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from tokforget.files import write_json
from tokforget.intervals import ratio_interval
from tokforget.local_paths import without_local_paths
from tokforget.readers.agreement import task_agreement
from tokforget.readers.arguments import ReaderArguments
from tokforget.readers.cost import break_even_tokens, cost_rows
from tokforget.readers.language_model import Reader
from tokforget.readers.oracle import gate_ranks, search_best_words
from tokforget.readers.report import COST, ORACLE, RESULTS, write_report
from tokforget.readers.tasks import (
    ReadingItem,
    among_others,
    draw_passages,
    later_use_items,
    load_question_items,
    lookup_items,
    read_corpus,
)
from tokforget.readers.text_compressors import (
    CompressorContext,
    TextCompressor,
    hand_made_score,
    overlap_ranks,
    text_compressors,
)
from tokforget.readers.whole_texts import answer_items, lead_items, title_items
from tokforget.readers.word_counts import WordCounts
from tokforget.readers.words import find_names, find_strings, find_words, is_number
from tokforget.text_units import NEGATIONS, split_words


CONTROLS = ("full", "none", "full_twice")
_KEPT = ("numbers", "names", "strings", "negations")
_NEW_TOKENS = 32
# Passages per compressor and rate whose compression is timed, with empty caches.
_TIMED = 16
_REFERENCE = "random_words"


def target_bits(
    reader: Reader, items: Sequence[ReadingItem], passages: Sequence[str], progress: str | None = None
) -> np.ndarray:
    """
    Bits of each item's target with its passage replaced by one of `passages`, `(num_items,)` float64. Items with the
    same context, such as the lookups of a text, are read together, so that the context is read once.
    """
    contexts: dict[str, list[int]] = {}
    for place, (item, passage) in enumerate(zip(items, passages, strict=True)):
        contexts.setdefault(item.before + passage, []).append(place)
    asked = [[(items[place].after, items[place].target) for place in places] for places in contexts.values()]
    bits = np.zeros(len(items))
    for places, found in zip(contexts.values(), reader.span_token_bits(list(zip(contexts, asked)), progress=progress)):
        for place, of_target in zip(places, found):
            counted = items[place].counted
            bits[place] = (of_target[list(counted)] if counted else of_target).sum()
    return bits


def right_options(reader: Reader, items: Sequence[ReadingItem], passages: Sequence[str]) -> np.ndarray:
    """Whether the correct option has the fewest bits per token `(num_items,)`; nan for an item without options."""
    right = np.full(len(items), np.nan)
    places = [place for place, item in enumerate(items) if item.options]
    contexts = [items[place].before + passages[place] for place in places]
    asked = [[(items[place].after, option) for option in items[place].options] for place in places]
    for place, found in zip(places, reader.span_token_bits(list(zip(contexts, asked)))):
        likeliest = int(np.argmin([of_option.mean() for of_option in found]))
        right[place] = items[place].options[likeliest] == items[place].target
    return right


def retention(bits: np.ndarray, full: np.ndarray, none: np.ndarray) -> float:
    """
    Share of the passages' information that is left, from totals of bits `(num_items,)`; nan if the full passages do
    not help the reader.
    """
    # Summed exactly, so that the result does not depend on the order of the items.
    worth, saved = math.fsum([*none, *-full]), math.fsum([*none, *-bits])
    return float("nan") if worth <= 0 else saved / worth


def retention_interval(
    bits: np.ndarray, full: np.ndarray, none: np.ndarray, groups: Sequence[str], seed: int
) -> tuple[float, float] | None:
    """
    95 % interval of [`retention`], bootstrapped over passages (`groups`); `None` if the denominator is near zero, see
    `ratio_interval`.
    """
    return ratio_interval(*_by_group(np.stack([none - bits, none - full]), groups), seed)


def difference_interval(
    bits: np.ndarray, other: np.ndarray, full: np.ndarray, none: np.ndarray, groups: Sequence[str], seed: int
) -> tuple[float, float] | None:
    """95 % interval of the difference of two compressors' retentions on the same items, bootstrapped over passages."""
    return ratio_interval(*_by_group(np.stack([other - bits, none - full]), groups), seed)


def _by_group(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sums of each row of `values` `(num_rows, num_items)` over the items of a group, `(num_rows, num_groups)`."""
    _, index = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(index, of_items) for of_items in values])


def kept_words(original: str, compressed: str) -> dict[str, int]:
    """
    Counts of the numbers, names, negations and quoted strings of a text, and of those that are unchanged in the
    compressed text;
    also words that the original does not have (`invented`), because an invented number or name is a false statement.
    """
    words, output = find_words(original), Counter(word for word, _, _ in find_words(compressed))
    kinds = {
        "numbers": Counter(word for word, _, _ in words if is_number(word)),
        "names": Counter(w for (w, _, _), name in zip(words, find_names(original, words)) if name),
        "negations": Counter(w for w, _, _ in words if w.lower() in NEGATIONS or w.lower().endswith(("n't", "n’t"))),
    }
    counts = {name: wanted.total() for name, wanted in kinds.items()}
    counts |= {f"{name}_kept": (wanted & output).total() for name, wanted in kinds.items()}
    strings = Counter(find_strings(original))
    counts |= {
        "strings": strings.total(),
        "strings_kept": sum(min(n, compressed.count(s)) for s, n in strings.items()),
    }
    return counts | {"invented": (output - Counter(word for word, _, _ in words)).total()}


class ReaderBenchmark:
    """
    One run of the benchmark. Call its methods in this order: `load()`, `measure()`, `rows()`.

    Args:
        args ([`ReaderArguments`]): Reader, tasks and compressors.
    """

    def __init__(self, args: ReaderArguments):
        self.args, self.folder = args, Path(args.output_dir)
        self.tasks: dict[str, list[ReadingItem]] = {}
        self.identities: dict[str, str] = {}  # a digest for each task

    def load(self) -> None:
        """Load reader, word counts, tasks and compressors. Raises `ValueError` before anything is measured."""
        args = self.args
        device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
        self.reader = Reader.from_pretrained(args.reader_name_or_path, device, batch_tokens=args.batch_tokens)
        self.counts = WordCounts.load(args.counts_path) if args.counts_path else self._count_words()
        self.context = CompressorContext(self.reader, self.counts, args.seed, args.model_path)
        names = list(args.compressors)
        if "policy_question" in names and not self.context.policy.takes_question:
            print("policy_question: this model was trained without questions; left out.")
            names.remove("policy_question")
        self.compressors = text_compressors(names, self.context)
        for path in args.questions:
            name, items = Path(path).name.split(".")[0], load_question_items(path, args.max_questions)
            self._add(name, items)
            if args.other_passages:
                self._add(f"{name}_among_{args.other_passages}", among_others(items, args.other_passages, args.seed))
        if args.corpus is not None and args.texts_per_kind:
            self._add_corpus_tasks()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _add_corpus_tasks(self) -> None:
        args = self.args
        documents = partial(read_corpus, args.corpus, "test", args.kinds)
        passages = draw_passages(documents(), args.texts_per_kind, args.passage_characters, args.seed)
        if "lookup" in args.corpus_tasks:
            for draw in range(args.lookup_draws):
                items = lookup_items(passages, self.counts, args.lookups_per_text, args.seed + draw)
                self._add(f"lookup_{draw + 1}" if draw else "lookup", items)
        whole = {"title": title_items, "lead": lead_items, "answers": answer_items}
        for task in [task for task in args.corpus_tasks if task != "lookup"]:
            if task == "later_use":
                items = later_use_items(passages, self.reader)
            else:
                items = whole[task](documents(), self.reader, args.texts_per_kind, args.document_characters)
            if items:
                self._add(task, items)
            else:  # the passages do not help this reader
                print(f"{task}: no passage makes a token of a target cheaper by a bit for this reader; left out.")

    def _count_words(self) -> WordCounts:
        """Word counts of the first training texts of each kind; stored in the run's folder."""
        seen: Counter = Counter()

        def texts():
            for kind, text in read_corpus(self.args.corpus, "train"):
                seen[kind] += 1
                if seen[kind] <= self.args.count_texts:
                    yield text

        path = self.folder / "word_counts.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            WordCounts.of_texts(texts()).save(path)
        return WordCounts.load(path)

    def _add(self, name: str, items: list[ReadingItem]) -> None:
        """Add the items whose longest prompt fits the reader; print how many do not."""
        limit = self.reader.max_tokens
        if limit is not None:
            lengths = self.reader.counts([item.prompt(item.passage) + item.target for item in items])
            fitting = [item for item, length in zip(items, lengths) if length + 2 <= limit]
            if len(fitting) < len(items):
                print(
                    f"{name}: {len(items) - len(fitting)} of {len(items)} items do not fit the reader and are left out."
                )
            items = fitting
        if not items:
            raise ValueError(f"The task {name} has no item that fits the reader ({limit} tokens).")
        self.tasks[name] = items
        facts = [self.args.reader_name_or_path, self.args.seed, self.counts.total]
        facts += [(item.passage, item.before, item.after, item.target, item.counted) for item in items]
        self.identities[name] = sha256(json.dumps(facts).encode()).hexdigest()[:16]

    # -- measuring -----------------------------------------------------------------------------------------------------
    def measure(self) -> None:
        """Compute every missing file, with one line of progress per file."""
        works: list[tuple[str, str, float, str, Callable[[], dict]]] = []
        for task, items in self.tasks.items():
            works += [(task, control, 1.0, "", partial(self._control, items, control)) for control in CONTROLS]
            for compressor in self.compressors:
                if not compressor.asks or any(item.question for item in items):
                    works += [
                        (
                            task,
                            compressor.name,
                            rate,
                            compressor.version,
                            partial(self._compressed, items, compressor, rate),
                        )
                        for rate in self.args.rates
                    ]
        for number, work in enumerate(works, 1):
            self._once(*work, progress=f"{number}/{len(works)}")

    def _once(self, task: str, name: str, rate: float, version: str, work: Callable[[], dict], progress: str) -> None:
        """Compute a file unless it exists and was made with the same reader, items and version of the compressor."""
        path, identity = self._path(task, name, rate), self.identities[task]
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if (there["identity"], there.get("version")) == (identity, version):
                return
        start = time.perf_counter()
        record = {"task": task, "compressor": name, "rate": rate, "identity": identity, "version": version, **work()}
        write_json(path, record)
        print(f"{progress:>8}  {task:<12} {name:<28} {rate:g}  {time.perf_counter() - start:6.1f} s", flush=True)

    def _path(self, task: str, name: str, rate: float) -> Path:
        folder = self.folder / "items" / task
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}-{rate:g}.json"

    def _control(self, items: list[ReadingItem], control: str) -> dict:
        passages = [
            {"full": item.passage, "none": "", "full_twice": respaced(item.passage)}[control] for item in items
        ]
        return self._read(items, passages)

    def _compressed(self, items: list[ReadingItem], compressor: TextCompressor, rate: float) -> dict:
        done: dict[tuple[str, str | None], str] = {}
        seconds, timed_tokens = 0.0, 0
        for item in items:
            key = item.passage, item.question if compressor.asks else None
            if key in done:
                continue
            original = self.reader.counts([item.passage])[0]
            budget = max(1, int(rate * original + 1e-9))
            if len(done) < _TIMED:
                with self.context.nothing_remembered():
                    start = time.perf_counter()
                    output = compressor(item.passage, budget, key[1])
                    seconds += (time.perf_counter() - start) / compressor.calls
                timed_tokens += original
            else:
                output = compressor(item.passage, budget, key[1])
            if self.reader.counts([output])[0] > budget:
                raise ValueError(
                    f"The compressor {compressor.name} returned {self.reader.counts([output])[0]} tokens where {budget} were "
                    "allowed; a comparison at equal budgets needs all of them within it."
                )
            done[key] = output
        outputs = [done[item.passage, item.question if compressor.asks else None] for item in items]
        return self._read(items, outputs) | {"seconds": seconds, "compressed_tokens": timed_tokens}

    def _read(self, items: list[ReadingItem], passages: list[str]) -> dict:
        record = {"bits": target_bits(self.reader, items, passages).round(4).tolist()}
        if any(item.options for item in items):
            record["right"] = [None if np.isnan(r) else bool(r) for r in right_options(self.reader, items, passages)]
        tokens, originals = self.reader.counts(passages), self.reader.counts([item.passage for item in items])
        return record | {"outputs": passages, "tokens": tokens, "original_tokens": originals}

    # -- results -------------------------------------------------------------------------------------------------------
    def rows(self) -> list[dict]:
        """One row per task, kind, compressor and rate; the kind `all` combines all kinds of a task."""
        rows = []
        for task, items in self.tasks.items():
            controls = {name: self._record(task, name, 1.0) for name in CONTROLS}
            full, none = (np.array(controls[name]["bits"]) for name in ("full", "none"))
            records = [(name, 1.0, controls[name]) for name in CONTROLS]
            for path in sorted((self.folder / "items" / task).glob("*.json")):
                record = json.loads(path.read_text(encoding="utf-8"))
                if record["compressor"] not in CONTROLS and record["identity"] == self.identities[task]:
                    records.append((record["compressor"], record["rate"], record))
            kinds = ["all", *sorted({item.kind for item in items})]
            for name, rate, record in records:
                for kind in kinds if len(kinds) > 2 else ["all"]:
                    here = np.array([kind in ("all", item.kind) for item in items])
                    row = {"task": task, "kind": kind} | self._row(name, rate, record, items, here, full, none)
                    other = next(
                        (r for n, at, r in records if (n, at) == (_REFERENCE, rate) and name != _REFERENCE), None
                    )
                    if other is not None and row["retention"] is not None:
                        groups = [items[i].group for i in np.flatnonzero(here)]
                        ours, theirs = np.array(record["bits"])[here], np.array(other["bits"])[here]
                        row["ahead"] = row["retention"] - retention(theirs, full[here], none[here])
                        row["ahead_interval"] = difference_interval(
                            ours, theirs, full[here], none[here], groups, self.args.seed
                        )
                    rows.append(row)
        return [row | {"reference_there": _reference_there(rows, row)} for row in rows]

    def examples(self) -> dict[str, list[dict]]:
        """Three items of each task for the report: their index, passage, question and answer."""
        found: dict[str, list[dict]] = {}
        for task, items in self.tasks.items():
            full, none = (self._record(task, name, 1.0)["bits"] for name in ("full", "none"))
            found[task] = [
                {"place": place, "kind": items[place].kind, "passage": items[place].passage, "asked": items[place].after.strip(),
                 "answer": items[place].target.strip(), "full_bits": full[place], "none_bits": none[place]}
                for place in sorted({0, len(items) // 2, len(items) - 1})
            ]  # fmt: skip
        return found

    def oracle_rows(self) -> list[dict]:
        """
        Rows of the oracle's search on `oracle_items` items spread over each task (one file each), next to the
        hand-made score and the best start.
        """
        rows = []
        for task, items in self.tasks.items():
            with_words = [place for place, item in enumerate(items) if item.passage.strip()]
            every = max(1, len(with_words) // self.args.oracle_items)
            places = with_words[::every][: self.args.oracle_items]
            full, none = (np.array(self._record(task, name, 1.0)["bits"])[places] for name in ("full", "none"))
            chosen = [items[place] for place in places]
            for rate in self.args.rates:
                found = [self._searched(task, place, items[place], rate) for place in places]
                bits = {
                    name: np.array([record[f"{name}_bits"] for record in found])
                    for name in ("hand_made", "start", "oracle")
                }
                interval = retention_interval(bits["oracle"], full, none, [i.group for i in chosen], self.args.seed)
                rows.append({"task": task, "rate": rate, "items": len(places), "steps": self.args.oracle_steps,
                             **{name: _or_none(retention(of_items, full, none)) for name, of_items in bits.items()},
                             "interval": interval and [round(end, 3) for end in interval]})  # fmt: skip
        return rows

    def _searched(self, task: str, place: int, item: ReadingItem, rate: float) -> dict:
        path = self.folder / "oracle" / task / f"{place}-{rate:g}.json"
        identity = f"{self.identities[task]} {self.args.oracle_steps}"
        if path.is_file() and (record := json.loads(path.read_text(encoding="utf-8")))["identity"] == identity:
            return record
        path.parent.mkdir(parents=True, exist_ok=True)
        budget = max(1, int(rate * self.reader.counts([item.passage])[0] + 1e-9))
        starts = self._oracle_starts(item)
        _, hand_made_bits = search_best_words(self.reader, item, budget, starts[:1], 0)
        _, start_bits = search_best_words(self.reader, item, budget, starts, 0)
        output, bits = search_best_words(self.reader, item, budget, starts, self.args.oracle_steps, self.args.seed)
        record = {
            "identity": identity,
            "output": output,
            "oracle_bits": bits,
            "start_bits": start_bits,
            "hand_made_bits": hand_made_bits,
        }
        write_json(path, record)
        print(f"oracle {task} {place} {rate:g}: {start_bits:.1f} to {bits:.1f} bits", flush=True)
        return record

    def _oracle_starts(self, item: ReadingItem) -> list[np.ndarray]:
        """Starts of the search: the hand-made score, the head, sentences near the question, and [`gate_ranks`]."""
        spans = split_words(item.passage)
        hand_made = hand_made_score(self.context, item.passage, spans)
        sentences, overlap = overlap_ranks(self.context, item.passage, item.question)
        sentence = np.searchsorted([end for _, end in sentences], [(a + b - 1) / 2 for a, b in spans], side="right")
        near = overlap[np.minimum(sentence, len(overlap) - 1)]
        return [hand_made, -np.arange(len(spans)), near + 0.01 * hand_made, gate_ranks(self.reader, item)]

    def cost(self) -> dict:
        """
        Time whole requests with the last compressor that needs no question, on joined passages of the first task.
        """
        compressor = self.unasked[-1]
        text = "\n\n".join(dict.fromkeys(item.passage for items in self.tasks.values() for item in items))
        lengths = [n for n in self.args.cost_prompt_tokens if n <= self.reader.counts([text])[0]]
        rows = cost_rows(self.reader, compressor, text, lengths, self.args.rates, _NEW_TOKENS) if lengths else []
        return {"compressor": compressor.name, "new_tokens": _NEW_TOKENS, "device": str(self.reader.model.device), "rows": rows,
                "break_even": {f"{rate:g}": break_even_tokens(rows, rate) for rate in self.args.rates if rows}}  # fmt: skip

    @property
    def unasked(self) -> list[TextCompressor]:
        """Compressors that need no question."""
        return [compressor for compressor in self.compressors if not compressor.asks]

    def _record(self, task: str, name: str, rate: float) -> dict:
        return json.loads(self._path(task, name, rate).read_text(encoding="utf-8"))

    def _row(self, name, rate, record, items, here, full, none) -> dict:
        places = np.flatnonzero(here)
        bits, groups = np.array(record["bits"]), [items[i].group for i in places]
        seed = self.args.seed
        words: Counter = Counter()
        for text, output in {(items[i].passage, record["outputs"][i]) for i in places}:
            words.update(kept_words(text, output))
        right = [record["right"][i] for i in places if record.get("right", [None] * len(items))[i] is not None]
        original = sum(record["original_tokens"][i] for i in places)
        return {
            "compressor": name,
            "rate": rate,
            "retention": _or_none(retention(bits[here], full[here], none[here])),
            "interval": retention_interval(bits[here], full[here], none[here], groups, seed),
            "bits": float(bits[here].mean()),
            "achieved_rate": sum(record["tokens"][i] for i in places) / max(original, 1),
            "items": len(places),
            "passages": len(set(groups)),
            "accuracy": float(np.mean(right)) if right else None,
            "microseconds_per_token": 1e6 * record["seconds"] / max(record["compressed_tokens"], 1) if "seconds" in record else None,
            **{f"{what}_kept": words[f"{what}_kept"] / words[what] if words[what] else None
               for what in _KEPT},
            "invented_words": words["invented"] / max(len(set(groups)), 1),
        }  # fmt: skip


def _reference_there(rows: Sequence[dict], row: dict) -> float | None:
    """
    Retention of random words at a row's achieved rate, interpolated between the measured rates; `None` if there are
    none.
    """
    points = {r["achieved_rate"]: r["retention"] for r in rows
              if (r["task"], r["kind"], r["compressor"]) == (row["task"], row["kind"], _REFERENCE)}  # fmt: skip
    if not points or None in points.values():
        return None
    points = sorted({0.0: 0.0, **points, 1.0: 1.0}.items())
    return float(np.interp(row["achieved_rate"], *zip(*points)))


def _or_none(value: float) -> float | None:
    """The value, or `None` for nan, which JSON lacks."""
    return None if np.isnan(value) else value


def respaced(text: str) -> str:
    """The text with one sentence per line: shows how much bits change without any loss of content."""
    return re.sub(r"(?<=[.!?;:]) +", "\n", text)


def run_reader_benchmark(args: ReaderArguments) -> list[dict]:
    """
    Run the whole benchmark: compute missing files, then write results, oracle, cost and report to the run's folder.
    """
    run = ReaderBenchmark(args)
    run.load()
    run.measure()
    rows = run.rows()
    write_json(
        run.folder / RESULTS,
        {
            "reader": without_local_paths(args.reader_name_or_path),
            "seed": args.seed,
            "rows": rows,
            "agreement": task_agreement(rows),
            "examples": run.examples(),
        },
    )
    if args.oracle_items:
        write_json(run.folder / ORACLE, run.oracle_rows())
    if args.cost_prompt_tokens and run.unasked:
        write_json(run.folder / COST, run.cost())
    for path in write_report(run.folder):
        print(path)
    return rows
