"""
Checkpoints of other programs as plain data: `read` turns a Hugging Face directory, a .gguf file or a hub name
into GPTConfig fields and a state dict under model.py's names, `write` makes a directory that `transformers`
loads.

Four families differ in little but names, so most of this file is tables. What model.py does not compute is
refused by name: a model that loads is a model whose logits are right. Every error is one line.
"""
import json
import os
import re
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# What makes a family, in the fields of model.GPTConfig.
LLAMA = dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, qkv_bias=False, qk_norm=False,
             causal=True)
FAMILIES = {
    'gpt2': dict(norm='layernorm', position='learned', mlp='gelu', bias=True, qkv_bias=True, qk_norm=False,
                 causal=True),
    'llama': LLAMA,
    'qwen2': LLAMA | dict(qkv_bias=True),
    'qwen3': LLAMA | dict(qk_norm=True),
}
ARCHITECTURES = {'gpt2': 'GPT2LMHeadModel', 'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
                 'qwen3': 'Qwen3ForCausalLM'}

# The columns of the next two tables: Hugging Face's Llama and Qwen, its GPT-2, and llama.cpp's GGUF.
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
NAMES = {  # our modules -> theirs; # is the layer, and what {} lists is stacked by rows into one of ours
    'wte': ('model.embed_tokens', 'transformer.wte', 'token_embd'),
    'wpe': (None, 'transformer.wpe', None),
    'blocks.#.norm_1': ('model.layers.#.input_layernorm', 'transformer.h.#.ln_1', 'blk.#.attn_norm'),
    'blocks.#.attn.qkv': ('model.layers.#.self_attn.{q,k,v}_proj', 'transformer.h.#.attn.c_attn',
                          'blk.#.attn_{q,k,v}'),
    'blocks.#.attn.q_norm': ('model.layers.#.self_attn.q_norm', None, 'blk.#.attn_q_norm'),
    'blocks.#.attn.k_norm': ('model.layers.#.self_attn.k_norm', None, 'blk.#.attn_k_norm'),
    'blocks.#.attn.proj': ('model.layers.#.self_attn.o_proj', 'transformer.h.#.attn.c_proj',
                           'blk.#.attn_output'),
    'blocks.#.norm_2': ('model.layers.#.post_attention_layernorm', 'transformer.h.#.ln_2', 'blk.#.ffn_norm'),
    'blocks.#.mlp.up': ('model.layers.#.mlp.{gate,up}_proj', 'transformer.h.#.mlp.c_fc',
                        'blk.#.ffn_{gate,up}'),
    'blocks.#.mlp.proj': ('model.layers.#.mlp.down_proj', 'transformer.h.#.mlp.c_proj', 'blk.#.ffn_down'),
    'norm_f': ('model.norm', 'transformer.ln_f', 'output_norm'),
    'lm_head': ('lm_head', 'lm_head', 'output'),
}
# computed, not learned
BUFFERS = re.compile(r'(transformer\.)?h\.\d+\.attn\.(masked_)?bias'
                     r'|.*rotary_emb\.inv_freq|rope_freqs\.weight')

# What an absent key means; None leaves it to model.py's own rule. A key that is not here must be given.
LLAMA_DEFAULTS = {'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6,
                  'tie_word_embeddings': False}
DEFAULTS = {
    'gpt2': {'n_inner': None, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True},
    'llama': LLAMA_DEFAULTS, 'qwen2': LLAMA_DEFAULTS, 'qwen3': LLAMA_DEFAULTS | {'head_dim': 128},
    'gguf': {'attention.head_count_kv': None, 'attention.key_length': None},
}
# Keys that change the arithmetic -> the values model.py computes: the first is what an absent key means, and
# what is written.
ONLY = {
    'gpt2': {'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'scale_attn_weights': (True,),
             'scale_attn_by_inverse_layer_idx': (False,), 'add_cross_attention': (False,)},
    'llama': {'hidden_act': ('silu', 'swish'), 'attention_bias': (False,), 'mlp_bias': (False,)},
    'qwen2': {'hidden_act': ('silu', 'swish'), 'use_sliding_window': (False,)},
    'qwen3': {'hidden_act': ('silu', 'swish'), 'use_sliding_window': (False,), 'attention_bias': (False,)},
    'gguf': {'rope.scaling.type': ('none',), 'rope.scale_linear': (1.0,), 'expert_count': (0,),
             'attention.sliding_window': (0,)},
}
VALUES = {'tied': ((bool,), 'true or false'), 'norm_eps': ((int, float), 'a positive number')}
LLAMA3 = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def some(names):
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')


def local_folder(path):
    """
    The folder or file of that name, or else the local copy of the Hugging Face hub's 'owner/name', fetched
    where need be. Raises FileNotFoundError, ImportError without huggingface_hub, ConnectionError when the hub
    does not give it, ValueError for a folder of ours that is no model's.
    """
    path = os.fspath(path)
    if os.path.isfile(os.path.join(path, 'ckpt.pt')):
        raise ValueError(f"{path} is the folder of a run: name {os.path.join(path, 'export')} or "
                         f"{os.path.join(path, 'ckpt.pt')}")
    has_adapters, has_model = (os.path.isfile(os.path.join(path, name))
                               for name in ('adapter_config.json', 'config.json'))
    if has_adapters and not has_model:
        raise ValueError(f"{path} holds adapters without their model: export/ beside it holds both merged")
    if os.path.exists(path):
        return path
    # out/ckpt mistyped looks like owner/name too: where out/ is a folder here it is that, and no network is
    # asked.
    on_the_hub = re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', path) and not path.endswith(('.gguf', '.pt'))
    if not on_the_hub or os.path.isdir(path.split('/')[0]):
        raise FileNotFoundError(f"there is no file or folder {path!r} (a model on the Hugging Face hub is "
                                "written owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(f"there is no folder {path!r} here, and to fetch it from the Hugging "
                          "Face hub takes a package: pip install huggingface_hub") from None
    try:
        wanted = ['*.json', '*.safetensors', 'tokenizer.model', 'merges.txt', '*.jinja']
        return snapshot_download(path, allow_patterns=wanted, ignore_patterns=['*/*'])
    except Exception as e:
        raise ConnectionError(f"there is no folder {path!r} here, and the Hugging Face hub did "
                              f"not give it: {first_line(e)}") from None


def read(path):
    """
    fields (keyword arguments of GPTConfig) and state (fp32 tensors as GPT.state_dict() names them) of the
    model at path: a Hugging Face directory, a .gguf file, or the hub's 'owner/name'. Raises
    FileNotFoundError, ValueError, and as local_folder does.
    """
    path = local_folder(path)
    if os.path.isdir(path):
        return read_folder(path)
    if not path.endswith('.gguf'):
        raise ValueError(f"{path} is neither a folder with config.json and *.safetensors nor a .gguf file")
    return read_gguf(path)


def read_json(path):
    try:
        with open(path, encoding='utf-8') as f:
            content = json.load(f)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: broken JSON: {e.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, a thousand brackets
        raise ValueError(f"{path} cannot be read as JSON: {first_line(e)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def family_of(config, where, scores=False):
    listed = config.get('architectures')
    found = (listed[0] if isinstance(listed, list) and listed else None) or config.get('model_type')
    for family, name in ARCHITECTURES.items():
        stem = name.removesuffix('ForCausalLM').removesuffix('LMHeadModel')
        if scores and found in (f'{stem}ForScore', f'{stem}ForSequenceClassification'):
            return family
        if found in (family, name, name.replace('ForCausalLM', 'Model').replace('LMHead', '')):
            return family
    raise ValueError(f"{where}: architecture {found!r} is not supported; "
                     f"{', '.join(ARCHITECTURES.values())} are")


def read_fields(config, family, kind, where):
    """
    GPTConfig's sizes and what makes the family, from another program's keys (kind: its row of DEFAULTS and
    ONLY). Raises ValueError naming the key that is missing, odd, or asks for what model.py does not compute.
    """
    for key, values in ONLY[kind].items():
        if config.get(key) is not None and config[key] not in values:
            raise ValueError(f"{where}: {key} is {config[key]!r}; only {' or '.join(map(repr, values))} can "
                             "be computed here")
    fields, column = dict(FAMILIES[family]), COLUMN.get(kind, HF)
    for ours, keys in KEYS.items():
        key = keys[column]
        value = DEFAULTS[kind].get(key) if config.get(key) is None else config[key]
        types, wanted = VALUES.get(ours, ((int,), 'a positive whole number'))
        if value is None and key and key not in DEFAULTS[kind]:
            raise ValueError(f"{where} lacks {key}")
        fits = type(value) in types and 0 <= value < 1e18 and (value > 0 or ours == 'tied')
        if value is not None and not fits:
            raise ValueError(f"{where}: {key} is {value!r}; it must be {wanted}")
        fields[ours] = value
    fields['n_kv_head'] = fields['n_kv_head'] or fields['n_head']
    if not fields['head_dim'] and fields['n_embd'] % fields['n_head']:
        raise ValueError(f"{where}: {KEYS['n_embd'][column]} {fields['n_embd']} must be a multiple of "
                         f"{KEYS['n_head'][column]} {fields['n_head']}")
    fields['head_dim'] = fields['head_dim'] or fields['n_embd'] // fields['n_head']
    fields['mlp_hidden'] = fields['mlp_hidden'] or 4 * fields['n_embd']
    return fields


def read_rope(config, where):
    """
    RoPE as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) writes it -> the fields
    rope_theta, rope_scaling.
    """
    rope = config.get('rope_scaling') or config.get('rope_parameters') or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: the rope scaling is {rope!r}; it must be an object in {{...}}")
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind not in ('default', 'llama3'):
        raise ValueError(f"{where}: rope type {kind!r} is not supported; 'default' and 'llama3' are")
    part = rope.get('partial_rotary_factor') or config.get('partial_rotary_factor') or 1.0
    if part != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor is {part!r}; only 1.0 can be computed here")
    lacking = [key for key in LLAMA3 if kind == 'llama3' and key not in rope]
    if lacking:
        raise ValueError(f"{where}: the llama3 rope scaling lacks {', '.join(lacking)}")
    theta = rope.get('rope_theta') or config.get('rope_theta') or 10000.0
    numbers = {'rope_theta': theta} | {key: rope[key] for key in LLAMA3 if kind == 'llama3'}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < 1e18:
            raise ValueError(f"{where}: {key} is {value!r}; it must be a positive number")
    return dict(rope_theta=float(theta),
                rope_scaling={key: rope[key] for key in LLAMA3} if kind == 'llama3' else None)


def tensor_files(folder):
    """The *.safetensors that hold the model, as transformers would choose them."""
    index = os.path.join(folder, 'model.safetensors.index.json')
    if os.path.exists(os.path.join(folder, 'model.safetensors')):
        return [os.path.join(folder, 'model.safetensors')]
    if os.path.exists(index):
        shards = read_json(index).get('weight_map')
        if not isinstance(shards, dict):
            raise ValueError(f"{index} lacks weight_map")
        for name in shards.values():
            beside = isinstance(name, str) and os.path.basename(name) == name
            if not beside or not name.endswith('.safetensors'):
                raise ValueError(f"{index}: weight_map names {name!r}, which is no *.safetensors beside it")
        files = [os.path.join(folder, name) for name in sorted(set(shards.values()))]
        absent = [os.path.basename(file) for file in files if not os.path.isfile(file)]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {some(absent)}, named in model.safetensors.index.json")
        return files
    files = sorted(os.listdir(folder))
    if not any(file.endswith('.safetensors') for file in files):
        pickled = any(file.startswith('pytorch_model') for file in files)
        if pickled:
            raise FileNotFoundError(f"{folder} holds pytorch_model.bin, a pickle, which is not read: convert "
                                    "it to safetensors")
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    return [os.path.join(folder, file) for file in files if file.endswith('.safetensors')]


def open_tensors(files):
    """
    {name: (shape, function that reads the tensor)}: shapes are checked before a byte of weights is read.
    """
    tensors = {}
    for file in files:
        try:
            shard = safe_open(file, framework='pt')
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{file} cannot be read as safetensors (torn, or not one): "
                             f"{first_line(e)}") from None
        for name in shard.keys():
            header = shard.get_slice(name)
            if header.get_dtype() not in ('F64', 'F32', 'F16', 'BF16'):
                raise ValueError(f"{file}: {name} is of type {header.get_dtype()}; quantised weights are "
                                 "not read")
            tensors[name] = tuple(header.get_shape()), partial(shard.get_tensor, name)
    return tensors


def open_folder(folder, scores=False):
    """
    What config.json says and where the tensors lie: (config, fields, column, tensors, prefix). scores: a head
    that gives a score is welcome, too.
    """
    where = os.path.join(folder, 'config.json')
    if not os.path.isfile(where):
        raise FileNotFoundError(f"{folder} has no config.json")
    config = read_json(where)
    family = family_of(config, where, scores)
    fields, column = read_fields(config, family, family, where), COLUMN.get(family, HF)
    if fields['position'] == 'rope':
        fields |= read_rope(config, where)
    tensors = open_tensors(tensor_files(folder))
    prefix = NAMES['wte'][column].partition('.')[0] + '.'
    if any(name.startswith(prefix) for name in tensors):
        # theirs as the table has them; a model saved without its head has them without the first word
        prefix = ''
    return config, fields, column, tensors, prefix


def read_folder(folder):
    config, fields, column, tensors, prefix = open_folder(folder)
    head, embedding = (tensors.get(NAMES[module][column].removeprefix(prefix) + '.weight')
                       for module in ('lm_head', 'wte'))
    if fields['tied'] and head and embedding:
        # a head of its own is used, whatever the key says, as in transformers 5
        fields['tied'] = torch.equal(head[1](), embedding[1]())
    return fields, assemble(fields, column, tensors, folder, prefix)


def read_score_model(folder):
    """
    fields, state (see read), head {'weight' (1, D), 'bias' (1,), 'mean', 'var' of its scores} and the kind,
    'reward', 'cost' or None where the files do not say, of a Hugging Face model that ends in a score:
    safe-rlhf's LlamaForScore, or transformers' ...ForSequenceClassification with one label.
    """
    config, fields, column, tensors, prefix = open_folder(local_folder(folder), scores=True)
    found = {name: tensors.pop(name) for name in ('score_head.weight', 'score_head.bias', 'score.weight',
                                                  'score.bias', 'normalizer.mean', 'normalizer.var',
                                                  'normalizer.count') if name in tensors}
    name = 'score_head' if 'score_head.weight' in found else 'score'
    if f'{name}.weight' not in found:
        raise ValueError(f"{folder} has neither score_head.weight nor score.weight: it is no model that "
                         "scores texts")
    shape = found[f'{name}.weight'][0]
    if shape != (1, fields['n_embd']):
        raise ValueError(f"{folder}: {name}.weight has the shape {shape}; one score a text, (1, "
                         f"{fields['n_embd']}), is what is read here")

    def value(key, default):
        return found[key][1]().float().reshape(-1)[:1] if key in found else torch.full((1,), default)

    normal = config.get('do_normalize') or False
    head = {'weight': found[f'{name}.weight'][1]().float(), 'bias': value(f'{name}.bias', 0.0),
            'mean': value('normalizer.mean' if normal else '', 0.0)[0],
            'var': value('normalizer.var' if normal else '', 1.0)[0]}
    fields['tied'] = True  # it has no head of words
    return fields, assemble(fields, column, tensors, folder, prefix), head, config.get('score_type')


def layout(fields, column):
    """
    {our tensor: [(their tensor, its shape), ...]}: what they keep apart is stacked by rows in ours. Shapes
    are (out, in); the matrices in GPT-2's blocks are the other way round.
    """
    D, d, hidden, V = fields['n_embd'], fields['head_dim'], fields['mlp_hidden'], fields['vocab_size']
    q, kv = fields['n_head'] * d, fields['n_kv_head'] * d
    bias, norm_bias = fields['bias'], fields['bias'] and fields['norm'] == 'layernorm'
    modules = {  # (shapes of the weights, whether there is a bias, whether the module is there at all)
        'wte': ([(V, D)], False, True),
        'wpe': ([(fields['block_size'], D)], False, fields['position'] == 'learned'),
        'blocks.#.norm_1': ([(D,)], norm_bias, True), 'blocks.#.norm_2': ([(D,)], norm_bias, True),
        'norm_f': ([(D,)], norm_bias, True),
        'blocks.#.attn.qkv': ([(q, D), (kv, D), (kv, D)], fields['qkv_bias'], True),
        'blocks.#.attn.proj': ([(D, q)], bias, True),
        'blocks.#.attn.q_norm': ([(d,)], False, fields['qk_norm']),
        'blocks.#.attn.k_norm': ([(d,)], False, fields['qk_norm']),
        'blocks.#.mlp.up': ([(hidden, D)] * (2 if fields['mlp'] == 'swiglu' else 1), bias, True),
        'blocks.#.mlp.proj': ([(D, hidden)], bias, True),
        'lm_head': ([(V, D)], False, not fields['tied'])}
    plan = {}
    for module, (shapes, has_bias, there) in modules.items():
        if not there:
            continue
        before, *listed = re.split('[{}]', NAMES[module][column])
        theirs = [before + one + listed[1] for one in listed[0].split(',')] if listed else [before]
        if len(theirs) < len(shapes):  # they fuse it too
            shapes = [(sum(rows for rows, _ in shapes), D)]
        for layer in range(fields['n_layer'] if '#' in module else 1):
            for kind in ('weight', 'bias') if has_bias else ('weight',):
                names = [f'{name}.{kind}'.replace('#', str(layer)) for name in theirs]
                of_kind = shapes if kind == 'weight' else [shape[:1] for shape in shapes]
                plan[f'{module}.{kind}'.replace('#', str(layer))] = list(zip(names, of_kind, strict=True))
    return plan


def assemble(fields, column, tensors, where, prefix=''):
    """
    The state dict of `fields` out of {their name less prefix: (shape, function that reads it)}, fp32, one
    tensor at a time. Raises ValueError naming the tensors that are missing, left over or of another shape,
    before any is read.
    """
    if fields['n_layer'] > len(tensors):  # before a plan is made for each
        raise ValueError(f"{where} lacks most of its tensors: its configuration asks for "
                         f"{fields['n_layer']} layers, and there are {len(tensors)} tensors")
    plan, turned, wanted = {}, set(), {}
    for ours, parts in layout(fields, column).items():
        plan[ours] = [(theirs.removeprefix(prefix), shape) for theirs, shape in parts]
        turns = column == GPT2 and ours.startswith('blocks.')
        for theirs, shape in plan[ours]:
            wanted[theirs] = shape[::-1] if turns else shape
            if turns:
                turned.add(theirs)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"{where} lacks the tensors {some(missing)}")
    for name, shape in wanted.items():
        if tensors[name][0] != shape:
            raise ValueError(f"{where}: {name} has the shape {tensors[name][0]}; its configuration asks for "
                             f"{shape}")
    extra = [name for name in tensors if name not in wanted and not BUFFERS.fullmatch(name)]
    extra = [name for name in extra if name != 'lm_head.weight']
    if extra:
        raise ValueError(f"{where} holds tensors that this architecture has no place for: {some(extra)}")
    state = {}
    for ours, parts in plan.items():
        rows = [shape[0] for _, shape in parts]
        state[ours] = torch.empty(sum(rows), *parts[0][1][1:], dtype=torch.float32)
        for place, (theirs, _) in zip(state[ours].split(rows), parts, strict=True):
            part = tensors[theirs][1]()
            place.copy_(part.t() if theirs in turned else part)
    if fields['tied']:
        state['lm_head.weight'] = state['wte.weight']
    return state


def llama3_scaling(divisors, fields, where):
    """
    GGUF's rope_freqs.weight (d/2,), what each frequency is divided by, as the scaling that made it. Llama
    3.1, 3.2 and 3.3 differ in the factor alone; anything else raises ValueError.
    """
    d = fields['head_dim']
    wrong = ValueError(f"{where}: rope_freqs.weight is not the scaling of Llama 3.1; no other can be "
                       "computed here")
    if divisors.shape != (d // 2,) or d < 2:
        raise wrong
    scaling = dict(factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=8192)
    turns = 8192 / (2 * torch.pi) * fields['rope_theta'] ** -(torch.arange(0, d, 2) / d)
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    if not torch.allclose(divisors, 1 / (smooth + (1 - smooth) / scaling['factor']), rtol=1e-3):
        raise wrong
    return scaling


def decode(tensor, heads, where):
    """One tensor of a GGUF file in fp32. heads: how many it has if its rows are interleaved, else None."""
    from gguf.quants import dequantize
    try:
        w = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
    except NotImplementedError:
        raise ValueError(f"{where}: {tensor.name} is of type {tensor.tensor_type.name}, which the "
                         "gguf package does not decode") from None
    # llama.cpp turns neighbouring pairs, and Llama's q and k were reordered for it: back to the two halves of
    # each head.
    return w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2) if heads else w


def open_gguf(path):
    """
    gguf's reader of the file, whose lengths and counts are known to lie within it: gguf itself reads past the
    end as if nothing were there, and so counts to 2**60 where a header says so. Raises ImportError without
    gguf, ValueError when the file is torn or is none.
    """
    try:
        import gguf
    except ImportError:
        raise ImportError(f"reading {path} takes a package: pip install gguf") from None

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
    # numpy's and gguf's
    except (ValueError, KeyError, IndexError, OverflowError, OSError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read as GGUF (torn, or not one): {first_line(e)}") from None
    return reader


def read_gguf(path):
    reader = open_gguf(path)
    try:
        family = reader.fields['general.architecture'].contents()
        own = [key for key in reader.fields if key.startswith(family + '.')]
        config = {key.removeprefix(family + '.'): reader.fields[key].contents() for key in own}
    except Exception as e:
        raise ValueError(f"{path} cannot be read as GGUF (torn, or not one): {first_line(e)}") from None
    if family not in ('llama', 'qwen2', 'qwen3'):
        raise ValueError(f"{path}: GGUF architecture {family!r} is not supported; llama, qwen2, qwen3 are")
    shapes = {tensor.name: tuple(map(int, tensor.shape[::-1])) for tensor in reader.tensors}
    config['tied'] = 'output.weight' not in shapes
    config.setdefault('vocab_size', (shapes.get('token_embd.weight') or [None])[0])
    fields = read_fields(config, family, 'gguf', path)
    fields |= read_rope({'rope_theta': config.get('rope.freq_base')}, path)
    for key in ('rope.dimension_count', 'attention.value_length'):
        if config.get(key, fields['head_dim']) != fields['head_dim']:
            raise ValueError(f"{path}: {key} is {config[key]}; only the head's width, {fields['head_dim']}, "
                             "can be computed here")
    interleaved = {'attn_q.weight': fields['n_head'],
                   'attn_k.weight': fields['n_kv_head']} if family == 'llama' else {}
    tensors = {}
    for tensor in reader.tensors:
        heads = interleaved.get(tensor.name.partition('.')[2].partition('.')[2])
        tensors[tensor.name] = shapes[tensor.name], partial(decode, tensor, heads, path)
    if 'rope_freqs.weight' in tensors:
        fields['rope_scaling'] = llama3_scaling(tensors['rope_freqs.weight'][1](), fields, path)
    return fields, assemble(fields, GGUF, tensors, path)


def counterpart(fields):
    """
    The family that these fields are. Raises ValueError naming the fields that have no counterpart in the
    nearest one.
    """
    def odd(family):
        keys = [key for key, value in FAMILIES[family].items() if fields[key] != value]
        if family == 'gpt2':
            if fields['n_kv_head'] != fields['n_head']:
                keys.append('n_kv_head')
            if fields['head_dim'] * fields['n_head'] != fields['n_embd']:
                keys.append('head_dim')
        if family == 'llama' and fields['n_embd'] % fields['n_head']:  # transformers refuses it there alone
            keys.append('n_head')
        return keys

    family = min(FAMILIES, key=lambda family: len(odd(family)))
    if odd(family):
        without = ', '.join(f'{key}={fields[key]!r}' for key in odd(family))
        raise ValueError(f"transformers has no architecture for {without} (the nearest is "
                         f"{ARCHITECTURES[family]}): this model cannot be exported")
    return family


def write(folder, fields, state, eos_id=None):
    """
    config.json and model.safetensors in folder, as transformers' from_pretrained reads them. fields: every
    field of GPTConfig; state: GPT.state_dict(), in the types it should have there; eos_id: where
    transformers' generate stops. Raises ValueError when no architecture there computes this, before anything
    is written.
    """
    family = counterpart(fields)
    column = COLUMN.get(family, HF)
    plan = layout(fields, column)
    own = set(state) - ({'lm_head.weight'} if fields['tied'] else set())
    if own != set(plan):
        odd = some(sorted(own ^ set(plan)))
        raise ValueError(f"the state does not fit its config: {odd} on one side only")
    tensors = {}
    for ours, parts in plan.items():
        turned = column == GPT2 and ours.startswith('blocks.')
        stacked = state[ours].detach().split([shape[0] for _, shape in parts])
        for (theirs, _), rows in zip(parts, stacked, strict=True):
            tensors[theirs] = (rows.t() if turned else rows).cpu().contiguous()
    config = {'architectures': [ARCHITECTURES[family]], 'model_type': family,
              'torch_dtype': str(state['wte.weight'].dtype).removeprefix('torch.'),
              **{keys[column]: fields[ours] for ours, keys in KEYS.items() if keys[column]},
              **{key: values[0] for key, values in ONLY[family].items()},
              # absent, they would default to ids that mean something else here
              'bos_token_id': None, 'eos_token_id': eos_id}
    if family == 'gpt2':
        config |= {'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
    else:
        scaling = fields['rope_scaling'] and {'rope_type': 'llama3', **fields['rope_scaling']}
        config |= {'rope_theta': fields['rope_theta'], 'rope_scaling': scaling}
    os.makedirs(folder, exist_ok=True)
    files = {name: os.path.join(folder, name) for name in ('model.safetensors', 'config.json')}
    save_file(tensors, files['model.safetensors'] + '.tmp', metadata={'format': 'pt'})
    with open(files['config.json'] + '.tmp', 'w', encoding='utf-8') as f:
        f.write(json.dumps(config, indent=2) + '\n')
    for file in files.values():
        os.replace(file + '.tmp', file)
