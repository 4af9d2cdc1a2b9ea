"""
What a model thinks at random places of a corpus: raw residual vectors after one of its blocks, with the tokens that led up to each.
$ python data/activations/prepare.py --generator_checkpoint=path/to/model --dataset=my.jsonl --out=out-nla/activations
writes header.json and, for train and val (other documents), train.npy (n, width), train_contexts.npy, train_lengths.npy and train_where.npy (document,
position). train_grpo.py with --task=nla does this itself for a folder that does not exist yet.
"""
import json
import os
import shutil
import sys

if __name__ == '__main__':
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
from runtime.checkpoint import tokenizer_of
from runtime.console import say
from data.prompts import held_out_split, load_prompts
from model import GPT
from nla import extract_activations, load_activations, standardiser


def load_documents(dataset, column_mapping=None):
    """{'train': texts, 'val': texts}: the 'prompt' of each record of a data set (see load_prompts), a file split by document, one in ten held out."""
    records = load_prompts(dataset, column_mapping)
    if os.path.isfile(dataset):
        records, held_out = held_out_split(records, max(1, len(records) // 10), 0)
    else:
        held_out = load_prompts(dataset, column_mapping, split='val')
    return {'train': [r['prompt'] for r in records], 'val': [r['prompt'] for r in held_out]}


def write_activations(model, tokenizer, documents, out, layer=None, n=20000, n_val=1000, context=32, min_position=None, dtype='float32', seed=1, source=''):
    """The folder `out`, whole or not at all. layer None: two thirds up. min_position None: the first with a full context. dtype: 'float32' or 'float16'."""
    if os.path.exists(out):
        raise FileExistsError(f"{out} is there already: delete it, or name another folder")
    if dtype not in ('float32', 'float16'):
        raise ValueError(f"activation_dtype is {dtype!r}; it must be float32 or float16")
    layer = round(2 / 3 * model.config.n_layer) if layer is None else layer
    folder = f'{out.rstrip("/")}.tmp'
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    header = {'source': source, 'layer': layer, 'width': model.config.n_embd, 'context': context, 'dtype': dtype, 'vocab_size': tokenizer.vocab_size}
    for split, count in (('train', n), ('val', n_val)):
        ids = [tokenizer.encode(text) for text in documents[split]]
        header[f'n_{split}'] = extract_activations(model, ids, layer, count, context, context - 1 if min_position is None else min_position, folder, split, dtype, seed)
    def write_header():
        with open(os.path.join(folder, 'header.json'), 'w', encoding='utf-8') as f:
            json.dump(header, f, indent=1)

    write_header()
    mean, header['scale'] = standardiser(load_activations(folder)[1]['train'].vectors)
    header['mean'] = mean.tolist()
    write_header()
    os.rename(folder, out)
    say(f"{out}: {header['n_train']:,} activations after block {layer} to train on, {header['n_val']:,} of other documents")


def main():
    """What --dataset=activations would call."""
    raise ValueError("data/activations makes activations, it holds no texts: name a corpus as the dataset, and the folder of activations in `activations`")


if __name__ == '__main__':
    from runtime.config import configure
    generator_checkpoint = 'out-pydoc_topics/generator.pt'  # the model: ours, a Hugging Face directory, a .gguf file
    dataset = 'pydoc_topics'                                # documents: a folder under data/, or a file whose lines or records are texts
    column_mapping: dict | None = None                      # {'text': 'prompt'}
    out = 'out-pydoc_topics/activations'
    activation_layer: int | None = None                     # after this block; None: two thirds up
    activations_n = 20000
    eval_prompts_n = 1000
    activation_context = 32                                 # tokens that the model sees, up to and with the place
    min_position: int | None = None                         # the first place in a document; None: where the context is full
    activation_dtype = 'float32'                            # 'float16' halves the file
    seed = 1
    device = 'cpu'
    configure(globals())
    model = GPT.from_pretrained(generator_checkpoint).to(device).eval()
    write_activations(model, tokenizer_of(generator_checkpoint), load_documents(dataset, column_mapping), out, activation_layer, activations_n, eval_prompts_n,
         activation_context, min_position, activation_dtype, seed, generator_checkpoint)
