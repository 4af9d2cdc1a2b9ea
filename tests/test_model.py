"""The transformer's kinds, and checkpoints that are whole or refused."""
import copy
import shutil

import pytest
import torch
from torch.nn import functional as F

import flash as flash_file
import kernels
import model as model_file
from formats.tokenizer import CharTokenizer
from kernels import GroupAttention, PackedAttention, Rows, group_rows, joined_attention, padded_rows, spans
from model import GPT, GPTConfig, RMSNorm, rotate
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.masters import configure_optimizers


def tiny(**kinds):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=12, vocab_size=20, n_layer=2, n_head=4, n_embd=32, **kinds)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


KINDS = [dict(causal=c, norm=n, position=p, mlp=m, bias=b, tied=t, n_kv_head=k) for c, n, p, m, b, t, k in (
    (True, 'layernorm', 'learned', 'gelu', True, True, None), (True, 'rmsnorm', 'rope', 'swiglu', False, False, 2),
    (False, 'rmsnorm', 'rope', 'relu2', False, True, None), (False, 'layernorm', 'learned', 'gelu', True, True, 1))]


@pytest.mark.parametrize('kinds', KINDS)
def test_what_each_position_sees(kinds):
    """Causal: changing token 7 leaves hidden 0..6 as they were. Bidirectional: it moves them all. Right padding never matters."""
    model = tiny(**kinds)
    a = torch.randint(20, (2, 10))
    b = a.clone()
    b[:, 7] = (b[:, 7] + 1) % 20
    before = (model(a) - model(b))[:, :7].abs().max()
    assert before == 0 if kinds['causal'] else before > 1e-3
    lengths = torch.tensor([7, 4])
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(model(a, lengths)[row, :n], model(a[row:row + 1, :n])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kinds', KINDS)
def test_every_parameter_gets_a_gradient(kinds):
    model = tiny(**kinds)
    F.cross_entropy(model.logits(torch.randint(20, (3, 10))).flatten(0, 1), torch.randint(20, (30,))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert (model.lm_head.weight is model.wte.weight) == kinds['tied']


def test_rope_depends_on_distance_only():
    model = GPT(GPTConfig(block_size=50, vocab_size=8, n_layer=1, n_embd=16, n_head=1, position='rope'))
    cos, sin = (x.squeeze(1) for x in model.rope(torch.arange(50), torch.float32))
    q, k = torch.randn(2, 1, 16)
    def score(i, j):
        return (rotate(q, cos[i:i + 1], sin[i:i + 1]) * rotate(k, cos[j:j + 1], sin[j:j + 1])).sum()
    torch.testing.assert_close(score(3, 10), score(30, 37), atol=1e-5, rtol=1e-5)
    assert (score(3, 10) - score(3, 11)).abs() > 1e-3


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('size', [0.0, 1e-4, 1.0, 1e4])
def test_rmsnorm_is_torchs(dtype, size):
    """Values and gradients are those of torch's own norm, for rows of zeros and such as eps decides."""
    ours, theirs = RMSNorm(24, 1e-5).to(dtype), torch.nn.RMSNorm(24, eps=1e-5, dtype=dtype)
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x, upstream = size * torch.randn(5, 7, 24, dtype=dtype), torch.randn(5, 7, 24, dtype=dtype)
    found = []
    for norm in (ours, theirs):
        rows = x.clone().requires_grad_()
        norm(rows).backward(upstream)
        found.append((norm(rows), rows.grad, norm.weight.grad))
    assert ours(x).dtype == dtype
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_grouped_query_attention_is_repeated_heads():
    grouped, full = tiny(n_kv_head=2), tiny()
    for a, b in zip(grouped.blocks, full.blocks, strict=True):
        q, k, v = a.attn.qkv.weight.view(8, 8, 32).split([4, 2, 2])
        weight = torch.cat((q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0))).flatten(0, 1)
        q, k, v = a.attn.qkv.bias.view(8, 8).split([4, 2, 2])
        bias = torch.cat((q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0))).flatten()
        b.load_state_dict({**a.state_dict(), 'attn.qkv.weight': weight, 'attn.qkv.bias': bias})
    rest = {k: v for k, v in grouped.state_dict().items() if not k.startswith('blocks')}
    full.load_state_dict(rest, strict=False)
    tokens = torch.randint(20, (2, 9))
    torch.testing.assert_close(grouped.logits(tokens), full.logits(tokens))


def test_weight_decay_spares_vectors():
    model = tiny(bias=True)
    decayed, spared = configure_optimizers(model.parameters(), 0.1, 1e-3, (0.9, 0.95)).param_groups
    assert all(p.dim() >= 2 for p in decayed['params']) and all(p.dim() < 2 for p in spared['params'])
    assert decayed['weight_decay'] == 0.1 and spared['weight_decay'] == 0.0
    assert len(decayed['params']) + len(spared['params']) == len(list(model.parameters()))


def test_bad_kinds_and_long_texts_are_refused():
    with pytest.raises(ValueError, match="norm is 'batch'"):
        GPTConfig(norm='batch')
    with pytest.raises(ValueError, match='multiple of n_head'):
        GPTConfig(n_embd=30, n_head=4)
    with pytest.raises(ValueError, match='13 tokens does not fit into block_size 12'):
        tiny()(torch.zeros(1, 13, dtype=torch.long))


def test_checkpoints(tmp_path):
    """Saved and loaded logits are equal; a torn file, a missing one, another kind and a stranger's file are refused by name."""
    model, path = tiny(), str(tmp_path / 'deep' / 'model.pt')
    save_checkpoint(path, {'kind': 'generator', 'model': model.state_dict(), 'model_config': vars(model.config)})
    tokens = torch.randint(20, (1, 5))
    assert torch.equal(GPT.from_pretrained(path).eval().logits(tokens), model.logits(tokens))
    with pytest.raises(ValueError, match='holds a generator checkpoint; it must be judge'):
        load_checkpoint(path, 'judge')
    with pytest.raises(FileNotFoundError, match='nowhere.pt'):
        load_checkpoint(str(tmp_path / 'nowhere.pt'), 'judge')
    whole = open(path, 'rb').read()
    for n in (0, 10, len(whole) // 2, len(whole) - 1):
        open(path, 'wb').write(whole[:n])
        with pytest.raises(ValueError, match='model.pt cannot be read as a checkpoint'):
            load_checkpoint(path, 'generator')
    torch.save({'weights': torch.zeros(2)}, path)
    with pytest.raises(ValueError, match='holds no checkpoint'):
        load_checkpoint(path, 'generator')


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = str(tmp_path / 'model.pt')
    save_checkpoint(path, {'kind': 'run', 'iter': 1})
    with pytest.raises(TypeError, match='pickle'):
        save_checkpoint(path, {'kind': 'run', 'iter': (i for i in range(3))})  # cannot be written
    assert load_checkpoint(path, 'run')['iter'] == 1


def test_characters():
    tokenizer = CharTokenizer('abc')
    assert tokenizer.decode(tokenizer.encode('cab')) == 'cab' and tokenizer.decode([0, tokenizer.mask_id, tokenizer.pad_id]) == 'a□'
    with pytest.raises(ValueError, match="character 'z' at position 2"):
        tokenizer.encode('abz')


@pytest.fixture
def flash(monkeypatch):
    """Flash attention in plain torch. What it was given."""
    monkeypatch.setattr(torch.ops.aten, '_flash_attention_forward', flash_file.forward)
    monkeypatch.setattr(torch.ops.aten, '_flash_attention_backward', flash_file.backward)
    monkeypatch.setattr(flash_file, 'SEEN', [])
    return flash_file.SEEN


GROUPS = [(2, 3, 5, 4, 2, 7, 8, True), (2, 4, 1, 3, 3, 4, 16, False), (1, 2, 33, 9, 3, 40, 64, True), (3, 2, 2, 2, 1, 30, 8, True)]


@pytest.mark.parametrize('way', ['cpu', 'flash', 'gpu without flash'])
@pytest.mark.parametrize('sizes', GROUPS)
def test_group_attention(request, sizes, way):
    """A token sees its prompt, as long as that is, and its completion to itself; the prompt's gradient is summed over its completions."""
    P, G, R, H, H_kv, T, d, ragged = sizes
    torch.manual_seed(0)
    lengths = torch.randint(1, T + 1, (P,)) if ragged else torch.full((P,), T)
    own_lengths = torch.randint(0, R + 1, (P, G)) if ragged else torch.full((P, G), R)
    own_lengths[0, 0] = R
    rows, *layouts = group_rows(own_lengths, R, 'cpu')
    flat, prompts = own_lengths.flatten(), padded_rows(lengths, T, 'cpu')
    parts = spans(own_lengths.sum(1), lengths, 'cpu'), spans(flat, flat, 'cpu', causal=True)
    if way == 'flash':
        request.getfixturevalue('flash')
        rows = Rows(torch.arange(P * G) * R, own_lengths.flatten(), (P, G, R), 'cpu')
    seen = torch.arange(T) < lengths[:, None]
    bias = torch.zeros(P, 1, 1, T).masked_fill(~seen[:, None, None], -torch.inf) if ragged else None
    own_mask = torch.ones(R, R, dtype=torch.bool).tril().expand(P, G, R, R)
    mask = torch.cat((seen[:, None, None].expand(P, G, R, T), own_mask), dim=-1).view(P * G, 1, R, T + R)

    def join(prompt, own):
        return torch.cat((prompt[:, None].expand(-1, G, -1, -1, -1), own), dim=2).flatten(0, 1).transpose(1, 2)

    def formula(q, k, v, prompt_k, prompt_v):
        q, k, v = map(rows.pad, (q, k, v))
        q = q.flatten(0, 1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, join(prompt_k, k), join(prompt_v, v), attn_mask=mask, enable_gqa=True)
        return rows.pack(y.transpose(1, 2).unflatten(0, (P, G)))

    n = rows.n
    shapes = (n, H, d), (n, H_kv, d), (n, H_kv, d), (P, T, H_kv, d), (P, T, H_kv, d)
    dtype = torch.float64 if way == 'flash' else torch.float32
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q, k, v, prompt_k, prompt_v = inputs
    if way == 'flash':
        y = PackedAttention.apply(parts, q, *map(prompts.pack, (prompt_k, prompt_v)), k, v)
    elif way == 'gpu without flash':
        y = joined_attention(*inputs, bias, rows)
    else:
        y = GroupAttention.apply(*inputs, bias, *layouts)
    wanted = formula(*exact)
    grad = torch.randn_like(y)
    torch.testing.assert_close(y.double(), wanted, atol=1e-5, rtol=0)
    for mine, theirs in zip(torch.autograd.grad(y, inputs, grad), torch.autograd.grad(wanted, exact, grad.double()), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kinds', KINDS)
def test_a_gpu_s_attention_is_that_of_a_cpu(monkeypatch, flash, kinds):
    """
    Packed sequences through attend_forward and attend_backward: equal hidden states and gradients, in float64 to 1e-12. They are given no
    mask, each prompt's keys once, whatever G is, and keys of as many heads as the model has.
    """
    model, P, G, R = tiny(**kinds).double(), 2, 3, 5
    prompts, prompt_lengths = torch.randint(20, (P, 4)), torch.tensor([4, 2])
    completions, lengths = torch.randint(20, (P, G, R)), torch.tensor([[5, 1, 0], [2, 3, 4]])
    causal, H_kv = kinds['causal'], model.config.n_kv_head

    def run():
        states, prefix = model.prefill(prompts, prompt_lengths)
        read = model(completions.flatten(0, 1)[:4], lengths.flatten()[:4])
        behind = model.complete(completions, prefix, prompt_lengths, lengths) if causal else read
        model.zero_grad()
        sum(x.square().sum() for x in (states, read, behind)).backward()
        return [states, read, behind, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    wanted = run()
    assert not flash
    monkeypatch.setattr(model_file, 'takes_flash', lambda q: True)
    for mine, theirs in zip(run(), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)
    n, n_prompt, n_read = int(lengths.sum()), int(prompt_lengths.sum()), 8
    sizes = {(causal, n_prompt, n_prompt), (causal, n_read, n_read)} | ({(False, n, n_prompt), (True, n, n)} if causal else set())
    assert set(flash) == {(*size, H_kv) for size in sizes}


def test_flash_attention_is_called_as_torch_has_it():
    """On tensors without numbers: what torch says flash attention returns has the shapes of our own."""
    part = spans(torch.tensor([5, 0, 3]), torch.tensor([4, 2, 7]), 'meta')
    q, k, v = (torch.empty(n, heads, 16, device='meta', dtype=torch.bfloat16) for n, heads in ((8, 4), (13, 2), (13, 2)))
    y, lse = kernels.attend_forward(q, k, v, part)
    assert y.shape == q.shape and lse.shape == (4, 8) and lse.dtype == torch.float32
    grads = kernels.attend_backward(torch.empty_like(y), q, k, v, y, lse, part)
    assert [(x.shape, x.dtype) for x in grads] == [(x.shape, x.dtype) for x in (q, k, v)]


def test_rows_go_without_their_padding_and_come_back():
    """By hand: completions shortest first, those up to 16 tokens together, and those of a prompt side by side. Full rows are not copied."""
    x, lengths = torch.arange(2 * 2 * 20.0).view(2, 2, 20), torch.tensor([[20, 0], [1, 2]])
    rows, alike, groups = group_rows(lengths, 20, 'cpu')
    packed = torch.cat((x[1, 0, :1], x[1, 1, :2], x[0, 0]))
    assert torch.equal(rows.pack(x), packed) and rows.n == 23
    assert torch.equal(rows.pad(packed), x * (torch.arange(20) < lengths[..., None]))
    assert [part.shape for part in alike] == [(2, 2), (1, 20)]
    assert alike[0].pad(packed[:3]).tolist() == [[40, 0], [60, 61]] and torch.equal(alike[1].pad(packed[3:])[0], x[0, 0])
    assert torch.equal(groups.pad(packed)[0], x[0, 0]) and groups.pad(packed)[1].tolist() == [40, 60, 61] + 17 * [0]
    even, _, groups = group_rows(torch.tensor([[20, 1], [1, 20]]), 20, 'cpu')   # groups without padding, in another order
    assert torch.equal(groups.pad(even.pack(x)), torch.stack((torch.cat((x[0, 0], x[0, 1, :1])), torch.cat((x[1, 0, :1], x[1, 1])))))
    full = group_rows(torch.full((2, 2), 20), 20, 'cpu')[0]
    assert full.pack(x).data_ptr() == x.data_ptr() == full.pad(full.pack(x)).data_ptr()


def test_no_padding_is_computed():
    """Every linear of training's forward sees the real tokens alone; hidden states equal those of the padded rows."""
    model = tiny(norm='rmsnorm', position='rope', mlp='swiglu', bias=False)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.3)
    seen = []
    for block in model.blocks:
        block.mlp.up.register_forward_hook(lambda _, inputs, y: seen.append(inputs[0].shape[:-1].numel()))
    prompts, prompt_lengths = torch.randint(20, (2, 4)), torch.tensor([4, 2])
    answers, lengths = torch.randint(20, (2, 3, 5)), torch.tensor([[5, 1, 0], [2, 3, 4]])
    states, prefix = model.prefill(prompts, prompt_lengths)
    hidden = model.complete(answers, prefix, prompt_lengths, lengths)
    n_layer = len(model.blocks)
    assert seen == [6] * n_layer + [15] * n_layer
    plain_states, plain_prefix = model.prefill(prompts)
    plain = model.complete(answers, plain_prefix, prompt_lengths)
    for p in range(2):
        torch.testing.assert_close(states[p, :prompt_lengths[p]], plain_states[p, :prompt_lengths[p]])
        for g in range(3):
            n = int(lengths[p, g])
            torch.testing.assert_close(hidden[p, g, :n], plain[p, g, :n])
            assert not hidden[p, g, n:].any()


@pytest.mark.skipif(shutil.which('g++') is None and not torch.cuda.is_available(), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_compute_the_same_at_any_length():
    """Equal values and gradients; after the first lengths no new one is compiled for, nor a second layer, nor a copy of the model."""
    from torch._dynamo.utils import counters
    model = tiny(norm='rmsnorm', position='rope', mlp='swiglu', bias=False)
    torch.nn.init.normal_(model.blocks[0].attn.proj.weight)
    compiled = copy.deepcopy(model)
    compiled.compile_blocks()

    def gradient(which, T):
        torch.manual_seed(T)
        prompts, answers = torch.randint(20, (2, T)), torch.randint(20, (2, 3, 12 - T))
        _, prefix = which.prefill(prompts)
        which.zero_grad()
        which.complete(answers, prefix, torch.tensor([T, T - 1])).square().sum().backward()
        return which.blocks[0].attn.qkv.weight.grad.clone()

    for T in (3, 5, 4):
        torch.testing.assert_close(gradient(compiled, T), gradient(model, T), atol=1e-4, rtol=1e-4)
    seen = counters['stats']['unique_graphs']
    assert seen > 0
    gradient(compiled, 8), gradient(copy.deepcopy(compiled), 7)
    assert counters['stats']['unique_graphs'] == seen
