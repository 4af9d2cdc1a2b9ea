"""
The way that the code takes on a GPU, looked at where there is none: Triton kernels compiled for sm_80 and sm_90 (compile_kernels.py), and
sampling, training and whole runs on a simulated GPU (simulated_gpu.py), which refuses what a GPU refuses and counts what makes the host
wait. Numbers that are held may fall and not rise. Each check is shown to find what was planted for it.
"""
import copy
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

import grpo
import kernels
from compile_kernels import KERNELS, LAUNCHES, PLANTED, QUICK
from formats.tokenizer import CharTokenizer
from grpo import Settings, grpo_training_step
from judge import Judge, LagrangeMultiplier, ScoreModel
from model import GPT, GPTConfig
from nla import Critic, Injection, NLAPolicy, standardiser, truncate
from policy import CausalPolicy, Decoder, generate, prompt_batch
from runtime import ranks
from runtime.lora import add_lora, has_adapters, quantize_int8
from runtime.masters import compute_in, configure_optimizers, copy_masters
from runtime.shard import shard_model
from simulated_gpu import NotCapturable, SimulatedGPU, TwoDevices
from tasks.alignment import Alignment
from tasks.evolution import es_training_step
from tasks.fill_in import FillIn, FillInPolicy, choose_slots, filler_config, make_batch, on_device
from tasks.nla import NLA
from tools import roof

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDS_TRITON = pytest.mark.skipif(kernels.triton is None, reason="triton has no wheel for this platform")


@pytest.fixture
def gpu():
    with SimulatedGPU() as gpu:
        yield gpu


def total(counter):
    return sum(counter.values())


# -----------------------------------------------------------------------------
# kernels, compiled

def compile_for(sm, names):
    environment = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    command = [sys.executable, os.path.join(ROOT, 'tests', 'compile_kernels.py'), str(sm), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def narrow(widths):
    """How many of the loads read fewer than 16 bytes of numbers; masks are bytes."""
    return sum(count for width, count in widths.items() if 1 < int(width) < 16)


def check_compiled(sm, results):
    """Nothing in memory that belongs into registers; vectors of 16 bytes, but for single numbers of a row, where rows are aligned."""
    for name, made in results.items():
        for kernel in made:
            where = f'{name} on sm_{sm}: {kernel}'
            assert kernel['registers'] <= 128 and not kernel['spilled'], where
            if name != 'stats, 99, 8 tokens':  # a row is shorter than its threads' vectors
                assert kernel['loads'].get('16') and narrow(kernel['loads']) < 32, where


@NEEDS_TRITON
def test_kernels_compile_for_an_H100():
    """
    Some launches, GPT-2's 50257 tokens among them. Found are a block that is far too large, which spills, and rows of 50257 side by side,
    which are read number by number.
    """
    results = compile_for(90, QUICK)
    for name in PLANTED:
        with pytest.raises(AssertionError):
            check_compiled(90, {name: results.pop(name)})
    check_compiled(90, results)


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.parametrize('sm', [80, 90])
def test_every_launch_of_every_kernel_compiles(sm):
    results = compile_for(sm, [name for name in LAUNCHES if name not in PLANTED])
    assert {kernel['kernel'] for made in results.values() for kernel in made} == set(KERNELS)
    check_compiled(sm, results)


# -----------------------------------------------------------------------------
# what the simulated GPU notices

X = torch.arange(6.0).view(2, 3)
ROWS, MASK = torch.tensor([0, 1]), torch.tensor([True, False])
WAITS = {
    'item': lambda x: x.sum().item(),
    'if': lambda x: bool(x.sum() > 0),
    'float': lambda x: float(x[0, 0]),
    'in': lambda x: 1.0 in x,
    'tolist': lambda x: x.tolist(),
    'cpu': lambda x: x.cpu(),
    'to the CPU': lambda x: x.to('cpu'),
    'copy to the CPU': lambda x: torch.zeros(2, 3).copy_(x),
    'index by a mask': lambda x: x[x > 1],
    'index by a mask of the CPU': lambda x: x[MASK],
    'index of the CPU': lambda x: x[ROWS],
    'put by a mask': lambda x: x.__setitem__(x > 1, 0.0),
    'nonzero': lambda x: x.nonzero(),
    'where': lambda x: torch.where(x > 1),
    'masked_select': lambda x: x.masked_select(x > 1),
    'unique': lambda x: x.unique(),
    'equal': lambda x: torch.equal(x, x + 1),
    'repeat_interleave': lambda x: x.repeat_interleave(torch.arange(2, device='cuda'), dim=0),
    'sent': lambda x: X.to('cuda'),
    'a list': lambda x: torch.tensor([1, 2], device='cuda'),
    'a number of the CPU in where': lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    'copied': lambda x: x.copy_(X),
    'a number copied': lambda x: x.copy_(0.5),
    'synchronize': lambda x: torch.cuda.synchronize(),
    'an event': lambda x: torch.cuda.Event().synchronize(),
}
GOES_ON = {
    'sent': lambda x: X.to('cuda', non_blocking=True),
    'sent to pinned memory': lambda x: torch.zeros(2, 3).pin_memory().copy_(x, non_blocking=True),
    'index': lambda x: x[x.long().clamp(max=1)[:, 0]],
    'put': lambda x: x.__setitem__((slice(None), 1), 2.0),
    'where': lambda x: x.where(x > 1, 0.0),
    'masked_fill': lambda x: x.masked_fill(x > 1, 0.0),
    'nonzero_static': lambda x: x.nonzero_static(size=5),
    'repeat_interleave': lambda x: x.repeat_interleave(torch.arange(2, device='cuda'), dim=0, output_size=1),
    'new': lambda x: x.new_zeros(2),
    'made': lambda x: torch.arange(3, device=x.device),
    'a number of the CPU': lambda x: x * torch.tensor(2.0),
    'shape': lambda x: len(x) + x.shape[0],
    'cast': lambda x: x.to(torch.bfloat16),
    'product in fp32': lambda x: torch.mm(x.half(), x.half().T, out_dtype=torch.float32),
}
REFUSED = {
    'add': lambda x: x + X,
    'in place': lambda x: X.clone().add_(x),
    'cat': lambda x: torch.cat((x, X)),
    'stack': lambda x: torch.stack((x[0, 0], torch.tensor(1.0))),
    'product': lambda x: x @ X.T,
    'linear': lambda x: torch.nn.Linear(3, 2)(x),
    'gather': lambda x: x.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    'embedding': lambda x: torch.nn.functional.embedding(ROWS, x),
    'index_select': lambda x: x.index_select(0, ROWS),
    'index of the GPU': lambda x: X.T[x.long()[0]],
    'mask': lambda x: x.masked_fill(X > 1, 0.0),
    'generator': lambda x: torch.rand(3, generator=torch.Generator(), device=x.device),
    'generator of a draw': lambda x: torch.multinomial(x.exp(), 1, generator=torch.Generator()),
}


@pytest.mark.parametrize('name', WAITS)
def test_the_host_waits(gpu, name):
    x = X.to('cuda')
    with gpu.watch() as seen:
        WAITS[name](x)
    assert total(seen.syncs) == 1 and 'tests/test_gpu_path.py' in next(iter(seen.syncs)), seen
    with pytest.raises(NotCapturable), torch.cuda.graph(torch.cuda.CUDAGraph()):
        WAITS[name](x)


@pytest.mark.parametrize('name', GOES_ON)
def test_the_host_goes_on(gpu, name):
    x = X.to('cuda')
    with gpu.watch() as seen:
        GOES_ON[name](x)
    assert not seen.syncs


@pytest.mark.parametrize('name', REFUSED)
def test_two_devices_do_not_mix(gpu, name):
    REFUSED[name](X)  # on the CPU alone nothing is wrong with it
    with pytest.raises(TwoDevices):
        REFUSED[name](X.to('cuda'))


def test_a_kernel_reaches_no_tensor_of_the_CPU(gpu):
    with pytest.raises(TwoDevices):
        kernels.row_stats(X.to('cuda'), ROWS[:, None], 1.0, None)


def test_results_gradients_and_numpy(gpu):
    """Results lie where their inputs do, also those of backward; gradients go back to where a tensor came from; NumPy reads no GPU."""
    weight = torch.ones(3, requires_grad=True)
    x = X.to('cuda')
    y = (x * weight.to('cuda')).square().sum()
    y.backward()
    assert x.is_cuda and y.device == torch.device('cuda', 0) and (x.T.long() + 1).is_cuda and not X.is_cuda
    assert not weight.grad.is_cuda and torch.equal(weight.grad, 2 * X.square().sum(dim=0))
    assert x.new_zeros(2).is_cuda and not x.new_zeros(2, device='cpu').is_cuda and not torch.zeros(2).is_cuda
    layer = torch.nn.Linear(3, 2).to('cuda')
    layer(x).sum().backward()
    assert layer.weight.is_cuda and layer.weight.grad.is_cuda
    for read in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            read()
    assert X.numpy().sum() == 15 and x.cpu().numpy().sum() == 15


def test_nothing_of_it_stays():
    before = torch.compile, torch.cuda.synchronize, torch.autograd.grad, kernels.row_stats_triton, ThreadPoolExecutor.submit
    with pytest.raises(TwoDevices), SimulatedGPU() as gpu:
        x = X.to('cuda')
        assert gpu.ledger.holds(x) and torch.cuda.is_available()
        x + X
    assert before == (torch.compile, torch.cuda.synchronize, torch.autograd.grad, kernels.row_stats_triton, ThreadPoolExecutor.submit)
    assert not x.is_cuda and torch.equal(x + X, 2 * X)


def test_launches_are_counted(gpu):
    """A view is none; a kernel of Triton and RMSNorm are one; what other threads do counts as well."""
    x, norm = X.to('cuda'), torch.nn.RMSNorm(3).to('cuda')
    with gpu.watch() as seen, torch.inference_mode():
        norm(x.view(3, 2).T.contiguous().view(2, 3))
        kernels.row_stats(x, torch.zeros(2, 1, dtype=torch.long, device='cuda'), 1.0, None)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.cumsum, x, 0).result()
    assert seen.launches == {'clone': 1, '_fused_rms_norm': 1, 'zeros': 1, 'row_stats_triton': 1, 'cumsum': 1}


@pytest.mark.parametrize('dtype, mask, heads, kernel', [
    (torch.bfloat16, False, 1, 'flash'), (torch.bfloat16, True, 2, 'efficient'), (torch.bfloat16, True, 1, 'math'),
    (torch.float32, False, 2, 'efficient'), (torch.float32, False, 1, 'math')])
def test_which_attention_a_gpu_would_take(gpu, dtype, mask, heads, kernel):
    """FlashAttention takes no mask and no fp32, the memory-efficient kernel no grouped heads; what is left are matrices of all scores."""
    q, k = torch.zeros(1, 2, 3, 8, dtype=dtype, device='cuda'), torch.zeros(1, heads, 3, 8, dtype=dtype, device='cuda')
    mask = torch.ones(3, 3, dtype=torch.bool, device='cuda') if mask else None
    with gpu.watch() as seen:
        torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)
    assert [found.partition(' ')[0] for found in seen.attention] == [kernel]


def test_a_capture_changes_nothing_and_a_replay_does(gpu):
    with torch.inference_mode():
        x, graph = X.to('cuda'), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x.mul(2).add_(1)
            x.add_(y)
        assert torch.equal(x.cpu(), X) and y.cpu().isnan().all()  # memory that nothing was written to yet
        graph.replay()
        assert torch.equal(y.cpu(), 2 * X + 1) and torch.equal(x.cpu(), 3 * X + 1)
        graph.replay()
        assert torch.equal(x.cpu(), 9 * X + 4)


@pytest.mark.parametrize('mode', ['global', 'thread_local'])
def test_another_thread_waits_while_a_graph_is_captured(gpu, mode):
    """As a reward's may; it breaks a capture that listens to all threads."""
    x, failures = X.to('cuda'), []

    def wait():
        try:
            with gpu.in_this_thread():
                x.sum().item()
        except NotCapturable as e:
            failures.append(e)

    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=mode):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert len(failures) == (mode == 'global')


# -----------------------------------------------------------------------------
# one step of everything, small enough to be read number by number

V, R, G = 23, 6, 3
PROMPTS = [[5, 3], [7, 2, 9, 4], [1, 8, 6]]
CHARS = CharTokenizer('abcdefgh', end=True)
LLAMA = {'norm': 'rmsnorm', 'position': 'rope', 'mlp': 'swiglu', 'bias': False, 'n_kv_head': 1}


class Words:
    """The part of a tokenizer that a CausalPolicy uses."""
    eos_ids, vocab_size, special_ids = (0,), V, ()

    def decode(self, ids):
        return ' '.join(map(str, ids))


def randomly(model):
    """Blocks start as the identity; these do something."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def llama(vocab_size=V, **more):
    return randomly(GPT(GPTConfig(block_size=80, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=16, **LLAMA | more)))


def remainder(policy, rollout):
    return (rollout.tokens.sum(dim=-1) % 7).float()


def of_completion(device, **options):
    """(policy, batch, rewards, learn_beside) of each task."""
    model = llama(**options.pop('sizes', {})).to(device)
    if options.pop('lora', False):
        quantize_int8(model)
        add_lora(model, 2, 4.0)
    if options.pop('gae', False):
        model.value_head = torch.nn.Linear(16, 1, device=device)
    return CausalPolicy(model, Words(), R, **options), prompt_batch(PROMPTS, [1, 2, 3], device), [('remainder', remainder, 1.0)], None


def of_fill_in(device, **options):
    model = randomly(GPT(filler_config(CHARS, 16, 2, 2, 16))).to(device)
    job = FillIn.__new__(FillIn)
    job.judge = randomly(Judge(model.config, CHARS.cls_id)).to(device).requires_grad_(False)
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor([11, 9, 10])
    chosen = choose_slots('random', lengths, 12, (0.3, 0.6), generator)
    batch = make_batch(torch.randint(8, (3, 12), generator=generator), lengths, chosen, CHARS.mask_id)
    return FillInPolicy(model, CHARS, **options), on_device(batch, device), [('judge', job.realness, 1.0)], None


class Scorer:
    """In the place of the client of a scorer's service: its models are on the device."""

    def __init__(self, device):
        self.models = [randomly(ScoreModel(llama().config, kind)).to(device).requires_grad_(False) for kind in ('reward', 'cost')]

    def score(self, texts):
        rows = [[int(word) for word in text.split()] + [0] for text in texts]
        return [model.scores(rows).tolist() for model in self.models]


def of_alignment(device):
    policy, batch, _, _ = of_completion(device)
    job = Alignment.__new__(Alignment)
    job.client, job.multiplier, job.records = Scorer(device), LagrangeMultiplier(), [{'text': f'{p} '} for p in range(3)]
    job.join, job.prompt_key, job.cfg = ''.join, 'text', SimpleNamespace(lambda_adapt=True, cost_threshold_d=0.1)
    job.join = '{}{}'.format
    return policy, batch | {'record': torch.arange(3)}, job.rewards, job.learn_beside


def of_nla(device):
    A, model = 16, llama(CHARS.vocab_size)
    vectors = torch.randn(3, A, generator=torch.Generator().manual_seed(0))
    model.injection = Injection(model, A, 'project', (0, 1), None)
    critic = Critic(truncate(llama(CHARS.vocab_size), 1), *standardiser(vectors.numpy()))
    policy = NLAPolicy(model.to(device), CHARS, R, marker_id=CHARS.mask_id)
    job = NLA.__new__(NLA)
    job.critic, job.ends, job.train = critic.to(device), True, SimpleNamespace(count=1)
    job.critic_optimizer = torch.optim.AdamW(job.critic.parameters(), lr=1e-3)
    job.cfg = SimpleNamespace(text_reversed=True, eval_batch_size=4, nla_reward='mse', truncated_reward=-2.0, micro_batch_size=None,
                              critic_train_epochs=1)
    slots = torch.tensor([[1], [1], [1]]).to(device)
    batch = prompt_batch([[3, CHARS.mask_id, 4], [2, CHARS.mask_id], [1, CHARS.mask_id, 5]], [1, 2, 3], device)
    batch |= {'slots': slots, 'activation': vectors[:, None].to(device)}
    return policy, batch, [('reconstruction', job.reconstruction, 1.0)], job.learn_beside


def step(device, make=of_completion, dtype=torch.float32, options=None, shard=False, **settings):
    """A function that takes one step of a task and gives its metrics, with the rollout among them."""
    torch.manual_seed(0)
    policy, batch, rewards, learn_beside = make(device, **options or {})
    cfg = Settings(**{'group_size': G, 'kl_beta': 0.1} | settings)
    model = policy.model
    if has_adapters(model):
        reference = policy.without_adapters()
    else:
        reference = policy.with_model(copy.deepcopy(model).requires_grad_(False))
    spread = partial(shard_model, dtype=dtype, device=device) if shard else partial(compute_in, dtype=dtype)
    masters = spread(model)
    if reference.model is not model:
        spread(reference.model)
    optimizer = configure_optimizers(masters.values(), 0.0, 1e-2, (0.9, 0.99))
    optimizer.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=dtype == torch.float16)
    if not shard:
        optimizer.register_step_post_hook(lambda *_: copy_masters(masters, model))
    learning = [p for p in masters.values() if p.requires_grad]

    def take():
        if cfg.kl_beta == 0:
            metrics, rollout = es_training_step(policy, batch, learning, rewards, cfg, 0.1, 5, lambda: copy_masters(masters, model))
        else:
            metrics, rollout = grpo_training_step(policy, batch, optimizer, rewards, cfg, reference)
        beside = learn_beside(rollout) if learn_beside else {}
        return metrics | beside | {'rollout': rollout}

    return take


MODELS = {
    'GPT-2': {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu', 'bias': True, 'n_kv_head': 2},
    'Qwen3': {'qk_norm': True, 'qkv_bias': True, 'tied': False, 'head_dim': 6},
}


# How often the host waits in one step, in all.
STEPS = {
    'completion': (35, {}),
    'completion, k3': (35, {'kl_estimator': 'k3'}),
    'bf16': (35, {'dtype': torch.bfloat16}),
    'fp16': (36, {'dtype': torch.float16}),
    'top_k and top_p': (35, {'options': {'top_k': 9, 'top_p': 0.9, 'temperature': 0.7}}),
    'LoRA on int8': (35, {'options': {'lora': True}, 'dtype': torch.bfloat16}),
    'gae': (34, {'options': {'gae': True}, 'advantage': 'gae'}),
    'fill_in': (29, {'make': of_fill_in}),
    'fill_in, 2 steps': (30, {'make': of_fill_in, 'options': {'unmask_steps': 2}, 'kl_estimator': 'k3'}),
    'alignment': (49, {'make': of_alignment}),
    'nla': (47, {'make': of_nla, 'kl_estimator': 'k3'}),
    'evolution strategies': (73, {'kl_beta': 0.0, 'es_pairs': 2}),
}


def check_equal(metrics, wanted):
    """Two steps' completions and numbers."""
    assert torch.equal(metrics['rollout'].tokens.cpu(), wanted['rollout'].tokens)
    for key in wanted.keys() - {'rollout', 'tokens_per_s'}:
        if not key.startswith('time_'):
            assert metrics[key] == pytest.approx(wanted[key], abs=2e-5, rel=1e-4), key


SOME = {'completion', 'LoRA on int8', 'gae', 'fill_in', 'alignment', 'nla', 'evolution strategies', 'fp16'}


@pytest.mark.parametrize('name', [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in STEPS])
def test_a_step(gpu, name):
    """It mixes no devices, the host waits at most as often as is held, and in fp32 it is the CPU's step."""
    held, settings = STEPS[name]
    take = step('cuda', **settings)
    with gpu.watch() as seen:
        metrics = take()
    assert total(seen.syncs) <= held, '\n'.join(map(str, seen.syncs.items()))
    assert metrics['rollout'].tokens.is_cuda
    if 'dtype' not in settings:
        check_equal(metrics, step('cpu', **settings)())


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_step_of_another_model(gpu, name):
    settings = {'options': {'sizes': MODELS[name]}, 'loss_type': 'dapo', 'entropy_coef': 0.1}
    check_equal(step('cuda', **settings)(), step('cpu', **settings)())


def test_a_number_more_in_a_step_is_found(gpu, monkeypatch):
    right = grpo.compute_advantages
    monkeypatch.setattr(grpo, 'compute_advantages', lambda rewards, *more: right(rewards, *more) * (1 + 0 * rewards.max().item()))
    with pytest.raises(AssertionError, match='_local_scalar_dense tests/test_gpu_path.py'):
        test_a_step(gpu, 'completion')


def test_no_layer_attends_by_a_matrix_of_all_scores(gpu):
    """In 16 bits policy and reference go through flash attention of packed sequences: nothing is left to torch's choice."""
    take = step('cuda', dtype=torch.bfloat16)
    with gpu.watch() as seen:
        take()
    assert not seen.attention and seen.launches['_flash_attention_backward']


@pytest.mark.parametrize('name', ['completion', 'completion, k3', 'fill_in', 'gae'])
def test_a_micro_batch_does_not_wait(gpu, name):
    """How much oftener the host waits where a step is cut into three: in policy, reference and value head, for each."""
    syncs = []
    for size in (3, 1):
        take = step('cuda', **STEPS[name][1], micro_batch_size=size)
        with gpu.watch() as seen:
            take()
        syncs.append(seen.syncs)
    whole, cut = syncs
    assert total(cut) <= total(whole), cut - whole


def test_a_mask_in_the_loss_is_found(gpu, monkeypatch):
    """The planted mistake: a mean over the tokens that count, picked by their mask."""
    right = grpo.policy_term

    def picked(part, logps, entropy, cfg):
        loss, stats = right(part, logps, entropy, cfg)
        return loss, stats | {'pg_loss': logps[part.mask].mean().detach()}

    monkeypatch.setattr(grpo, 'policy_term', picked)
    with pytest.raises(AssertionError, match='index by a mask grpo.py|index by a mask tests'):
        test_a_micro_batch_does_not_wait(gpu, 'completion')


@pytest.fixture
def nccl(gpu):
    """A group of one rank."""
    dist.init_process_group('nccl', store=dist.HashStore(), rank=0, world_size=1)
    yield gpu
    dist.destroy_process_group()


@pytest.mark.filterwarnings('ignore:FSDP2-wrapped module')
@pytest.mark.parametrize('shard, held', [(False, 37), (True, 37)])
def test_a_step_among_ranks(nccl, shard, held):
    """Whole or sharded (FSDP2), in bf16: every collective is given tensors of the GPU, and all lies on it."""
    take = step('cuda', dtype=torch.bfloat16, shard=shard)
    with nccl.watch() as seen:
        take()
    assert total(seen.syncs) <= held, '\n'.join(map(str, seen.syncs.items()))
    assert seen.launches['allreduce_']


def test_a_tensor_of_the_CPU_in_a_collective_is_refused(nccl, monkeypatch):
    with pytest.raises(TwoDevices):
        dist.all_reduce(torch.ones(2))
    with pytest.raises(ValueError, match='contiguous'):
        dist.all_reduce(torch.ones(2, 3, device='cuda').T)
    monkeypatch.setattr(ranks, 'any_of', lambda device, *flags: ranks.all_reduce(torch.zeros(len(flags))))
    with pytest.raises(TwoDevices, match='allreduce_'):  # planted: flags that are told on the CPU
        step('cuda')()


# -----------------------------------------------------------------------------
# sampling, and CUDA graphs

def sampled(gpu, R=20, dtype=torch.float32, **options):
    """(Completions, Seen) of a model whose tokens are all likely."""
    torch.manual_seed(0)
    model = llama().to('cuda', dtype)
    with gpu.watch() as seen:
        made = generate(model, PROMPTS, G, R, seed=1, **options)
    return made, seen


@pytest.mark.parametrize('options', [{}, {'top_k': 5, 'top_p': 0.9, 'temperature': 0.7}, {'temperature': 0}, {'compile': True}])
def test_a_token_does_not_wait(gpu, options):
    """Twelve tokens more, and the host waits as often; it looks at who has ended once in 16."""
    (_, few), (_, many) = (sampled(gpu, R, **options) for R in (4, 16))
    assert total(many.syncs) == total(few.syncs), many.syncs - few.syncs
    assert many.launches['graph'] == few.launches['graph'] + 12


def test_a_number_read_for_each_token_is_found(gpu, monkeypatch):
    write = Decoder.write

    def planted(self, hidden):
        write(self, hidden)
        self.largest = self.logps.max().item()

    monkeypatch.setattr(Decoder, 'write', planted)
    with pytest.raises(NotCapturable, match='_local_scalar_dense'):
        sampled(gpu)


ENDS = [([0, 4, 5], {}), (0, {'temperature': 0}), ([0, 4], {'top_k': 7, 'top_p': 0.8, 'temperature': 0.7})]
MORE_ENDS = [(None, {}), (0, {}), (0, {'top_k': 7}), (0, {'top_p': 0.8, 'temperature': 0.7}), ([0, 1, 2, 3, 4, 5], {'temperature': 1.3})]


@pytest.mark.parametrize('ends, options', [*ENDS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_ENDS)])
def test_graphs_give_the_plain_samplers_tokens(gpu, ends, options):
    """Captured and replayed, while rows leave: tokens, log-probs and lengths are those of the CPU's sampler."""
    made, seen = sampled(gpu, 70, eos_id=ends, **options)
    torch.manual_seed(0)
    wanted = generate(llama(), PROMPTS, G, 70, seed=1, eos_id=ends, **options)
    assert torch.equal(made.tokens.cpu(), wanted.tokens) and torch.equal(made.lengths.cpu(), wanted.lengths)
    torch.testing.assert_close(made.logps.cpu(), wanted.logps, atol=2e-5, rtol=1e-4)
    assert (made.allowed is None) == (wanted.allowed is None)
    assert seen.launches['graph'] > (10 if wanted.lengths.max() > 20 else 0)


def test_a_step_that_makes_new_tensors_is_found(gpu, monkeypatch):
    """The planted mistake: a captured step that hands on a new tensor each time goes on writing the old one."""
    step_of = Decoder.step

    def planted(self):
        self.tokens = self.tokens.clone()
        step_of(self)

    monkeypatch.setattr(Decoder, 'step', planted)
    with pytest.raises((AssertionError, FloatingPointError)):
        test_graphs_give_the_plain_samplers_tokens(gpu, 0, {})


def test_a_list_in_a_captured_step_is_found(gpu, monkeypatch):
    right = Decoder.step
    monkeypatch.setattr(Decoder, 'step', lambda self: (self.rows.add_(torch.tensor([0], device='cuda')), right(self)))
    with pytest.raises(NotCapturable, match='tensor'):
        sampled(gpu)


# -----------------------------------------------------------------------------
# tools/roof.py, arithmetic of a decode step

def test_costs_by_hand():
    """Bytes read and written, and FLOPs, of operations in bf16 (2 bytes) and fp32; a number that is expanded is read once."""
    with torch.device('meta'), roof.Account() as account:
        x, w, rows = torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(4, 5, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.long)
        account.rows.clear()
        (x @ w).t().float()                      # 24 + 40 + 30 bytes, 2 * 3 * 4 * 5 FLOPs; a view is free; 30 + 60
        x + torch.zeros(1, 1, device='meta').expand(3, 4)
        torch.nn.functional.embedding(rows, w)   # two rows of 10 bytes are read and written, and 2 ids of 8
        x[rows] = x[:2]                          # two rows of 8 bytes, read and written
        x.add_(1)
    found = [row[1:] for row in account.rows]
    assert found == [('mm', 94, 120), ('_to_copy', 90, 0), ('zeros', 4, 0), ('add', 24 + 4 + 48, 0), ('embedding', 56, 0),
                     ('index_put_', 48, 0), ('add_', 48, 0)]


def test_a_kernel_costs_its_tensors_once(monkeypatch):
    """120 bytes of gates and values, a result of 60; and what TRAFFIC says where that is wrong."""
    x = torch.zeros(3, 10, device='meta')
    for known, row in (({}, ('elementwise', 180, 0)), ({'swiglu': lambda x: (7, 8)}, ('gemm', 7, 8))):
        monkeypatch.setattr(roof, 'TRAFFIC', known)
        account = roof.Account()
        with account:
            account.kernel('swiglu', x)
        part, name, *cost = account.rows.pop()
        assert (part, *cost) == row and name == 'swiglu' and not account.rows


def test_the_floor_of_SmolLM2_and_the_time_of_rows():
    """134,515,008 weights and 47,185,920 bytes of a slot's 512 keys and values and of 64 prompts' 128; 3.015e12 bytes a second."""
    rows, floor = roof.decode_step(roof.SMOLLM2, 64, 8, 128, 64)
    slots = 512 * 64 + 64 * 128
    assert floor == pytest.approx((2 * 134_515_008 + slots * 30 * 2 * 3 * 64 * 2) / 3.015e12)
    assert {row[0] for row in rows} == {'attention', 'draw', 'elementwise', 'gemm', 'head'}
    few = [('gemm', 'mm', 3.015e9, 0), ('gemm', 'mm', 0, 741.75e9), ('draw', 'sub', 10, 0)]
    assert roof.seconds(few) == (pytest.approx(2.0025e-3),) * 2
    assert roof.seconds(1000 * few[2:]) == (pytest.approx(2.5e-3), pytest.approx(6e-3))


def test_the_arithmetic_counts_the_launches_of_the_simulated_gpu(monkeypatch):
    """Two ways to look at one step come to the same number; for a step that launches one more, they do not."""
    sizes, counts, right = {'n_layer': 2, 'n_head': 2, 'n_kv_head': 1, 'n_embd': 16, 'vocab_size': V}, [], Decoder.step
    rows, _ = roof.decode_step(sizes, 3, 3, 4, 64)

    with SimulatedGPU() as gpu:
        def counted(decoder):
            with gpu.watch() as seen:
                right(decoder)
            counts.append(total(seen.launches))

        monkeypatch.setattr(Decoder, 'step', counted)
        options = {'eos_id': 0, 'forbidden': torch.zeros(V, dtype=torch.bool, device='cuda')}
        sampled(gpu, 2, torch.bfloat16, **options)  # its one step warms up
        write = Decoder.write
        monkeypatch.setattr(Decoder, 'write', lambda decoder, hidden: write(decoder, hidden + 1))
        sampled(gpu, 2, torch.bfloat16, **options)
    assert counts == [len(rows), len(rows) + 1]


# -----------------------------------------------------------------------------
# whole runs, from making their starts to exporting what was learned

SIZE = """--n_layer=2 --n_head=2 --n_embd=16 --pretrain_iters=3 --batch_size=4 --group_size=3 --temperature=1 --max_iters=2
          --eval_prompts_n=4 --log_interval=1 --eval_interval=2 --out_dir=out-grpo""".split()
SUMS = [*SIZE, *"""--task=completion --train_prompts=sums.jsonl --eval_prompts=sums.jsonl --rewards=["number_answer"] --block_size=16
                   --max_new_tokens=4 --generator_checkpoint=sums.pt""".split()]
FILL = [*SIZE, '--block_size=16', '--judge_iters=3']
NLA_RUN = [os.path.join(ROOT, 'config', 'nla.py'), *SIZE, *"""--block_size=48 --n_layer=3 --activations_n=200 --warm_start_iters=2
                                                              --critic_start_iters=2 --critic_warmup_iters=1""".split()]
RUNS = {
    'completion': [*SUMS, '--kl_estimator=k2', '--reference_mode=ema', '--gradient_checkpointing=True', '--micro_batch_size=1'],
    'dynamic sampling': [*SUMS, '--dynamic_sampling=2', '--overlong_penalty=2', '--minibatch_size=2', '--num_epochs_per_rollout=2'],
    'rewards in a thread': [*SUMS, '--sampling_batch_size=2', '--mask_truncated=True', '--reference_offload=True', '--top_k=5'],
    'mirror': [*SUMS, '--divergence=neural_mirror', '--kl_estimator=k3'],
    'gae': [*SUMS, '--advantage=gae'],
    'LoRA on int8': [*SUMS, '--lora_r=2', '--load_in_8bit=True'],
    'fp16': [*SUMS, '--precision=fp16'],
    'compiled': [*SUMS, '--compile=True', '--precision=bf16'],
    'fill_in, bf16': [*FILL, '--precision=bf16'],
    'nla, bf16': [*NLA_RUN, '--precision=bf16', '--advantage=gae'],
    'evolution strategies': [*SUMS, '--optimizer=es', '--kl_beta=0', '--es_pairs=2'],
    'fill_in': FILL,
    'fill_in, 2 steps': [*FILL, '--unmask_steps=2', '--top_p=0.9', '--kl_estimator=k3'],
    'nla': NLA_RUN,
    'alignment': [os.path.join(ROOT, 'config', 'alignment.py'), *SIZE, '--block_size=48', '--score_iters=2'],
}


def python(folder, script, *arguments, simulated=True, launcher=(sys.executable,)):
    """What a script of the repo prints, run in a folder on the simulated GPU or on the CPU."""
    gpu = [os.path.join(ROOT, 'tests', 'simulated_gpu.py')] if simulated else []
    command = [*launcher, *gpu, os.path.join(ROOT, script), *arguments, f"--device={'cuda' if simulated else 'cpu'}"]
    done = subprocess.run(command, cwd=folder, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def run(folder, *arguments, **how):
    """The lines of metrics.jsonl of a run."""
    folder.mkdir()
    sums = [{'prompt': f'{a}+{b}=', 'answer': str(a + b)} for a in range(5) for b in range(4)]
    (folder / 'sums.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in sums))
    python(folder, 'train_grpo.py', *arguments, **how)
    with open(folder / 'out-grpo' / 'metrics.jsonl') as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_a_whole_run(tmp_path, name):
    """In fp32 its numbers are those of a run on the CPU."""
    exact = not any(argument.startswith('--precision') for argument in RUNS[name])
    arguments = [*RUNS[name], *['--precision=fp32'] * exact]
    lines = run(tmp_path / 'gpu', *arguments)
    assert len(lines) == 3
    if not exact:
        return
    for line, wanted in zip(lines, run(tmp_path / 'cpu', *arguments, simulated=False), strict=True):
        for key in wanted.keys() - {'tokens_per_s'}:
            if not key.startswith('time_'):
                assert line[key] == pytest.approx(wanted[key], abs=1e-3, rel=1e-3), key


@pytest.mark.slow
def test_what_was_trained_is_talked_to_and_gone_on_with(tmp_path):
    run(tmp_path / 'run', *SUMS, '--precision=fp16')
    said = python(tmp_path / 'run', 'sample.py', '--checkpoint=out-grpo/ckpt.pt', '--prompt=1+2=', '--max_new_tokens=3', '--num_samples=2')
    assert 'syncs: ' in said
    python(tmp_path / 'run', 'train_grpo.py', *SUMS, '--precision=fp16', '--max_iters=3', '--init_from=resume')


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], ['--gather_to_sample=False', '--kl_estimator=k3', '--micro_batch_size=1']])
def test_a_sharded_run_of_two_ranks(tmp_path, more):
    """FSDP2 over NCCL, which gloo stands in for: what the ranks give each other lies on the GPU, and the numbers are those of one rank."""
    torchrun = sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'
    arguments = [*SUMS, *more, '--precision=fp32']
    lines = run(tmp_path / 'two', *arguments, '--shard=True', launcher=torchrun)
    for line, wanted in zip(lines, run(tmp_path / 'one', *arguments, simulated=False), strict=True):
        for key in ('mean_reward', 'loss', 'grad_norm', 'mean_length'):
            if key in wanted:
                assert line[key] == pytest.approx(wanted[key], abs=1e-3, rel=1e-3), key
