"""
The tokenizer inside a .gguf file: as a tokenizer.json, and for tiktoken. Byte-level BPE cuts a text by a
regular expression and merges the bytes of each piece in the order of a list.
"""
import json

import tiktoken
import tokenizers

from formats.weights import open_gguf, values_under

# tokenizer.json writes bytes as printable characters
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
UNPRINTABLE = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(UNPRINTABLE)}

# tokenizer.ggml.pre names the regular expression of the model's tokenizer.json
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
# SmolLM2 cuts out each digit before GPT-2's expression, to which a digit is then the end of the text.
SMOLLM = r'\p{N}|' + GPT2.replace(r'| ?\p{N}+', '').replace(r'(?!\S)', r'(?![^\s\p{N}])')
PATTERNS = {'gpt-2': GPT2, 'smollm': SMOLLM, 'llama-bpe': LLAMA3, 'qwen2': QWEN2}

BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type
ROLES = {'bos_token': 'ggml.bos_token_id', 'eos_token': 'ggml.eos_token_id',
         'pad_token': 'ggml.padding_token_id', 'unk_token': 'ggml.unknown_token_id'}
ENDS = ('ggml.eos_token_id', 'ggml.eot_token_id', 'ggml.eom_token_id')  # of a text, a turn, a message


def read_metadata(path):
    """{key: value} of the file's tokenizer, checked. Raises ValueError, ImportError without gguf."""
    told = values_under(open_gguf(path), 'tokenizer.', path)
    kind, pre = told.get('ggml.model'), told.get('ggml.pre')
    if kind != 'gpt2' or pre not in list(PATTERNS):
        raise ValueError(f"{path} has a tokenizer {kind!r} with the pieces {pre!r}, not gpt2 with "
                         f"{', '.join(PATTERNS)}: take the model's Hugging Face folder")
    for key in ('ggml.tokens', 'ggml.merges'):
        texts = told.get(key)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path}: tokenizer.{key} must be a list of texts")
    n = len(told['ggml.tokens'])
    types = told.setdefault('ggml.token_type', [NORMAL] * n)
    if not isinstance(types, list) or len(types) != n:
        raise ValueError(f"{path}: tokenizer.ggml.token_type must be a list of {n} numbers, one a token")
    for key in (*ROLES.values(), *ENDS):
        role = told.get(key, 0)
        if type(role) is not int or not 0 <= role < max(n, 1):
            raise ValueError(f"{path}: tokenizer.{key} is {role!r}; it must be one of the {n} tokens")
    return told


def post_processor(told):
    """What puts a begin or end token around a prompt; llama-bpe begins with one unless the file says no."""
    adds = {'bos_token': told.get('ggml.add_bos_token', told['ggml.pre'] == 'llama-bpe'),
            'eos_token': told.get('ggml.add_eos_token', False)}
    ids = {role: told[ROLES[role]] for role, wanted in adds.items() if wanted and ROLES[role] in told}
    texts = {role: told['ggml.tokens'][i] for role, i in ids.items()}
    parts = {role: {'SpecialToken': {'id': text, 'type_id': 0}} for role, text in texts.items()}
    parts |= {name: {'Sequence': {'id': name, 'type_id': 0}} for name in 'AB'}
    order = [parts[name] for name in ('bos_token', 'A', 'B', 'eos_token') if name in parts]
    single = [part for part in order if part != parts['B']]
    special = {text: {'id': text, 'ids': [ids[role]], 'tokens': [text]} for role, text in texts.items()}
    processor = {'type': 'TemplateProcessing', 'single': single, 'pair': order, 'special_tokens': special}
    return processor if ids else None


def read_vocabulary(path):
    """
    ({file name: text} of a Hugging Face folder, the content of tokenizer.json, the regular expression) of a
    GGUF file. Raises as read_metadata.
    """
    told = read_metadata(path)
    pre, tokens = told['ggml.pre'], told['ggml.tokens']
    kinds = list(enumerate(zip(tokens, told['ggml.token_type'], strict=True)))
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    added = [{'id': i, 'content': token, **flags, 'special': kind == CONTROL}
             for i, (token, kind) in kinds if kind in (CONTROL, USER_DEFINED)]
    split = {'type': 'Split', 'pattern': {'Regex': PATTERNS[pre]}, 'behavior': 'Isolated', 'invert': False}
    model = {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
             'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
             'ignore_merges': pre == 'llama-bpe',
             'vocab': {token: i for i, (token, kind) in kinds if kind != UNUSED},
             'merges': told['ggml.merges']}
    spec = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
            'normalizer': {'type': 'NFC'} if pre == 'qwen2' else None,
            'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [split, BYTE_LEVEL]},
            'post_processor': post_processor(told), 'decoder': BYTE_LEVEL, 'model': model}
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False}
    config |= {role: tokens[told[key]] for role, key in ROLES.items() if key in told}
    if 'chat_template' in told:
        config['chat_template'] = told['chat_template']
    ends = {'eos_token_id': [told[key] for key in ENDS if key in told]}
    files = {'tokenizer.json': json.dumps(spec, ensure_ascii=False),
             'tokenizer_config.json': json.dumps(config, ensure_ascii=False, indent=1),
             'generation_config.json': json.dumps(ends)}
    return files, spec, PATTERNS[pre]


def tiktoken_encoding(spec, pattern, name):
    """
    A tiktoken.Encoding with the ids of spec, a tokenizer.json, or None where it would give others: it merges
    the neighbours whose concatenation has the lowest id. That is the same where ids grow along the merges and
    each token, merged alone from its bytes, ends as itself. A byte without a token has an id beyond the rest.
    """
    vocab, merges = spec['model']['vocab'], [tuple(merge.split(' ')) for merge in spec['model']['merges']]
    made = [''.join(pair) for pair in merges]
    merged = [vocab[token] for token in made]
    bytes_alone = {c: vocab.get(c, len(vocab) + (1 << 24) + b) for c, b in BYTE_OF.items()}
    ranks = bytes_alone | dict(zip(made, merged, strict=True))
    by_merges = tokenizers.models.BPE(vocab, merges)
    ends_as_itself = all(len(by_merges.tokenize(token)) == 1 for token in made)
    ordinary = vocab.keys() - {token['content'] for token in spec['added_tokens']}
    looks_up_others = spec['model']['ignore_merges'] and not ranks.keys() >= ordinary
    odd_bytes = not BYTE_OF.keys() >= set(''.join(ranks))
    if merged != sorted(merged) or not ends_as_itself or looks_up_others or odd_bytes:
        return None
    as_bytes = {bytes(map(BYTE_OF.get, token)): i for token, i in ranks.items()}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=as_bytes, special_tokens={})
