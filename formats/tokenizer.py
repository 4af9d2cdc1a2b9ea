"""
Text to token ids and back: characters (one id each) or the vocabulary of a released model.

    tokenizer = load_tokenizer(path)     # a data folder, a Hugging Face folder, a .gguf file
    tokenizer.chat([{'role': 'user', 'content': 'hello'}])

The ids, chats and end tokens are those of `transformers`.
"""
import json
import os
import threading

from tokenizers import decoders, pre_tokenizers

from formats.characters import CharTokenizer, Tokenizer, char_tokenizer
from formats.chat import RENDERER, as_template_reads, mark_specials, matcher
from formats.gguf_vocabulary import read_vocabulary
from formats.package import added_token, around, read_package
from formats.text_files import check_unicode, first_line, parse_object, read_json, read_text, write_text

__all__ = ['CharTokenizer', 'Tokenizer', 'char_tokenizer', 'load_tokenizer']
BESIDE = ('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'config.json',
          'generation_config.json')
SAVED = ('tokenizer.json', *BESIDE[:3], 'chat_template.jinja')
TEMPLATES = 'additional_chat_templates'
ROLES = tuple(f'{role}_token' for role in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'))


def spaces_of_its_class(package, config):
    """
    What transformers does with spaces for two classes, in place: it builds their tokenizers anew, whatever
    tokenizer.json says of them.
    """
    kind, prefix = str(config.get('tokenizer_class')).removesuffix('Fast'), config.get('add_prefix_space')
    if kind == 'GPT2Tokenizer' and prefix:
        package.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if kind == 'LlamaTokenizer' and getattr(package.model, 'byte_fallback', False):
        first = 'always' if config.get('legacy') else 'first'
        prepend = 'never' if prefix is False else first
        package.model.unk_token, package.normalizer = None, None
        package.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
        parts = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
        package.decoder = decoders.Sequence(parts + [decoders.Strip(' ', 1)] * (prefix is not False))


class FileTokenizer(Tokenizer):
    """
    A tokenizer.json and the files {name: text} beside it, read by the package `tokenizers`. eos_ids are
    tokenizer_config.json's eos_token (<|im_end|> for chat models) and the eos_token_id, one or several, of
    generation_config.json or else of config.json: where transformers' generate stops, and TRL.
    """

    def __init__(self, files, path):
        self.path, self.lock = path, threading.Lock()
        self.files = {name: text for name, text in files.items() if name in SAVED or TEMPLATES in name}
        self.package = read_package(files['tokenizer.json'], os.path.join(path, 'tokenizer.json'))
        try:
            self.read_beside(files, *(parse_object(files.get(name, '{}'), name) for name in BESIDE))
        except Exception as e:  # a value of any other type than transformers writes
            wrong = f"({type(e).__name__}: {first_line(e)})"
            raise ValueError(f"{path}: the files of its tokenizer cannot be read {wrong}") from None

    def read_beside(self, files, config, special, added, model, generation):
        """Take in what the files beside tokenizer.json say."""
        spaces_of_its_class(self.package, config)
        if 'added_tokens_decoder' not in config:  # an older form
            config |= special
        eos = (model | generation).get('eos_token_id')
        if not isinstance(eos, list):
            eos = [] if eos is None else [eos]
        self.templates = named_templates(files, config.get('chat_template'))
        if {*map(type, eos)} - {int} or {*map(type, self.templates.values())} - {str}:
            raise TypeError("eos_token_id must be ids, chat_template a text")
        self.template = self.templates.get('default')
        self.has_chat_template = self.template is not None
        roles = self.roles_of(config, eos)
        self.names = {role: token.content for role, token in roles.items() if isinstance(role, str)}
        self.add_tokens(config.get('added_tokens_decoder'), added, list(roles.values()))
        self.look_up(eos)

    def roles_of(self, config, eos):
        """{role, or a number where it has none: AddedToken}, in transformers' order."""
        more = config.get('extra_special_tokens') or config.get('additional_special_tokens')
        more = dict(enumerate(more)) if isinstance(more, list) else more or {}
        roles = {key: config.get(key) for key in (*ROLES, *config) if key.endswith('_token')} | more
        roles = {key: v for key, v in roles.items() if v and isinstance(v, str) or isinstance(v, dict)}
        text_of = {i: text for text, i in self.package.get_vocab().items()}
        stops = [text_of[i] for i in eos if i in text_of]
        if 'eos_token' not in roles and stops:
            # of several, the one that the chat template writes; save() keeps it
            roles['eos_token'] = next((text for text in stops if text in (self.template or '')), stops[0])
            own = json.loads(self.files.get('tokenizer_config.json', '{}'))
            own['eos_token'] = roles['eos_token']
            self.files['tokenizer_config.json'] = json.dumps(own, ensure_ascii=False, indent=1)
        return {key: added_token(entry, special=True) for key, entry in roles.items()}

    def add_tokens(self, listed, older, special):
        """
        Add what tokenizer.json lacks, as transformers does: the tokens of tokenizer_config.json, {id: entry},
        or of added_tokens.json, {text: id}, in the order of ids; then special ones.
        """
        have, roles = self.package.get_added_tokens_decoder(), {token.content for token in special}
        if listed is None:
            listed = {i: {'content': text} for text, i in older.items() if type(i) is int}
            listed |= {i: token.__getstate__() for i, token in have.items()}
        entries = [listed[i] for i in sorted(listed, key=int)]
        tokens = [added_token(entry, entry['content'] in roles) for entry in entries]
        known = {token.content for token in [*have.values(), *tokens]}
        self.package.add_tokens(tokens + [token for token in special if token.content not in known])

    def look_up(self, eos=()):
        """Set what depends on the vocabulary; eos: ids that end a completion beside eos_token."""
        vocab = self.package.get_vocab()
        self.added = self.package.get_added_tokens_decoder()
        self.special_ids = sorted(i for i, token in self.added.items() if token.special)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.bos_id, self.eos_id = (vocab.get(self.names.get(role)) for role in ('bos_token', 'eos_token'))
        self.pad_id = vocab.get(self.names.get('pad_token'), self.eos_id)
        self.ids, ends = sorted(vocab.values()), [self.eos_id, *self.eos_ids, *eos]
        self.eos_ids = tuple(dict.fromkeys(i for i in ends if i in self.ids))
        if len(self.eos_ids) > 1:  # one alone stands in tokenizer_config.json
            self.files['generation_config.json'] = json.dumps({'eos_token_id': self.eos_ids})
        self.prefix, self.suffix = around(self.package)

    def add_special_token(self, text):
        """Make text a special token, the last one. Returns its id."""
        self.package.add_special_tokens([added_token(text, special=True)])
        self.files['tokenizer.json'] = self.package.to_str()
        self.look_up()
        return self.package.token_to_id(text)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """
        Token ids of text; no bos or eos is added. The text of a special token is ordinary text unless
        special=True; tokens added without that flag (Qwen's <think>) count both ways. Raises ValueError.
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

    def render_chat(self, messages, /, add_generation_prompt=True, **variables):
        """The text that the chat template makes of messages (and tools, ...), as transformers renders it."""
        if not self.has_chat_template:
            raise ValueError(f"{self.path} has no chat template: put a chat_template.jinja there")
        messages = [as_template_reads(message) for message in messages]
        given = {'tools': None, 'documents': None, 'add_generation_prompt': add_generation_prompt}
        variables = given | self.names | variables
        source = variables['tools'] is not None and self.templates.get('tool_use') or self.template
        try:
            return RENDERER.ask(source, messages, variables)
        except (ValueError, TimeoutError, OSError) as e:
            raise ValueError(f"the chat template of {self.path} fails: {e}") from None

    def chat(self, messages: list[dict], /, add_generation_prompt: bool = True, **variables) -> list[int]:
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
        for name, text in self.files.items():
            os.makedirs(os.path.join(folder, os.path.dirname(name)), exist_ok=True)
            write_text(os.path.join(folder, name), text)


def named_templates(files, listed):
    """{name: chat template} of the .jinja files, or else of tokenizer_config.json."""
    names = {name: os.path.basename(name).removesuffix('.jinja') for name in files if name.endswith('.jinja')}
    if names:
        return {'default' if name == 'chat_template' else name: files[file] for file, name in names.items()}
    if isinstance(listed, list):
        return {template['name']: template['template'] for template in listed}
    return {} if listed is None else {'default': listed}


def load_tokenizer(path: str) -> Tokenizer:
    """
    The tokenizer of a data folder (vocab.json), a Hugging Face folder (tokenizer.json), a .gguf file or a
    folder with one. Raises FileNotFoundError, ValueError, ImportError without gguf.
    """
    if path.endswith('.gguf'):
        return FileTokenizer(read_vocabulary(path), path)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no tokenizer at {path}: no such folder, and no .gguf file")
    names = sorted(os.listdir(path))
    if 'tokenizer.json' in names:
        found = [name for name in (*SAVED, *BESIDE) if name in names]
        if TEMPLATES in names:
            more = sorted(os.listdir(os.path.join(path, TEMPLATES)))
            found += [f'{TEMPLATES}/{name}' for name in more if name.endswith('.jinja')]
        files = {name: read_text(os.path.join(path, name)) for name in found}
        return FileTokenizer(files, path)
    if 'vocab.json' in names:
        file = os.path.join(path, 'vocab.json')
        return char_tokenizer(read_json(file), file)
    ggufs = [name for name in names if name.endswith('.gguf')]
    if len(ggufs) == 1:
        return load_tokenizer(os.path.join(path, ggufs[0]))
    raise FileNotFoundError(f"there is no tokenizer in {path}: no tokenizer.json (transformers makes one of "
                            f"a tokenizer.model), no vocab.json, and {len(ggufs)} .gguf files: name one")
