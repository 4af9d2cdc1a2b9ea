"""A corpus of text as two arrays of token ids, train and val, and windows cut from them."""
import functools
import http.client
import importlib
import json
import os
import re
import urllib.request
from pathlib import Path

import numpy as np
import torch

from formats.text_files import replacing, text_of, write_text
from formats.tokenizer import CharTokenizer, load_tokenizer
from runtime.console import say
from runtime.made import content_of, content_of_path, locked, recipe_of

FOLDER = os.path.dirname(os.path.abspath(__file__))


def folders_that(write, folder=FOLDER):
    """The folders whose prepare.py calls `write`: 'write_corpus' for texts, 'write_splits' for prompts."""
    scripts = sorted(Path(folder).glob('*/prepare.py'))
    return [script.parent.name for script in scripts if write in script.read_text(encoding='utf-8')]


def download(url, dataset, file):
    """The file of that name below data/dataset, fetched from url once. Raises FileNotFoundError."""
    path = os.path.join(FOLDER, dataset, file)
    if os.path.isfile(path):
        return path
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            data = reply.read()
    except (OSError, http.client.HTTPException) as e:
        raise FileNotFoundError(f"could not download {url} ({e}): get it elsewhere and run `python "
                                f"data/{dataset}/prepare.py --path=WHERE_IT_IS`") from None
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as temporary:
        Path(temporary).write_bytes(data)
    return path


def corpus_ids(tokenizer, text):
    return np.array(tokenizer.encode(text), dtype=np.uint16)


def write_corpus(script, chars, train, val, read=()):
    """
    What a prepare.py leaves beside itself: train.bin and val.bin (uint16 ids), and last vocab.json, which
    says that the rest is there. read: the files that it made them from.
    """
    folder, tokenizer = os.path.dirname(os.path.abspath(script)), CharTokenizer(chars)
    for split, text in (('train', train), ('val', val)):
        ids = corpus_ids(tokenizer, text)
        with replacing(os.path.join(folder, f'{split}.bin')) as temporary:
            ids.tofile(temporary)
        print(f"{split}: {len(ids):,} characters")
    write_recipe(script, read)
    write_text(os.path.join(folder, 'vocab.json'), json.dumps({'chars': tokenizer.chars}))


def write_recipe(script, read):
    """recipe.json beside a prepare.py: the contents of the script and of the files that it has read."""
    folder, name = os.path.split(os.path.abspath(script))
    paths = {name: script} | {os.path.abspath(path): path for path in read}
    files = {name: content_of_path(path) for name, path in paths.items() if os.path.exists(path)}
    recipe = {'made': 'data', 'from': files}
    write_text(os.path.join(folder, 'recipe.json'), json.dumps(recipe, indent=1))


def prepare(folder, name, file):
    """
    Call folder/name/prepare.py where `file`, which it writes, is missing; else tell, once, where the script
    or what it has read are others now.
    """
    if not os.path.isfile(file):
        with locked(os.path.join(folder, name)):
            if not os.path.isfile(file):  # else another run has made it meanwhile
                print(f"preparing data/{name}, once")
                importlib.import_module(f'data.{name}.prepare').main()
    tell_what_changed(folder, name)


@functools.cache
def tell_what_changed(folder, name):
    recipe = recipe_of(os.path.join(folder, name))
    if recipe is None:
        say(f"data/{name} has no record of how it was prepared: using it as it is")
        return
    files = {os.path.join(folder, name, path): content for path, content in recipe['from'].items()}
    changed = [path for path in files if os.path.exists(path) and content_of_path(path) != files[path]]
    if changed:
        say(f"data/{name} was prepared before {changed[0]} changed: using it as it is; `python "
            f"data/{name}/prepare.py` prepares it again")


def read_text_file(path):
    """A file's text, see text_of, its lines ended as here."""
    return text_of(path).replace('\r\n', '\n').replace('\r', '\n')


def split_text(text):
    """The first nine tenths to train on, the rest held out, as nanoGPT splits."""
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def load_corpus(dataset):
    """
    dataset: the name of a folder under data/ (prepared on first use) or the path of any text file, packed
    with gzip or not.
    Returns (tokenizer, {'train': ids, 'val': ids}) with 1-D uint16 arrays.
    """
    if os.path.isfile(dataset):
        text = read_text_file(dataset)
        tokenizer = CharTokenizer(sorted(set(text)))
        if len(tokenizer.chars) > 1 << 16:
            raise ValueError(f"{dataset} has {len(tokenizer.chars)} different characters: {1 << 16} at most")
        train, val = (corpus_ids(tokenizer, part) for part in split_text(text))
        return tokenizer, {'train': train, 'val': val}
    folder = os.path.join(FOLDER, dataset)
    if not os.path.isfile(os.path.join(folder, 'vocab.json')):
        texts = folders_that('write_corpus')
        if dataset not in texts:
            raise FileNotFoundError(f"dataset {dataset!r} is no text file, and no text under data/; texts "
                                    f"are: {', '.join(texts)}; prompts want --task=completion")
    prepare(FOLDER, dataset, os.path.join(folder, 'vocab.json'))
    corpus = {}
    for split in ('train', 'val'):
        corpus[split] = np.fromfile(os.path.join(folder, f'{split}.bin'), dtype=np.uint16)
    return load_tokenizer(folder), corpus


def dataset_name(dataset):
    """
    What {dataset} is in a path: the name of a folder under data/; of a file or another folder the path from
    here, with + for /, so that no two share what is made: 'books+moby.txt'.
    """
    if os.path.exists(dataset):
        dataset = os.path.relpath(dataset)
    name = re.sub(r'[^\w.+-]', '_', dataset.rstrip('/').replace('/', '+'))
    return name if len(name) <= 100 else f'{content_of(name)}-{name[-80:]}'


def random_windows(ids, n, length, generator):
    """n windows (n, length) int64 from random places of ids. Raises ValueError when ids is too short."""
    if len(ids) < length:
        raise ValueError(f"a split of the data has {len(ids)} characters, fewer than one text of block_size "
                         f"{length}: give more text or a smaller block_size")
    starts = torch.randint(len(ids) - length + 1, (n,), generator=generator).numpy()
    return torch.from_numpy(ids[starts[:, None] + np.arange(length)].astype(np.int64))
