"""
Side-by-side speed, printed as ratios: both ways in one process, interleaved, medians. Machines are noisy; ratios less so.
$ python bench.py fill_in        # one GRPO step: all G fills from one forward, against B x G rows through the policy
$ python bench.py sample         # generate(), against transformers' generate
$ python bench.py step           # a whole GRPO step of a causal model, against TRL's GRPOTrainer
$ python bench.py kernel         # the head's log-probs with their backward, against plain torch, torch.compile, TRL and Liger
$ python bench.py scale          # how a step's cost grows with G, T, R, V and width, ours and TRL's
$ python bench.py memory         # peak bytes of rollout and of training, per part and reference mode
$ python bench.py scale --ranks  # bytes that stay on a rank, and that it sends, whole and sharded
$ python bench.py kernel step --json=results.json
sample, step and scale need transformers and trl (requirements-dev.txt); OMP_NUM_THREADS=1 keeps a busy machine's noise down.
"""
import copy
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import threading
import time

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from formats.tokenizer import CharTokenizer, Tokenizer
from grpo import (
    Rollout,
    completion_logps,
    compute_advantages,
    compute_rewards,
    generate_rollouts,
    grpo_training_step,
    kl_estimate,
    train_on_rollout,
)
from judge import Judge
from kernels import fused_logps, fused_loss
from model import GPT, GPTConfig
from policy import CausalPolicy, generate, prompt_batch
from runtime.lora import add_lora
from runtime.masters import compute_in, configure_optimizers, copy_masters, update_reference
from runtime.shard import local_part, shard_model
from tasks.fill_in import FillInPolicy, choose_slots, fill, filler_config, make_batch, score_fills

ROUNDS, WARM_UPS = 9, 2
RESULTS = []  # what was printed, for --json


def straightforward_step(policy, reference, judge, batch, group_size, optimizer, kl_beta, texts=None):
    """
    The step as it is usually written: every text copied G times, each copy through sampler, judge, policy and reference,
    logits at every position. texts (P G, T): take these fills instead of drawing some. Leaves the gradient behind, steps if there is an optimizer.
    """
    prompts = batch['tokens'].repeat_interleave(group_size, dim=0)              # (P G, T)
    is_slot = prompts == policy.tokenizer.mask_id

    def log_probs_of(model):
        logits = model.logits(prompts) / policy.temperature                     # (P G, T, V)
        return logits.masked_fill(policy.forbidden, -torch.inf).log_softmax(dim=-1)

    with torch.no_grad():
        if texts is None:
            drawn = torch.multinomial(log_probs_of(policy.model).exp().flatten(0, 1), 1).view_as(prompts)
            texts = torch.where(is_slot, drawn, prompts)
        rewards = 1 - judge.score(texts)
        ref_log_probs = log_probs_of(reference.model)
        advantages = compute_advantages(rewards.view(-1, group_size)).flatten()
    log_probs = log_probs_of(policy.model)
    logps = log_probs.gather(-1, texts[..., None].where(is_slot[..., None], 0)).squeeze(-1)
    ratio = (logps - logps.detach()).exp()
    terms = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None]) + kl_beta * kl_estimate(log_probs, ref_log_probs, 'exact')
    loss = (terms.masked_fill(~is_slot, 0.0).sum(dim=1) / is_slot.sum(dim=1)).mean()
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    if optimizer:
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()


def gradient_of(policy):
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def assert_equal_gradients(policy, reference, judge, batch, group_size, reward):
    """No speed is printed for two ways that do not compute the same thing: same fills, same gradient."""
    rollout = generate_rollouts(policy, batch, group_size, reference, 'exact')
    compute_rewards(policy, rollout, reward)
    rollout.advantages = compute_advantages(rollout.rewards)
    train_on_rollout(policy, rollout, torch.optim.SGD(policy.model.parameters(), lr=0.0), grad_clip=0, kl_beta=0.1, kl_estimator='exact', reference=reference)
    ours = gradient_of(policy)
    straightforward_step(policy, reference, judge, batch, group_size, None, 0.1, fill(batch, rollout.tokens).flatten(0, 1))
    error = ((gradient_of(policy) - ours).norm() / ours.norm()).item()
    assert error < 1e-4, f"the two ways' gradients differ by {error:.1e}"
    return error


def fill_in(P=32, T=48):
    """Characters of filled text (P G T) per second of each way, at the main job's size."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer([chr(32 + i) for i in range(96)])
    model = GPT(filler_config(tokenizer, T, 3, 4, 96)).eval()
    judge = Judge(model.config, tokenizer.cls_id).eval().requires_grad_(False)
    lengths = torch.full((P,), T)
    chosen = choose_slots('random', lengths, T, (0.25, 0.35), torch.Generator().manual_seed(0))
    batch = make_batch(torch.randint(96, (P, T)), lengths, chosen, tokenizer.mask_id)
    print(f"fill_in: {P} texts of {T} characters, 3 layers of width 96, exact KL, one judge")
    for G in (8, 16):
        ways = {}
        for name in ('ours', 'straightforward'):
            policy = FillInPolicy(copy.deepcopy(model), tokenizer, 0.8)
            ways[name] = policy, policy.with_model(copy.deepcopy(model).requires_grad_(False)), configure_optimizers(policy.model.parameters(), 0.0, 1e-4, (0.9, 0.99))
        reward = [('judge', lambda policy, rollout: 1 - score_fills(judge, rollout.batch, rollout.tokens), 1.0)]
        other = policy.with_model(copy.deepcopy(model).requires_grad_(False))  # a reference that differs, so that the KL counts
        with torch.no_grad():
            other.model.wte.weight.mul_(2.0)
        error = assert_equal_gradients(policy, other, judge, batch, G, reward)
        seconds = {'ours': [], 'straightforward': []}
        for _ in range(WARM_UPS + ROUNDS):
            for name, (policy, reference, optimizer) in ways.items():
                start = time.perf_counter()
                if name == 'ours':
                    grpo_training_step(policy, batch, optimizer, reward, reference, G, kl_beta=0.1, kl_estimator='exact')
                else:
                    straightforward_step(policy, reference, judge, batch, G, optimizer, 0.1)
                seconds[name].append(time.perf_counter() - start)
        ours, theirs = (seconds[name][WARM_UPS:] for name in ('ours', 'straightforward'))
        ratios = [b / a for a, b in zip(ours, theirs)]
        print(f"  G = {G:2d}: ours {P * G * T / statistics.median(ours):9,.0f} characters/s, straightforward {P * G * T / statistics.median(theirs):9,.0f}: "
              f"{statistics.median(ratios):.2f} times faster (min {min(ratios):.2f}, max {max(ratios):.2f} of {ROUNDS} rounds; gradients equal to {error:.0e})")


SIZES = {'tiny': dict(n_layer=4, n_head=4, n_kv_head=2, n_embd=128, mlp_hidden=344, vocab_size=512),
         'SmolLM2-size': dict(n_layer=30, n_head=9, n_kv_head=3, n_embd=576, mlp_hidden=1536, vocab_size=49152)}


def llamas(sizes, end_share=None):
    """(ours, transformers') with the same random fp32 weights. end_share: bend the head so that token 0, the end, has about this probability everywhere."""
    import transformers
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=1024, norm='rmsnorm', position='rope', mlp='swiglu', bias=False, tied=end_share is None, **sizes)).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
    if end_share:
        with torch.no_grad():
            model.wte.weight[:, 0] = 1.0  # the same number in every token's residual stream, for the end token's row to find
            strength = model(torch.randint(model.config.vocab_size, (4, 32)))[..., 0].mean()
            model.lm_head.weight[0] = 0.0
            for _ in range(20):
                share = model.logits(torch.randint(model.config.vocab_size, (4, 32))).softmax(-1)[..., 0].mean()
                model.lm_head.weight[0, 0] += (end_share / share).log() / strength
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, theirs


def compare(ways, rounds=7):
    """Seconds of each way, taken in turns after two warm-up rounds: {name: [seconds]}."""
    seconds = {name: [] for name in ways}
    for _ in range(WARM_UPS + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[WARM_UPS:] for name, times in seconds.items()}


def report(what, seconds, tokens):
    """One line: our tokens per second, then each other way's and the median ratio to it, the rounds' least and largest behind."""
    ours, line = seconds['ours'], []
    for name, theirs in seconds.items():
        if name != 'ours':
            ratios = [b / a for a, b in zip(ours, theirs)]
            line.append(f"{statistics.median(ratios):.2f} times {name} (min {min(ratios):.2f}, max {max(ratios):.2f} of {len(ratios)} rounds, {tokens / statistics.median(theirs):,.0f} tokens/s)")
            RESULTS.append({'what': what, 'peer': name, 'ratio': statistics.median(ratios), 'min': min(ratios), 'max': max(ratios), 'tokens_per_s': tokens / statistics.median(ours)})
    print(f"  {what}: ours {tokens / statistics.median(ours):,.0f} tokens/s: " + '; '.join(line), flush=True)


def sample():
    """Answer tokens per second, fp32. Gate: both give the same greedy tokens."""
    print("sample: against transformers' generate on the same Llama weights, temperature 1, no top-k, no top-p")

    def theirs_generate(theirs, prompts, G, R, **options):
        ids = torch.tensor(prompts).repeat_interleave(G, dim=0)
        return theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=R, pad_token_id=1, top_k=0, top_p=1.0, temperature=1.0, **options)

    for size, end_share, P, G, T, R, rounds, compiled in (('tiny', None, 4, 8, 64, 64, 7, False), ('tiny', None, 4, 8, 64, 64, 7, True), ('tiny', None, 2, 16, 256, 64, 7, False), ('tiny', 1 / 24, 8, 8, 64, 128, 7, False),
                                                          ('tiny', 1 / 24, 8, 8, 64, 128, 7, True), ('SmolLM2-size', None, 4, 8, 64, 32, 3, False), ('SmolLM2-size', None, 1, 16, 256, 32, 3, False)):
        ours, theirs = llamas(SIZES[size], end_share)
        prompts = torch.randint(2, ours.config.vocab_size, (P, T)).tolist()
        same = generate(ours, prompts, max_new_tokens=16, temperature=0).tokens[:, 0]
        assert torch.equal(same, theirs_generate(theirs, prompts, 1, 16, do_sample=False, eos_token_id=None)[:, T:]), "greedy tokens differ"
        lengths = []  # of both ways: ends are drawn, so each way counts its own tokens
        if end_share:
            ways = {'ours': lambda: lengths.append(generate(ours, prompts, G, R, eos_id=0, compile=compiled).lengths.sum().item()),
                    'transformers': lambda: lengths.append((theirs_generate(theirs, prompts, G, R, do_sample=True, eos_token_id=0)[:, T:] > 1).sum().item())}
        else:
            ways = {'ours': lambda: generate(ours, prompts, G, R, compile=compiled), 'transformers': lambda: theirs_generate(theirs, prompts, G, R, do_sample=True, eos_token_id=None, min_new_tokens=R)}
        seconds = compare(ways, rounds)
        ends = f"ragged ends, mean length {statistics.mean(lengths) / (P * G):.0f} of {R}" if end_share else f"{R} tokens each"
        report(f"{size}{', compile=True' if compiled else ''}, {P} prompts of {T}, G = {G}, {ends}", seconds, statistics.mean(lengths) if end_share else P * G * R)


class WordTokenizer(Tokenizer):
    """What a CausalPolicy asks for and no more."""
    eos_id, special_ids = None, []

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size


def trl_trainer(theirs, prompts, G, R, folder, beta=0.0, **options):
    """TRL's trainer on our prompts: token i is the word ti, so both see the same ids."""
    import datasets
    import tokenizers
    import transformers
    import trl
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({'<end>': 0, '<pad>': 1} | {f't{i}': i for i in range(2, theirs.config.vocab_size)}, unk_token='<end>'))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    arguments = trl.GRPOConfig(output_dir=folder, per_device_train_batch_size=len(prompts) * G, num_generations=G, max_completion_length=R, temperature=1.0, top_k=0, top_p=1.0,
                               scale_rewards='group', learning_rate=1e-6, max_grad_norm=1.0, activation_checkpointing=False, bf16=False, use_cpu=True,
                               report_to='none', disable_tqdm=True, generation_kwargs={'min_new_tokens': R}, beta=0.0, **{'loss_type': 'dapo', **options})
    trainer = trl.GRPOTrainer(model=theirs, args=arguments, reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids],
                              train_dataset=datasets.Dataset.from_dict({'prompt': [' '.join(f't{i}' for i in ids) for ids in prompts]}),
                              processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<end>', pad_token='<pad>'))
    trainer.current_gradient_accumulation_steps = 1  # what its train() would set
    trainer.beta = beta  # set here, it loads no reference model: reference log-probs are given to it
    return trainer


def llama_gradient(theirs):
    """transformers' gradients under our names."""
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    ours = {'wte.weight': grads['model.embed_tokens.weight'], 'norm_f.weight': grads['model.norm.weight']}
    for i in range(theirs.config.num_hidden_layers):
        layer = f'model.layers.{i}.'
        stack = lambda *names: torch.cat([grads[f'{layer}{name}_proj.weight'] for name in names])
        ours |= {f'blocks.{i}.norm_1.weight': grads[layer + 'input_layernorm.weight'], f'blocks.{i}.norm_2.weight': grads[layer + 'post_attention_layernorm.weight'],
                 f'blocks.{i}.attn.qkv.weight': stack(*(f'self_attn.{x}' for x in 'qkv')), f'blocks.{i}.attn.proj.weight': stack('self_attn.o'),
                 f'blocks.{i}.mlp.up.weight': stack('mlp.gate', 'mlp.up'), f'blocks.{i}.mlp.proj.weight': stack('mlp.down')}
    return ours


def step_ways(sizes, P, G, T, R, compiled=False):
    """
    Our whole step and TRL's on the same weights and prompts, as functions, after the gate: on TRL's own completions log-probs agree to 1e-5, the
    gradient to 1e-4 of its norm. Returns (ways, what the gate saw).
    """
    ours, theirs = llamas(sizes)
    prompts = torch.randint(2, ours.config.vocab_size, (P, T)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(theirs, prompts, G, R, folder)
    trainer.create_optimizer()
    theirs.train()
    examples = [{'prompt': ' '.join(f't{i}' for i in ids)} for ids in prompts for _ in range(G)]
    policy = CausalPolicy(ours, WordTokenizer(ours.config.vocab_size), R, compile=compiled)
    if compiled:
        ours.compile_blocks()
    batch = prompt_batch(prompts, list(range(P)))
    policy_optimizer = configure_optimizers(ours.parameters(), 0.0, 1e-6, (0.9, 0.999))

    inputs = trainer._generate_and_score_completions(examples)
    trainer.compute_loss(theirs, inputs).backward()
    tokens = inputs['completion_ids'].view(P, G, R)
    assert inputs['prompt_ids'].tolist() == [ids for ids in prompts for _ in range(G)] and inputs['completion_mask'].all()
    rollout = Rollout(batch, tokens, torch.full((P, G), R), torch.zeros(P, G, R), advantages=inputs['advantages'].view(P, G))
    with torch.no_grad():
        rollout.logps = completion_logps(policy, rollout)[0]
        whole = torch.cat((inputs['prompt_ids'], inputs['completion_ids']), dim=1)
        their_logps = trainer._get_per_token_logps_and_entropies(theirs, whole, torch.ones_like(whole), R)[0].view(P, G, R)
    train_on_rollout(policy, rollout, torch.optim.SGD(ours.parameters(), lr=0.0), grad_clip=0, loss_type='dapo')
    gap = (rollout.logps - their_logps).abs().max().item()
    grads = llama_gradient(theirs)
    error = sum((p.grad - grads[name]).square().sum() for name, p in ours.named_parameters()).sqrt().item() / sum(g.square().sum() for g in grads.values()).sqrt().item()
    assert gap < 1e-5 and error < 1e-4, f"log-probs differ by {gap:.1e}, gradients by {error:.1e}"

    def their_step():
        trainer.optimizer.zero_grad()
        trainer.training_step(theirs, examples, None)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        trainer.optimizer.step()

    reward = [('sum', lambda policy, rollout: (rollout.tokens.sum(-1) % 7).float(), 1.0)]
    trainer.optimizer.zero_grad()
    ways = {'ours': lambda: grpo_training_step(policy, batch, policy_optimizer, reward, group_size=G, loss_type='dapo'), 'TRL': their_step}
    return ways, f"log-probs equal to {gap:.0e}, gradients to {error:.0e}"


def step():
    """Rollout, reward, loss, backward, clip, AdamW; answer tokens per second, fp32, beta 0, answers of equal length, no checkpointing."""
    print("step: against TRL's GRPOTrainer on the same Llama weights, loss dapo")
    for size, P, G, T, R, rounds, compiled in (('tiny', 4, 8, 64, 64, 7, False), ('tiny', 4, 8, 64, 64, 7, True), ('tiny', 2, 16, 256, 64, 7, False), ('tiny', 1, 16, 512, 64, 7, False),
                                               ('tiny', 1, 16, 512, 64, 7, True), ('SmolLM2-size', 2, 8, 64, 64, 3, False), ('SmolLM2-size', 1, 16, 256, 64, 3, False)):
        ways, gate = step_ways(SIZES[size], P, G, T, R, compiled)
        report(f"{size}{', compile=True' if compiled else ''}, {P} prompts of {T}, G = {G}, {R} tokens each ({gate})", compare(ways, rounds), P * G * R)


def scale():
    """The exponent e of cost ~ size^e: the slope of log(seconds) from the base over its double to four times it."""
    base = dict(P=2, G=8, T=64, R=32, V=512, width=1)
    print("scale: a step's cost when one size grows fourfold, tiny model, from " + ', '.join(f"{k} = {v}" for k, v in base.items() if k != 'width') + ", D = 128")
    for name, meaning in (('G', 'answers'), ('T', 'prompt tokens'), ('R', 'answer tokens'), ('V', 'vocabulary'), ('width', 'D')):
        times = {}
        for factor in (1, 2, 4):
            s = base | {name: base[name] * factor}
            sizes = SIZES['tiny'] | {'vocab_size': s['V'], 'n_embd': 128 * s['width'], 'n_head': 4 * s['width'], 'n_kv_head': 2 * s['width'], 'mlp_hidden': 344 * s['width']}
            for way, seconds in compare(step_ways(sizes, s['P'], s['G'], s['T'], s['R'])[0], 5).items():
                times.setdefault(way, []).append(statistics.median(seconds))
        exponents = {way: math.log(t[2] / t[0]) / math.log(4) for way, t in times.items()}
        RESULTS.append({'what': f'scale {name}', **exponents})
        print(f"  {meaning} ({name}): " + ', '.join(f"{way} {e:.2f} ({', '.join(f'{1000 * t:.0f}' for t in times[way])} ms)" for way, e in exponents.items()), flush=True)


def kernel(N=2048, D=576, V=49152):
    """Log-probs of N tokens and their gradients for hidden states and head. Gate: their gradients agree, in fp32 to 1e-4 of the norm, in bf16 to 2e-2."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    print(f"kernel: the head's log-probs and their backward, N = {N}, D = {D}, V = {V}, {dtype} on {device}" + ('' if device == 'cuda' else '; the Triton kernels need a GPU: not measured'))
    torch.manual_seed(0)
    hidden, weight, ids = (0.5 * torch.randn(N, D, device=device)).to(dtype).requires_grad_(), (0.1 * torch.randn(V, D, device=device)).to(dtype).requires_grad_(), torch.randint(V, (N,), device=device)
    g = torch.randn(N, device=device)
    U = N // 64
    mask = torch.ones(U, 1, 64, dtype=torch.bool, device=device)

    def plain(log_probs=lambda h, w: (h @ w.T).float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)):
        loss = (log_probs(hidden, weight) * g).sum()
        loss.backward()
        return loss

    def ours():
        loss = fused_loss(hidden.view(U, 64, D), weight, ids.view(U, 1, 64), mask, lambda units, logps, entropy, kl: (logps * g.view(U, 1, 64)[units]).sum(), counts=[64] * U)
        loss.backward()
        return loss

    ways = {'ours': ours, 'fused_logps': lambda: plain(lambda h, w: fused_logps(h, w, ids)[0]), 'plain torch': plain}
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
        ways["TRL's chunks"] = lambda: plain(lambda h, w: ChunkedLogProbFunction.apply(h, w, None, ids, 1.0, 32768, None, 1.0, ('entropy',))[0])
    except ImportError:
        print("  TRL is not installed: left out")
    if device == 'cuda':
        compiled = torch.compile(lambda h, w: (h @ w.T).float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1))
        ways['torch.compile'] = lambda: plain(compiled)
        try:
            from liger_kernel.ops.fused_linear_cross_entropy import (
                LigerFusedLinearCrossEntropyFunction as Liger,
            )
            ways['Liger'] = lambda: Liger.apply(hidden, weight, ids)[0].backward()  # its own loss: the mean cross-entropy
        except ImportError:
            print("  Liger is not installed: left out")
    logits = torch.randn(N, V, device=device).to(dtype)

    def products():  # what none can do without
        with torch.no_grad():
            hidden @ weight.T, logits @ weight, logits.T @ hidden

    wanted = None
    peaks = {}
    for name, way in ways.items():
        hidden.grad = weight.grad = None
        with PeakMemory(device) as watched:
            value = way()
        peaks[name] = watched.bytes - dtype.itemsize * (hidden.numel() + weight.numel())
        if value is not None:
            found = torch.cat((hidden.grad.float().flatten(), weight.grad.float().flatten()))
            wanted = found if wanted is None else wanted
            error = ((found - wanted).norm() / wanted.norm()).item()
            assert error < (1e-4 if dtype == torch.float32 else 2e-2), f"{name}: gradients differ by {error:.1e}"

    ways['its three matrix products alone'] = products

    def timed(way):
        def run():
            hidden.grad = weight.grad = None
            way()
            if device == 'cuda':
                torch.cuda.synchronize()
        return run

    report(f"N = {N}, D = {D}, V = {V}", compare({name: timed(way) for name, way in ways.items()}, 5), N)
    print("  peak above inputs and gradients: " + ', '.join(f"{name} {b / 2 ** 20:,.0f} MB" for name, b in peaks.items()))
    RESULTS.append({'what': 'kernel peak bytes', **peaks})


class PeakMemory:
    """The most that was held above what was held at the start: on a CPU by this process, looked at every 2 ms, on a GPU by its allocator."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start = self.peak = self.now()
            self.watching = True
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def now(self):
        with open('/proc/self/statm') as f:
            return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    def watch(self):
        while self.watching:
            self.peak = max(self.peak, self.now())
            time.sleep(0.002)

    def __exit__(self, *_):
        if self.device == 'cuda':
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self.watching = False
            self.thread.join()
        self.bytes = self.peak - self.start


def memory():
    """Bytes of each part that stays, and the peak of each phase above them, as multiples of N, the fp32 weights' size. Each case in a process of its own: memory once freed is used again."""
    size, P, G, T, R = 'SmolLM2-size', 4, 8, 64, 64
    print(f"memory: {size}, {P} prompts of {T}, G = {G}, {R} tokens each, fp32, CPU; N = the weights")
    with torch.multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
        for case in (('no reference', 'none', 0), ('static reference', 'static', 0), ('ema reference', 'ema', 0), ('LoRA r = 16, static reference', 'static', 16)):
            print(pool.apply(memory_of, (size, P, G, T, R, *case)), flush=True)


def memory_of(size, P, G, T, R, name, mode, r):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=1024, norm='rmsnorm', position='rope', mlp='swiglu', bias=False, **SIZES[size])).eval()
    N = sum(p.numel() * 4 for p in model.parameters())
    reference = None
    if r:
        add_lora(model, r, 16.0)
    policy = CausalPolicy(model, WordTokenizer(model.config.vocab_size), R)
    if mode != 'none':
        reference = policy.without_adapters() if r else policy.with_model(copy.deepcopy(model).requires_grad_(False))
    batch = prompt_batch(torch.randint(model.config.vocab_size, (P, T)).tolist(), list(range(P)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = configure_optimizers(trained, 0.0, 1e-6, (0.9, 0.999))
    with PeakMemory('cpu') as rolling:
        rollout = generate_rollouts(policy, batch, G, reference, 'k3', 1)
    rollout.advantages = compute_advantages(torch.rand(P, G))
    with PeakMemory('cpu') as training:
        train_on_rollout(policy, rollout, optimizer, micro_batch_size=1, kl_beta=0.1 if reference else 0.0, kl_estimator='k3')
        if mode == 'ema':
            update_reference('ema', 1, [p.data for p in reference.model.parameters()], [p.data for p in model.parameters()])
    second = 0 if reference is None or r else 1
    parts = {'weights': sum(p.numel() * 4 for p in model.parameters()), 'reference': second * N, 'gradients': sum(p.numel() * 4 for p in trained), 'Adam': 2 * sum(p.numel() * 4 for p in trained)}
    return (f"  {name}: " + ', '.join(f"{part} {b / N:.2f} N" for part, b in parts.items())
            + f"; the rollout adds at most {rolling.bytes / N:.2f} N, training with its gradients and Adam {training.bytes / N:.2f} N")


class SentBytes(TorchDispatchMode):
    """Counts what a rank sends within, by kind, in bytes of a ring: (W - 1) / W of what is gathered or scattered, twice that of what is reduced for all."""

    def __init__(self):
        super().__init__()
        self.kinds = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func._schema.name
        if 'c10d' in name:
            W, of = dist.get_world_size(), lambda tensors: sum(t.numel() * t.element_size() for t in (tensors if isinstance(tensors, (list, tuple)) else [tensors]))
            if 'reduce_scatter' in name:
                self.add('reduce-scatter', of(args[1]) * (W - 1) / W)
            elif 'allreduce' in name or 'all_reduce' in name:
                self.add('all-reduce', of(args[0]) * 2 * (W - 1) / W)
            elif name.startswith('_c10d_functional') and 'all_gather' in name:
                self.add('all-gather', of(args[0]) * (W - 1))
            elif 'allgather' in name or 'all_gather' in name:
                self.add('all-gather', of(args[1]) * (W - 1))
        return result

    def add(self, kind, n):
        self.kinds[kind] = self.kinds.get(kind, 0.0) + n


def rank_step(rank, W, way, folder, P=8, G=4, T=16, R=16):
    """One rank's part of one step: bytes that stay, bytes sent while sampling and while training; all as multiples of N, the number of weights."""
    dist.init_process_group('gloo', init_method=f'file://{folder}/{way}-{W}', rank=rank, world_size=W)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=256, norm='rmsnorm', position='rope', mlp='swiglu', bias=False, **SIZES['tiny'])).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    N = sum(p.numel() for p in model.parameters())
    if way == 'LoRA':
        add_lora(model, 8, 16.0)
    masters = shard_model(model, torch.bfloat16, 'cpu', way == 'sharded') if way.startswith('sharded') else compute_in(model, torch.bfloat16)
    trained = [p for p in masters.values() if p.requires_grad]
    optimizer = configure_optimizers(trained, 0.0, 1e-6, (0.9, 0.999))
    optimizer.register_step_post_hook(lambda *_: copy_masters(masters, model))
    policy, batch = CausalPolicy(model, WordTokenizer(model.config.vocab_size), R), prompt_batch(torch.randint(model.config.vocab_size, (P // W, T)).tolist(), list(range(P // W)))
    with SentBytes() as sampling:
        rollout = generate_rollouts(policy, batch, G)
    rollout.advantages = compute_advantages(torch.rand(P // W, G))
    with SentBytes() as training:
        train_on_rollout(policy, rollout, optimizer, micro_batch_size=2)
    local = lambda tensors: sum(x.numel() * x.element_size() for x in map(local_part, tensors))
    stay = {id(p): p for p in [*model.parameters(), *masters.values()]}.values()
    stays = local(stay) + local(p.grad for p in trained) + local(x for state in optimizer.state.values() for x in state.values() if x.dim())
    if rank == 0:
        torch.save([stays / N] + [{kind: n / N for kind, n in counted.kinds.items() if n > 0.01 * N} for counted in (sampling, training)], f'{folder}/{way}-{W}.pt')
    dist.barrier()
    dist.destroy_process_group()


def scale_ranks():
    """What docs/scaling.md has formulas for, counted: one step of 8 prompts, bf16 with fp32 masters, micro-batches of 2 prompts."""
    print(f"scale --ranks: {SIZES['tiny']}, bytes per weight of each rank: what stays; what a ring sends while sampling; while training")
    with tempfile.TemporaryDirectory() as folder:
        for way in ('whole', 'LoRA', 'sharded', 'sharded, collected block by block'):
            for W in (1, 2, 4):
                torch.multiprocessing.spawn(rank_step, (W, way, folder), W)
                stays, *sent = torch.load(f'{folder}/{way}-{W}.pt')
                RESULTS.append({'what': f'ranks {way} {W}', 'stays': stays, 'sent': sent})
                print(f"  {way}, {W}: {stays:.2f}; " + '; '.join(', '.join(f"{kind} {n:.2f}" for kind, n in kinds.items()) or 'nothing' for kinds in sent), flush=True)


BENCHES = {'fill_in': fill_in, 'sample': sample, 'step': step, 'kernel': kernel, 'scale': scale, 'memory': memory, 'scale --ranks': scale_ranks}

if __name__ == '__main__':
    names = re.findall(r'\S+(?: --ranks)?', ' '.join(a for a in sys.argv[1:] if not a.startswith('--json=')))
    if not names or not set(names) <= set(BENCHES):
        sys.exit(f"usage: python bench.py NAME..., one or more of: {', '.join(BENCHES)}; --json=PATH keeps the ratios")
    header = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__} with {torch.get_num_threads()} threads"
    header += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ', no GPU: what needs one is left out'
    print(header)
    for name in names:
        BENCHES[name]()
    for argument in [a for a in sys.argv[1:] if a.startswith('--json=')]:
        with open(argument.removeprefix('--json='), 'w', encoding='utf-8') as f:
            json.dump({'machine': header, 'results': RESULTS}, f, indent=1)
