"""
Text to token ids and back: characters (one id each) or the byte-pair vocabulary of a released model.

    tokenizer = load_tokenizer(path)     # a data folder, a Hugging Face folder, a .gguf file
    tokenizer.chat([{'role': 'user', 'content': 'hello'}])

A vocabulary read from a file gives the ids that `transformers` gives: tests/test_tokenizer.py compares them.
"""
import functools
import importlib
import json
import os
import re
import unicodedata
from datetime import datetime

TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja')  # what save() writes again


def read_text(file):
    try:
        with open(file, encoding='utf-8', newline='') as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise ValueError(f"{file} is not UTF-8 text (byte {e.start})") from None


HALF_PAIR = re.compile(r'\\u[dD][89a-fA-F]')  # how JSON writes half of a character beyond U+FFFF: with its other half it is fine, alone no file takes it


def check_pairs(value, text, where):
    """Raises ValueError when the value of a JSON text holds half a surrogate pair."""
    if HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise ValueError(f"{where}: {e.object[e.start]!r} is half a surrogate pair: this is not Unicode text") from None


def parse_json(text, path, name):
    """The object in text. Raises ValueError naming file and line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{os.path.join(path, name)}, line {e.lineno}: {e.msg}") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, a thousand brackets
        raise ValueError(f"{os.path.join(path, name)} cannot be read as JSON: {e}") from None
    check_pairs(value, text, os.path.join(path, name))
    if not isinstance(value, dict):
        raise ValueError(f"{os.path.join(path, name)} holds a {type(value).__name__}; it should be an object in {{...}}")
    return value


def write_files(folder, files):
    """files: {name: text}."""
    os.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(folder, name), 'w', encoding='utf-8', newline='') as f:
            f.write(text)


def package(name, why):
    """The module name, or an ImportError that says what to install (a module's package has the name before the dot)."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{why} needs the package: pip install {name.partition('.')[0]}") from None


class Tokenizer:
    """What all tokenizers have, beside encode, decode, chat and save. vocab_size is the largest id + 1; an id that does not exist is None."""
    bos_id = eos_id = pad_id = None
    has_chat_template = False

    def token_text(self, i: int) -> str:
        """What token i looks like by itself; a piece of a character shows as U+FFFD."""
        return self.decode([i], special=True)

    def check_fits(self, vocab_size, path):
        """Raises ValueError when the model at path, with vocab_size rows in its embedding, lacks rows for our ids. More rows are padding."""
        if self.vocab_size > vocab_size:
            raise ValueError(f"the tokenizer has ids up to {self.vocab_size - 1} and the model at {path} knows {vocab_size} tokens: they do not belong together")


class CharTokenizer(Tokenizer):
    """Each character of `chars` is a token; [MASK] (a slot to fill), [PAD], [CLS] (where a judge reads its score) follow, and with end=True the end of a text."""

    def __init__(self, chars, end=False):
        self.chars = list(chars)
        self.id_of = {c: i for i, c in enumerate(self.chars)}
        self.mask_id = len(self.chars)
        self.pad_id = len(self.chars) + 1
        self.cls_id = len(self.chars) + 2
        self.eos_id = len(self.chars) + 3 if end else None
        self.special_ids = [self.mask_id, self.pad_id, self.cls_id] + [self.eos_id] * end
        self.vocab_size = len(self.chars) + len(self.special_ids)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of text; no text looks like a special token. Raises ValueError naming the first character that the vocabulary lacks, and where it stands."""
        unknown = next((i for i, c in enumerate(text) if c not in self.id_of), None)
        if unknown is not None:
            raise ValueError(f"character {text[unknown]!r} at position {unknown} is not among the {len(self.chars)} characters this vocabulary knows")
        return [self.id_of[c] for c in text]

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids; a [MASK] shows as '_', other special tokens as nothing."""
        return ''.join(self.chars[i] if i < len(self.chars) else '_' if i == self.mask_id else '' for i in map(int, ids))

    def render_chat(self, messages, add_generation_prompt=True):
        """Characters know no roles: the contents, joined."""
        return ''.join(message['content'] for message in messages)

    def chat(self, messages: list[dict], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of render_chat."""
        return self.encode(self.render_chat(messages))

    def check_same(self, chars, path):
        """Raises ValueError when a checkpoint at path, trained on `chars`, would read other characters into our ids."""
        if list(chars) != self.chars:
            raise ValueError(f"{path} was trained on another vocabulary ({len(chars)} characters; this data set has {len(self.chars)}): name another checkpoint, or one that does not exist yet to have it trained")

    def save(self, folder: str) -> None:
        """Write vocab.json, which load_tokenizer reads back."""
        write_files(folder, {'vocab.json': json.dumps({'chars': self.chars} | ({'end': True} if self.eos_id is not None else {}))})


def char_tokenizer(saved, where):
    """The CharTokenizer that a file's 'chars' and 'end' say. Raises ValueError naming the file."""
    chars = saved.get('chars')
    if not isinstance(chars, list) or not all(isinstance(c, str) and len(c) == 1 for c in chars) or len(set(chars)) < len(chars):
        raise ValueError(f"{where}: its 'chars' must be a list of characters, each once")
    return CharTokenizer(chars, end=bool(saved.get('end', False)))


# ---------------------------------------------------------------------------------------------------------------------
# Byte-level BPE. A text is cut into pieces by a regular expression; in each piece, neighbours are merged in the order of
# the file's list of merges, down from single bytes. tokenizer.json writes the bytes as printable characters:

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in PRINTABLE)}

# The cuts, as the tokenizer.json of these models and the names in a GGUF file (tokenizer.ggml.pre) have them.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
GPT2_STEP = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
DIGIT_STEP = {'type': 'Digits', 'individual_digits': True}
GGUF_CUTS = {'gpt-2': GPT2_STEP, 'smollm': {'type': 'Sequence', 'pretokenizers': [DIGIT_STEP, GPT2_STEP]}} | {
    name: {'type': 'Sequence', 'pretokenizers': [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}, GPT2_STEP | {'use_regex': False}]}
    for name, regex in (('llama-bpe', LLAMA3), ('qwen2', QWEN2))}


def check_spec(spec, file):
    """Raises ValueError unless what is read here of a tokenizer.json has the types that it should. Of what only the package `tokenizers` reads, the package decides."""
    def check(fine, what):
        if not fine:
            raise ValueError(f"{file}: {what}")

    is_id = lambda i: type(i) is int and 0 <= i < 1 << 31
    check(isinstance(spec.get('model'), dict) and 'vocab' in spec['model'], "it has no model with a vocab: it is not a tokenizer of the Hugging Face kind")
    vocab, merges, added = spec['model']['vocab'], spec['model'].get('merges', []), spec.get('added_tokens') or []
    check(isinstance(vocab, dict) or isinstance(vocab, list) and 'merges' not in spec['model'], "the model's vocab must be an object of tokens and their ids")
    for token, i in vocab.items() if isinstance(vocab, dict) else ():
        check(is_id(i), f"the token {token!r} has the id {i!r}; it must be a whole number from 0 on")
    check(isinstance(merges, list), "the model's merges must be a list")
    for n, merge in enumerate(merges):
        pair = merge.split(' ') if isinstance(merge, str) else merge
        check(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair), f"merge {n} is {merge!r}; it must be a pair of tokens")
    check(isinstance(added, list), "added_tokens must be a list")
    for token in added:
        check(isinstance(token, dict) and isinstance(token.get('content'), str) and is_id(token.get('id')), f"the added token {token!r} must have a text 'content' and an 'id' from 0 on")
    for key in ('normalizer', 'pre_tokenizer', 'decoder'):
        check(spec.get(key) is None or isinstance(spec[key], dict), f"{key} must be an object or null")
    cut = spec.get('pre_tokenizer') or {}
    steps = cut.get('pretokenizers') if cut.get('type') == 'Sequence' else [cut]
    check(isinstance(steps, list) and all(isinstance(step, dict) and isinstance(step.get('pattern', {}), dict) for step in steps), "pre_tokenizer must be a step, or a Sequence with a list of pretokenizers")


def cutting_regex(spec):
    """The regular expression that cuts as spec (a parsed tokenizer.json) says, or None when it is no byte-level BPE of a kind we know to be exact."""
    model, normalizer, cut = spec['model'], spec.get('normalizer'), spec.get('pre_tokenizer') or {}
    steps = cut['pretokenizers'] if cut.get('type') == 'Sequence' else [cut]
    last = steps[-1] if steps else {}
    if (model.get('type', 'BPE') != 'BPE' or 'merges' not in model or any(model.get(key) for key in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback'))
            or (model.get('unk_token') and not model['vocab'].keys() >= BYTE_OF.keys())
            or normalizer not in (None, {'type': 'NFC'}) or (spec.get('decoder') or {}).get('type') != 'ByteLevel'
            or last.get('type') != 'ByteLevel' or last.get('add_prefix_space', True)
            or any(t.get('single_word') or unicodedata.normalize('NFC', t['content']) != t['content'] for t in spec.get('added_tokens') or [])):
        return None
    first, use_regex = steps[:-1], last.get('use_regex', True)
    if not first and use_regex:
        return GPT2
    if len(first) == 1 and first[0].get('type') == 'Digits' and use_regex:
        digits = r'\p{N}' if first[0].get('individual_digits') else r'\p{N}+'
        # Digits are cut off before GPT-2's expression sees the rest, so to it a digit looks like the end of the text.
        return digits + '|' + GPT2.replace(r'| ?\p{N}+', '').replace(r'(?!\S)', r'(?![^\s\p{N}])')
    if len(first) == 1 and first[0].get('type') == 'Split' and not use_regex:
        regex = first[0]['pattern'].get('Regex')
        return regex if regex in (GPT2, LLAMA3, QWEN2) and first[0].get('behavior') == 'Isolated' and not first[0].get('invert') else None
    return None


def merge_alone(token, order):
    """Merge the characters of token as BPE does, lowest order first. Returns the parts that remain and the place of the last merge in the list."""
    parts, last = list(token), -1
    ranks = [order.get(pair, len(order)) for pair in zip(parts, parts[1:])]
    while ranks and min(ranks) < len(order):
        last = min(ranks)
        i = ranks.index(last)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        for j in (i - 1, i):
            if 0 <= j < len(ranks):
                ranks[j] = order.get((parts[j], parts[j + 1]), len(order))
    return parts, last


def byte_ranks(vocab, merges, added, whole_words):
    """
    {bytes: rank} for tiktoken and the list of their ids, or None when ranks cannot say what the list of merges says.

    tiktoken merges two neighbours when their concatenation has a rank, whichever pair the file means, and takes a whole piece that has one at
    once. That is the same thing when each ranked token, merged alone, ends as itself: two neighbours are then always in the state in which they
    would be alone, so their last merge is the file's. A token that does not end as itself cannot come from merging and gets no rank, unless the file
    looks up whole words first (ignore_merges, Llama-3): then it is harmless if three or more parts of it remain.
    """
    if max(map(len, vocab), default=0) > 1000:  # merging it alone takes its length squared, and no vocabulary that says so was seen
        return None
    order = {}
    for n, merge in enumerate(merges):
        left, right = merge.split(' ') if isinstance(merge, str) else merge
        if not (left in vocab and right in vocab and left + right in vocab):
            raise ValueError(f"merge {n} ({left!r} with {right!r}) names a token that the vocabulary lacks")
        order.setdefault((left, right), len(order))
    ranked, whole = [], []
    for token in vocab:
        if not BYTE_OF.keys() >= set(token):
            continue
        parts, last = merge_alone(token, order)
        if len(parts) == 1:
            ranked.append((last, token))
        elif whole_words and token not in added:  # a special token is no word of ordinary text
            whole.append(token)
            if len(parts) == 2:
                return None
    tokens = [token for _, token in sorted(ranked)] + whole
    return {bytes(BYTE_OF[c] for c in token): rank for rank, token in enumerate(tokens)}, [vocab[token] for token in tokens]


def check_config(config, model, path):
    """Raises ValueError unless what is read here of tokenizer_config.json and special_tokens_map.json (config), config.json and generation_config.json (model) has the types it should."""
    decoder, template, eos = config.get('added_tokens_decoder') or {}, config.get('chat_template'), model.get('eos_token_id')
    named = template if isinstance(template, list) else []
    if not isinstance(decoder, dict) or not all(i.isascii() and i.isdigit() and len(i) < 10 and isinstance(t, dict) and isinstance(t.get('content'), str) for i, t in decoder.items()):
        raise ValueError(f"{path}: added_tokens_decoder of tokenizer_config.json must give each id an object with a text 'content'")
    if not isinstance(template, (str, list, type(None))) or not all(isinstance(t, dict) and isinstance(t.get('name'), str) and isinstance(t.get('template'), str) for t in named):
        raise ValueError(f"{path}: chat_template of tokenizer_config.json must be a text, or a list of objects with a 'name' and a 'template'")
    for key, value in config.items():
        if key.endswith('_token') and isinstance(value, dict) and value and not isinstance(value.get('content'), str):
            raise ValueError(f"{path}: {key} of tokenizer_config.json is {value!r}; it must be a text, or an object with a text 'content'")
    if not all(type(i) is int for i in (eos if isinstance(eos, list) else [] if eos is None else [eos])):
        raise ValueError(f"{path}: eos_token_id is {eos!r}; it must be an id or a list of ids")


class FileTokenizer(Tokenizer):
    """
    What tokenizer.json and its companions say beside the vocabulary: added and special tokens, chat template. files: {name: text}; path is for messages.
    eos_id is the token that ends an answer: tokenizer_config.json's eos_token (<|im_end|>, <|eot_id|> for chat models), else what config.json has.
    pad_id is the file's pad_token, else eos_id: rows are masked by their lengths, so it need not be a token of its own.
    """

    def __init__(self, spec, files, path):
        self.files, self.path = {name: text for name, text in files.items() if name in TOKENIZER_FILES}, path
        special_map, own, model, generation = (parse_json(files.get(name, '{}'), path, name) for name in ('special_tokens_map.json', 'tokenizer_config.json', 'config.json', 'generation_config.json'))
        check_config(special_map | own, model | generation, path)
        config, vocab = special_map | own, spec['model']['vocab'] if isinstance(spec['model']['vocab'], dict) else {}
        template = config.get('chat_template')
        if isinstance(template, list):
            template = {t['name']: t['template'] for t in template}.get('default')
        self.template = files.get('chat_template.jinja', template)
        self.has_chat_template = self.template is not None
        in_config = [t | {'id': int(i)} for i, t in (config.get('added_tokens_decoder') or {}).items()]
        self.added = {t['content']: t for t in in_config + (spec.get('added_tokens') or []) if t['content']}
        self.names = {key: v['content'] if isinstance(v, dict) else v for key, v in config.items() if key.endswith('_token') and isinstance(v, (str, dict)) and v}
        ids = (model | generation).get('eos_token_id')
        text_of = {i: text for text, i in vocab.items()} | {t['id']: t['content'] for t in self.added.values()}
        stops = [text_of[i] for i in (ids if isinstance(ids, list) else [ids]) if i in text_of]
        if 'eos_token' not in self.names and stops:  # of several, the one that the chat template writes; save() keeps it
            self.names['eos_token'] = next((text for text in stops if text in (self.template or '')), stops[0])
            self.files['tokenizer_config.json'] = json.dumps(own | {'eos_token': self.names['eos_token']}, ensure_ascii=False, indent=1)
        for name in self.names.values():  # a token that has such a role is special, marked or not
            if name in self.added or name in vocab:
                self.added[name] = self.added.get(name, {'id': vocab.get(name), 'content': name}) | {'special': True}
        if 'eos_token' in self.names and self.names['eos_token'] not in self.added:
            raise ValueError(f"{path}: the eos_token {self.names['eos_token']!r} of tokenizer_config.json is not in the vocabulary of tokenizer.json")
        self.special_ids = sorted(t['id'] for t in self.added.values() if t.get('special'))
        self.vocab_size = max([*vocab.values(), *(t['id'] for t in self.added.values())], default=-1) + 1
        self.bos_id, self.eos_id, self.pad_id = (self.added[self.names[key]]['id'] if self.names.get(key) in self.added else None for key in ('bos_token', 'eos_token', 'pad_token'))
        self.pad_id = self.eos_id if self.pad_id is None else self.pad_id

    @functools.cached_property
    def compiled_template(self):
        """The template as transformers compiles it, so that it renders the same text."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message):
            raise ValueError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
        environment.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes HTML
        environment.globals |= {'raise_exception': raise_exception, 'strftime_now': lambda form: datetime.now().strftime(form)}
        source = re.sub(r'(\{%[-+]?\s*)generation(\s*[-+]?%\})', r'\1if true\2', self.template)  # this tag only marks the assistant's words
        return environment.from_string(re.sub(r'(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})', r'\1endif\2', source))

    def render_chat(self, messages, add_generation_prompt=True, **variables):
        """messages: [{'role': ..., 'content': ...}, ...] -> the text that the chat template makes of them, as transformers' apply_chat_template. variables: tools, enable_thinking, ..."""
        if not self.has_chat_template:
            raise ValueError(f"{self.path} has no chat template: give one as chat_template.jinja beside it, or do without chat")
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        variables = {'tools': None, 'documents': None} | self.names | variables
        package('jinja2.sandbox', 'a chat template')
        try:
            return self.compiled_template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
        except Exception as e:  # a template is a program of its own, with errors of every kind
            raise ValueError(f"the chat template of {self.path} fails: {type(e).__name__}: {e}") from None

    def chat(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> list[int]:
        """Token ids of render_chat, special tokens recognised."""
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables), special=True)

    def save(self, folder: str) -> None:
        """Write the files that load_tokenizer, and transformers, read back."""
        write_files(folder, self.files)


SPACE = '\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'  # Unicode's; Python's \s has four more
LONG_RUN = re.compile(f'(?<![{SPACE}])[{SPACE}]{{100000}}')


def check_unicode(text):
    """Raises ValueError for half a surrogate pair, which no UTF-8 text holds."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"character {text[e.start]!r} at position {e.start} is half a surrogate pair: this is not Unicode text") from None


def matcher(contents):
    """Finds any of contents in a text, the longest first; None when there are none."""
    return re.compile('|'.join(map(re.escape, sorted(contents, key=len, reverse=True)))) if contents else None


def guard(value, special, mark):
    """A copy of value with `mark` behind each character of every special token that occurs in its strings."""
    if isinstance(value, str):
        return special.sub(lambda match: ''.join(c + mark for c in match.group()), value)
    if isinstance(value, dict):
        return {key: guard(v, special, mark) for key, v in value.items()}
    return [guard(v, special, mark) for v in value] if isinstance(value, (list, tuple)) else value


class BPETokenizer(FileTokenizer):
    """Byte-level BPE, at tiktoken's speed."""

    def __init__(self, spec, files, path, regex, ranks, id_of_rank):
        super().__init__(spec, files, path)
        self.id_of_rank, self.nfc = id_of_rank, spec.get('normalizer') is not None
        self.encoding = package('tiktoken', 'a byte-pair vocabulary').Encoding(path, pat_str=regex, mergeable_ranks=ranks, special_tokens={})
        self.unknown_bytes = bytes(b for b in range(256) if bytes([b]) not in ranks)
        self.bytes_of = {i: bytes(BYTE_OF[c] for c in token) if BYTE_OF.keys() >= set(token) else token.encode() for token, i in spec['model']['vocab'].items()}
        self.bytes_of |= {t['id']: t['content'].encode() for t in self.added.values()}
        # 'normalized' tokens are looked for after the others, in the text as the normalizer leaves it
        self.raw_added, self.normalized_added = (matcher([c for c, t in self.added.items() if bool(t.get('normalized')) == which]) for which in (False, True))
        self.special = matcher([c for c, t in self.added.items() if t.get('special')]) or re.compile('(?!)')
        self.all_special = all(t.get('special') for t in self.added.values())

    def cut_added(self, regex, text, special):
        """text as (plain text, id of the added token that follows it or None)."""
        done = 0
        for match in regex.finditer(text) if regex and (special or not self.all_special) else ():
            token = self.added[match.group()]
            if token.get('special') and not special:
                continue
            plain = text[done:match.start()]
            yield plain.rstrip(SPACE) if token.get('lstrip') else plain, token['id']
            done = match.end()
            while token.get('rstrip') and done < len(text) and text[done] in SPACE:
                done += 1
        yield text[done:], None

    def encode_plain(self, text):
        """Ids of a text without added tokens."""
        data = text.encode()
        unknown = self.unknown_bytes and len(data.translate(None, self.unknown_bytes)) < len(data)
        if unknown or len(text) > 100000 and LONG_RUN.search(text):
            # Rare: a byte without a token is left out, as transformers does; and tiktoken's regex overflows its stack on a million spaces.
            import regex  # comes with tiktoken
            pieces = [piece.encode().translate(None, self.unknown_bytes) for piece in regex.findall(self.encoding._pat_str, text)]
            ranks = [rank for piece in pieces if piece for rank in self.encoding._encode_single_piece(piece)]
        else:
            ranks = self.encoding.encode_ordinary(text)
        id_of_rank = self.id_of_rank
        return [id_of_rank[rank] for rank in ranks]

    def encode(self, text: str, special: bool = False, mark: str = '') -> list[int]:
        """
        Token ids of text; no bos or eos is added. special=False: text that looks like a special token is ordinary text, so a prompt cannot
        smuggle one in; special=True: it is that token. Tokens added without the special flag (Qwen's <think>) are recognised both ways, as in
        transformers. `mark` is a character to leave out (see chat). Raises ValueError for half a surrogate pair, which no UTF-8 text holds.
        """
        check_unicode(text)
        normalize = functools.partial(unicodedata.normalize, 'NFC') if self.nfc else str
        ids = []
        for raw, raw_id in self.cut_added(self.raw_added, text, special):
            for plain, normalized_id in self.cut_added(self.normalized_added, normalize(raw), special):
                ids += self.encode_plain(normalize(plain.replace(mark, '')) if mark else plain)
                ids += [] if normalized_id is None else [normalized_id]
            ids += [] if raw_id is None else [raw_id]
        return ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """The text of ids, special tokens left out unless special=True. Bytes that are not UTF-8 show as U+FFFD; ids beyond the vocabulary (a model's padding rows) as nothing."""
        hidden = () if special else set(self.special_ids)
        return b''.join(self.bytes_of.get(i, b'') for i in map(int, ids) if i not in hidden).decode('utf-8', 'replace')

    def chat(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> list[int]:
        """
        Token ids of render_chat. The template's special tokens are recognised; what looks like one inside a message stays ordinary text:
        such text goes through the template with a private-use character behind each of its characters, and that character is left out when encoding.
        """
        try:
            written = json.dumps([messages, variables], ensure_ascii=False, default=str)
            mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in written)
            messages, variables = guard(messages, self.special, mark), guard(variables, self.special, mark)
        except RecursionError:
            raise ValueError("the chat messages are nested too deep") from None
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables), special=True, mark=mark)


class PackageTokenizer(FileTokenizer):
    """
    Any other tokenizer.json (SentencePiece-type, WordPiece, ...), through the package `tokenizers`. As there, chat takes a special token inside a
    message for one, and special=False does not keep out one that is also an ordinary piece of the vocabulary.
    """

    def __init__(self, spec, files, path):
        tokenizers = package('tokenizers', f"{path}, not a byte-level BPE that this file reads by itself,")
        super().__init__(spec, files, path)
        try:
            self.package = tokenizers.Tokenizer.from_str(files['tokenizer.json'])
        except Exception as e:  # the package raises bare Exceptions
            raise ValueError(f"{path}: the package tokenizers cannot read its tokenizer.json: {e}") from None
        self.package.no_truncation()
        self.package.no_padding()
        self.vocab_size = max(self.package.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, special: bool = False) -> list[int]:
        """As BPETokenizer.encode."""
        check_unicode(text)
        self.package.encode_special_tokens = not special
        try:
            return self.package.encode(text, add_special_tokens=False).ids
        except Exception as e:  # the package raises bare Exceptions: a word that the vocabulary lacks, with no token for such
            raise ValueError(f"the tokenizer of {self.path} cannot read this text: {e}") from None

    def decode(self, ids: list[int], special: bool = False) -> str:
        """As BPETokenizer.decode."""
        return self.package.decode([int(i) for i in ids], skip_special_tokens=not special)

    def token_text(self, i: int) -> str:
        """What it looks like behind another: from the first token decode may take its space."""
        first = self.decode([i], special=True)
        return self.decode([i, i], special=True)[len(first):] or first


# ---------------------------------------------------------------------------------------------------------------------
# from files

def files_of_gguf(path):
    """The tokenizer in a GGUF file's metadata, as {'tokenizer.json': text, 'tokenizer_config.json': text}."""
    from formats.weights import open_gguf  # here, for the scripts in data/ need nothing outside of it

    fields = open_gguf(path).fields
    try:
        read = {key.removeprefix('tokenizer.'): field.contents() for key, field in fields.items() if key.startswith('tokenizer.')}
    except (ValueError, IndexError) as e:  # bytes that are no text, a value that has no parts
        raise ValueError(f"{path}: the metadata of its tokenizer cannot be read: {e}") from None
    if read.get('ggml.model') != 'gpt2' or read.get('ggml.pre') not in list(GGUF_CUTS) or 'ggml.merges' not in read:
        raise ValueError(f"{path} has a tokenizer of type {read.get('ggml.model')!r} with the cut {read.get('ggml.pre')!r}; from GGUF files 'gpt2' is read with {', '.join(GGUF_CUTS)}: give the model's Hugging Face folder")
    pre, tokens = read['ggml.pre'], read.get('ggml.tokens')
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{path}: tokenizer.ggml.tokens must be a list of texts")
    types = read.get('ggml.token_type', [1] * len(tokens))  # 1 normal, 3 control, 4 added by a user, 5 unused
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(f"{path}: tokenizer.ggml.token_type must be a list of as many numbers as there are tokens, {len(tokens)}")
    for key in ('ggml.bos_token_id', 'ggml.eos_token_id', 'ggml.padding_token_id', 'ggml.unknown_token_id'):
        if type(read.get(key, 0)) is not int or not 0 <= read.get(key, 0) < max(len(tokens), 1):
            raise ValueError(f"{path}: tokenizer.{key} is {read[key]!r}; it must be one of the {len(tokens)} tokens")
    added = [{'id': i, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': kind == 3}
             for i, (token, kind) in enumerate(zip(tokens, types)) if kind in (3, 4)]
    byte_level = GPT2_STEP | {'use_regex': pre in ('gpt-2', 'smollm')}
    spec = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added, 'normalizer': {'type': 'NFC'} if pre == 'qwen2' else None,
            'pre_tokenizer': GGUF_CUTS[pre], 'post_processor': None, 'decoder': byte_level,
            'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
                      'ignore_merges': pre == 'llama-bpe', 'vocab': {token: i for i, (token, kind) in enumerate(zip(tokens, types)) if kind != 5}, 'merges': read['ggml.merges']}}
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False} | {
        name: tokens[read[key]] for name, key in (('bos_token', 'ggml.bos_token_id'), ('eos_token', 'ggml.eos_token_id'), ('pad_token', 'ggml.padding_token_id'), ('unk_token', 'ggml.unknown_token_id'))
        if key in read} | ({'chat_template': read['chat_template']} if 'chat_template' in read else {})
    return {'tokenizer.json': json.dumps(spec, ensure_ascii=False), 'tokenizer_config.json': json.dumps(config, ensure_ascii=False, indent=1)}


def tokenizer_from_files(files, path):
    spec = parse_json(files['tokenizer.json'], path, 'tokenizer.json')
    check_spec(spec, os.path.join(path, 'tokenizer.json'))
    regex = cutting_regex(spec)
    if regex:
        added = {t['content'] for t in spec.get('added_tokens') or []}
        try:
            ranks = byte_ranks(spec['model']['vocab'], spec['model']['merges'], added, spec['model'].get('ignore_merges'))
        except ValueError as e:
            raise ValueError(f"{os.path.join(path, 'tokenizer.json')}: {e}") from None
        if ranks:
            return BPETokenizer(spec, files, path, regex, *ranks)
    return PackageTokenizer(spec, files, path)


def load_tokenizer(path: str) -> Tokenizer:
    """
    The tokenizer at path: a data folder (vocab.json), a Hugging Face folder (tokenizer.json), a .gguf file or a folder with one.
    Raises FileNotFoundError when there is none, ValueError when it cannot be read, ImportError naming a package it needs.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no tokenizer at {path}: no such file or folder")
    if path.endswith('.gguf'):
        return tokenizer_from_files(files_of_gguf(path), path)
    if not os.path.isdir(path):
        raise ValueError(f"{path} is neither a folder with a tokenizer nor a .gguf file")
    names = sorted(os.listdir(path))
    if 'tokenizer.json' in names:
        return tokenizer_from_files({name: read_text(os.path.join(path, name)) for name in TOKENIZER_FILES + ('config.json', 'generation_config.json') if name in names}, path)
    if 'vocab.json' in names:
        vocab = parse_json(read_text(os.path.join(path, 'vocab.json')), path, 'vocab.json')
        if not isinstance(vocab.get('chars'), list):
            raise ValueError(f"{os.path.join(path, 'vocab.json')} has no list 'chars', and there is no tokenizer.json beside it: save the tokenizer with transformers, which writes one")
        return char_tokenizer(vocab, os.path.join(path, 'vocab.json'))
    ggufs = [name for name in names if name.endswith('.gguf')]
    if len(ggufs) == 1:
        return load_tokenizer(os.path.join(path, ggufs[0]))
    if ggufs:
        raise ValueError(f"{path} holds {len(ggufs)} .gguf files ({', '.join(ggufs)}): name one")
    if 'tokenizer.model' in names:
        raise ValueError(f"{path} holds only a SentencePiece file, tokenizer.model: save the tokenizer with transformers, which writes a tokenizer.json")
    raise FileNotFoundError(f"there is no tokenizer in {path}: neither tokenizer.json (Hugging Face) nor vocab.json (characters) nor a .gguf file")
