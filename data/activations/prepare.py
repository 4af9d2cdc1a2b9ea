"""
What a model thinks at random places of a corpus: raw residual vectors after one of its blocks, with the
tokens that led up to each.
$ python data/activations/prepare.py --generator_checkpoint=path/to/model --dataset=my.jsonl --out=out-mine
writes header.json and, for train and val (other documents), train.npy (n, width), train_contexts.npy,
train_lengths.npy and train_where.npy (document, position). train_grpo.py with --task=nla does this itself for
a folder that does not exist yet.
"""
import json
import os
import shutil
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from data.prompts import held_out_split, load_prompts
from model import GPT
from nla import draw_places, extract_activations, load_activations, standardiser
from runtime.checkpoint import tokenizer_of
from runtime.config import configure
from runtime.console import say


def load_documents(dataset, column_mapping=None):
    """
    {'train': texts, 'val': texts}: the 'prompt' of each record of a data set (see load_prompts), a file split
    by document, one in ten held out.
    """
    records = load_prompts(dataset, column_mapping)
    if os.path.isfile(dataset):
        records, held_out = held_out_split(records, max(1, len(records) // 10), 0)
    else:
        held_out = load_prompts(dataset, column_mapping, split='val')
    return {'train': [r['prompt'] for r in records], 'val': [r['prompt'] for r in held_out]}


def write_activations(model, tokenizer, documents, out, cfg, source=''):
    """
    The folder `out`, whole or not at all. cfg: activation_layer (None: two thirds up), activations_n and
    eval_prompts_n, how many to train on and to hold out, activation_context, seed; and perhaps min_position
    (None: the first place with a full context) and activation_dtype, 'float32' or 'float16'.
    """
    dtype, position = getattr(cfg, 'activation_dtype', 'float32'), getattr(cfg, 'min_position', None)
    if os.path.exists(out):
        raise FileExistsError(f"{out} is there already: delete it, or name another folder")
    if dtype not in ('float32', 'float16'):
        raise ValueError(f"activation_dtype is {dtype!r}; it must be float32 or float16")
    layer, context = cfg.activation_layer, cfg.activation_context
    layer = round(2 / 3 * model.config.n_layer) if layer is None else layer
    position = context - 1 if position is None else position
    folder = f'{out.rstrip("/")}.tmp'
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    header = {'source': source, 'layer': layer, 'width': model.config.n_embd, 'context': context,
              'dtype': dtype,
              'vocab_size': tokenizer.vocab_size}
    for split, count in (('train', cfg.activations_n), ('val', cfg.eval_prompts_n)):
        ids = [tokenizer.encode(text) for text in documents[split]]
        places = draw_places(ids, count, position, split, cfg.seed)
        header[f'n_{split}'] = extract_activations(model, ids, layer, places, context, folder, split, dtype)
    write_header(folder, header)
    mean, header['scale'] = standardiser(load_activations(folder)[1]['train'].vectors)
    header['mean'] = mean.tolist()
    write_header(folder, header)
    os.rename(folder, out)
    say(f"{out}: {header['n_train']:,} activations after block {layer} to train on, {header['n_val']:,} of "
        "other documents")


def write_header(folder, header):
    with open(os.path.join(folder, 'header.json'), 'w', encoding='utf-8') as f:
        json.dump(header, f, indent=1)


def main():
    """What --dataset=activations would call."""
    raise ValueError("data/activations makes activations, it holds no texts: name a corpus as the dataset, "
                     "and the folder of activations in `activations`")


if __name__ == '__main__':
    # the model: ours, a Hugging Face directory, a .gguf file
    generator_checkpoint = 'out-pydoc_topics/generator.pt'
    # documents: a folder under data/, or a file whose lines or records are texts
    dataset = 'pydoc_topics'
    column_mapping: dict | None = None                      # {'text': 'prompt'}
    out = 'out-pydoc_topics/activations'
    activation_layer: int | None = None                     # after this block; None: two thirds up
    activations_n = 20000
    eval_prompts_n = 1000
    # tokens that the model sees, up to and with the place
    activation_context = 32
    # the first place in a document; None: where the context is full
    min_position: int | None = None
    activation_dtype = 'float32'                            # 'float16' halves the file
    seed = 1
    device = 'cpu'
    cfg = configure(globals())
    model = GPT.from_pretrained(generator_checkpoint).to(device).eval()
    documents = load_documents(dataset, column_mapping)
    write_activations(model, tokenizer_of(generator_checkpoint), documents, out, cfg, generator_checkpoint)
