"""Corpora: prepared by the scripts a user runs, in a copy of data/."""
import gzip
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from data.text import dataset_name, load_corpus, random_windows
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def prepare(tmp_path):
    shutil.copytree(ROOT / 'data', tmp_path / 'data', ignore=shutil.ignore_patterns('*.bin', 'vocab.json', 'input.txt', '__pycache__'))
    for room in ('formats', 'runtime', 'report'):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns('__pycache__'))

    def prepare(name, *arguments):
        env = {
            **os.environ,
            'https_proxy': 'http://127.0.0.1:9',
            'HTTPS_PROXY': 'http://127.0.0.1:9',
            'no_proxy': '',
        }  # nobody answers there
        done = subprocess.run([PYTHON, str(tmp_path / 'data' / name / 'prepare.py'), *arguments], env=env, capture_output=True, text=True)
        return done, tmp_path / 'data' / name
    return prepare


def test_stdlib(prepare):
    done, folder = prepare('stdlib_char')
    assert done.returncode == 0, done.stderr
    first = {f: (folder / f).read_bytes() for f in ('train.bin', 'val.bin', 'vocab.json')}
    assert len(first['train.bin']) > 10 * 2 * 1000 and len(first['val.bin']) > 2 * 1000
    prepare('stdlib_char')
    assert first == {f: (folder / f).read_bytes() for f in first}  # the same every time


def test_shakespeare_from_a_file_and_without_a_network(prepare, tmp_path):
    text = tmp_path / 'text.txt'
    text.write_text('To be, or not to be.\n' * 10)
    done, folder = prepare('shakespeare_char', f'--path={text}')
    assert done.returncode == 0 and len(np.fromfile(folder / 'train.bin', dtype=np.uint16)) == 189
    done, _ = prepare('shakespeare_char')
    assert (
        done.returncode == 1
        and 'could not download' in done.stderr
        and 'prepare.py --path=' in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    done, _ = prepare('shakespeare_char', f"--path={tmp_path / 'nowhere.txt'}")
    assert done.returncode == 1 and 'nowhere.txt' in done.stderr and len(done.stderr.splitlines()) == 1


def test_any_text_file(tmp_path):
    path = tmp_path / 'moby.txt'
    path.write_text('abc' * 100)
    tokenizer, corpus = load_corpus(str(path))
    assert tokenizer.chars == ['a', 'b', 'c'] and tokenizer.decode(corpus['train']) + tokenizer.decode(corpus['val']) == 'abc' * 100
    assert len(corpus['val']) == 30 and dataset_name(str(path)).endswith('+moby.txt')
    windows = random_windows(corpus['val'], 200, 5, torch.Generator().manual_seed(0))
    assert windows.shape == (200, 5) and {tokenizer.decode(w) for w in windows} == {'abcab', 'bcabc', 'cabca'}
    crlf, packed = tmp_path / 'crlf.txt', tmp_path / 'moby.txt.gz'
    crlf.write_bytes(b'\xef\xbb\xbf' + b'ab\r\nc\r' * 50)
    packed.write_bytes(gzip.compress(crlf.read_bytes()))
    assert load_corpus(str(crlf))[0].chars == load_corpus(str(packed))[0].chars == ['\n', 'a', 'b', 'c']
    path.write_bytes(b'\xff\x00')
    with pytest.raises(ValueError, match='moby.txt is not UTF-8'):
        load_corpus(str(path))
