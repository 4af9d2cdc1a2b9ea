"""Adapters on slices of fused linears, int8 weights under them, and PEFT as the oracle of both our reading and our writing."""
import json
import os
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from model import GPT, GPTConfig
from runtime import lora
from runtime.lora import (
    Int8Linear,
    LoRALinear,
    adapters_off,
    add_lora,
    copy_tensors,
    go_on_with_adapters,
    has_adapters,
    load_adapter,
    lora_layers,
    merge_lora,
    quantize_int8,
    save_adapter,
)
from runtime.masters import compute_in

LLAMA = dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, n_kv_head=2)
GPT2 = dict()
TOKENS = torch.arange(18).view(2, 9)


def randomise(model):
    for name, p in model.named_parameters():
        nn.init.normal_(p, mean=float(p.dim() == 1 and name.endswith('weight')), std=0.2)  # norms around 1


def tiny(kinds, **more):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=12, vocab_size=20, n_layer=2, n_head=4, n_embd=32, **kinds, **more)).eval()
    randomise(model)
    return model


def adapted(model, r=3, alpha=6.0, **more):
    """With adapters that do something: B is no longer zero."""
    add_lora(model, r, alpha, **more)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.B, std=0.2)
    return model


def lora_state(model):
    """The adapters alone, named as in model.state_dict()."""
    return {name: p.detach() for name, p in model.named_parameters() if name.endswith(('.A', '.B'))}


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize('int8', (False, True))
@pytest.mark.parametrize('kinds', (LLAMA, GPT2))
def test_training_starts_from_the_model_itself(kinds, int8):
    model = tiny(kinds)
    if int8:
        quantize_int8(model)
    before = model.logits(TOKENS)
    add_lora(model, 2, 4)
    assert torch.equal(model.logits(TOKENS), before)
    S = 7 if kinds is LLAMA else 4  # c_attn, o, up, down
    assert sum(len(layer.rows) for layer in lora_layers(model).values()) == 2 * S


def test_an_adapter_changes_its_own_rows_only():
    """v is rows 4..5 of six; alpha / r = 4 / 1. W x changes there by 4 * B (A x) = 4 * B * (1*1 + 2*3), and nowhere else."""
    layer = LoRALinear(nn.Linear(2, 6), {'v': slice(4, 6)}, r=1, alpha=4, dropout=0.0)
    layer.A.data = torch.tensor([[1., 2.]])
    layer.B.data = torch.tensor([[1.], [-10.]])
    x = torch.tensor([[[1., 3.]]])  # any leading axes
    close(layer(x) - layer.base(x), torch.tensor([[[0., 0., 0., 0., 28., -280.]]]), atol=1e-4)
    close(layer(x[0, 0]), layer(x)[0, 0])


def test_targets_are_the_rows_of_those_names():
    """An adapter on one name moves that slice of the fused weight: 4 heads of q and 2 each of k, v, d = 8; gate then up, 128 each."""
    slices = {'q': ('attn.qkv', 0, 32), 'k': ('attn.qkv', 32, 48), 'v': ('attn.qkv', 48, 64), 'o': ('attn.proj', 0, 32),
              'gate': ('mlp.up', 0, 128), 'up': ('mlp.up', 128, 256), 'down': ('mlp.proj', 0, 32)}
    base = tiny(LLAMA).state_dict()
    for target, (linear, start, stop) in slices.items():
        model = adapted(tiny(LLAMA), targets=(target,))
        layer = model.blocks[1].get_submodule(linear)
        delta = 6.0 / 3 * layer.B @ layer.A  # alpha / r * B A
        merge_lora(model)
        for name, weight in model.state_dict().items():
            change = weight - base[name]
            if name == f'blocks.1.{linear}.weight':
                close(change[start:stop], delta.detach())
                change = torch.cat((change[:start], change[stop:]))
            assert linear in name or not change.any()


@pytest.mark.parametrize('kinds', (LLAMA, GPT2))
@pytest.mark.parametrize('int8', (False, True))
def test_only_adapters_learn(kinds, int8):
    """B moves at the first step; A, whose gradient passes through B, at the second. Nothing else ever does."""
    model = tiny(kinds)
    if int8:
        quantize_int8(model)
    add_lora(model, 2, 4)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for still in ({'A'}, set()):
        F.cross_entropy(model.logits(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, tensor in model.state_dict().items():
            kind = name.rsplit('.', 1)[1]
            assert torch.equal(tensor, start[name]) == (kind not in ('A', 'B') or kind in still), name
    for layer in lora_layers(model).values():  # every adapter of every stack
        assert all(part.abs().sum() > 0 for part in layer.B.split(layer.sizes))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(lora_state(model))


def test_adapters_off_is_the_base_and_comes_back():
    base, model = tiny(LLAMA).logits(TOKENS), adapted(tiny(LLAMA))
    on = model.logits(TOKENS)
    assert (on - base).abs().max() > 0.1
    with adapters_off(model):
        assert torch.equal(model.logits(TOKENS), base)
    assert torch.equal(model.logits(TOKENS), on)
    with pytest.raises(KeyError), adapters_off(model):
        raise KeyError
    assert torch.equal(model.logits(TOKENS), on)
    with pytest.raises(ValueError, match='no adapters: add_lora first'), adapters_off(tiny(LLAMA)):
        pass


@pytest.mark.parametrize('order', ('none', 'int8 first', 'int8 last'))
@pytest.mark.parametrize('kinds', (LLAMA, GPT2))
def test_merged_is_a_plain_model(kinds, order):
    model = tiny(kinds)
    names = list(model.state_dict())
    if order == 'int8 first':
        quantize_int8(model)
    qkv = ('q', 'v') if kinds is LLAMA else ('c_attn',)
    adapted(model, targets=(*qkv, 'up'))  # attn.proj and mlp.proj have none, and must be plain again as well
    if order == 'int8 last':
        quantize_int8(model)
    on = model.logits(TOKENS)
    merge_lora(model)
    assert list(model.state_dict()) == names and all(p.dtype == torch.float32 for p in model.state_dict().values())
    close(model.logits(TOKENS), on)
    fresh = tiny(kinds)
    fresh.load_state_dict(model.state_dict())
    close(fresh.logits(TOKENS), on)


def test_dropout_only_in_training():
    model = adapted(tiny(LLAMA), dropout=0.5)
    assert torch.equal(model.logits(TOKENS), model.logits(TOKENS))
    model.train()
    assert not torch.equal(model.logits(TOKENS), model.logits(TOKENS))
    with adapters_off(model):
        assert torch.equal(model.logits(TOKENS), tiny(LLAMA).logits(TOKENS))


@pytest.mark.parametrize('int8', (False, True))
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_low_precision(dtype, int8):
    """The training loop casts every parameter in place; int8 scales stay fp32. Adapters left in fp32 over a low-precision base work too."""
    model = tiny(LLAMA)
    if int8:
        quantize_int8(model)
    adapted(model)
    wanted = model.logits(TOKENS)
    adapters = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    masters = compute_in(model, dtype)
    assert all(b.dtype in (torch.int8, torch.float32) for b in model.buffers())
    for fp32_adapters in (False, True):
        if fp32_adapters:
            for name, p in model.named_parameters():
                if name in adapters:
                    p.data = adapters[name]
        logits = model.logits(TOKENS)
        assert logits.dtype == dtype and (logits.float() - wanted).std() < 0.03 * wanted.std()
        if not fp32_adapters:
            logits.float().square().mean().backward()
            assert all(masters[name].grad.abs().sum() > 0 for name in adapters)


def test_state_of_the_adapters():
    one, other = adapted(tiny(LLAMA)), tiny(LLAMA)
    add_lora(other, 3, 6.0)
    copy_tensors(lora_state(one), lora_state(other), 'the saved adapters')
    assert torch.equal(other.logits(TOKENS), one.logits(TOKENS))
    assert set(lora_state(one)) < set(one.state_dict()) and 'blocks.0.attn.qkv.A' in lora_state(one)
    narrow = tiny(LLAMA)
    add_lora(narrow, 3, 6.0, targets=('q', 'k', 'v', 'o'))
    state = lora_state(adapted(tiny(LLAMA), targets=('q', 'v')))
    missing = r"8 tensors of the saved adapters .*: blocks.0.attn.proj.A is missing, wanted \(3, 32\);"
    with pytest.raises(ValueError, match=missing + r".* blocks.0.attn.qkv.A is \(6, 32\), wanted \(9, 32\)"):
        copy_tensors(state, lora_state(narrow), 'the saved adapters')
    assert not any(layer.B.any() for layer in lora_layers(narrow).values())  # all or none


@pytest.mark.parametrize('kinds, more, message', (
    (GPT2, dict(targets=('q', 'gate')), "targets are q, gate: this model has c_attn, o, up, down$"),
    (LLAMA, dict(targets='c_attn, v'), "targets are v, c_attn: this model has q, k, v, o, gate, up, down$"),
    (LLAMA, dict(targets=('qproj',)), "lora_targets has 'qproj': take some of q, .*, q_proj, .*, all-linear$"),
    (LLAMA, dict(targets=()), "lora_targets has 'nothing'"), (LLAMA, dict(targets=('q', ['v'])), "has .'v'.: take some")))
def test_what_is_refused(kinds, more, message):
    model = tiny(kinds)
    with pytest.raises(ValueError, match=message):
        add_lora(model, **{'r': 2, 'alpha': 4, **more})
    assert all(p.requires_grad for p in model.parameters())  # untouched


# ---------------------------------------------------------------------------------------------------------------------
# int8

def test_int8_by_hand():
    """Row scales are max |w| / 127: 1.27 -> 0.01, 2.54 -> 0.02; a row of zeros stays one."""
    linear = nn.Linear(3, 3, bias=False)
    linear.weight.data = torch.tensor([[1.27, -0.503, 0.004], [0.05, -2.54, 0.019], [0., 0., 0.]])
    quantized = Int8Linear(linear)
    assert quantized.weight.tolist() == [[127, -50, 0], [2, -127, 1], [0, 0, 0]]  # 0.05 / 0.02 = 2.5, to even
    close(quantized.scale, torch.tensor([0.01, 0.02, 0.0]), atol=1e-8)
    close(quantized(torch.tensor([1., 1., 2.])), torch.tensor([0.77, -2.46, 0.]), atol=1e-6)


def test_int8_error_and_memory():
    model, exact = tiny(LLAMA), tiny(LLAMA)
    quantize_int8(model)
    for block, before in zip(model.blocks, exact.blocks, strict=True):
        for path in ('attn.qkv', 'attn.proj', 'mlp.up', 'mlp.proj'):
            int8, linear = block.get_submodule(path), before.get_submodule(path)
            assert ((int8.plain().weight - linear.weight).abs() <= int8.scale[:, None] * 0.5001).all()
            stored = int8.weight.nbytes + int8.scale.nbytes
            assert stored <= linear.weight.nbytes * (1 / 4 + 1 / 32)  # in = 32: one fp32 scale for 32 weights
    assert isinstance(model.lm_head, nn.Linear) and model.lm_head.weight is model.wte.weight
    assert not torch.equal(model.logits(TOKENS), exact.logits(TOKENS))
    state = tiny(LLAMA)
    quantize_int8(state)
    state.load_state_dict(model.state_dict())  # buffers travel
    assert torch.equal(state.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16))
def test_int8_is_its_dequantised_linear(dtype):
    torch.manual_seed(0)
    int8 = Int8Linear(nn.Linear(48, 32))
    linear = int8.plain().to(dtype)
    x = torch.randn(3, 5, 48, dtype=dtype) * 300
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = int8(ours), linear(theirs)
    assert y.dtype == dtype and y.isfinite().all()
    torch.testing.assert_close(y, z)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_large_int8_weight_is_dequantised_row_by_row(monkeypatch):
    """Blocks of at most 2^21 weights, the last one shorter: bit for bit what the whole gives."""
    torch.manual_seed(0)
    int8, sizes = Int8Linear(nn.Linear(1000, 2500)), []
    whole, x = int8.plain(), torch.randn(2, 3, 1000)
    plain = lora.dequantise

    def dequantise(weight, *rest):
        sizes.append(len(weight))
        return plain(weight, *rest)

    monkeypatch.setattr(lora, 'dequantise', dequantise)
    assert torch.equal(int8(x), whole(x)) and sizes == [2097, 403]


def test_backward_keeps_no_dequantised_weight():
    """Autograd on F.linear(x, dequantised) would hold a fp32 copy of every layer until backward: no memory saved in training."""
    int8, kept = Int8Linear(nn.Linear(64, 64)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        int8(torch.randn(2, 64, requires_grad=True))
    assert {(t.dtype, tuple(t.shape)) for t in kept} == {(torch.int8, (64, 64)), (torch.float32, (64,))}


# ---------------------------------------------------------------------------------------------------------------------
# PEFT

def hugging_face(family, folder):
    """A tiny random model of that family, and ours with the same weights."""
    transformers = pytest.importorskip('transformers', reason='the PEFT oracle needs transformers: pip install -r requirements-dev.txt')
    torch.manual_seed(0)
    small = dict(vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=16)
    config = {'gpt2': lambda: transformers.GPT2Config(vocab_size=20, n_positions=16, n_embd=32, n_layer=2, n_head=4),
              'llama': lambda: transformers.LlamaConfig(**small), 'qwen2': lambda: transformers.Qwen2Config(**small),
              'qwen3': lambda: transformers.Qwen3Config(**small, head_dim=16)}[family]()
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    return theirs, GPT.from_pretrained(str(folder)).eval()


@pytest.mark.parametrize('family, targets', (
    *((family, targets) for family in ('llama', 'qwen2', 'qwen3') for targets in ('all-linear', ('q', 'v_proj', 'down'), ('k_proj',))),
    ('gpt2', 'all-linear'), ('gpt2', ('c_attn',)), ('gpt2', 'c_fc,c_proj'), ('gpt2', 'c_attn,up')))
@pytest.mark.filterwarnings('error:.*(rank_pattern|alpha_pattern|fan_in_fan_out|missing adapter keys)')
def test_peft_reads_what_we_write(family, targets, tmp_path):
    peft = pytest.importorskip('peft', reason='the oracle of save_adapter: pip install -r requirements-dev.txt')
    theirs, ours = hugging_face(family, tmp_path / 'base')
    close(ours.logits(TOKENS), theirs(TOKENS).logits)
    adapted(ours, r=3, alpha=5, targets=targets)
    save_adapter(ours, str(tmp_path / 'adapter'), base_name='a/base')
    theirs = peft.PeftModel.from_pretrained(theirs, str(tmp_path / 'adapter')).eval()
    close(ours.logits(TOKENS), theirs(TOKENS).logits)
    with adapters_off(ours):
        assert (ours.logits(TOKENS) - theirs(TOKENS).logits).abs().max() > 1e-2
    close(ours.logits(TOKENS), theirs.merge_and_unload()(TOKENS).logits)


@pytest.mark.parametrize('family, config', (
    ('qwen3', dict(target_modules=['k_proj', 'o_proj', 'gate_proj'], lora_dropout=0.1)),
    ('qwen2', dict(target_modules='all-linear', use_rslora=True)),
    ('llama', dict(target_modules=r'.*self_attn\.(q|v)_proj', init_lora_weights='gaussian')),
    ('llama', dict(target_modules=['self_attn.q_proj', 'down_proj'], exclude_modules=['nothing'])),
    ('gpt2', dict(target_modules=['c_attn'])), ('gpt2', dict(target_modules='all-linear', fan_in_fan_out=True)),
    ('gpt2', dict(target_modules=['c_proj', 'c_fc'], fan_in_fan_out=True))))
@pytest.mark.filterwarnings('ignore:.*fan_in_fan_out')
def test_we_read_what_peft_writes(family, config, tmp_path):
    """The same logits; the adapters go on to learn, and switched off they are what the folder held."""
    peft = pytest.importorskip('peft', reason='the oracle of load_adapter: pip install -r requirements-dev.txt')
    theirs, ours = hugging_face(family, tmp_path / 'base')
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=7, **config, task_type='CAUSAL_LM')).eval()
    for name, p in theirs.named_parameters():
        if 'lora_B' in name:
            nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(str(tmp_path / 'adapter'))
    ours = load_adapter(ours, str(tmp_path / 'adapter'))
    close(ours.logits(TOKENS), theirs(TOKENS).logits)
    start = ours.logits(TOKENS)
    with adapters_off(ours):
        assert torch.equal(ours.logits(TOKENS), start)
    layers = lora_layers(ours).values()
    assert {(layer.r, layer.alpha) for layer in layers} == {(2, 7 * 2 ** 0.5 if 'use_rslora' in config else 7.0)}
    for layer in layers:
        layer.B.data += 0.1
    assert not torch.equal(ours.logits(TOKENS), start)
    with adapters_off(ours):
        assert torch.equal(ours.logits(TOKENS), start)
    save_adapter(ours, str(tmp_path / 'on'), str(tmp_path / 'base'))  # and back to peft
    base, _ = hugging_face(family, tmp_path / 'again')
    close(peft.PeftModel.from_pretrained(base, str(tmp_path / 'on')).eval()(TOKENS).logits, ours.logits(TOKENS))
    merged = GPT.from_pretrained(str(tmp_path / 'on'))
    assert not has_adapters(merged)
    close(merged.logits(TOKENS), ours.logits(TOKENS))


def test_adapters_that_do_not_fit(tmp_path):
    def edit(**changes):
        save_adapter(adapted(tiny(LLAMA)), str(tmp_path), 'base')
        path = tmp_path / 'adapter_config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(FileNotFoundError, match='adapter_config.json'):
        load_adapter(tiny(LLAMA), str(tmp_path))
    edit()
    load_adapter(tiny(LLAMA), str(tmp_path))
    with pytest.raises(ValueError, match=r'k_proj.lora_B.weight is \(16, 3\), wanted \(32, 3\)'):
        load_adapter(tiny({**LLAMA, 'n_kv_head': 4}), str(tmp_path))
    with pytest.raises(ValueError, match='44 tensors of .* do not fit this model'):
        load_adapter(tiny(GPT2), str(tmp_path))
    edit(r=5)
    with pytest.raises(ValueError, match=r'lora_A.weight is \(3, 32\), wanted \(5, 32\)'):
        load_adapter(tiny(LLAMA), str(tmp_path))
    for change in (dict(use_dora=True), dict(rank_pattern={'q_proj': 3}), dict(alpha_pattern={'q_proj': 3}), dict(bias='all'),
                   dict(init_lora_weights='pissa'), dict(modules_to_save=['lm_head']), dict(peft_type='IA3'), dict(lora_bias=True),
                   dict(task_type='SEQ_CLS'), dict(layer_replication=[[0, 1]]), dict(trainable_token_indices=[1]), dict(new_idea=2)):
        edit(**change)
        with pytest.raises(ValueError, match=f'adapter_config.json has {next(iter(change))} .*: merge it with peft'):
            load_adapter(tiny(LLAMA), str(tmp_path))
    for change, message in ((dict(r=None), 'r is None'), (dict(r=True), 'r is True'), (dict(lora_alpha='8'), "lora_alpha '8'"),
                            (dict(lora_alpha=0), 'lora_alpha 0')):
        edit(**change)
        with pytest.raises(ValueError, match=message):
            load_adapter(tiny(LLAMA), str(tmp_path))
    edit()
    saved = load_file(tmp_path / 'adapter_model.safetensors')
    odd = {name.replace('q_proj.lora_A', 'embed_tokens.lora_embedding_A'): tensor for name, tensor in saved.items()}
    one_block = {name: tensor for name, tensor in saved.items() if '.1.' in name}
    for tensors, message in ((odd, 'holds .*embed_tokens.*no plain adapter'), (one_block, 'layers.0.*is missing')):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / 'adapter_model.safetensors')
        with pytest.raises(ValueError, match=message):
            load_adapter(tiny(LLAMA), str(tmp_path))
    for base, message in ((None, 'is None; it must name'), ('', "is ''"), (str(tmp_path), 'must name the adapters')):
        edit(base_model_name_or_path=base)
        with pytest.raises(ValueError, match=message):
            GPT.from_pretrained(str(tmp_path))
    edit(base_model_name_or_path=str(tmp_path / 'moved'))
    with pytest.raises(FileNotFoundError, match='the model of the adapters in .* is missing: .*moved'):
        GPT.from_pretrained(str(tmp_path))
    os.remove(tmp_path / 'adapter_model.safetensors')
    with pytest.raises(ValueError, match='adapter_model.safetensors cannot be read .*: No such file'):
        load_adapter(tiny(LLAMA), str(tmp_path))
    with pytest.raises(ValueError, match="is not for causal=False"):
        save_adapter(adapted(tiny(LLAMA, causal=False)), str(tmp_path))


@pytest.mark.parametrize('asked, message', (
    (dict(lora_r=4), 'lora_r is 4 and the adapters of .* have 3: leave it out'), (dict(lora_alpha=16.0), 'lora_alpha is 16.0 .* have 6.0'),
    (dict(lora_targets=('q_proj',)), 'lora_targets is .* have'), (dict(), ''),
    (dict(lora_r=3, lora_alpha=6.0, lora_targets='down,v_proj'), '')))
def test_the_settings_become_those_of_the_adapters(asked, message, tmp_path):
    """What is not asked for is taken from the folder; what is asked for otherwise is refused."""
    cfg = types.SimpleNamespace(**{'lora_r': 0, 'lora_alpha': None, 'lora_targets': None, **asked})
    save_adapter(adapted(tiny(LLAMA), targets=('v', 'down')), str(tmp_path), 'base')
    if message:
        with pytest.raises(ValueError, match=message):
            go_on_with_adapters(cfg, str(tmp_path))
        return
    go_on_with_adapters(cfg, str(tmp_path))
    assert (cfg.lora_r, cfg.lora_alpha, set(cfg.lora_targets)) == (3, 6.0, {'v', 'down'})
    go_on_with_adapters(cfg, 'model.pt')  # nothing to do
