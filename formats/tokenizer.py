"""
Text to token ids and back: characters (one id each) or the vocabulary of a released model.

    tokenizer = load_tokenizer(path)     # a data folder, a Hugging Face folder, a .gguf file
    tokenizer.chat([{'role': 'user', 'content': 'hello'}])

The ids, chats and end tokens are those of `transformers`.
"""
import json
import os
import re
import threading
import unicodedata

import tokenizers

from formats.characters import CharTokenizer, Tokenizer, char_tokenizer
from formats.chat import compile_template, mark_specials, matcher
from formats.gguf_vocabulary import read_vocabulary, tiktoken_encoding
from formats.package import check_config, is_named, read_package
from formats.text_files import check_unicode, first_line, parse_object, read_text, write_text

__all__ = ['CharTokenizer', 'Tokenizer', 'char_tokenizer', 'load_tokenizer']
SAVED = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja')
READ = (*SAVED, 'config.json', 'generation_config.json')
# On a million spaces tiktoken's regex overflows its stack, which no `except Exception` catches.
LONG_RUN = re.compile(r'(?<!\s)\s{100000}')


def without_none(message):
    """A chat message less its entries that are None, which templates take for given."""
    return {key: value for key, value in message.items() if value is not None}


class FileTokenizer(Tokenizer):
    """
    A tokenizer.json and the files {name: text} beside it, read by the package `tokenizers`. eos_id ends a
    completion: tokenizer_config.json's eos_token (<|im_end|> for chat models), else the model's.
    """

    def __init__(self, files, path):
        def read(name):
            return parse_object(files.get(name, '{}'), os.path.join(path, name))

        self.path, self.lock = path, threading.Lock()
        self.files = {name: text for name, text in files.items() if name in SAVED}
        self.package = read_package(files['tokenizer.json'], os.path.join(path, 'tokenizer.json'))
        config = read('special_tokens_map.json') | read('tokenizer_config.json')
        eos = (read('config.json') | read('generation_config.json')).get('eos_token_id')
        if not isinstance(eos, list):
            eos = [] if eos is None else [eos]
        check_config(config, eos, path)
        templates = config.get('chat_template')
        if isinstance(templates, list):
            templates = {t['name']: t['template'] for t in templates}.get('default')
        self.template = files.get('chat_template.jinja', templates)
        self.has_chat_template = self.template is not None
        self.add_tokens(config.get('added_tokens_decoder') or {})
        self.name_tokens(config, eos)

    def add_tokens(self, entries):
        """Add the tokens {id: flags} that only tokenizer_config.json lists, as transformers does."""
        known = {token.content for token in self.package.get_added_tokens_decoder().values()}
        for entry in entries.values():
            if entry['content'] not in known:
                flags = {key: bool(entry.get(key)) for key in ('lstrip', 'rstrip', 'single_word', 'special')}
                flags['normalized'] = bool(entry.get('normalized', not flags['special']))
                self.package.add_tokens([tokenizers.AddedToken(entry['content'], **flags)])

    def name_tokens(self, config, eos):
        """Set bos_id, eos_id, pad_id and special_ids; a token with such a role is special."""
        texts = {key: v['content'] if is_named(v, 'content') else v for key, v in config.items()}
        names = {key: v for key, v in texts.items() if key.endswith('_token') and isinstance(v, str) and v}
        vocab = self.package.get_vocab()
        text_of = {i: text for text, i in vocab.items()}
        stops = [text_of[i] for i in eos if i in text_of]
        if 'eos_token' not in names and stops:
            # of several, the one that the chat template writes; save() keeps it
            names['eos_token'] = next((text for text in stops if text in (self.template or '')), stops[0])
            own = json.loads(self.files.get('tokenizer_config.json', '{}'))
            own['eos_token'] = names['eos_token']
            self.files['tokenizer_config.json'] = json.dumps(own, ensure_ascii=False, indent=1)
        if 'eos_token' in names and names['eos_token'] not in vocab:
            raise ValueError(f"{self.path}: tokenizer.json lacks the eos_token {names['eos_token']!r}")
        added = self.package.get_added_tokens_decoder()
        known = [text for text in names.values() if text in vocab]
        self.package.add_special_tokens([added.get(vocab[text], text) for text in known])
        self.names, self.added = names, self.package.get_added_tokens_decoder()
        self.special_ids = sorted(i for i, token in self.added.items() if token.special)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.bos_id, self.eos_id = vocab.get(names.get('bos_token')), vocab.get(names.get('eos_token'))
        self.pad_id = vocab.get(names.get('pad_token'), self.eos_id)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """
        Token ids of text; no bos or eos is added. The text of a special token is ordinary text, so that a
        prompt cannot smuggle one in, unless special=True. Tokens added without the special flag (Qwen's
        <think>) count both ways. Raises ValueError for text that is not Unicode.
        """
        check_unicode(text)
        try:
            with self.lock:
                self.package.encode_special_tokens = not special
                return self.package.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the package's: no [UNK] for an unknown word
            raise ValueError(f"the tokenizer of {self.path} cannot read this text: {first_line(e)}") from None

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids; special tokens only with special=True, broken UTF-8 as U+FFFD."""
        return self.package.decode([int(i) for i in ids], skip_special_tokens=not special)

    def token_text(self, i: int) -> str:
        """The text of token i after another: SentencePiece drops the space of the first."""
        first = self.decode([i], special=True)
        return self.decode([i, i], special=True)[len(first):] or first

    def render_chat(self, messages, add_generation_prompt=True, **variables):
        """The text that the chat template makes of messages (and tools, ...), as transformers renders it."""
        if not self.has_chat_template:
            raise ValueError(f"{self.path} has no chat template: put a chat_template.jinja there")
        messages = [without_none(message) for message in messages]
        given = {'tools': None, 'documents': None, 'add_generation_prompt': add_generation_prompt}
        variables = given | self.names | variables
        try:
            return compile_template(self.template).render(messages=messages, **variables)
        except Exception as e:  # a template is a program, with errors of every kind
            raise ValueError(f"the chat template of {self.path} fails: {type(e).__name__}: {e}") from None

    def chat(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> list[int]:
        """
        Token ids of render_chat with the template's special tokens; those in a message stay ordinary text,
        because they pass through the template with a private-use character after each of their characters.
        """
        special = [token for token in self.added.values() if token.special]
        try:
            written = json.dumps([messages, variables], ensure_ascii=False, default=str)
            mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in written)
            marked, marked_variables = mark_specials([messages, variables], matcher(special), mark)
        except RecursionError:
            raise ValueError("the chat messages are nested too deep") from None
        text = self.render_chat(marked, add_generation_prompt, **marked_variables)
        if mark not in text:
            return self.encode(text, special=True)
        ids = []
        for i, part in enumerate(matcher(special, spaces=True).split(text)):  # the odd parts are special
            ids += self.encode(part.replace(mark, ''), special=i % 2 == 1)
        return ids

    def save(self, folder: str) -> None:
        """Write the files that load_tokenizer, and transformers, read back."""
        os.makedirs(folder, exist_ok=True)
        for name, text in self.files.items():
            write_text(os.path.join(folder, name), text)


class GGUFTokenizer(FileTokenizer):
    """The vocabulary of a .gguf file; tiktoken encodes it, four times as fast, where that gives equal ids."""

    def __init__(self, path):
        files, spec, pattern = read_vocabulary(path)
        super().__init__(files, path)
        self.form = 'NFC' if spec['normalizer'] else None
        self.tiktoken = tiktoken_encoding(spec, pattern, path)
        plain = [token for token in self.added.values() if not token.special]
        self.matchers = {True: matcher(self.added.values()), False: matcher(plain)}

    def encode_plain(self, text):
        """Ids of a text without added tokens."""
        text = unicodedata.normalize(self.form, text) if self.form else text
        if LONG_RUN.search(text):
            return super().encode(text)
        ids = self.tiktoken.encode_ordinary(text)
        known = max(ids, default=0) < self.vocab_size  # a byte without a token has an id beyond
        return ids if known else super().encode(text)

    def encode(self, text: str, special: bool = False) -> list[int]:
        if self.tiktoken is None:
            return super().encode(text, special)
        check_unicode(text)
        ids = []
        for i, part in enumerate(self.matchers[special].split(text)):
            ids += [self.package.token_to_id(part)] if i % 2 else self.encode_plain(part)
        return ids


def load_tokenizer(path: str) -> Tokenizer:
    """
    The tokenizer of a data folder (vocab.json), a Hugging Face folder (tokenizer.json), a .gguf file or a
    folder with one. Raises FileNotFoundError, ValueError, ImportError without gguf.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no tokenizer at {path}: no such file or folder")
    if path.endswith('.gguf'):
        return GGUFTokenizer(path)
    if not os.path.isdir(path):
        raise ValueError(f"{path} is neither a folder with a tokenizer nor a .gguf file")
    names = sorted(os.listdir(path))
    if 'tokenizer.json' in names:
        files = {name: read_text(os.path.join(path, name), newline='') for name in READ if name in names}
        return FileTokenizer(files, path)
    if 'vocab.json' in names:
        file = os.path.join(path, 'vocab.json')
        vocab = parse_object(read_text(file), file)
        if not isinstance(vocab.get('chars'), list):
            raise ValueError(f"{file} has no list 'chars' and no tokenizer.json lies beside it")
        return char_tokenizer(vocab, file)
    ggufs = [name for name in names if name.endswith('.gguf')]
    if len(ggufs) == 1:
        return GGUFTokenizer(os.path.join(path, ggufs[0]))
    if ggufs:
        raise ValueError(f"{path} holds {len(ggufs)} .gguf files ({', '.join(ggufs)}): name one")
    if 'tokenizer.model' in names:
        raise ValueError(f"{path} has a SentencePiece tokenizer.model alone: save it with transformers")
    raise FileNotFoundError(f"there is no tokenizer in {path}: no tokenizer.json, vocab.json or .gguf file")
