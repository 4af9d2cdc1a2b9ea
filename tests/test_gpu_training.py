"""Training as it is on a GPU, on one that is simulated: attention of packed sequences, logits, syncs."""
import pytest
import torch

import flash
import kernels
from grpo import Rollout, Settings, completion_logps, compute_advantages, train_on_rollout
from model import GPT, GPTConfig
from policy import CausalPolicy, prompt_batch
from runtime.masters import compute_in, copy_masters
from simulated_gpu import SimulatedGPU
from tools.bench import WordTokenizer, gradient_error

P, G, R, V = 3, 4, 9, 97


def llama(dtype=torch.float32, vocab_size=V):
    """Half of its weights' values are far from 0: attention is not flat."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=64, vocab_size=vocab_size, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, norm='rmsnorm',
                       position='rope', mlp='swiglu', bias=False)
    model = GPT(config).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)
    return model.to(dtype)


def rollout_of(device):
    """Prompts of 5 to 11 tokens; completions of 1 to 9, one of none, and advantages."""
    torch.manual_seed(1)
    prompts = [torch.randint(1, V, (5 + 3 * p,)).tolist() for p in range(P)]
    lengths = torch.randint(1, R + 1, (P, G))
    lengths[0, 0], lengths[1, 1], lengths[2] = R, 0, 1
    tokens = torch.randint(1, V, (P, G, R)).masked_fill(torch.arange(R) >= lengths[..., None], 0)
    return Rollout(prompt_batch(prompts, [1, 2, 3], device), tokens.to(device), lengths, torch.full((P, G, R), -4.5, device=device),
                   advantages=compute_advantages(torch.rand(P, G)).to(device))


def gradient(model, device):
    """The gradient of a step in the model's dtype, and its log-probs."""
    masters = compute_in(model, next(model.parameters()).dtype)
    policy, rollout = CausalPolicy(model, WordTokenizer(V), R), rollout_of(device)
    optimizer = torch.optim.SGD(masters.values(), lr=0.0)
    with torch.no_grad():
        logps, _ = completion_logps(policy, rollout)
    train_on_rollout(policy, rollout, optimizer, Settings(kl_beta=0.0, micro_batch_size=2, grad_clip=0.0))
    copy_masters(masters, model)
    return [p.grad.cpu().float() for p in masters.values()], logps.cpu()


def sampler_gap(model, device):
    """Mean difference of the sampler's log-probs and the trainer's."""
    policy = CausalPolicy(model, WordTokenizer(V), R)
    with torch.no_grad():
        rollout = policy.sample(rollout_of(device).batch, G)
        return (completion_logps(policy, rollout)[0] - rollout.logps).abs().mean().item()


PRECISIONS = pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])


@pytest.mark.gpu
@PRECISIONS
def test_a_gpu_s_step_is_that_of_the_cpu_and_its_sampler_agrees(dtype, tolerance):
    """Not simulated: what tools.bench gpu asks before it times anything."""
    wanted, wanted_logps = gradient(llama(), 'cpu')
    found, logps = gradient(llama(dtype).to('cuda'), 'cuda')
    assert (logps - wanted_logps).abs().max() < 10 * tolerance and gradient_error(found, wanted) < 10 * tolerance
    assert sampler_gap(llama(dtype).to('cuda'), 'cuda') < tolerance


@PRECISIONS
def test_a_step_is_that_of_the_cpu(dtype, tolerance):
    """Gradients and log-probs; bf16 through flash attention, whose calls are two a layer, without a mask or a copy for each completion."""
    wanted, wanted_logps = gradient(llama(), 'cpu')
    flash.SEEN.clear()
    with SimulatedGPU() as gpu:
        model = llama(dtype).to('cuda')
        with gpu.watch() as seen:
            found, logps = gradient(model, 'cuda')
        assert sampler_gap(model, 'cuda') < tolerance
    assert (logps - wanted_logps).abs().max() < tolerance and gradient_error(found, wanted) < tolerance
    assert bool(flash.SEEN) == (dtype == torch.bfloat16)
    if dtype == torch.float32:
        return
    assert not seen.attention  # nothing is left to torch's choice: a mask would have to go through it
    for causal, queries, keys, heads in flash.SEEN:
        assert heads == 2 and (keys == queries if causal else keys <= 5 + 8 + 11)


@pytest.mark.parametrize('allowed', [False, True])
def test_no_micro_batch_waits_for_the_gpu(allowed):
    """Log-probs of a reference, or of the policy with top-p's bits, and a backward: the host knows all lengths."""
    with SimulatedGPU() as gpu:
        policy, rollout = CausalPolicy(llama(torch.bfloat16).to('cuda'), WordTokenizer(V), R), rollout_of('cuda')
        if allowed:
            rollout.allowed = torch.full((P, G, R, -(-V // 8)), 255, dtype=torch.uint8, device='cuda')
        with gpu.watch() as seen:
            logps, entropy = completion_logps(policy, rollout)
            (logps.sum() + entropy.sum()).backward()
        assert not seen.syncs, seen.syncs


def test_the_bits_of_allowed_tokens_are_never_bytes(monkeypatch):
    """Kernels read them as they are, so the trainer unpacks none on a GPU."""
    def unpack(*_):
        raise AssertionError("bits were expanded")

    with SimulatedGPU():
        policy, rollout = CausalPolicy(llama().to('cuda'), WordTokenizer(V), R), rollout_of('cuda')
        rollout.allowed = torch.full((P, G, R, -(-V // 8)), 255, dtype=torch.uint8, device='cuda')
        with monkeypatch.context() as patch:  # undone before the simulation is
            patch.setattr(kernels, 'row_stats_triton', lambda z, ids, *_: kernels.new_stats(z, ids))
            patch.setattr(kernels, 'unpack', unpack)
            completion_logps(policy, rollout)


@pytest.mark.parametrize('vocab_size, dtype, fp32', [(V, torch.half, True), (1003, torch.bfloat16, True), (65537, torch.bfloat16, False)])
def test_rows_of_logits_are_whole_vectors(vocab_size, dtype, fp32):
    """On a GPU a row of any vocabulary starts at a multiple of 16 numbers; sampler and trainer get the same numbers of the same type."""
    with SimulatedGPU():
        weight, hidden = torch.randn(vocab_size, 8).to('cuda', dtype), torch.randn(3, 8).to('cuda', dtype)
        with torch.no_grad():
            z = kernels.logits_of(hidden, weight)
            (units,), room = kernels.chunks([2, 1], weight)
            again = kernels.logits_of(hidden, weight, room)
        assert z.shape == (3, vocab_size) and z.stride(0) % 16 == 0 and z.stride(0) - vocab_size < 16
        assert z.dtype == room.dtype == (torch.float32 if fp32 else dtype) and torch.equal(z, again)
