"""
Residual vectors after one of a model's blocks at random places of a corpus, with the tokens that led up to
each, in a folder: header.json and, for train and val (other documents), train.npy (n, width),
train_contexts.npy and train_where.npy (document, position); and vectors from other files.
"""
import json
import os
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file

from data.prompts import held_out_split, load_prompts
from formats.text_files import read_json, replacing, write_text
from nla import Activations, standardiser, truncate
from runtime.checkpoint import load_pt
from runtime.console import over, say
from runtime.made import content_of, content_of_path, recipe_for

READERS = {'.npy': partial(np.load, mmap_mode='r'), '.pt': load_pt, '.safetensors': load_file}


def load_documents(dataset, column_mapping=None):
    """{'train': texts, 'val': texts}: the prompts of a data set; of a file, one in ten is held out."""
    records = load_prompts(dataset, column_mapping)
    if os.path.isfile(dataset):
        records, held_out = held_out_split(records, max(1, len(records) // 10), 0)
    else:
        held_out = load_prompts(dataset, column_mapping, split='val')
    return {'train': [r['prompt'] for r in records], 'val': [r['prompt'] for r in held_out]}


def draw_places(documents, n, min_position, split, seed):
    """(n, 2): document and position of different random places, from min_position on; all where n is more."""
    counts = [max(0, len(ids) - min_position) for ids in documents]
    document = np.repeat(np.arange(len(documents), dtype=np.int32), counts)
    if not len(document):
        raise ValueError(f"none of the {len(documents)} documents of split {split!r} is longer than "
                         f"{min_position} tokens: take a shorter context or longer texts")
    position = np.concatenate([np.arange(count, dtype=np.int32) + min_position for count in counts])
    rng, n = np.random.default_rng([seed, split == 'val']), min(n, len(document))
    chosen = np.sort(rng.choice(len(document), n, replace=False))
    chosen = chosen[np.random.default_rng(seed).permutation(n)]
    return np.stack((document[chosen], position[chosen]), axis=1)


@torch.no_grad()
def extract_activations(trunk, documents, places, context, path):
    """
    What trunk (see nla.truncate) puts out at places (n, 2) of documents (lists of token ids), each seeing
    `context` tokens up to its own: vectors (n, A), which lie in {path}.npy beside contexts and places.
    """
    n, device = len(places), trunk.wte.weight.device
    vectors = np.lib.format.open_memmap(f'{path}.npy', 'w+', np.float32, (n, trunk.config.n_embd))
    contexts = np.zeros((n, context), dtype=np.int32)
    for i, (document, position) in enumerate(places):
        contexts[i] = documents[document][position + 1 - context:position + 1]
    for start in over(f'activations, {os.path.basename(path)}', range(0, n, 256)):
        part = slice(start, start + 256)
        hidden = trunk(torch.from_numpy(contexts[part]).long().to(device))
        vectors[part] = hidden[:, -1].float().cpu().numpy()
    vectors.flush()
    check_finite(vectors, f'{path}.npy')
    np.save(f'{path}_contexts.npy', contexts)
    np.save(f'{path}_where.npy', places)
    return vectors


def layer_of(cfg, n_layer):
    """The block whose residuals are meant."""
    return round(2 / 3 * n_layer) if cfg.activation_layer is None else cfg.activation_layer


def activations_recipe(cfg, documents, source, n_layer):
    return recipe_for('activations', 1, f'{source} reading {cfg.dataset}', cfg, 'activations_n',
                      'activation_context', 'seed', 'eval_prompts_n', data=content_of(documents),
                      source=content_of_path(source), activation_layer=layer_of(cfg, n_layer))


def write_activations(model, tokenizer, documents, cfg, out, recipe):
    """The folder `out`, whole or not at all, of places where the context is full."""
    layer, context, vectors = layer_of(cfg, model.config.n_layer), cfg.activation_context, {}
    header = {'layer': layer, 'width': model.config.n_embd, 'context': context,
              'vocab_size': tokenizer.vocab_size}
    trunk = truncate(model, layer)
    with replacing(out.rstrip('/')) as folder:
        os.makedirs(folder)
        if recipe:
            write_text(os.path.join(folder, 'recipe.json'), json.dumps(recipe, indent=1))
        for split, count in (('train', cfg.activations_n), ('val', cfg.eval_prompts_n)):
            ids, path = [tokenizer.encode(text) for text in documents[split]], os.path.join(folder, split)
            places = draw_places(ids, count, context - 1, split, cfg.seed)
            vectors[split] = extract_activations(trunk, ids, places, context, path)
            header[f'n_{split}'] = len(places)
        mean, header['scale'] = standardiser(vectors['train'])
        header['mean'] = mean.tolist()
        write_text(os.path.join(folder, 'header.json'), json.dumps(header, indent=1))
    counts = f"{header['n_train']:,} to train on, {header['n_val']:,} of other documents"
    say(f"{out}: activations after block {layer}, {counts}")


def load_activations(path):
    """(header, {'train': Activations, 'val': Activations}) of a folder that write_activations made."""
    splits, remedy = {}, "delete the folder to have it made anew"
    try:
        header = read_json(os.path.join(path, 'header.json'))
        for split in ('train', 'val'):
            files = [os.path.join(path, f'{split}{name}.npy') for name in ('', '_contexts')]
            splits[split] = Activations(*(np.load(file, mmap_mode='r') for file in files))
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} lacks a file, or one is torn or no array ({e}): {remedy}") from None
    for split, part in splits.items():
        check_finite(part.vectors, os.path.join(path, f'{split}.npy'))
        n, shape = len(part.contexts), part.vectors.shape
        if shape != (n, header['width']):
            raise ValueError(f"{path}/{split}.npy is {shape} and must be {n, header['width']}: {remedy}")
    return header, splits


def read_vectors(path):
    """Vectors (n, A) or (n, K, A) fp32 of a file that holds one tensor. Raises ValueError naming the file."""
    suffix = os.path.splitext(path)[1]
    if suffix not in READERS:
        raise ValueError(f"{path}: a file of activations is .npy, .pt or .safetensors")
    try:
        tensor = READERS[suffix](path)
        if isinstance(tensor, dict):
            if len(tensor) != 1:
                raise ValueError(f"it holds {len(tensor)} tensors ({', '.join(list(tensor)[:5])}), not one")
            tensor, = tensor.values()
        if isinstance(tensor, torch.Tensor):
            tensor = tensor.float()  # numpy has no bfloat16
        vectors = np.asarray(tensor, dtype=np.float32)
    except Exception as e:
        raise ValueError(f"{path}: {' '.join(str(e).split())[:200]}") from None
    if vectors.ndim not in (2, 3):
        raise ValueError(f"{path} has shape {vectors.shape}; it must be (how many, width), or with several "
                         "vectors to a prompt (how many, vectors, width)")
    check_finite(vectors, path)
    return vectors


def check_finite(vectors, path):
    """Raises ValueError naming the first of vectors (n, ...) with a NaN or an infinity in it."""
    with np.errstate(invalid='ignore'):
        sums = vectors.sum(axis=tuple(range(1, vectors.ndim)), dtype=np.float64)  # takes no more memory
    wrong = ~np.isfinite(sums)
    if wrong.any():
        raise ValueError(f"{path}: activation {wrong.argmax()} is NaN or infinite")
