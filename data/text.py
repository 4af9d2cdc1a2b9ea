"""A corpus of text as two arrays of token ids, train and val, and windows cut from them."""
import importlib
import json
import os

import numpy as np
import torch

from formats.tokenizer import CharTokenizer, load_tokenizer

FOLDER = os.path.dirname(os.path.abspath(__file__))


def folders_that(write, folder=FOLDER):
    """
    The folders under data/ whose prepare.py calls write: 'write_corpus' for texts, 'write_jsonl' for prompts.
    """
    scripts = {name: os.path.join(folder, name, 'prepare.py') for name in sorted(os.listdir(folder))}
    found = {name: script for name, script in scripts.items() if os.path.isfile(script)}
    return [name for name, script in found.items() if write in open(script, encoding='utf-8').read()]


def write_corpus(folder, train_text, val_text, chars):
    """
    What a prepare.py leaves behind: train.bin and val.bin (uint16 ids) and vocab.json. Each appears whole or
    not at all; vocab.json comes last: it says the rest is there.
    """
    tokenizer = CharTokenizer(chars)

    def whole(name):
        return os.path.join(folder, f'{name}.{os.getpid()}.tmp'), os.path.join(folder, name)

    for split, text in (('train', train_text), ('val', val_text)):
        ids = np.array(tokenizer.encode(text), dtype=np.uint16)
        temporary, final = whole(f'{split}.bin')
        ids.tofile(temporary)
        os.replace(temporary, final)
        print(f"{split}: {len(ids):,} characters")
    temporary, final = whole('vocab.json')
    with open(temporary, 'w', encoding='utf-8') as f:
        json.dump({'chars': tokenizer.chars}, f)
    os.replace(temporary, final)


def read_text_file(path):
    """A UTF-8 file's text. Raises ValueError when it is empty or not text."""
    try:
        with open(path, encoding='utf-8') as f:
            text = f.read()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text (byte {e.start}): give a plain text file") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from")
    return text


def split_text(text):
    """The first nine tenths to train on, the rest held out, as nanoGPT splits."""
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def load_corpus(dataset):
    """
    dataset: the name of a folder under data/ (prepared on first use) or the path of any text file.
    Returns (tokenizer, {'train': ids, 'val': ids}) with 1-D uint16 arrays.
    """
    if os.path.isfile(dataset):
        text = read_text_file(dataset)
        tokenizer = CharTokenizer(sorted(set(text)))
        if len(tokenizer.chars) > 1 << 16:
            raise ValueError(f"{dataset} has {len(tokenizer.chars)} different characters, and ids of a "
                             f"corpus have 16 bits: {1 << 16} at most")
        train, val = (np.array(tokenizer.encode(part), dtype=np.uint16) for part in split_text(text))
        return tokenizer, {'train': train, 'val': val}
    folder = os.path.join(FOLDER, dataset)
    if dataset not in folders_that('write_corpus') and not os.path.isfile(os.path.join(folder, 'vocab.json')):
        why = "is neither a text file nor a folder with one under data/; there are"
        if dataset in folders_that('write_jsonl'):
            why = "has prompts to answer and no text to fill in (--task=completion takes it); texts are"
        raise FileNotFoundError(f"dataset {dataset!r} {why}: {', '.join(folders_that('write_corpus'))}")
    if not os.path.isfile(os.path.join(folder, 'vocab.json')):
        print(f"preparing data/{dataset}, once")
        importlib.import_module(f'data.{dataset}.prepare').main()
    corpus = {}
    for split in ('train', 'val'):
        corpus[split] = np.fromfile(os.path.join(folder, f'{split}.bin'), dtype=np.uint16)
    for split, ids in corpus.items():
        if len(ids) == 0:
            raise ValueError(f"data/{dataset}/{split}.bin is empty: delete data/{dataset}/vocab.json and "
                             "run again to prepare it anew")
    return load_tokenizer(folder), corpus


def dataset_name(dataset):
    """A short name for file names: 'stdlib_char', or 'moby' for books/moby.txt."""
    return os.path.splitext(os.path.basename(dataset.rstrip('/')))[0]


def random_windows(ids, n, length, generator):
    """
    n windows (n, length) int64 from random places of ids. Raises ValueError when ids is too short for one.
    """
    if len(ids) < length:
        raise ValueError(f"the data set has a split of {len(ids)} characters, fewer than one text of "
                         f"block_size {length}: give more text or a smaller block_size")
    starts = torch.randint(len(ids) - length + 1, (n,), generator=generator).numpy()
    return torch.from_numpy(ids[starts[:, None] + np.arange(length)].astype(np.int64))
