"""
Checkpoints of other programs as plain data: `read` turns a Hugging Face directory, a .gguf file or a hub name
into GPTConfig fields and a state dict under model.py's names, `write` makes a directory that `transformers`
loads. What model.py does not compute is refused by name: a model that loads has the right logits.
"""
import itertools
import json
import os
import re
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from formats.optional import optional
from formats.text_files import first_line, near_path, read_json, replacing, write_text

# What makes a family, in the fields of model.GPTConfig.
ALL = dict(qk_norm=False, causal=True)
LLAMA = ALL | dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, qkv_bias=False)
FAMILIES = {
    'gpt2': ALL | dict(norm='layernorm', position='learned', mlp='gelu', bias=True, qkv_bias=True),
    'llama': LLAMA,
    'qwen2': LLAMA | dict(qkv_bias=True),
    'qwen3': LLAMA | dict(qk_norm=True),
}
ARCHITECTURES = {'gpt2': 'GPT2LMHeadModel', 'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
                 'qwen3': 'Qwen3ForCausalLM'}

# The columns of the next tables: Hugging Face's Llama and Qwen, its GPT-2, and llama.cpp's GGUF.
HF, GPT2, GGUF = range(3)
COLUMN = {'gpt2': GPT2, 'gguf': GGUF}  # all others: HF

KEYS = {  # GPTConfig's sizes -> their keys in config.json and in GGUF's metadata
    'block_size': ('max_position_embeddings', 'n_positions', 'context_length'),
    'vocab_size': ('vocab_size', 'vocab_size', 'vocab_size'),
    'n_layer': ('num_hidden_layers', 'n_layer', 'block_count'),
    'n_head': ('num_attention_heads', 'n_head', 'attention.head_count'),
    'n_kv_head': ('num_key_value_heads', None, 'attention.head_count_kv'),
    'n_embd': ('hidden_size', 'n_embd', 'embedding_length'),
    'head_dim': ('head_dim', None, 'attention.key_length'),
    'mlp_hidden': ('intermediate_size', 'n_inner', 'feed_forward_length'),
    'norm_eps': ('rms_norm_eps', 'layer_norm_epsilon', 'attention.layer_norm_rms_epsilon'),
    'tied': ('tie_word_embeddings', 'tie_word_embeddings', 'tied'),
}
LAYERS = ('model.layers', 'transformer.h', 'blk')  # where their layers lie; ours lie in blocks
NAMES = {  # our modules -> theirs; # is a layer, and what {} lists is stacked by rows into one of ours
    'wte': ('model.embed_tokens', 'transformer.wte', 'token_embd'),
    'wpe': (None, 'transformer.wpe', None),
    '#.norm_1': ('#.input_layernorm', '#.ln_1', '#.attn_norm'),
    '#.attn.qkv': ('#.self_attn.{q,k,v}_proj', '#.attn.c_attn', '#.attn_{q,k,v}'),
    '#.attn.q_norm': ('#.self_attn.q_norm', None, '#.attn_q_norm'),
    '#.attn.k_norm': ('#.self_attn.k_norm', None, '#.attn_k_norm'),
    '#.attn.proj': ('#.self_attn.o_proj', '#.attn.c_proj', '#.attn_output'),
    '#.norm_2': ('#.post_attention_layernorm', '#.ln_2', '#.ffn_norm'),
    '#.mlp.up': ('#.mlp.{gate,up}_proj', '#.mlp.c_fc', '#.ffn_{gate,up}'),
    '#.mlp.proj': ('#.mlp.down_proj', '#.mlp.c_proj', '#.ffn_down'),
    'norm_f': ('model.norm', 'transformer.ln_f', 'output_norm'),
    'lm_head': ('lm_head', 'lm_head', 'output'),
}
HEADS = ('lm_head.', 'score_head.', 'score.', 'normalizer.')  # outside of what NAMES calls model, transformer
# Tensors that may be left over: computed and not learned, or the tied head, stored a second time.
UNUSED = re.compile(r'transformer\.h\.\d+\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq|rope_freqs\.weight'
                    r'|lm_head\.weight')

# What an absent key means; None: model.py's own rule. A key that is not here must be given.
LLAMA_DEFAULTS = {'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6,
                  'tie_word_embeddings': False}
DEFAULTS = {
    'gpt2': {'n_inner': None, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True},
    'llama': LLAMA_DEFAULTS, 'qwen2': LLAMA_DEFAULTS, 'qwen3': LLAMA_DEFAULTS | {'head_dim': 128},
    'gguf': {'attention.head_count_kv': None, 'attention.key_length': None},
}
# Keys that change the arithmetic -> the values model.py computes; the first is written, and meant if absent
QWEN_ONLY = {'hidden_act': ('silu', 'swish'), 'use_sliding_window': (False,)}
ONLY = {
    'gpt2': {'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'scale_attn_weights': (True,),
             'scale_attn_by_inverse_layer_idx': (False,), 'add_cross_attention': (False,)},
    'llama': {'hidden_act': ('silu', 'swish'), 'attention_bias': (False,), 'mlp_bias': (False,)},
    'qwen2': QWEN_ONLY, 'qwen3': QWEN_ONLY | {'attention_bias': (False,)},
    'gguf': {'rope.scaling.type': ('none',), 'rope.scale_linear': (1.0,), 'expert_count': (0,),
             'attention.sliding_window': (0,)},
}
VALUES = {'tied': ((bool,), 'true or false'), 'norm_eps': ((int, float), 'a positive number')}
LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
ADAPTER_CONFIG = 'adapter_config.json'  # of a PEFT folder


def some(names):
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def torn(path, kind, error):
    return ValueError(f"{path} cannot be read as {kind} (torn, or not one): {first_line(error)}")


def local_folder(path):
    """
    The folder or file of that name, or else the local copy of the Hugging Face hub's 'owner/name'. Raises
    FileNotFoundError, ImportError, ConnectionError, ValueError for a folder of ours that is no model's.
    """
    path = os.fspath(path)
    if os.path.isfile(os.path.join(path, 'ckpt.pt')):
        name = 'export' if os.path.isdir(os.path.join(path, 'export')) else 'ckpt.pt'
        raise ValueError(f"{path} is the folder of a run: name {os.path.join(path, name)}")
    if os.path.exists(path):
        return path
    if os.path.basename(path) in ('export', 'adapter'):
        meant = near_path(path) or ": a run makes it at its end, so train it first"
        raise FileNotFoundError(f"there is no {path}{meant}")
    # Where out/ is a folder, a mistyped out/ckpt is no name on the hub.
    on_the_hub = re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', path) and not path.endswith(('.gguf', '.pt'))
    if not on_the_hub or os.path.isdir(path.split('/')[0]):
        hub = "on the Hugging Face hub: owner/name"
        raise FileNotFoundError(f"there is no file or folder {path!r} ({hub}){near_path(path)}")
    hub = optional('huggingface_hub', f"to fetch {path!r} takes a package: pip install huggingface_hub")
    try:
        wanted = ['*.json', '*.safetensors', 'tokenizer.model', 'merges.txt', '*.jinja']
        elsewhere = ['*/*.json', '*/*.safetensors']  # other forms of the model, in folders of their own
        return hub.snapshot_download(path, allow_patterns=wanted, ignore_patterns=elsewhere)
    except Exception as e:
        raise ConnectionError(f"the Hugging Face hub did not give {path!r}: {first_line(e)}") from None


def adapter_base(path):
    """
    The path or hub name of the model that the folder of PEFT adapters at path was made for; None for another
    kind of folder or a file. Raises as local_folder.
    """
    if path.endswith(('.pt', '.gguf')):
        return None
    folder = local_folder(path)
    where = os.path.join(folder, ADAPTER_CONFIG)
    if not os.path.isfile(where):
        return None
    if any(re.fullmatch(r'model.*\.safetensors', name) for name in os.listdir(folder)):  # merged already
        return None
    base = read_json(where).get('base_model_name_or_path')
    if not isinstance(base, str) or not base or os.path.isfile(os.path.join(base, ADAPTER_CONFIG)):
        raise ValueError(f"{where}: base_model_name_or_path is {base!r}; it must name the adapters' model")
    return base


def read(path):
    """
    fields (keyword arguments of GPTConfig) and state (fp32 tensors as GPT.state_dict() names them) of a
    Hugging Face directory, a .gguf file, or the hub's name. Raises as local_folder.
    """
    path = local_folder(path)
    return read_gguf(path) if path.endswith('.gguf') else read_folder(path)


def family_of(config, where, scores):
    listed = config.get('architectures')
    found = (listed[0] if isinstance(listed, list) and listed else None) or config.get('model_type')
    endings = ('Model', 'ForScore', 'ForSequenceClassification') if scores else ('Model',)
    for family, name in ARCHITECTURES.items():
        stem = re.sub('ForCausalLM|LMHeadModel', '', name)
        if found in (family, name, *(stem + ending for ending in endings)):
            return family
    raise ValueError(f"{where}: architecture {found!r} is not among {', '.join(ARCHITECTURES.values())}")


def read_fields(config, family, kind, where):
    """
    GPTConfig's fields from another program's keys (kind: its row of DEFAULTS and ONLY). Raises ValueError
    naming the key that is missing, odd, or asks for what model.py does not compute.
    """
    for key, values in ONLY[kind].items():
        if config.get(key) is not None and config[key] not in values:
            wanted = ' or '.join(map(repr, values))
            raise ValueError(f"{where}: {key} is {config[key]!r}; it must be {wanted}")
    fields, column, defaults = dict(FAMILIES[family]), COLUMN.get(kind, HF), DEFAULTS[kind]
    for ours, keys in KEYS.items():
        key = keys[column]
        value = defaults.get(key) if config.get(key) is None else config[key]
        if value is None and key and key not in defaults:
            raise ValueError(f"{where} lacks {key}")
        types, wanted = VALUES.get(ours, ((int,), 'a positive whole number'))
        fits = type(value) in types and 0 <= value < 1e18 and (value > 0 or ours == 'tied')
        if value is not None and not fits:
            raise ValueError(f"{where}: {key} is {value!r}; it must be {wanted}")
        fields[ours] = value
    fields['n_kv_head'] = fields['n_kv_head'] or fields['n_head']
    fields['head_dim'] = fields['head_dim'] or fields['n_embd'] // fields['n_head']
    return fields


def check_positive(numbers, where=''):
    """Raises ValueError naming the first of {key: value} that is no positive number."""
    for key, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < 1e18:
            raise ValueError(f"{where}{key} is {value!r}; it must be a positive number")


def read_rope(config, where):
    """RoPE as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) writes it, as two fields."""
    rope = config.get('rope_scaling') or config.get('rope_parameters') or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: the rope scaling is {rope!r}; it must be an object in {{...}}")
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind not in ('default', 'llama3'):
        raise ValueError(f"{where}: rope type {kind!r} is not among default, llama3")
    part = rope.get('partial_rotary_factor') or config.get('partial_rotary_factor') or 1.0
    if part != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor is {part!r}; it must be 1.0")
    theta = rope.get('rope_theta') or config.get('rope_theta') or 10000.0
    scaling = {key: rope.get(key) for key in LLAMA3} if kind == 'llama3' else {}
    check_positive({'rope_theta': theta} | scaling, f'{where}: ')
    return dict(rope_theta=float(theta), rope_scaling=scaling or None)


def tensor_files(folder):
    """The *.safetensors that hold the model, as transformers would choose them."""
    present = sorted(os.listdir(folder))
    names = [name for name in present if name.endswith('.safetensors')]
    index = 'model.safetensors.index.json'
    if 'model.safetensors' in names:
        names = ['model.safetensors']
    elif index in present:
        shards = read_json(os.path.join(folder, index)).get('weight_map')
        if not isinstance(shards, dict):
            raise ValueError(f"{folder}: {index} lacks weight_map")
        names = sorted({*map(str, shards.values())})
        absent = [name for name in names if name not in present]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {some(absent)}, named in {index}")
    if not names:
        remedy = "pytorch_model.bin, a pickle, is not read: convert it"
        raise FileNotFoundError(f"{folder} holds no *.safetensors; {remedy}")
    return [os.path.join(folder, name) for name in names]


def open_tensors(files):
    """{name: function that reads it}"""
    tensors = {}
    for file in files:
        try:
            shard = safe_open(file, framework='pt')
        except (SafetensorError, OSError) as e:
            raise torn(file, 'safetensors', e) from None
        tensors |= {name: partial(read_floats, shard, file, name) for name in shard.keys()}
    return tensors


def read_floats(shard, file, name):
    """The tensor of that name. Masks and counts, of other types, are in some files, and are not read."""
    tensor = shard.get_tensor(name)
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{file}: {name} is of type {tensor.dtype}, which is not read")
    return tensor


def open_folder(folder, scores=False):
    """(config.json, fields, column, tensors) of a folder. scores: a head that gives a score may be there."""
    where = os.path.join(folder, 'config.json')
    config = read_json(where)
    family = family_of(config, where, scores)
    fields, column = read_fields(config, family, family, where), COLUMN.get(family, HF)
    if fields['position'] == 'rope':
        fields |= read_rope(config, where)
    tensors = open_tensors(tensor_files(folder))
    first_word = NAMES['wte'][column].partition('.')[0] + '.'
    if not any(name.startswith(first_word) for name in tensors):  # a model saved without its head lacks it
        tensors = {name if name.startswith(HEADS) else first_word + name: tensors[name] for name in tensors}
    return config, fields, column, tensors


def read_folder(folder):
    _, fields, column, tensors = open_folder(folder)
    head, embedding = (tensors.get(f'{NAMES[module][column]}.weight') for module in ('lm_head', 'wte'))
    if fields['tied'] and head and embedding:
        # a head of its own is used, whatever the key says, as in transformers 5
        fields['tied'] = torch.equal(head(), embedding())
    return fields, assemble(fields, column, tensors, folder)


def read_score_model(folder):
    """
    fields (see read), state (as judge.ScoreModel names it) and kind ('reward', 'cost' or None) of a Hugging
    Face model that ends in a score: safe-rlhf's LlamaForScore, whose scores are normalized, or transformers'
    ...ForSequenceClassification with one label.
    """
    config, fields, column, tensors = open_folder(local_folder(folder), scores=True)
    fields['tied'] = True  # it has no head of words
    state = {'score_head.bias': torch.zeros(1), 'mean': torch.tensor(0.0), 'var': torch.tensor(1.0)}
    for name in [name for name in tensors if name.startswith(('score', 'normalizer.'))]:
        head, _, part = name.partition('.')
        read = tensors.pop(name)
        if head != 'normalizer':
            state[f'score_head.{part}'] = read().float()
        elif config.get('do_normalize') and part in state:  # not its count
            state[part] = read().float().squeeze()
    for name, tensor in assemble(fields, column, tensors, folder).items():
        state[f'trunk.{name}'] = tensor
    return fields, state, config.get('score_type')


def is_turned(ours, column):
    """GPT-2's matrices are (in, out) in its blocks, all others (out, in)."""
    return column == GPT2 and ours.startswith('blocks.')


def layout(fields, column):
    """{our tensor: the names of theirs that are stacked by rows in it}, of all that a model may have."""
    plan = {}
    for module, names in NAMES.items():
        if not names[column] or (module == 'lm_head' and fields['tied']):
            continue
        before, *listed = re.split('[{}]', names[column])
        theirs = [before + one + listed[1] for one in listed[0].split(',')] if listed else [before]
        layers = range(fields['n_layer'] if '#' in module else 1)
        for layer, kind in itertools.product(layers, ('weight', 'bias')):
            ours = f'{module}.{kind}'.replace('#', f'blocks.{layer}')
            plan[ours] = [f'{name}.{kind}'.replace('#', f'{LAYERS[column]}.{layer}') for name in theirs]
    return plan


def assemble(fields, column, tensors, where):
    """
    The fp32 state dict out of {their name: function that reads it}. Raises ValueError naming the tensors that
    have no place here, or are part of one of ours whose others are missing. Whether all are there, in the
    right shapes, is checked where the model is built: model.build.
    """
    if fields['n_layer'] > len(tensors):  # before a plan is made for each
        raise ValueError(f"{where} has {len(tensors)} tensors for {fields['n_layer']} layers")
    plan, state = layout(fields, column), {}
    known = set(itertools.chain(*plan.values()))
    extra = [name for name in tensors if name not in known and not UNUSED.fullmatch(name)]
    if extra:
        raise ValueError(f"{where} holds tensors that this architecture has no place for: {some(extra)}")
    for ours, parts in plan.items():
        missing = [name for name in parts if name not in tensors]
        if missing == parts:
            continue
        if missing:
            raise ValueError(f"{where} lacks the tensors {some(missing)}")
        try:
            stacked = torch.cat([tensors[name]() for name in parts])
            state[ours] = (stacked.t() if is_turned(ours, column) else stacked).float().contiguous()
        except (RuntimeError, SafetensorError) as e:
            raise ValueError(f"{where}: {some(parts)} cannot be read into {ours}: {first_line(e)}") from None
    if fields['tied'] and 'wte.weight' in state:
        state['lm_head.weight'] = state['wte.weight']
    return state


def llama3_scaling(divisors, fields, where):
    """
    The scaling that made GGUF's rope_freqs.weight (d/2,), what each frequency is divided by: Llama 3.1, 3.2
    and 3.3 differ in the factor alone. Raises ValueError for any other.
    """
    d, wrong = fields['head_dim'], ValueError(f"{where}: rope_freqs.weight is not the scaling of Llama 3.1")
    if divisors.shape != (d // 2,) or d < 2:
        raise wrong
    factor = divisors.max().item()
    turns = 8192 / (2 * torch.pi) * fields['rope_theta'] ** -(torch.arange(0, d, 2) / d)
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    if not torch.allclose(divisors, 1 / (smooth + (1 - smooth) / factor), rtol=1e-3):
        raise wrong
    return dict(zip(LLAMA3, (factor, 1.0, 4.0, 8192), strict=True))


def decode(tensor, heads, where):
    """A tensor of a GGUF file in fp32. heads: how many it has if its rows are interleaved, else None."""
    from gguf.quants import dequantize
    try:
        w = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    except NotImplementedError:
        raise ValueError(f"{where}: gguf does not decode {tensor.name}, {tensor.tensor_type.name}") from None
    # llama.cpp turns neighbouring pairs, for which Llama's q and k were reordered: back to halves of a head
    return w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) if heads else w


def open_gguf(path):
    """
    gguf's reader of the file. gguf itself reads past the end as if nothing were there, and so counts to 2**60
    where a header says so. Raises ImportError without gguf, ValueError when the file is torn or is none.
    """
    gguf = optional('gguf', f"reading {path} takes a package: pip install gguf")

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, **order):
            self.data = np.asarray(self.data)  # each slice of a memmap is one, at three times the cost
            if int(offset) + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data)}, within what its header lists")
            return super()._get(int(offset), dtype, count, **order)

    try:
        reader = Reader(path)
        if sum(tensor.n_bytes for tensor in reader.tensors) > len(reader.data):
            raise ValueError("its tensors together are larger than the file")
    except Exception as e:
        raise torn(path, 'GGUF', e) from None
    return reader


def values_under(reader, prefix, path):
    """{key less prefix: value} of a GGUF file's metadata."""
    try:
        return {key.removeprefix(prefix): field.contents()
                for key, field in reader.fields.items() if key.startswith(prefix)}
    except Exception as e:  # bytes that are no text, a value without parts
        raise torn(path, 'GGUF', e) from None


def read_gguf(path):
    reader = open_gguf(path)
    family = values_under(reader, 'general.architecture', path).get('')
    if family not in ('llama', 'qwen2', 'qwen3'):
        raise ValueError(f"{path}: GGUF architecture {family!r} is not among llama, qwen2, qwen3")
    config = values_under(reader, f'{family}.', path)
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in reader.tensors}
    config['tied'] = 'output.weight' not in shapes
    config.setdefault('vocab_size', (shapes.get('token_embd.weight') or [None])[0])
    fields = read_fields(config, family, 'gguf', path)
    fields |= read_rope({'rope_theta': config.get('rope.freq_base')}, path)
    for key in ('rope.dimension_count', 'attention.value_length'):
        if config.get(key, fields['head_dim']) != fields['head_dim']:
            raise ValueError(f"{path}: {key} is {config[key]}; a head is {fields['head_dim']} wide")
    interleaved = {'attn_q.weight': fields['n_head'], 'attn_k.weight': fields['n_kv_head']}
    tensors = {}
    for tensor in reader.tensors:
        heads = interleaved.get(tensor.name.split('.', 2)[-1]) if family == 'llama' else None
        tensors[tensor.name] = partial(decode, tensor, heads, path)
    if 'rope_freqs.weight' in tensors:
        fields['rope_scaling'] = llama3_scaling(tensors['rope_freqs.weight'](), fields, path)
    return fields, assemble(fields, GGUF, tensors, path)


def counterpart(fields):
    """The family that these fields are. Raises ValueError naming what the nearest one has otherwise."""
    odd = {}
    for family, wanted in FAMILIES.items():
        if family == 'gpt2':
            wanted = wanted | dict(n_kv_head=fields['n_head'], head_dim=fields['n_embd'] / fields['n_head'])
        odd[family] = [key for key, value in wanted.items() if fields[key] != value]
    if fields['n_embd'] % fields['n_head']:  # transformers refuses it there alone
        odd['llama'].append('n_head')
    family = min(odd, key=lambda family: len(odd[family]))
    if odd[family]:
        without = ', '.join(f'{key}={fields[key]!r}' for key in odd[family])
        raise ValueError(f"no export: the nearest, {ARCHITECTURES[family]}, is not for {without}")
    return family


def write(folder, fields, state, eos_id=None, bos_id=None, pad_id=None):
    """
    config.json, generation_config.json and model.safetensors in folder, as transformers reads them. fields:
    every field of GPTConfig; state: GPT.state_dict(), in the types it should have there; eos_id: where its
    generate stops, an id or several. Raises ValueError, before anything is written, when no architecture
    there computes this.
    """
    family = counterpart(fields)
    column = COLUMN.get(family, HF)
    tensors, plan = {}, layout(fields, column)
    q, kv = (fields[heads] * fields['head_dim'] for heads in ('n_head', 'n_kv_head'))
    for ours, tensor in state.items():
        if ours == 'lm_head.weight' and fields['tied']:
            continue
        if ours not in plan:
            raise ValueError(f"no export: {ARCHITECTURES[family]} has no place for {ours}")
        stacked = tensor.detach().t() if is_turned(ours, column) else tensor.detach()
        rows = (q, kv, kv) if len(plan[ours]) == 3 else len(stacked) // len(plan[ours])
        for theirs, part in zip(plan[ours], stacked.split(rows), strict=True):
            tensors[theirs] = part.cpu().contiguous()
    ends = [eos_id] if isinstance(eos_id, int) else list(eos_id or ())
    # absent, they would default to other ids
    ids = {'bos_token_id': bos_id, 'eos_token_id': ends if len(ends) > 1 else next(iter(ends), None)}
    generation = {key: i for key, i in (ids | {'pad_token_id': pad_id}).items() if i is not None}
    config = {'architectures': [ARCHITECTURES[family]], 'model_type': family,
              'torch_dtype': str(state['wte.weight'].dtype).removeprefix('torch.'),
              **{keys[column]: fields[ours] for ours, keys in KEYS.items() if keys[column]},
              **{key: values[0] for key, values in ONLY[family].items()}, **ids}
    if family == 'gpt2':
        config |= {'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
    else:
        scaling = fields['rope_scaling'] and {'rope_type': 'llama3', **fields['rope_scaling']}
        config |= {'rope_theta': fields['rope_theta'], 'rope_scaling': scaling}
    os.makedirs(folder, exist_ok=True)
    model_path, config_path = (os.path.join(folder, name) for name in ('model.safetensors', 'config.json'))
    with replacing(config_path) as new_config, replacing(model_path) as new_model:
        save_file(tensors, new_model, metadata={'format': 'pt'})
        with open(new_config, 'w', encoding='utf-8') as f:
            f.write(json.dumps(config, indent=2) + '\n')
    write_text(os.path.join(folder, 'generation_config.json'), json.dumps(generation, indent=2) + '\n')
