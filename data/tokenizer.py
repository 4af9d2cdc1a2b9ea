"""Text to token ids and back. Characters for now: one id each, the special tokens after them."""
import json
import os


class CharTokenizer:
    """Each character of `chars` is a token; [MASK] (a slot to fill), [PAD] and [CLS] (where a judge reads its score) follow."""

    def __init__(self, chars):
        self.chars = list(chars)
        self.id_of = {c: i for i, c in enumerate(self.chars)}
        self.mask_id = len(self.chars)
        self.pad_id = len(self.chars) + 1
        self.cls_id = len(self.chars) + 2
        self.vocab_size = len(self.chars) + 3
        self.special_ids = [self.mask_id, self.pad_id, self.cls_id]
        self.eos_id = None

    def encode(self, text):
        """Token ids of text. Raises ValueError naming the first character that the vocabulary lacks, and where it stands."""
        unknown = next((i for i, c in enumerate(text) if c not in self.id_of), None)
        if unknown is not None:
            raise ValueError(f"character {text[unknown]!r} at position {unknown} is not among the {len(self.chars)} characters this vocabulary knows")
        return [self.id_of[c] for c in text]

    def decode(self, ids):
        """The text of ids; a [MASK] shows as '_', other special tokens as nothing."""
        return ''.join(self.chars[i] if i < len(self.chars) else '_' if i == self.mask_id else '' for i in map(int, ids))

    def check_same(self, chars, path):
        """Raises ValueError when a checkpoint at path, trained on `chars`, would read other characters into our ids."""
        if list(chars) != self.chars:
            raise ValueError(f"{path} was trained on another vocabulary ({len(chars)} characters; this data set has {len(self.chars)}): name another checkpoint, or one that does not exist yet to have it trained")


def load_tokenizer(path):
    """The tokenizer of a data folder (its vocab.json). Raises FileNotFoundError when there is none."""
    file = os.path.join(path, 'vocab.json')
    if not os.path.isfile(file):
        raise FileNotFoundError(f"there is no vocabulary at {file}")
    with open(file, encoding='utf-8') as f:
        return CharTokenizer(json.load(f)['chars'])
