"""
Properties of a tokenizer's ids as text: whether a word begins, the length, the class of word.

The tables are built once for the whole vocabulary, so that no Python loop runs over the tokens of a text.
"""

import re

import torch
from transformers import PreTrainedTokenizerBase


# English function words: the closed classes (articles, pronouns, prepositions, conjunctions, auxiliaries, particles).
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the this that these those such some any each every no none both either neither all half several many
    much few little more most other another same own i me my mine myself you your yours yourself yourselves he
    him his himself she her hers herself it its itself we us our ours ourselves they them their theirs
    themselves one who whom whose which what whatever whoever someone anyone everyone something anything
    everything nothing about above across after against along among around as at before behind below beneath
    beside besides between beyond by despite down during except for from in inside into like near of off on onto
    out outside over past per since than through throughout till to toward towards under until up upon via with
    within without and but or nor so yet if because although though unless while whereas whether when where why
    how then once am is are was were be been being have has had having do does did doing done will would shall
    should can could may might must ought let not only just also too very even still again ever never now here
    there almost quite rather s t d ll m re ve don didn doesn isn aren wasn weren hasn haven hadn won wouldn
    couldn shouldn
        """,
    )
)
WORD_CLASSES = ("content", "function", "name", "number", "punctuation", "piece", "space")
_CONTENT, _FUNCTION, _NAME, _NUMBER, _PUNCTUATION, _PIECE, _SPACE = range(len(WORD_CLASSES))
_SENTENCE_END = (".", "!", "?", '."', '!"', '?"', ".'", "!'", "?'", ".)", "…", "。", "！", "？")


class Vocabulary:
    """
    Properties of every token id, as tensors of shape `(vocab_size,)`.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Byte-level BPE or SentencePiece.
        vocab_size (`int`): Rows of the model's embedding; ids that the tokenizer lacks count as empty text.

    Attributes:
        lengths: Characters, without surrounding white space.
        starts_word: Whether the token begins with white space, and so begins a word.
        ends_word: Whether the token ends with white space, so that the next token begins a word. A token of white
            space alone belongs to the next word.
        ends_sentence: Whether the token ends with a sentence mark or a line break.
        classes: Index into `WORD_CLASSES`. A `piece` is a token inside a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        known = min(len(tokenizer), vocab_size)
        self.texts = tokenizer.batch_decode([[i] for i in range(known)]) + [""] * (vocab_size - known)
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(known))):
            if token.startswith("▁") and not self.texts[i].startswith(
                " "
            ):  # SentencePiece strips a text's first space
                self.texts[i] = " " + self.texts[i]
        self.lengths = torch.tensor([len(text.strip()) for text in self.texts], dtype=torch.float32)
        self.starts_word = torch.tensor([text[:1].isspace() for text in self.texts])
        self.ends_word = torch.tensor([text[-1:].isspace() and not text.isspace() for text in self.texts])
        self.ends_sentence = torch.tensor(
            [text.rstrip(" ").endswith(_SENTENCE_END) or "\n" in text for text in self.texts]
        )
        self.classes = torch.tensor([_class_of(text) for text in self.texts])

    def word_of(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Index of each token's word in its text, `(B, T)`, from 0."""
        return self._number(input_ids, self.starts_word[input_ids.cpu()], self.ends_word)

    def sentence_of(self, input_ids: torch.Tensor) -> torch.Tensor:
        """
        Index of each token's sentence in its text, `(B, T)`; a sentence begins with the first word after an end mark.
        """
        return self._number(input_ids, torch.zeros(input_ids.shape, dtype=torch.bool), self.ends_sentence)

    def _number(self, input_ids: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        after_end = torch.nn.functional.pad(ends[input_ids.cpu()], (1, 0))[:, :-1]
        begins = (begins | after_end).long()
        begins[:, 0] = 0
        return begins.cumsum(1).to(input_ids.device)


def _class_of(text: str) -> int:
    word = text.strip()
    if not word:
        return _SPACE
    if any(character.isdigit() for character in word):
        return _NUMBER
    if not any(character.isalpha() for character in word):
        return _PUNCTUATION
    if word.lower() in FUNCTION_WORDS:
        return _FUNCTION
    if not text[0].isspace():
        return _PIECE
    return _NAME if word[0].isupper() else _CONTENT
