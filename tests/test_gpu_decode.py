"""
The sampler on a GPU: its Triton kernels in the interpreter against their torch twins and against float64, the whole sampler through them
against the plain one, and its CUDA graphs, kept from batch to batch, on a simulated GPU.
"""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import kernels
import policy
from grpo import completion_logps
from kernels import decoding, unpack
from kernels.decoding import add_norm_torch, attend_rows_torch, draw_rows_torch, rotate, swiglu_torch
from model import GPT, GPTConfig
from policy import CausalPolicy, generate, prompt_batch, uniforms
from runtime.graphs import Kept
from runtime.lora import LoRALinear, adapters_off, add_lora
from simulated_gpu import SimulatedGPU
from tools.bench import WordTokenizer

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = [pytest.mark.skipif(kernels.triton is None, reason="triton has no wheel for this platform"),
              pytest.mark.filterwarnings('ignore::RuntimeWarning:triton')]  # of NaN and log 0, in NumPy
LLAMA = {'norm': 'rmsnorm', 'position': 'rope', 'mlp': 'swiglu', 'bias': False, 'n_kv_head': 2}
KINDS = {'llama': LLAMA, 'gpt2': {}, 'qwen3': LLAMA | {'n_kv_head': 1, 'qk_norm': True, 'head_dim': 16, 'tied': False}}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [3, 2, 3]]
HALF, FULL = torch.float16, torch.float32


def close(ours, wanted):
    """To the rounding of its dtype, of the largest number."""
    error = 4e-6 if ours.dtype == FULL else 2e-3
    torch.testing.assert_close(ours.double(), wanted.double(), atol=error * max(1.0, wanted.abs().max().item()), rtol=0)


# -----------------------------------------------------------------------------
# kernels

@pytest.mark.parametrize('dtype', [FULL, HALF])
@pytest.mark.parametrize('D', [1, 16, 24, 576])
def test_norm_and_swiglu(dtype, D):
    """The sum that goes on is rounded as torch rounds it: equal to the bit. And against float64, of rows of any size."""
    torch.manual_seed(D)
    x, more, y = torch.randn(2, 3, D).to(DEVICE, dtype), torch.randn(2, 3, D).to(DEVICE, dtype), torch.randn(3, 2, 2 * D).to(DEVICE, dtype)
    norm = torch.nn.RMSNorm(D, eps=1e-5).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        for added in (more, None):
            total, normed = decoding.add_norm_triton(x, added, norm)
            assert torch.equal(total, add_norm_torch(x, added, norm)[0])
            wanted = total.double()
            close(normed, wanted / (wanted.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight)
        close(decoding.swiglu_triton(y), swiglu_torch(y.double()))
        strided = torch.randn(D, 4).to(DEVICE, dtype).T
        close(decoding.add_norm_triton(strided, None, norm)[1], add_norm_torch(strided, None, norm)[1])


@pytest.mark.parametrize('kind, terms', [('plain', 1), ('bias', 2), ('rows of rows', 2), ('LoRA', 2)])
def test_a_projection_adds_to_the_residual_stream(kind, terms):
    """x + linear(y) against float64, with its gradients: in one product where that can be."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16, bias=kind == 'bias')
    layer = LoRALinear(linear, {'o': slice(0, 16)}, 2, 4.0, 0.0) if kind == 'LoRA' else linear
    shape = (3, 5) if kind == 'rows of rows' else (5,)
    x, y = torch.randn(*shape, 16, requires_grad=True), torch.randn(*shape, 24, requires_grad=True)
    found = decoding.add_linear(x, layer, y)
    assert sum(term is not None for term in found) == terms
    total = decoding.plus(*found)
    grads = torch.autograd.grad(total.square().sum(), (x, y))
    wanted = x.double() + y.double() @ linear.weight.T.double() + (linear.bias if kind == 'bias' else 0)
    wanted_grads = torch.autograd.grad(wanted.square().sum(), (x, y))
    assert all(torch.allclose(a.double(), b.double(), atol=1e-5) for a, b in zip((total, *grads), (wanted, *wanted_grads), strict=True))


# P prompts, G, T, R, heads of keys, queries for each, width of a head, rows that read together, slot, dtype, RoPE, rows that are left
ATTENTION = [
    (3, 4, 9, 6, 2, 2, 16, 2, 3, FULL, True, None),
    (3, 4, 9, 6, 2, 2, 16, 4, 0, FULL, True, None),        # the first slot: nothing of its own before
    (2, 5, 70, 130, 1, 7, 24, 4, 100, FULL, True, None),   # more than a block of keys; groups that the lines cut
    (2, 3, 40, 40, 3, 1, 64, 1, 39, HALF, False, None),
    (3, 5, 33, 33, 2, 3, 80, 2, 32, HALF, True, 7),        # rows left, and places that none has
    (2, 4, 20, 20, 2, 3, 128, 8, 17, FULL, True, 5),
    (4, 1, 5, 5, 1, 5, 32, 1, 4, FULL, True, 3),           # one completion a prompt
    (1, 16, 5, 9, 1, 2, 32, 16, 8, FULL, False, None),
    (2, 2, 90, 3, 1, 2, 16, 2, 2, FULL, True, 3),          # a prompt is longer than all completions together
]


def attention_case(*case):
    """The arguments of attend_rows, and how many rows are real. What no row has written holds NaN."""
    P, G, T, R, H_kv, heads, d, width, slot, dtype, rope, left = case
    torch.manual_seed(P * G + T)
    rows, N = torch.arange(P * G), P * G
    if left:
        rows = torch.cat((torch.randperm(N)[:left].sort().values, torch.full((2,), N)))
    lengths = F.pad(torch.randint(1, T + 1, (P,)), (0, 1))
    qkv = torch.randn(len(rows), (heads + 2) * H_kv, d)
    slots = torch.randn(2, P * T + (N + 1) * R, H_kv, d)
    for p in range(P):
        slots[:, p * T + lengths[p]:(p + 1) * T] = torch.nan
    slots[:, P * T:].unflatten(1, (N + 1, R))[:, :, slot:] = torch.nan
    angles = torch.rand(T + R, d // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    tables = [torch.cat((cos, cos), dim=1).to(DEVICE, dtype), torch.cat((-sin, sin), dim=1).to(DEVICE, dtype)] if rope else None
    q, k, v = qkv.to(DEVICE, dtype).split([heads * H_kv, H_kv, H_kv], dim=1)
    return [q, k, v, tables, slots.to(DEVICE, dtype), *(x.to(DEVICE) for x in (lengths, rows, torch.tensor([slot]))), (G, T, R),
            width], left or N


def attention_by_hand(arguments, real):
    """Row by row in float64: one softmax over the prompt, the row's slots and its new token."""
    q, k, v, rope, slots, lengths, rows, at, (G, T, R), _ = arguments
    H_kv, found = k.shape[1], []
    for i in range(real):
        p, first = rows[i] // G, (len(lengths) - 1) * T + rows[i] * R
        new_q, new_k = q[i], k[i]
        if rope:
            new_q, new_k = (rotate(x, *(angles[lengths[p] + at] for angles in rope)) for x in (new_q, new_k))
        prompt, own = slots[:, p * T:p * T + lengths[p]], slots[:, first:first + at]
        keys_values = torch.cat((prompt, own, torch.stack((new_k, v[i]))[:, None]), dim=1).double()
        keys, values = keys_values.repeat_interleave(len(new_q) // H_kv, dim=2)
        scores = torch.einsum('hd,thd->ht', new_q.double(), keys) / q.shape[-1] ** 0.5
        found.append(torch.einsum('ht,thd->hd', scores.softmax(-1), values))
    return torch.stack(found)


@pytest.mark.parametrize('case', ATTENTION)
def test_attention_of_new_tokens(case):
    """Kernel and twin against float64; keys and values are written into the slot alone, for each row its own."""
    arguments, real = attention_case(*case)
    wanted = attention_by_hand(arguments, real)
    P, G, T, R, *_, slot = case[:9]
    before, written = arguments[4], []
    for way in (decoding.attend_rows_triton, attend_rows_torch):
        if way == attend_rows_torch:
            before = before.nan_to_num()  # where the kernel reads nothing the twin multiplies with 0
        arguments[4] = before.clone()
        close(way(*arguments)[:real], wanted)
        written.append(arguments[4])
        rows = arguments[6][:real]
        changed = (before != arguments[4]).any(-1).any(-1)[0] & ~arguments[4].isnan().any(-1).any(-1)[0]
        assert changed.nonzero().squeeze(1).tolist()[:real] == (P * T + rows * R + slot).tolist()
    ours, twins = (x[:, P * T:].unflatten(1, (-1, R))[:, :P * G, slot].nan_to_num() for x in written)
    close(ours, twins)


def draw_case(B, V, sampling, seed, dtype=FULL, padding=0):
    """(logits, a function that gives fresh arguments of draw_rows): B - 1 rows of B + 1, and a place that none has."""
    torch.manual_seed(seed)
    room = torch.full((B, V + padding), torch.nan, dtype=dtype, device=DEVICE)
    logits = room[:, :V].copy_(3 * torch.randn(B, V))
    N, R = B + 1, 3
    rows = torch.cat((torch.randperm(N)[:B - 1].sort().values, torch.tensor([N]))).to(DEVICE)
    u = uniforms([seed], N + 1, R)[0].to(DEVICE)
    cut = sampling[1] or sampling[2] < 1

    def arguments():
        allowed = torch.zeros(N + 1, R, -(-V // 8), dtype=torch.uint8, device=DEVICE) if cut else None
        tokens, logps = torch.zeros(N + 1, R, dtype=torch.long, device=DEVICE), torch.zeros(N + 1, R, device=DEVICE)
        running = (torch.arange(B, device=DEVICE) % 3 > 0).long()
        return [logits, u, rows, torch.tensor([1], device=DEVICE), tokens, logps, allowed, running, torch.tensor([1, 2], device=DEVICE),
                sampling]
    return arguments


def check_drawn(arguments):
    """
    Both ways draw the same tokens, with equal log-probs, bits and ends; other places stay as they were. Where u lies within 1e-6 of the end
    of a token's share, in float64, the next one is right, too.
    """
    ours, twins = arguments(), arguments()
    decoding.draw_rows_triton(*ours)
    draw_rows_torch(*twins)
    logits, u, rows, _, tokens, logps, allowed, running, ends, (temperature, _, _, forbidden) = ours
    rows, of_row = rows[:-1], slice(0, -1)  # the last place is nobody's
    z = logits[of_row].double() / (temperature or 1.0)
    if forbidden is not None:
        z = z.masked_fill(forbidden, -torch.inf)
    if allowed is not None:
        assert torch.equal(allowed[:-1], twins[6][:-1])
        z = z.masked_fill(~unpack(allowed[rows, 1], z.shape[1]), -torch.inf)
    p, drawn = z.softmax(-1), tokens[rows, 1][:, None]
    end, share = p.cumsum(-1).gather(1, drawn), p.gather(1, drawn)
    at_an_edge = ((u[rows, 1:2] - end).abs() < 1e-6) | ((u[rows, 1:2] - end + share).abs() < 1e-6)
    same = drawn == twins[4][rows, 1][:, None]
    assert (same | at_an_edge).all() and same.float().mean() > 0.9 and not tokens[:, [0, 2]].any()
    torch.testing.assert_close(logps[rows, 1].double(), share.log().squeeze(1), atol=3e-6, rtol=1e-6)
    assert torch.equal(running[of_row], (torch.arange(len(rows), device=DEVICE) % 3 > 0) & ~torch.isin(drawn.squeeze(1), ends))
    if temperature > 0:
        assert ((u[rows, 1:2] >= end - share - 1e-6) & (u[rows, 1:2] <= end + 1e-6)).all()
    return ours


SAMPLINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.0, 0, 1.0), (1.3, 17, 1.0), (0.8, 0, 0.9), (1.0, 9, 0.7), (1.0, 2000, 0.999), (0.0, 3, 1.0)]


@pytest.mark.parametrize('temperature, top_k, top_p', SAMPLINGS)
@pytest.mark.parametrize('V, padding', [(37, 0), (1003, 5)])
def test_tokens_are_those_of_the_plain_draw(temperature, top_k, top_p, V, padding):
    """93 rows each; forbidden tokens; rows whose stride is not V, with NaN between them; sums of another order move no token here."""
    forbidden = torch.rand(V, generator=torch.Generator().manual_seed(V)) < 0.1
    for seed, dtype in enumerate((FULL, FULL, HALF)):
        banned = forbidden.to(DEVICE) if seed else None
        ours = check_drawn(draw_case(32, V, (temperature, top_k, top_p, banned), seed, dtype, padding))
        assert not (seed and forbidden[ours[4][ours[2], 1].cpu()].any()), 'a forbidden token'
        if ours[6] is not None:
            assert unpack(ours[6], V)[ours[2], 1].gather(1, ours[4][ours[2], 1][:, None]).all()


@pytest.mark.parametrize('tile', [(1, 64, 4), (4, 32, 4)])
@pytest.mark.parametrize('temperature, top_p', [(1.0, 1.0), (0.0, 1.0)])
def test_a_vocabulary_in_blocks(monkeypatch, tile, temperature, top_p):
    """A GPU goes over a row in blocks, and stops at the token."""
    monkeypatch.setattr(decoding, 'tile', lambda V, most: tile)
    check_drawn(draw_case(9, 203, (temperature, 0, top_p, None), 3))


def test_one_likely_token_and_none():
    """A row of NaN draws an id that exists, and its log-prob is NaN, which generate reports; -inf is never drawn, whatever u is."""
    arguments = draw_case(40, 50, (1.0, 0, 1.0, None), 0)()
    logits, rows = arguments[0], arguments[2]
    logits[:] = -torch.inf
    logits[:, 7], logits[0] = 3.0, torch.nan
    decoding.draw_rows_triton(*arguments)
    assert (arguments[4][rows[1:-1], 1] == 7).all() and 0 <= arguments[4][rows[0], 1] < 50
    assert arguments[5][rows[0], 1].isnan() and (arguments[5][rows[1:-1], 1] == 0).all()


def kept_by_hand(x, top_k, top_p):
    """Ids that stay of the list x: the likeliest, of equal ones the first, by float64; of NaN none."""
    ids = sorted((i for i in range(len(x)) if x[i] > -math.inf), key=lambda i: -x[i])[:top_k or None]
    masses = [math.exp(x[i] - x[ids[0]]) for i in ids]
    return {token for n, token in enumerate(ids) if top_p == 1 or sum(masses[:n]) < top_p * sum(masses)}


@pytest.mark.parametrize('top_k, top_p, block', [(1, 1.0, 0), (7, 1.0, 0), (0, 1e-6, 0), (0, 0.55, 0), (7, 0.6, 0), (7, 0.6, 16),
                                                  (500, 0.97, 0), (500, 1.0, 0)])
def test_what_stays(monkeypatch, top_k, top_p, block):
    """Ties that a cut goes through, few tokens left, numbers far apart: kernel and twin keep the same ones. Of NaN and -inf none."""
    if block and kernels.INTERPRET:
        monkeypatch.setattr(decoding, 'tile', lambda V, most: (1, block, 4))
    arguments, V = draw_case(10, 45, (1.0, top_k, top_p, None), 7), 45
    logits, _, rows = arguments()[:3]
    logits[0], logits[1] = torch.nan, -torch.inf
    logits[2], logits[3], logits[3, ::2] = 0.0, 1.0, 1 - 2 ** -24  # no number lies between the two
    logits[4:6] = torch.randint(-1, 2, (2, V))
    logits[6, 3:] = -torch.inf
    logits[7, ::2] = torch.finfo(FULL).min
    logits[8] = 2.0 ** torch.randint(-140, 8, (V,)) * (torch.rand(V) - 0.5).sign()
    ours, twins = arguments(), arguments()
    decoding.draw_rows_triton(*ours)
    draw_rows_torch(*twins)
    assert torch.equal(ours[6][:-1], twins[6][:-1]) and not ours[6][:, [0, 2]].any(), 'bits, of other places none'
    assert torch.equal(ours[4][rows[2:-1], 1], twins[4][rows[2:-1], 1])
    torch.testing.assert_close(ours[5][:-1], twins[5][:-1], atol=3e-6, rtol=1e-6, equal_nan=True)
    for x, kept, logp in zip(logits.tolist(), unpack(ours[6][rows, 1], V), ours[5][rows, 1], strict=True):
        assert set(kept.nonzero().squeeze(1).tolist()) == kept_by_hand(x, top_k, top_p)
        assert logp.isnan() == (not kept.any())


# -----------------------------------------------------------------------------
# the whole sampler

def tiny(kind='llama', V=37, block_size=150):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=block_size, vocab_size=V, n_layer=2, n_head=4, n_embd=32, **KINDS[kind])).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def check_same(made, wanted):
    assert torch.equal(made.tokens.cpu(), wanted.tokens) and torch.equal(made.lengths.cpu(), wanted.lengths)
    assert torch.equal(made.ended.cpu(), wanted.ended)
    torch.testing.assert_close(made.logps.cpu(), wanted.logps, atol=3e-5, rtol=0)


WHOLE = [('llama', {}), pytest.param('qwen3', {'top_k': 9, 'top_p': 0.8}, marks=pytest.mark.slow),
         pytest.param('gpt2', {'temperature': 0}, marks=pytest.mark.slow)]


@pytest.mark.skipif(not kernels.INTERPRET, reason="the interpreter runs kernels on a CPU")
@pytest.mark.parametrize('kind, options', WHOLE)
def test_through_the_kernels_it_draws_what_the_plain_sampler_draws(monkeypatch, kind, options):
    """All of Triton's kernels at work on a CPU: ragged prompts, rows that leave, ends; norms and SwiGLU of the prefill, too."""
    model = tiny(kind)
    prompts, R = PROMPTS[1:], 7
    wanted = generate(model, prompts, 3, R, eos_id=(7, 11, 5, 20), seed=1, **options)
    launches, on_device = [], decoding.on_device
    monkeypatch.setattr(decoding, 'fused', lambda x: True)
    monkeypatch.setattr(policy, 'fused', lambda x: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=2 ** 36))

    def noted(kernel, *arguments, **more):
        launches.append(kernel)
        on_device(kernel, *arguments, **more)

    monkeypatch.setattr(decoding, 'on_device', noted)
    check_same(generate(model, prompts, 3, R, eos_id=(7, 11, 5, 20), seed=1, kept=Kept(captures=False), **options), wanted)
    assert {decoding.attend_kernel, decoding.draw_kernel} <= set(launches) and (decoding.swiglu_kernel in launches) == (kind != 'gpt2')


@pytest.fixture
def gpu():
    with SimulatedGPU() as gpu:
        yield gpu


def captures(seen):
    return sum(count for name, count in seen.syncs.items() if name.startswith('capture'))


@pytest.mark.parametrize('kind, options', [('llama', {}), ('qwen3', {'top_k': 9, 'top_p': 0.9})])
def test_graphs_and_buffers_are_kept(gpu, kind, options):
    """
    Three batches of one kind with other prompts and seeds: tokens of the plain sampler; memory stays where it is, and the last batch
    captures nothing.
    """
    model, kept, addresses = tiny(kind), Kept(), set()
    there = copy.deepcopy(model).to('cuda')
    for seed in (1, 2, 1):
        prompts = [[seed + i for i in prompt] for prompt in PROMPTS]
        with gpu.watch() as seen:
            made = generate(there, prompts, 3, 40, eos_id=(7, 11), seed=seed, kept=kept, **options)
        check_same(made, generate(model, prompts, 3, 40, eos_id=(7, 11), seed=seed, **options))
        addresses.add(tuple(slots.data_ptr() for slots in kept.decoder.cache.slots))
        assert len(kept.decoder.rows) < 12 or not kept.decoder.running.all(), 'the graph tells which rows have ended'
    assert len(addresses) == 1 and captures(seen) == 0 and seen.launches['graph'] > 20
    assert seen.launches['attend_rows_triton'] <= 2 * 8, 'only a first step of a number of rows is taken without a graph'


def test_what_ends_a_graph(gpu):
    """Weights that change in place do not; a model whose weights lie elsewhere, adapters switched off, another kind of batch or a longer
    prompt do."""
    model, kept = tiny(), Kept()
    add_lora(model, 2, 4.0)
    for layer in model.modules():
        if hasattr(layer, 'B'):
            torch.nn.init.normal_(layer.B)
    there = copy.deepcopy(model).to('cuda')

    def again(prompts=PROMPTS, **options):
        """Whether the decoder was kept; its tokens are those of the plain sampler."""
        before = kept.decoder
        made = generate(there, prompts, 2, 5, seed=4, kept=kept, **options)
        check_same(made, generate(model, prompts, 2, 5, seed=4, **options))
        return kept.decoder is before

    assert not again() and again() and again([prompt[:3] for prompt in PROMPTS])
    with torch.no_grad():
        for which in (model, there):
            which.norm_f.weight.mul_(1.5)
    assert again()
    with adapters_off(there), adapters_off(model):
        assert not again()
    assert not again() and not again(temperature=0.5) and again(temperature=0.5)
    assert not again([PROMPTS[0] * 26, *PROMPTS[1:]], temperature=0.5) and again(PROMPTS, temperature=0.5)
    there.wte.weight.data = there.wte.weight.data.clone()
    assert not again(temperature=0.5)


def test_broken_weights_leave_nothing_behind(gpu):
    """After NaN has been told of, the same buffers serve weights that were mended in place."""
    ends = list(range(1, 36))  # NaN draws none of them
    there, kept = tiny().to('cuda'), Kept()
    right = there.norm_f.weight.detach().clone()
    for broken in (False, True, False):
        with torch.no_grad():
            there.norm_f.weight.copy_(right * torch.nan if broken else right)
        if broken:
            with pytest.raises(FloatingPointError):
                generate(there, PROMPTS, 2, 6, eos_id=ends, seed=1, kept=kept)
        else:
            made = generate(there, PROMPTS, 2, 6, eos_id=ends, seed=1, kept=kept)
    check_same(made, generate(tiny(), PROMPTS, 2, 6, eos_id=ends, seed=1))


def test_a_large_cache_is_given_back(gpu, monkeypatch):
    """More than an eighth of the memory is not kept while training needs it."""
    policy, batch = CausalPolicy(tiny().to('cuda'), WordTokenizer(37), 8), prompt_batch(PROMPTS, [1, 2, 3, 4], 'cuda')
    policy.sample(batch, 2)
    kept = policy.kept.decoder
    assert kept is not None
    policy.sample(batch, 2)
    assert policy.kept.decoder is kept
    n_bytes = sum(slots.nbytes for slots in kept.cache.slots)
    properties = torch.cuda.get_device_properties()
    for memory, stays in ((8 * n_bytes, True), (8 * n_bytes - 1, False)):
        monkeypatch.setattr(properties, 'total_memory', memory)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device=None: properties)
        policy.sample(batch, 2)
        assert (policy.kept.decoder is not None) == stays


def gap(device):
    """Mean difference between log-probs of sampler and trainer, in bf16."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=128, vocab_size=256, n_layer=4, n_head=4, n_embd=128, mlp_hidden=344, **LLAMA)).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.08)
    policy = CausalPolicy(model.to(device).to(torch.bfloat16), WordTokenizer(256), 24)
    rollout = policy.sample(prompt_batch(torch.randint(2, 256, (3, 40)).tolist(), [1, 2, 3], device), 4)
    with torch.no_grad():
        return (completion_logps(policy, rollout)[0] - rollout.logps).abs().mean().item()


def test_sampler_and_trainer_round_alike(monkeypatch):
    """In bf16, on the CPU and on the way of a GPU; a sampler that rounds the mean of prompt and completion only once is found."""
    def once(q, k, v, rope, slots, *others):
        lengths, rows, at, (G, T, R), _ = others
        attend_rows_torch(q, k, v, rope, slots, *others)
        q = rotate(q, *(angles[lengths[rows // G] + at, None] for angles in rope))
        new_k, new_v = slots[:, (len(lengths) - 1) * T + rows * R + at]
        return attend_rows_torch(*(x.float() for x in (q, new_k, new_v)), None, slots.float(), *others).to(q.dtype)

    with SimulatedGPU():
        ours = gap('cuda')
    assert gap('cpu') < 0.003 and ours < 0.003
    monkeypatch.setattr(decoding, 'attend_rows_torch', once)
    with SimulatedGPU():
        assert gap('cuda') > 2 * ours
