"""Characters as tokens, and what all tokenizers share."""
import json
import os

from formats.text_files import write_text


class Tokenizer:
    """
    What has encode, decode, chat and save. vocab_size is the largest id + 1; ids: those with a token, None:
    all. eos_ids: each ends a completion; eos_id, the first, is what training teaches. prefix, suffix: what
    stands around a plain prompt.
    """
    ids = bos_id = eos_id = pad_id = None
    eos_ids = prefix = suffix = ()
    has_chat_template = False

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a plain prompt with what transformers adds to it: a begin token where models want one."""
        return [*self.prefix, *self.encode(text), *self.suffix]

    def token_text(self, i: int) -> str:
        """The text of token i alone; a part of a character is U+FFFD."""
        return self.decode([i], special=True)

    def check_fits(self, vocab_size, path):
        """Raises ValueError when the model at path embeds fewer tokens than there are ids."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"the tokenizer has {self.vocab_size} ids and the model at {path} {vocab_size}")


class CharTokenizer(Tokenizer):
    """
    Each character of `chars` is a token. After them come [MASK] (a slot to fill), [PAD], [CLS] (where a judge
    reads its score) and, with end=True, the end of a text.
    """

    def __init__(self, chars, end=False):
        self.chars = list(chars)
        self.id_of = {c: i for i, c in enumerate(self.chars)}
        self.mask_id, self.pad_id, self.cls_id = (len(self.chars) + i for i in range(3))
        self.eos_id = len(self.chars) + 3 if end else None
        self.eos_ids = (self.eos_id,) * end
        self.special_ids = [self.mask_id, self.pad_id, self.cls_id, *self.eos_ids]
        self.vocab_size = len(self.chars) + len(self.special_ids)
        self.shown = [*self.chars, next((sign for sign in '□▯▢' if sign not in self.id_of), '□')]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of text. Raises ValueError at the first unknown character."""
        unknown = next((i for i, c in enumerate(text) if c not in self.id_of), None)
        if unknown is not None:
            raise ValueError(f"character {text[unknown]!r} at position {unknown} is not among the "
                             f"{len(self.chars)} of this vocabulary")
        return [self.id_of[c] for c in text]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids. [MASK] is '□', other special tokens are left out."""
        return ''.join(self.shown[i] for i in map(int, ids) if i < len(self.shown))

    def render_chat(self, messages, /, add_generation_prompt=True, **variables):
        """The contents of the messages, joined: characters know no roles."""
        return ''.join(message['content'] for message in messages)

    def chat(self, messages: list[dict], /, add_generation_prompt: bool = True, **variables) -> list[int]:
        """Their ids."""
        return self.encode(self.render_chat(messages))

    def check_same(self, chars, path):
        """Raises ValueError when the checkpoint at path was trained on other characters than ours."""
        if list(chars) != self.chars:
            raise ValueError(f"{path} was trained on another vocabulary ({len(chars)} characters, not "
                             f"{len(self.chars)}): name another path")

    def save(self, folder: str) -> None:
        """Write vocab.json, which load_tokenizer reads back."""
        saved = {'chars': self.chars} | ({} if self.eos_id is None else {'end': True})
        os.makedirs(folder, exist_ok=True)
        write_text(os.path.join(folder, 'vocab.json'), json.dumps(saved))


def char_tokenizer(saved, where):
    """The CharTokenizer that a file's 'chars' and 'end' describe. Raises ValueError naming the file."""
    chars = saved.get('chars')
    fine = isinstance(chars, list) and all(isinstance(c, str) and len(c) == 1 for c in chars)
    if not fine or len(set(chars)) < len(chars):
        raise ValueError(f"{where}: its 'chars' must be a list of characters, each once")
    return CharTokenizer(chars, end=bool(saved.get('end', False)))
