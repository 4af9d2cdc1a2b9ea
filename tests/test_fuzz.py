"""
What comes from outside, spoiled in thousands of ways: it is read as it is, or refused in one line that a user can act on. Nothing else
comes out of the depths, nothing hangs, and no header that lies makes anything allocate. The inputs are the same in every run; a failure
prints the smallest one that was found.
"""
import contextlib
import copy
import http.client
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import types
import urllib.error
import zipfile
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

from data.activations import read_vectors
from data.prompts import encode_prompts, held_out_split, load_prompts
from data.text import load_corpus
from formats import weights
from formats.tokenizer import CharTokenizer, load_tokenizer
from judge import Judge, ScoreModel, TextScorer
from model import GPT, GPTConfig
from runtime.checkpoint import load_checkpoint, save_checkpoint, tokenizer_of
from runtime.config import (
    check,
    one_line_errors,
    read_arguments,
    read_config_file,
    read_keys,
)
from runtime.lora import add_lora, load_adapter, save_adapter
from runtime.scorer import ScorerClient, ScorerServer, ScorerUnavailable

ALL = 'ALL_INPUTS' in os.environ


def inputs(n):
    """n inputs, the same each time, of which the quick suite takes a fifth; nothing is kept on the disk."""
    n = n if ALL else n // 5
    return settings(max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def too_long(*_):
    raise AssertionError("it hangs")


@pytest.fixture(autouse=True)
def bounds():
    """
    No more than 1 GB beyond what the process has, and in read_cleanly 5 s of its own time for an input: what believes a header that lies
    fails here, and not in the machine.
    """
    pages = int(open('/proc/self/statm').read().split()[0]) if os.path.exists('/proc/self/statm') else None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), hard))
    before = signal.signal(signal.SIGPROF, too_long)
    yield
    signal.signal(signal.SIGPROF, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_cleanly(read, *names):
    """
    (True, read()) or (False, message). It fails unless the error is one that configurator prints in one line, without a traceback, that
    holds one of names, and unless memory was not what stopped it.
    """
    signal.setitimer(signal.ITIMER_PROF, 5)
    try:
        return True, read()
    except (ValueError, FileNotFoundError, ImportError, ScorerUnavailable) as e:
        signal.setitimer(signal.ITIMER_PROF, 0)
        printed, error = io.StringIO(), e
        with contextlib.redirect_stderr(printed):
            one_line_errors(type(e), e, e.__traceback__)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    line = printed.getvalue()
    if not (line.startswith('error: ') and line.count('\n') == 1 and line.endswith('\n') and len(line) < 2100):
        raise AssertionError(f"not one line for a user, but: {line}") from error
    assert any(name in line for name in names), line
    assert not re.search(r'(?i)allocat|out of memory|MemoryError|cannot map', line), line
    return False, line


def write(path, content):
    with open(path, 'wb') as f:
        f.write(content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass'))
    return str(path)


# -----------------------------------------------------------------------------
# spoiled values

ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        1.5,
        float('nan'),
        float('inf'),
        -float('inf'),
        2**31,
        2**63,
        2**64 + 1,
        10**30,
        '',
        ' ',
        'a',
        '\n',
        'x' * 3000,
        '\x1b[2J',
        '\u2028',
        '0',
        '-1',
        '²',
        [],
        {},
        [[]],
        [None],
        [0],
        ['a'],
        ['a', 'b', 'c'],
        {'content': 1},
        {'a': None},
        {'type': 'Sequence'},
        [{}],
        [[1]],
        [{'content': 'a', 'role': 'user'}],
        {'a': {'a': [1, {'id': -1}]}},
    ]
)


def places(value, path=()):
    """The paths of all values within nested dicts and lists; of long ones the first few."""
    found = [path]
    for key in list(value)[:40] if isinstance(value, dict) else range(min(len(value), 10)) if isinstance(value, list) else ():
        found += places(value[key], path + (key,))
    return found


@st.composite
def spoiled(draw, whole):
    """A JSON value with one to three of its parts taken out, replaced, doubled, or put under another name."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = copy.deepcopy(draw(ODD))
            continue
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        what = draw(st.sampled_from(['replace', 'replace', 'remove', 'rename', 'double']))
        if what == 'remove':
            del inner[path[-1]]
        elif what == 'replace':
            inner[path[-1]] = copy.deepcopy(draw(ODD))
        elif isinstance(inner, list):
            inner.append(copy.deepcopy(inner[path[-1]]) if what == 'double' else copy.deepcopy(draw(ODD)))
        else:
            inner[draw(st.sampled_from(list(inner)[:40] + ['', '\n', '\u00e9', 'unheard-of']))] = copy.deepcopy(inner[path[-1]])
    return value


# What no json.dumps writes, put into the text of what it wrote: each is a text that replaces another.
TEXT_FAULTS = [
    ('1', '9' * 5000),
    ('1', '-' + '9' * 5000),
    ('1', '1e999'),
    ('[', '[' * 100_000),
    ('{', '{"a":' * 100_000),
    ('"a', '"\\ud800a'),
    ('"', '"\\udfff\\ud83d'),
    ('"', '"\x00'),
    ('"', '"\ufeff'),
    (':', ''),
    ('}', ''),
    (',', ',,'),
    ('"', ''),
    ('1', 'NaN'),
    ('1', '-Infinity'),
    ('"', '"\\'),
    ('{', '{"a": 1, "a": '),
    ('[', '[' * 600 + ']' * 600 + ', '),
    ('e', '\ud800'),
    ('"a', '"\\u0000a'),
    ('"', '"\r\n'),
]


@st.composite
def spoiled_text(draw, text):
    """A text with one or two faults, or cut, as bytes; some are no UTF-8."""
    for _ in range(draw(st.integers(1, 2))):
        old, new = draw(st.sampled_from(TEXT_FAULTS))
        at = text.find(old, draw(st.integers(0, len(text))))
        at = text.find(old) if at < 0 else at
        if at >= 0:
            text = text[:at] + new + text[at + len(old):]
    data = text.encode('utf-8', 'surrogatepass')
    return draw(spoiled_bytes(data)) if draw(st.booleans()) else data


@st.composite
def spoiled_bytes(draw, data):
    """Bytes cut short, changed in a few places, or with numbers of a header that claim the world."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        what = draw(st.sampled_from(['flip', 'flip', 'cut', 'long', 'zeros', 'drop']))
        if what == 'flip' and data:
            data[at] ^= draw(st.integers(1, 255))
        elif what == 'cut':
            del data[at:]
        elif what == 'long':
            size, number = draw(
                st.sampled_from([(4, 2**31 - 1), (4, 2**32 - 1), (8, 2**40), (8, 2**63 - 1), (8, 2**64 - 1), (8, 10**9), (4, 0), (8, 1)])
            )
            data[at:at + size] = number.to_bytes(size, 'little')
        elif what == 'zeros':
            data[at:at + 16] = bytes(len(data[at:at + 16]))
        else:
            del data[at:at + draw(st.integers(1, 20))]
    return bytes(data)


# -----------------------------------------------------------------------------
# config files and --key=value

KEYS = read_keys("""
lr = 0.1
steps = 10
flag = False
name = 'x'
pair = (1, 2)
items = ['a']
limit: float | None = None
hook: object = None
config = configure(globals())
""")
KINDS = {'lr': float, 'steps': int, 'flag': bool, 'name': str, 'pair': tuple, 'items': list, 'limit': (float, type(None)), 'hook': object}
LITERALS = st.sampled_from(
    [
        '1',
        '0x' + 'f' * 300 + '+1j',
        '1.5',
        '-3',
        'nan',
        '1e999',
        '9' * 5000,
        '0x' + 'f' * 5000,
        '1' + '0' * 400,
        '(1,',
        '[' * 300,
        '(' * 100000,
        '-' * 100000 + '1',
        '{[]: 1}',
        '{{}}',
        '{1: [2]}',
        "'a",
        "'\\ud800'",
        "b'\\xff'",
        "'\\N{nothing}'",
        '\x00',
        '\udc80',
        '\n',
        '1\n2',
        'None',
        'True',
        '...',
        '1+2j',
        '"' * 7,
        "f'{1}'",
        'a.b',
        '#',
        '\\',
        '1_0',
        '٣',
        '',
        '()',
        '[]',
        '{}',
        'set()',
        '\u2028',
        '\x1b[2J',
    ]
)


def assert_of_its_kind(key, value):
    assert isinstance(value, KINDS[key]) and not (KINDS[key] in (int, float) and isinstance(value, bool)), (key, value)


@inputs(600)
@given(
    st.sampled_from([*KEYS, 'stepz', '', 'a\nb', '\x1b[2J']),
    LITERALS | st.text(max_size=12) | st.builds(str.__add__, LITERALS, LITERALS),
    st.sampled_from(['=', '=', '=', '', '==']),
)
def test_overrides(key, text, equals):
    """Whatever stands behind --key= is a value of the key's type, or one line that names the key."""
    argument = f'--{key}{equals}{text}'

    def read():
        (name, (value, _)), = read_arguments([argument], KEYS, dict.fromkeys(KEYS), {'__file__': __file__}).items()
        return name, value

    fine, found = read_cleanly(read, repr(key)[1:-1][:40], '--')
    if fine:
        assert_of_its_kind(*found)


STATEMENTS = st.sampled_from(
    [
        'steps = 2',
        'lr = 1',
        'lr = 10**400',
        'flag = 10**5000',
        'steps = None',
        'name = 5',
        "name = 'a\\nb'",
        'pair = [1]',
        'items = (1,)',
        'limit = 3',
        'hook = print',
        'stepz = 1',
        'import math',
        'def f(): pass',
        'x = 1',
        'raise KeyError',
        "raise ValueError('a\\nb\\n')",
        'assert False',
        '1 / 0',
        'items[0] = 1',
        'def f(): f()\nf()',
        'lr = lr',
        '[' * 300,
        '(' * 3000,
        '-' * 50000 + '1',
        'steps = ' + '9' * 5000,
        'x =',
        '\tpass',
        '  a',
        '\x00',
        '\ud800',
        "'''",
        'class A:\n    def __repr__(self): return 1\nflag = A()',
        'flag = []\nfor _ in range(5000): flag = [flag]',
        'lr = float("nan")',
        "flag = 'x' * 100000",
        "globals()['a\\nb'] = 1",
        '# -*- coding: rot13 -*-',
        '# -*- coding: nonsense -*-',
        'from nowhere import it',
        'return',
        'yield',
        'await x',
        '\ufeff',
        'é = 1',
        'raise UnicodeDecodeError("utf-8", b"a", 0, 1, "no")',
    ]
)


@inputs(400)
@given(st.lists(STATEMENTS | st.text(max_size=10), max_size=4), st.binary(max_size=4), st.booleans())
def test_config_files(tmp_path_factory, statements, more, broken):
    """A config file is a program; one that is none, fails, or sets what is no setting is refused with its name."""
    path = write(
        tmp_path_factory.getbasetemp() / 'fuzzed_config.py',
        '\n'.join(statements).encode('utf-8', 'surrogatepass') + (b'\n' + more if broken else b''),
    )
    fine, found = read_cleanly(
        lambda: {key: check(key, value, KEYS, path) for key, value in read_config_file(path, KEYS).items()}, 'fuzzed_config.py'
    )
    for key, value in found.items() if fine else ():
        assert_of_its_kind(key, value)


# -----------------------------------------------------------------------------
# prompts and texts

def byte_level(letters):
    """A small byte-level BPE as transformers saves it: these bytes, a few merges, two special tokens and a chat template."""
    letters = list(letters)
    merges = [['t', 'h'], ['th', 'e'], ['a', 'n'], ['Ġ', 'the']]
    vocab = {token: i for i, token in enumerate(letters + [left + right for left, right in merges])}
    added = [
        {
            'id': len(vocab) + i,
            'content': content,
            'single_word': False,
            'lstrip': False,
            'rstrip': False,
            'normalized': False,
            'special': True,
        }
        for i, content in enumerate(('<|end|>', '<|start|>'))
    ]
    spec = {
        'version': '1.0',
        'added_tokens': added,
        'normalizer': {'type': 'NFC'},
        'pre_tokenizer': {
            'type': 'Sequence',
            'pretokenizers': [
                {'type': 'Digits', 'individual_digits': True},
                {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
            ],
        },
        'decoder': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'ignore_merges': False, 'vocab': vocab, 'merges': merges},
    }
    config = {
        'eos_token': '<|end|>',
        'pad_token': {'content': '<|end|>'},
        'added_tokens_decoder': {str(t['id']): {'content': t['content'], 'special': True} for t in added},
        'chat_template': "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}",
    }
    return {
        'tokenizer.json': spec,
        'tokenizer_config.json': config,
        'special_tokens_map.json': {'eos_token': '<|end|>'},
        'config.json': {'eos_token_id': len(vocab), 'vocab_size': len(vocab) + 2},
        'generation_config.json': {'eos_token_id': [len(vocab), len(vocab) + 1]},
    }


ALL_BYTES = ''.join(sorted(ByteLevel.alphabet()))
FEW_BYTES = 'theanĠĊ12'  # others are left out of a text: the smaller the file, the likelier a fault hits what matters


def write_folder(folder, files):
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        os.remove(os.path.join(folder, name))
    for name, content in files.items():
        write(os.path.join(folder, name), content if isinstance(content, (bytes, str)) else json.dumps(content))
    return str(folder)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_folder(tmp_path_factory.mktemp('bpe'), byte_level(ALL_BYTES)))


CHAT = [{'role': 'system', 'content': 'short'}, {'role': 'user', 'content': 'a question'}]
RECORDS = [
    {'prompt': 'a 1', 'answer': 1},
    {'prompt': CHAT, 'answer': 'b'},
    {'prompt': 'a 2', 'tests': ['f(1) == 1'], 'more': {'a': [1, 2]}},
]
PROMPT_FILES = st.one_of(
    spoiled({'prompts': RECORDS}).map(json.dumps).map(lambda text: ('.json', text.encode())),
    spoiled(RECORDS).map(
        lambda records: ('.jsonl', '\n'.join(map(json.dumps, records if isinstance(records, list) else [records])).encode())
    ),
    spoiled_text(json.dumps({'prompts': RECORDS})).map(lambda data: ('.json', data)),
    spoiled_text('\n'.join(map(json.dumps, RECORDS))).map(lambda data: ('.jsonl', data)),
    st.tuples(
        st.sampled_from(['.txt', '.json', '.jsonl']),
        st.binary(max_size=30) | st.text(max_size=20).map(lambda text: text.encode('utf-8', 'surrogatepass')),
    ),
)


@inputs(700)
@given(PROMPT_FILES, st.booleans(), st.sampled_from([None, {'prompt': 'prompt'}, {'more': 'prompt'}, {'nothing': 'prompt'}]))
def test_prompt_files(tmp_path_factory, tokenizer, file, chat_template, column_mapping):
    """What load_prompts lets through can be split, encoded and written: nothing is found out later, with an hour of training gone."""
    path = write(tmp_path_factory.getbasetemp() / f'fuzzed_prompts{file[0]}', file[1])
    fine, records = read_cleanly(lambda: load_prompts(path, column_mapping), 'fuzzed_prompts')
    if fine:
        for record in records:
            assert isinstance(record['prompt'], (str, list)) and record['prompt']
            json.dumps(record, ensure_ascii=False).encode()
        read_cleanly(lambda: held_out_split(records, 1, 0), 'cannot hold out')
        fine, found = read_cleanly(lambda: encode_prompts(records, tokenizer, 'be brief ', chat_template), 'prompt ')
        if fine:
            assert all(0 <= i < tokenizer.vocab_size for record in found[0] for i in record['ids'])


@pytest.mark.parametrize('depth', [100, 300, 450, 600, 800, 950, 1000])
def test_nested_prompts(tmp_path, tokenizer, depth):
    """Deep nesting is refused where it is read, or is good for all that follows: each step recurses on its own."""
    nested = '[' * depth + ']' * depth
    for text in (
        '{"prompts": ' + nested + '}',
        '[' + nested + ']',
        '[{"prompt": ' + nested + '}]',
        '["a", {"prompt": [{"role": "user", "content": "a", "more": ' + nested + '}]}, "b"]',
    ):
        fine, records = read_cleanly(partial(load_prompts, write(tmp_path / 'nested.json', text)), 'nested.json')
        if fine:
            held_out_split(records, 1, 0)
            read_cleanly(partial(encode_prompts, records, tokenizer, chat_template=True), 'prompt ')


@inputs(150)
@given(st.binary(max_size=40) | st.text(max_size=30).map(lambda text: text.encode('utf-8', 'surrogatepass')))
def test_corpus_files(tmp_path_factory, data):
    """Any text is a corpus: its characters come back. What is no text is refused by name."""
    path = write(tmp_path_factory.getbasetemp() / 'fuzzed_corpus.txt', data)
    fine, found = read_cleanly(lambda: load_corpus(path), 'fuzzed_corpus.txt')
    if fine:
        characters, corpus = found
        assert characters.decode(corpus['train']) + characters.decode(corpus['val']) == open(path, encoding='utf-8').read()


def test_a_corpus_of_too_many_characters(tmp_path):
    """Ids of a corpus have 16 bits, and Unicode has more characters than that."""
    text = ''.join(chr(c) for c in range(32, 70000) if not 0xd800 <= c < 0xe000)
    fine, message = read_cleanly(lambda: load_corpus(write(tmp_path / 'all.txt', text)), 'all.txt')
    assert not fine and '65' in message


# -----------------------------------------------------------------------------
# tokenizers

def try_tokenizer(folder):
    """Load it and let it do what a run does with it."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode('the 12 an<|end|>\n é', special=True) + tokenizer.encode('<|start|>')
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    for i in (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id):
        assert i is None or type(i) is int and 0 <= i < tokenizer.vocab_size
    tokenizer.decode(range(tokenizer.vocab_size if tokenizer.vocab_size < 500 else 0))
    if tokenizer.has_chat_template:
        tokenizer.chat(CHAT)
    return tokenizer


@inputs(600)
@given(st.data())
def test_tokenizer_folders(tmp_path_factory, data):
    """One of the five files spoiled: the tokenizer works, or the file or key is named."""
    files = byte_level(FEW_BYTES)
    name = data.draw(st.sampled_from(['tokenizer.json'] * 3 + ['tokenizer_config.json'] * 2 + list(files)))
    files[name] = data.draw(spoiled(files[name]) | spoiled(files[name]) | spoiled_text(json.dumps(files[name])))
    if name == 'tokenizer.json' and data.draw(st.booleans()):  # fewer texts in the way of the structure
        files = {name: files[name]}
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_tokenizer', files)
    read_cleanly(lambda: try_tokenizer(folder), 'fuzzed_tokenizer', 'half a surrogate')


OTHER_SPECS = [  # what the package tokenizers reads
    {
        'added_tokens': [],
        'model': {'type': 'WordLevel', 'vocab': {'the': 0, '12': 1, '[UNK]': 2}, 'unk_token': '[UNK]'},
        'pre_tokenizer': {'type': 'Whitespace'},
        'normalizer': None,
        'decoder': None,
    },
    {
        'added_tokens': [
            {'id': 0, 'content': '<unk>', 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
        ],
        'model': {'type': 'Unigram', 'unk_id': 0, 'vocab': [['<unk>', 0.0], ['▁', -1.0], ['t', -2.0], ['the', -1.5]]},
        'pre_tokenizer': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True},
        'normalizer': {'type': 'NFKC'},
        'decoder': {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True},
    },
    {
        'added_tokens': [],
        'model': {
            'type': 'WordPiece',
            'vocab': {'the': 0, '##a': 1, '[UNK]': 2},
            'unk_token': '[UNK]',
            'max_input_chars_per_word': 100,
            'continuing_subword_prefix': '##',
        },
        'pre_tokenizer': {'type': 'BertPreTokenizer'},
    },
]


@pytest.mark.parametrize('spec', OTHER_SPECS)
def test_the_others_are_read_when_they_are_whole(tmp_path, spec):
    """Else the next test would show nothing."""
    pytest.importorskip('tokenizers', reason='not installed: pip install tokenizers')
    assert try_tokenizer(write_folder(tmp_path / 'whole', {'tokenizer.json': spec})).encode('the')


@inputs(200)
@given(st.sampled_from(OTHER_SPECS).flatmap(spoiled))
def test_other_tokenizers(tmp_path_factory, spec):
    """The same through the package tokenizers, whose errors are of no kind."""
    pytest.importorskip('tokenizers', reason='not installed: pip install tokenizers')
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_tokenizer', {'tokenizer.json': spec})
    read_cleanly(lambda: try_tokenizer(folder), 'fuzzed_tokenizer')


@inputs(150)
@given(spoiled({'chars': ['a', 'b', 'c'], 'end': True}))
def test_characters_of_a_file(tmp_path_factory, vocab):
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_tokenizer', {'vocab.json': vocab})
    fine, found = read_cleanly(lambda: load_tokenizer(folder), 'fuzzed_tokenizer')
    if fine:
        assert found.decode(found.encode(''.join(found.chars))) == ''.join(found.chars)


# -----------------------------------------------------------------------------
# models of other programs

FAMILIES = {
    'gpt2': dict(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8, mlp_hidden=12),
    'qwen3': dict(
        vocab_size=11,
        block_size=8,
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        n_embd=8,
        head_dim=4,
        mlp_hidden=12,
        norm='rmsnorm',
        position='rope',
        mlp='swiglu',
        bias=False,
        qk_norm=True,
        tied=False,
    ),
}


@pytest.fixture(scope='module')
def exports(tmp_path_factory):
    """{family: {file name: bytes}} of two tiny models as save_pretrained writes them."""
    torch.manual_seed(0)
    found = {}
    for family, config in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        GPT(GPTConfig(**config)).save_pretrained(str(folder))
        found[family] = {file.name: file.read_bytes() for file in folder.iterdir()}
    return found


def try_model(path):
    """Load it and compute with it: what was accepted has to work."""
    model = GPT.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) < 10_000
    n = min(3, model.config.block_size)
    assert model.logits(torch.arange(n)[None]).shape == (1, n, model.config.vocab_size)
    return model


MODEL_KEYS = {
    'rope_scaling': {
        'rope_type': 'llama3',
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8,
    },
    'use_sliding_window': False,
}
SIZES = st.sampled_from([0, -1, 1, 2, 3, 4, 7, 8, 16, 2 ** 24, 2 ** 31, 2 ** 40, 2 ** 63, 10 ** 30, 10 ** 400, 1e400, 0.5, '8', None, True])


@inputs(300)
@given(st.data())
def test_model_configs(tmp_path_factory, exports, data):
    """config.json spoiled: the model computes, or the file is named with the key, before a plan for 2**63 layers is made."""
    family = data.draw(st.sampled_from(list(FAMILIES)))
    whole = json.loads(exports[family]['config.json'])
    config = whole | (MODEL_KEYS if family == 'qwen3' and data.draw(st.booleans()) else {})
    how = data.draw(st.sampled_from(['keys', 'keys', 'structure', 'text']))
    if how == 'keys':
        keys = [*config, 'head_dim', 'partial_rotary_factor', 'rope_theta', *['rope_scaling', 'rope_parameters', 'architectures'] * 3]
        config |= data.draw(st.dictionaries(st.sampled_from(keys), SIZES | ODD, min_size=1, max_size=3))
    elif how == 'structure':
        config = data.draw(spoiled(config))
    content = data.draw(spoiled_text(json.dumps(config))) if how == 'text' else json.dumps(config)
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_model', exports[family] | {'config.json': content})
    read_cleanly(lambda: try_model(folder), 'fuzzed_model')


def safetensors(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


@inputs(300)
@given(st.data())
def test_safetensors_headers(tmp_path_factory, exports, data):
    """A header that lies about types, shapes and offsets, a file that is torn: one line with the file's name."""
    whole = exports['qwen3']['model.safetensors']
    n = struct.unpack('<Q', whole[:8])[0]
    header, tensors = json.loads(whole[8:8 + n]), whole[8 + n:]
    how = data.draw(st.sampled_from(['tensor', 'structure', 'text', 'bytes', 'bytes']))
    if how == 'tensor':
        name = data.draw(st.sampled_from(sorted(set(header) - {'__metadata__'})))
        key = data.draw(st.sampled_from(['dtype', 'shape', 'data_offsets']))
        header[name][key] = data.draw(
            {
                'dtype': st.sampled_from(['F64', 'F16', 'I8', 'BOOL', 'F8_E4M3', 'nothing', None]),
                'shape': st.lists(SIZES, max_size=3),
                'data_offsets': st.lists(SIZES, min_size=1, max_size=3),
            }[key]
        )
    elif how == 'structure':
        header = data.draw(spoiled(header))
    whole = (
        data.draw(spoiled_bytes(whole))
        if how == 'bytes'
        else safetensors(data.draw(spoiled_text(json.dumps(header))) if how == 'text' else header, tensors)
    )
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_model', exports['qwen3'] | {'model.safetensors': whole})
    read_cleanly(lambda: try_model(folder), 'fuzzed_model')


@inputs(100)
@given(st.data())
def test_safetensors_indexes(tmp_path_factory, exports, data):
    """model.safetensors.index.json names shards beside it and nothing else."""
    files = {'config.json': exports['qwen3']['config.json'], 'shard.safetensors': exports['qwen3']['model.safetensors']}
    names = st.sampled_from(
        ['../shard.safetensors', '/etc/passwd', 'config.json', '', '.', '..', 'a\x00b.safetensors', 'none.safetensors', 'shard.safetensors']
    )
    index = data.draw(
        spoiled({'metadata': {}, 'weight_map': {'model.norm.weight': 'shard.safetensors', 'lm_head.weight': 'shard.safetensors'}})
        | names.map(lambda name: {'weight_map': {'lm_head.weight': name}})
    )
    folder = write_folder(tmp_path_factory.getbasetemp() / 'fuzzed_model', files | {'model.safetensors.index.json': index})
    read_cleanly(lambda: try_model(folder), 'fuzzed_model')


def gguf_text(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack('<Q', len(data)) + data


U32, F32, TEXT, LIST, U64 = 4, 6, 8, 9, 10  # types of a value in a GGUF file


def gguf_value(kind, value):
    if kind == LIST:
        inner, values, *lie = value
        return struct.pack('<IIQ', LIST, inner, *(lie or [len(values)])) + b''.join(gguf_value(inner, v)[4:] for v in values)
    return struct.pack('<I', kind) + (gguf_text(value) if kind == TEXT else struct.pack({U32: '<I', F32: '<f', U64: '<Q'}[kind], value))


def gguf_file(values, tensors, counts=None):
    """A GGUF file of values {key: (type, value)} and tensors {name: (shape as stored, type, offset, bytes)}."""
    head = b'GGUF' + struct.pack('<IQQ', 3, *(counts or (len(tensors), len(values))))
    head += b''.join(gguf_text(key) + gguf_value(*value) for key, value in values.items())
    head += b''.join(
        gguf_text(name) + struct.pack('<I', len(shape)) + struct.pack(f'<{len(shape)}Q', *shape) + struct.pack('<IQ', kind, offset)
        for name, (shape, kind, offset, _) in tensors.items()
    )
    return head + bytes(-len(head) % 32) + b''.join(content + bytes(-len(content) % 32) for *_, content in tensors.values())


def gguf_parts():
    """A tiny Qwen3 and its tokenizer as llama.cpp's converter lays them out."""
    files = byte_level(FEW_BYTES)
    fields = vars(GPTConfig(**FAMILIES['qwen3'] | {'vocab_size': files['config.json']['vocab_size']}))
    vocab = files['tokenizer.json']['model']['vocab']
    values = {'general.architecture': (TEXT, 'qwen3'), 'general.alignment': (U32, 32)}
    for ours, keys in weights.KEYS.items():
        if ours not in ('tied', 'vocab_size'):
            values[f'qwen3.{keys[weights.GGUF]}'] = (F32, fields[ours]) if ours == 'norm_eps' else (U32, fields[ours])
    values |= {
        'qwen3.rope.freq_base': (F32, 1e4),
        'tokenizer.ggml.model': (TEXT, 'gpt2'),
        'tokenizer.ggml.pre': (TEXT, 'qwen2'),
        'tokenizer.ggml.tokens': (LIST, (TEXT, [*vocab, '<|end|>', '<|start|>'])),
        'tokenizer.ggml.token_type': (LIST, (U32, [1] * len(vocab) + [3, 3])),
        'tokenizer.ggml.merges': (LIST, (TEXT, [' '.join(m) for m in files['tokenizer.json']['model']['merges']])),
        'tokenizer.ggml.eos_token_id': (U32, len(vocab)),
        'tokenizer.chat_template': (TEXT, files['tokenizer_config.json']['chat_template']),
    }
    tensors, offset = {}, 0
    with torch.device('meta'):
        state = GPT(GPTConfig(**fields)).state_dict()
    q, kv = (fields[heads] * fields['head_dim'] for heads in ('n_head', 'n_kv_head'))
    for ours, names in weights.layout(fields, weights.GGUF).items():
        if ours not in state:
            continue
        rows = (q, kv, kv) if len(names) == 3 else len(state[ours]) // len(names)
        for name, part in zip(names, state[ours].split(rows), strict=True):
            shape = tuple(part.shape)
            content = struct.pack('<f', 0.5) * int(torch.Size(shape).numel())
            tensors[name] = shape[::-1], 0, offset, content
            offset += len(content) + -len(content) % 32
    return values, tensors


HUGE = st.sampled_from([0, 1, 2, 3, 10, 2 ** 16, 2 ** 31, 2 ** 32 - 1, 2 ** 40, 2 ** 60, 2 ** 63, 2 ** 64 - 1])


LIES = (LIST, (0, [], 2 ** 60)), (LIST, (LIST, [], 2 ** 40)), (LIST, (U64, [1], 10 ** 9))  # as many things as no file holds


@st.composite
def spoiled_gguf(draw, parts):
    values, tensors = dict(parts[0]), dict(parts[1])
    counts = None
    for _ in range(draw(st.integers(1, 2))):
        what = draw(st.sampled_from(['value', 'value', 'value', 'tensor', 'tensor', 'counts', 'raw']))
        if what == 'value':
            key = draw(st.sampled_from(sorted(values)))
            new = draw(
                st.one_of(
                    HUGE.map(lambda n: (U64, n)),
                    st.sampled_from(
                        [
                            (TEXT, ''),
                            (TEXT, 'qwen2'),
                            (TEXT, b'\xff\xfe'),
                            (TEXT, 'a\nb'),
                            (F32, float('nan')),
                            (F32, -1.0),
                            (F32, float('inf')),
                            (LIST, (TEXT, [])),
                            (LIST, (TEXT, ['a', 'b'])),
                            (LIST, (TEXT, ['a b c'])),
                            (LIST, (U32, [])),
                            (LIST, (U32, [1, 2])),
                            (LIST, (LIST, [(U32, [1])])),
                            (LIST, (TEXT, [b'\xff'])),
                            *LIES,
                            *LIES,
                            None,
                        ]
                    ),
                )
            )
            values.pop(key) if new is None else values.update({key: new})
        elif what == 'tensor' and tensors:
            name = draw(st.sampled_from(sorted(tensors, key=str)))
            shape, kind, offset, content = tensors.pop(name)
            change = draw(st.sampled_from(['shape', 'kind', 'offset', 'name', 'away']))
            shape = tuple(draw(st.lists(HUGE, max_size=4))) if change == 'shape' else shape
            kind = draw(st.sampled_from([1, 2, 8, 12, 14, 24, 27, 28, 30, 99, 2 ** 31])) if change == 'kind' else kind
            offset = draw(HUGE) if change == 'offset' else offset
            name = draw(st.sampled_from([b'\xff', '', 'a\nb', 'rope_freqs.weight', 'output_norm.weight'])) if change == 'name' else name
            if change != 'away':
                tensors[name] = shape, kind, offset, content
        elif what == 'counts':
            counts = draw(HUGE), draw(HUGE)
    whole = gguf_file(values, tensors, counts)
    return draw(spoiled_bytes(whole)) if what == 'raw' else whole


def test_the_gguf_that_is_spoiled_is_whole(tmp_path):
    """Else the next test would show nothing."""
    pytest.importorskip('gguf', reason='not installed: pip install gguf')
    path = write(tmp_path / 'whole.gguf', gguf_file(*gguf_parts()))
    assert try_model(path).config.n_layer == 2 and try_tokenizer(path).eos_id == len(FEW_BYTES) + 4


@pytest.mark.filterwarnings('ignore:overflow encountered')
@inputs(350)
@given(spoiled_gguf(gguf_parts()))
def test_gguf_files(tmp_path_factory, content):
    """The model and the tokenizer of a file that lies, each read or refused: gguf alone counts to 2**60 where a header says so."""
    pytest.importorskip('gguf', reason='not installed: pip install gguf')
    path = write(tmp_path_factory.getbasetemp() / 'fuzzed.gguf', content)
    read_cleanly(lambda: GPT.from_pretrained(path), 'fuzzed.gguf')
    read_cleanly(lambda: try_tokenizer(path), 'fuzzed.gguf')


def test_a_gguf_list_longer_than_the_file(tmp_path):
    """2**60 bytes in the header of a file of 60: no reader may go and look for them."""
    pytest.importorskip('gguf', reason='not installed: pip install gguf')
    for kind in (0, 7, LIST, TEXT):
        content = b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + gguf_text('general.architecture') + struct.pack('<IIQ', LIST, kind, 2 ** 60)
        fine, message = read_cleanly(partial(weights.read, write(tmp_path / 'long.gguf', content)), 'long.gguf')
        assert not fine and 'it ends at byte' in message


# -----------------------------------------------------------------------------
# our checkpoints

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The entries of a tiny generator's checkpoint and the file's bytes."""
    model = GPT(GPTConfig(**FAMILIES['gpt2']))
    entries = {
        'kind': 'generator',
        'model': model.state_dict(),
        'model_config': vars(model.config),
        'chars': list('abcdefgh'),
        'quality': {'loss': 1.0},
    }
    path = str(tmp_path_factory.mktemp('checkpoint') / 'whole.pt')
    save_checkpoint(path, entries)
    return entries, open(path, 'rb').read()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return type(a) is type(b) and (a.keys() == b.keys() and all(same(a[key], b[key]) for key in a) if isinstance(a, dict) else a == b)


@inputs(500)
@given(st.data())
def test_checkpoint_bytes(tmp_path_factory, checkpoint, data):
    """A byte changed anywhere, or a file cut anywhere, is refused, or what it holds is untouched: no other weights are ever read."""
    entries, whole = checkpoint
    path = write(tmp_path_factory.getbasetemp() / 'fuzzed.pt', data.draw(spoiled_bytes(whole)))
    fine, found = read_cleanly(lambda: load_checkpoint(path, 'generator'), 'fuzzed.pt')
    assert not fine or same(dict(found), entries)


@inputs(200)
@given(st.data())
def test_checkpoint_configs(tmp_path_factory, checkpoint, data):
    """Any size may be claimed for a model, and any other kind of thing: nothing is allocated for it, and the file is named."""
    entries, _ = checkpoint
    config = dict(entries['model_config'])
    if data.draw(st.booleans()):
        config |= data.draw(st.dictionaries(st.sampled_from([*config, 'unheard-of']), SIZES | ODD, min_size=1, max_size=3))
    else:
        config = data.draw(spoiled(config))
    path = str(tmp_path_factory.getbasetemp() / 'fuzzed.pt')
    kind = data.draw(st.sampled_from(['generator', 'judge', 'reward']))
    torch.save(entries | {'kind': kind, 'model_config': config}, path)
    read = {
        'generator': try_model,
        'judge': lambda path: Judge.from_pretrained(path, CharTokenizer('abcdefgh')),
        'reward': lambda path: ScoreModel.from_pretrained(path, 'reward'),
    }[kind]
    fine, _ = read_cleanly(lambda: read(path), 'fuzzed.pt')
    assert kind == 'generator' or not fine


def test_millions_of_layers(tmp_path, exports, checkpoint):
    """
    A plan, or an empty module, for each of 16 million layers takes minutes and gigabytes: the number is compared with what the file holds
    before that.
    """
    config = json.loads(exports['qwen3']['config.json']) | {'num_hidden_layers': 1 << 24}
    folder, path = write_folder(tmp_path / 'layers', exports['qwen3'] | {'config.json': config}), str(tmp_path / 'layers.pt')
    torch.save(checkpoint[0] | {'model_config': checkpoint[0]['model_config'] | {'n_layer': 1 << 24}}, path)
    for place in (folder, path):
        fine, message = read_cleanly(lambda place=place: try_model(place), 'layers')
        assert not fine and str(1 << 24) in message


@inputs(120)
@given(st.data())
def test_checkpoint_entries(tmp_path_factory, checkpoint, data):
    """Tensors and entries missing, of another kind, or of another shape, whoever asks for them."""
    entries = dict(checkpoint[0])
    tensors = st.sampled_from(
        [
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(8),
            torch.zeros(8, dtype=torch.int64),
            torch.zeros(1).expand(11, 8),
            torch.zeros(2, 2).to_sparse(),
            None,
            'a',
            3,
        ]
    )
    if data.draw(st.booleans()):
        state = dict(entries['model'])
        state[data.draw(st.sampled_from([*state, 'more', 7]))] = data.draw(tensors)
        entries['model'] = state
    else:
        entries[data.draw(st.sampled_from([*entries, 'nla']))] = data.draw(tensors | ODD)
    path = str(tmp_path_factory.getbasetemp() / 'fuzzed.pt')
    torch.save(entries, path)
    fine, _ = read_cleanly(lambda: try_model(path), 'fuzzed.pt')
    read_cleanly(lambda: tokenizer_of(path), 'fuzzed.pt')
    read_cleanly(lambda: Judge.from_pretrained(path, CharTokenizer('abcdefgh')), 'fuzzed.pt')


def stored(path, parts, compression=zipfile.ZIP_STORED):
    """A zip file of {name: bytes}, as torch.save arranges them."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in parts.items():
            archive.writestr(f'whole/{name}', content)
    return str(path)


class Call:
    """Pickled, it calls function(*arguments) when it is read."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_checkpoints_that_would_do_harm(tmp_path, checkpoint):
    """
    A pickle that runs a program or asks for memory, a zip of 100 MB in 100 kB, tensors of a terabyte in a kilobyte: refused, and nothing
    was run.
    """
    with zipfile.ZipFile(io.BytesIO(checkpoint[1])) as archive:
        parts = {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}
    path, mark = str(tmp_path / 'evil.pt'), tmp_path / 'it ran'
    assert load_checkpoint(stored(path, parts), 'generator')['kind'] == 'generator'  # the arrangement is right

    def refused(*words):
        fine, message = read_cleanly(lambda: load_checkpoint(path, 'generator'), 'evil.pt')
        assert not fine and all(word in message for word in words), message
        assert not mark.exists()

    for call in (
        Call(os.system, f"touch '{mark}'"),
        Call(exec, f"open({str(mark)!r}, 'w')"),
        Call(bytearray, 8 << 30),
        Call(torch.Tensor, 2 << 30),
        Call(bytes, 8 << 30),
    ):
        for protocol in (2, 4):
            stored(path, parts | {'data.pkl': pickle.dumps({'kind': 'generator', 'model': call}, protocol)})
            refused()
        write(path, pickle.dumps({'kind': 'generator', 'model': call}, 2))  # and as torch wrote it long ago, without a zip
        refused('not')
    deep = b''.join([b'\x80\x02', b'(' * 200_000, b'l' * 200_000, b'.'])  # lists in lists
    stored(path, parts | {'data.pkl': deep})
    refused()
    number = next(name for name in parts if name.startswith('data/'))
    stored(path, parts | {number: bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert os.path.getsize(path) < 1 << 18
    refused('not the zip file')
    write(path, bytes(100_000))
    refused()
    torch.save({'kind': 'generator', 'model': {'wte.weight': torch.zeros(1).expand(1 << 20, 1 << 20)}}, path)
    refused('claim')
    for prefix in (
        b'#!',
        pickle.dumps(Call(os.system, f"touch '{mark}'"), 2),
        pickle.dumps(Call(bytearray, 8 << 30), 2),
    ):  # zipfile looks from the end, torch from the start
        write(path, prefix + checkpoint[1])
        refused()


def test_activations_that_would_do_harm(tmp_path):
    """A file of vectors in each of its three forms, torn or lying."""
    torch.save(Call(bytearray, 8 << 30), tmp_path / 'a.pt')
    save_file({'a': torch.zeros(3, 4)}, tmp_path / 'a.safetensors')
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64), }"
    write(tmp_path / 'a.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header) + 1) + header + b'\n' + bytes(64))
    assert read_vectors(str(tmp_path / 'a.safetensors')).shape == (3, 4)
    write(tmp_path / 'a.safetensors', (tmp_path / 'a.safetensors').read_bytes()[:-1])
    for name in ('a.pt', 'a.safetensors', 'a.npy'):
        assert not read_cleanly(partial(read_vectors, str(tmp_path / name)), name)[0]


LLAMA = GPTConfig(**FAMILIES['qwen3'] | {'qk_norm': False})


@pytest.fixture(scope='module')
def adapter(tmp_path_factory):
    """{file name: bytes} of a PEFT folder."""
    model, folder = GPT(LLAMA), tmp_path_factory.mktemp('adapter')
    add_lora(model, 2, 4.0)
    save_adapter(model, str(folder))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@inputs(100)
@given(st.data())
def test_adapters(tmp_path_factory, adapter, data):
    """A PEFT folder spoiled: adapters or one line."""
    files, folder = dict(adapter), tmp_path_factory.getbasetemp() / 'fuzzed_adapter'
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = (
        data.draw(spoiled_bytes(files[name])) if 'model' in name else json.dumps(data.draw(spoiled(json.loads(files[name])))).encode()
    )
    write_folder(folder, files)
    read_cleanly(lambda: load_adapter(GPT(LLAMA), str(folder)), 'fuzzed_adapter', 'LoRA')


# -----------------------------------------------------------------------------
# the scorer: its answers, and what it is asked

def answers(body, status=200, headers=()):
    """What stands in for urllib: an answer, or the error that it makes of a status."""
    def opened(request, timeout):
        if status != 200:
            message = http.client.HTTPMessage()
            for key, value in dict(headers).items():
                message[key] = value
            raise urllib.error.HTTPError(request.full_url, status, 'no', message, io.BytesIO(body))
        return io.BytesIO(body)

    return types.SimpleNamespace(open=opened)


GOOD_ANSWER = {'rewards': [0.5, -1.5], 'costs': [1.0, 2]}
NUMBERS = st.lists(
    st.sampled_from([0.5, -1, 2, 1e308, float('nan'), float('inf'), 10**400, -(10**400), True, None, '1', [1.0]]), max_size=3
)


@inputs(800)
@given(
    st.one_of(
        spoiled(GOOD_ANSWER).map(json.dumps),
        st.builds(lambda a, b: json.dumps({'rewards': a, 'costs': b}), NUMBERS, NUMBERS),
        spoiled_text(json.dumps(GOOD_ANSWER)),
        st.binary(max_size=30),
    ),
    st.sampled_from([200] * 8 + [400, 413, 429, 500, 503]),
    st.sampled_from([{}, {'Retry-After': '9' * 400}, {'Retry-After': '-1'}, {'Retry-After': '²'}, {'Retry-After': '٣'}]),
)
def test_answers_of_a_scorer(body, status, headers):
    """Two scores for two texts, finite numbers all, or ScorerUnavailable: no answer is a made-up score."""
    client = ScorerClient('http://scorer.test:1', patience=0.0, token=None)
    client.opener = answers(body.encode('utf-8', 'surrogatepass') if isinstance(body, str) else body, status, headers)
    fine, found = read_cleanly(lambda: client.score(['one', 'two', 'one']), 'scorer.test')
    if fine:
        told = json.loads(body)
        assert (
            status == 200
            and found == tuple([float(told[key][i]) for i in (0, 1, 0)] for key in ('rewards', 'costs'))
            and all(map(torch.isfinite, torch.tensor(found).flatten()))
        )


def test_an_answer_without_end(monkeypatch):
    """A scorer that sends and sends: the client takes what a batch can need, and no more."""
    class Endless(io.RawIOBase):
        def read(self, n=-1):
            assert 0 <= n < 1 << 28, "it would read for ever"
            return b'[' * n

    client = ScorerClient('http://scorer.test:1', patience=0.0, token=None)
    client.opener = types.SimpleNamespace(open=lambda request, timeout: Endless())
    assert not read_cleanly(lambda: client.score(['one']), 'scorer.test')[0]


def test_a_refusal_that_is_torn():
    """A status above 400 whose text breaks off in the middle."""
    class Torn(io.RawIOBase):
        def read(self, n=-1):
            raise http.client.IncompleteRead(b'')

    def opened(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 500, 'no', http.client.HTTPMessage(), Torn())

    client = ScorerClient('http://scorer.test:1', patience=0.0, token=None)
    client.opener = types.SimpleNamespace(open=opened)
    assert not read_cleanly(lambda: client.score(['one']), 'scorer.test')[0]


@pytest.fixture(scope='module')
def service(tmp_path_factory):
    """A scorer service in a thread: (port, what it says to a good request)."""
    torch.manual_seed(0)
    folder, config = tmp_path_factory.mktemp('scorer'), GPTConfig(**FAMILIES['gpt2'] | {'vocab_size': 30})
    for kind in ('reward', 'cost'):
        save_checkpoint(
            str(folder / f'{kind}.pt'),
            {
                'kind': kind,
                'model': ScoreModel(config, kind).state_dict(),
                'model_config': vars(config),
                'chars': list('abcdefghijklmnopqrstuvwxyz'),
                'end': True,
            },
        )
    server = ScorerServer(TextScorer(str(folder / 'reward.pt'), str(folder / 'cost.pt')), max_items=8, max_bytes=1 << 20)
    threading.Thread(target=server.run, daemon=True).start()
    yield server.server_address[1], ask_service(server.server_address[1], '/score_texts', b'{"texts": ["good"]}')
    server.shutdown()


def ask_service(port, path, body, headers=()):
    """(status, answer)"""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    try:
        connection.request('POST', path, body, {'Content-Type': 'application/json'} | dict(headers))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


ASKED = {'/score_texts': {'texts': ['good', 'bad']}, '/score': {'prompts': ['a', 'b'], 'responses': ['c', 'd']}}


@inputs(250)
@given(st.data())
def test_requests_to_the_service(service, data):
    """Each request gets scores, or a status from 400 on with one line that says why; 500, which is for our own mistakes, never."""
    path = data.draw(st.sampled_from(sorted(ASKED)))
    body = data.draw(
        st.one_of(
            spoiled(ASKED[path]).map(lambda value: json.dumps(value).encode()),
            spoiled_text(json.dumps(ASKED[path])),
            st.binary(max_size=30),
        )
    )
    headers = data.draw(st.sampled_from([{}, {}, {}, {'Content-Type': 'nonsense'}, {'Authorization': 'é'}]))
    status, answer = ask_service(service[0], path, body, headers)
    if status == 200:
        assert len(answer['rewards']) == len(answer['costs']) and all(type(x) is float for x in answer['rewards'] + answer['costs'])
    else:
        assert status in (400, 413, 415) and isinstance(answer['error'], str) and len(answer['error']) < 1000, answer


def test_the_service_is_as_before(service):
    """After all that it gives the scores that it gave."""
    assert ask_service(service[0], '/score_texts', b'{"texts": ["good"]}') == service[1]


@pytest.mark.slow
def test_all_inputs():
    """This file once more, with five times as many."""
    command = [sys.executable, '-m', 'pytest', '-n', '0', __file__]
    done = subprocess.run(command, env=os.environ | {'ALL_INPUTS': ''}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
