"""
Side-by-side speed, as ratios of medians: the ways take turns in one process, because machines are noisy.
$ python -m tools.bench sample    # generate(), against transformers' generate
$ python -m tools.bench step      # a GRPO step of a causal model and its peak memory, against TRL's trainer
$ python -m tools.bench roof      # decode on a GPU, by arithmetic, against the least it could take
$ python -m tools.bench gpu       # what a GPU has to show, into docs/gpu.md
sample and step need transformers and trl (requirements-dev.txt); OMP_NUM_THREADS=1 lowers the noise.
"""
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch

import grpo
from formats.tokenizer import Tokenizer
from kernels import fused_logps
from model import GPT, GPTConfig
from policy import CausalPolicy, generate, prompt_batch
from runtime import early
from runtime.masters import compute_in, configure_optimizers, copy_masters
from tools.roof import SMOLLM2, roof

ROOT = Path(__file__).resolve().parent.parent
WARM_UPS = 2
SIZES = {'tiny': {'n_layer': 4, 'n_head': 4, 'n_kv_head': 2, 'n_embd': 128, 'mlp_hidden': 344,
                  'vocab_size': 512},
         'SmolLM2-size': SMOLLM2}


class Case(NamedTuple):
    """A size to measure: P prompts of T tokens, G completions of R tokens each."""
    size: str
    P: int
    G: int
    T: int
    R: int
    compiled: bool = False
    ends: int | None = None  # one in so many tokens is an end; None: none is
    device: str = 'cpu'
    dtype: torch.dtype = torch.float32

    def __str__(self):
        compiled = ', compile=True' if self.compiled else ''
        return f"{self.size}{compiled}, {self.P} prompts of {self.T}, G = {self.G}, R = {self.R}"

    def models(self):
        """Ours and theirs, which sample each token of the vocabulary about as often."""
        models = llamas(SIZES[self.size] | ({'vocab_size': self.ends} if self.ends else {}))
        return [model.to(self.device) for model in models]

    @property
    def rounds(self):
        return 7 if self.size == 'tiny' else 3


def compare(ways, rounds):
    """{name: seconds of each round} of ways {name: function} that take turns."""
    seconds = {name: [] for name in ways}
    for _ in range(WARM_UPS + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[WARM_UPS:] for name, times in seconds.items()}


TOLD = []


def tell(line):
    TOLD.append(line)
    print(line, flush=True)


def report(what, seconds, n):
    """A line for each other way: how many times faster ours is."""
    ours = seconds.pop('ours')
    tell(f"  {what}: ours {n / statistics.median(ours):,.0f} tokens/s")
    for name, theirs in seconds.items():
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        spread = f"min {min(ratios):.2f}, max {max(ratios):.2f} of {len(ratios)} rounds"
        speed = f"{n / statistics.median(theirs):,.0f} tokens/s"
        tell(f"    {statistics.median(ratios):.2f} times {name} ({spread}, {speed})")


def peak_memory(way, device='cpu'):
    """By how many bytes this process's memory rises in way(), or a GPU's."""
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        way()
        return torch.cuda.max_memory_allocated() - start

    def high_water():
        with open('/proc/self/status') as f:
            return int(re.search(r'VmHWM:\s*(\d+) kB', f.read())[1]) << 10

    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')  # the mark falls to what is held now
    start = high_water()
    way()
    return high_water() - start


def gradient_error(ours, wanted):
    """How far two lists of gradients differ, as a share of the norm."""
    differences = [a - b for a, b in zip(ours, wanted, strict=True)]
    error, norm = torch.nn.utils.get_total_norm(differences), torch.nn.utils.get_total_norm(wanted)
    return (error / norm).item()


def gradient_of(policy, rollout, cfg):
    """The gradient that train_on_rollout makes of a rollout, as a list; the weights stay."""
    still = torch.optim.SGD(policy.model.parameters(), lr=0.0)
    grpo.train_on_rollout(policy, rollout, still, replace(cfg, grad_clip=0))
    return [p.grad for p in policy.model.parameters()]


# -----------------------------------------------------------------------------
# sample

def llamas(sizes):
    """(ours, transformers') with the same random fp32 weights, which make all tokens about as likely."""
    import transformers
    torch.manual_seed(0)
    config = GPTConfig(block_size=1024, norm='rmsnorm', position='rope', mlp='swiglu', bias=False,
                       tied=True, **sizes)
    model = GPT(config).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02)
    folder = tempfile.TemporaryDirectory()
    model.save_pretrained(folder.name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder.name, dtype=torch.float32).eval()
    theirs.folder = folder  # vLLM reads it again
    return model, theirs


def their_generate(theirs, prompts, G, R, **options):
    ids = torch.tensor(prompts, device=theirs.device).repeat_interleave(G, dim=0)
    texts = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=R,
                            pad_token_id=0, top_k=0, top_p=1.0, temperature=1.0, **options)
    return texts[:, ids.shape[1]:]


def sample():
    """Completion tokens per second, fp32. Gate: both give the same greedy tokens."""
    print("sample: against transformers' generate on the same Llama weights, temperature 1")
    small, ragged = Case('tiny', 4, 8, 64, 64), Case('tiny', 8, 8, 64, 128, ends=24)
    for case in (small, small._replace(compiled=True), Case('tiny', 2, 16, 256, 64), ragged,
                 ragged._replace(compiled=True), Case('SmolLM2-size', 4, 8, 64, 32),
                 Case('SmolLM2-size', 1, 16, 256, 32)):
        sample_case(case)


def sample_case(case):
    ours, theirs = case.models()
    V, G, R = ours.config.vocab_size, case.G, case.R
    prompts = torch.randint(2, V, (case.P, case.T)).tolist()
    greedy = generate(ours, prompts, max_new_tokens=16, temperature=0).tokens[:, 0]
    wanted = their_generate(theirs, prompts, 1, 16, do_sample=False, eos_token_id=None)
    assert torch.equal(greedy, wanted), "greedy tokens differ"
    ours.to(case.dtype), theirs.to(case.dtype)
    ends = [0] if case.ends else None
    lengths = []  # of each way's completions, all together

    def our_way():
        made = generate(ours, prompts, G, R, eos_id=ends, compile=case.compiled)
        lengths.append(made.lengths.sum().item())

    def their_way():
        tokens = their_generate(theirs, prompts, G, R, do_sample=True, eos_token_id=ends)
        ended = tokens == 0 if ends else torch.zeros_like(tokens)
        lengths.append((ended.cumsum(dim=1) - ended.int() == 0).sum().item())

    seconds = compare({'ours': our_way, 'transformers': their_way}, case.rounds)
    n_tokens = statistics.mean(lengths)
    report(f"{case}, mean length {n_tokens / (case.P * G):.0f}", seconds, n_tokens)


# -----------------------------------------------------------------------------
# step

class WordTokenizer(Tokenizer):
    """The part of a tokenizer that a CausalPolicy uses; with `ends` token 0 is one."""
    special_ids = []

    def __init__(self, vocab_size, ends=False):
        self.vocab_size, self.eos_ids = vocab_size, (0,) if ends else ()
        self.eos_id = 0 if ends else None


def in_words(ids):
    """TRL takes texts: token i is the word ti."""
    return ' '.join(f't{i}' for i in ids)


def trl_trainer(theirs, prompts, G, R, folder, beta=0.0, ends=False, **options):
    """TRL's trainer on our prompts, of which it sees the same ids."""
    import datasets
    import transformers
    import trl
    vocabulary = {'<end>': 0, '<pad>': 1} | {f't{i}': i for i in range(2, theirs.config.vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='<end>'))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    least = 'min_tokens' if 'use_vllm' in options else 'min_new_tokens'
    arguments = trl.GRPOConfig(
        output_dir=folder, use_cpu=theirs.device.type == 'cpu', num_generations=G, beta=0.0,
        per_device_train_batch_size=len(prompts) * G, temperature=1.0, top_k=0, top_p=1.0,
        scale_rewards='group', learning_rate=1e-6, max_grad_norm=1.0, activation_checkpointing=False,
        bf16=False, report_to='none', disable_tqdm=True, max_completion_length=R,
        generation_kwargs={} if ends else {least: R}, **options)

    def reward(completion_ids, **_):
        return [float(sum(ids) % 7) for ids in completion_ids]

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<end>',
                                                     pad_token='<pad>')
    tokenizer.save_pretrained(theirs.folder.name)
    data = datasets.Dataset.from_dict({'prompt': [in_words(ids) for ids in prompts]})
    trainer = trl.GRPOTrainer(model=theirs, args=arguments, reward_funcs=reward, train_dataset=data,
                              processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # what its train() would set
    trainer.beta = beta  # set here, so that no reference model is loaded: its log-probs are given
    return trainer


def llama_gradient(theirs):
    """transformers' gradients under our names: our loader reads them as if they were the weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder, state_dict={name: p.grad for name, p in theirs.named_parameters()})
        return dict(GPT.from_pretrained(folder).requires_grad_(False).named_parameters())


def same_step(policy, trainer, batch, examples, cfg):
    """The gate: on TRL's completions log-probs agree to 1e-5, the gradient to 1e-4 of its norm."""
    theirs, shape = trainer.model, (len(batch['prompts']), cfg.group_size)
    inputs = trainer._generate_and_score_completions(examples)
    trainer.compute_loss(theirs, inputs).backward()
    assert torch.equal(inputs['prompt_ids'], batch['prompts'].repeat_interleave(cfg.group_size, dim=0))
    mask = inputs['completion_mask']
    lengths = mask.sum(dim=1).view(shape)
    rollout = grpo.Rollout(batch, inputs['completion_ids'].view(*shape, -1), lengths.cpu(),
                           torch.zeros(*shape, mask.shape[1]), advantages=inputs['advantages'].view(shape))
    with torch.no_grad():
        rollout.logps = grpo.completion_logps(policy, rollout)[0]
        texts = torch.cat((inputs['prompt_ids'], inputs['completion_ids']), dim=1)
        seen = torch.cat((inputs['prompt_mask'], mask), dim=1)
        their_logps = trainer._get_per_token_logps_and_entropies(theirs, texts, seen, mask.shape[1])[0]
    gap = ((rollout.logps - their_logps.view_as(rollout.logps)) * rollout.mask).abs().max().item()
    wanted = llama_gradient(theirs)
    error = gradient_error([grad.cpu() for grad in gradient_of(policy, rollout, cfg)],
                           [wanted[name] for name, _ in policy.model.named_parameters()])
    assert gap < 1e-5 and error < 1e-4, f"log-probs differ by {gap:.1e}, gradients by {error:.1e}"
    return f"log-probs equal to {gap:.0e}, gradients to {error:.0e}"


def step_ways(case, **options):
    """Our whole step and TRL's on the same weights and prompts; what the gate saw; our steps' tokens."""
    P, G, R = case.P, case.G, case.R
    ours, theirs = case.models()
    prompts = torch.randint(2, ours.config.vocab_size, (P, case.T)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        options |= {'loss_type': 'dapo', 'ends': bool(case.ends)}
        trainer = trl_trainer(theirs, prompts, G, R, folder, **options)
    trainer.create_optimizer()
    theirs.train()
    examples = [{'prompt': in_words(ids)} for ids in prompts for _ in range(G)]
    tokenizer = WordTokenizer(ours.config.vocab_size, bool(case.ends))
    policy = CausalPolicy(ours, tokenizer, R, compile=case.compiled)
    if case.compiled:
        ours.compile_blocks()
    cfg = grpo.Settings(group_size=G, loss_type='dapo', kl_beta=0.0)
    batch = prompt_batch(prompts, list(range(P)), case.device)
    gate = same_step(policy, trainer, batch, examples, cfg)
    masters = compute_in(ours, case.dtype)
    optimizer = configure_optimizers(masters.values(), 0.0, 1e-6, (0.9, 0.999))
    optimizer.register_step_post_hook(lambda *_: copy_masters(masters, ours))

    def their_step():
        trainer.optimizer.zero_grad()
        with torch.autocast(case.device, case.dtype, enabled=case.dtype != torch.float32):
            trainer.training_step(theirs, examples, None)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        trainer.optimizer.step()

    lengths = []

    def remainder(policy, rollout):
        return (rollout.tokens.sum(-1) % 7).float()

    rewards = [('remainder', remainder, 1.0)]

    def our_step():
        _, rollout = grpo.grpo_training_step(policy, batch, optimizer, rewards, cfg)
        lengths.append(rollout.lengths.sum().item())

    trainer.optimizer.zero_grad()
    return {'ours': our_step, 'TRL': their_step}, gate, lengths


def step():
    """Completion tokens per second of a whole step, AdamW included; fp32, no KL."""
    print("step: against TRL's GRPOTrainer on the same Llama weights, loss dapo")
    small, long = Case('tiny', 4, 8, 64, 64), Case('tiny', 1, 16, 512, 64)
    for case in (small, small._replace(compiled=True), Case('tiny', 8, 8, 64, 128, ends=24),
                 Case('tiny', 4, 8, 128, 400, ends=165), Case('tiny', 2, 16, 256, 64), long,
                 long._replace(compiled=True), Case('SmolLM2-size', 2, 8, 64, 64),
                 Case('SmolLM2-size', 1, 16, 256, 64)):
        step_case(case)


def step_case(case, **options):
    ways, gate, lengths = step_ways(case, **options)
    print_peaks(ways, case.device)
    seconds, n_tokens = compare(ways, case.rounds), statistics.mean(lengths)
    report(f"{case}, mean length {n_tokens / (case.P * case.G):.0f} ({gate})", seconds, n_tokens)


def print_peaks(ways, device):
    peaks = [f", {name} {peak_memory(way, device) / 2 ** 20:,.0f} MB" for name, way in ways.items()]
    tell("  peak above the weights" + ''.join(peaks))


# -----------------------------------------------------------------------------
# gpu

def correct(device):
    """kernels against float64, a step against the CPU's, sampler against trainer"""
    tests = 'tests/test_kernels.py', 'tests/test_gpu_training.py'
    subprocess.run([sys.executable, '-m', 'pytest', '-q', '-n0', *tests], check=True, cwd=ROOT)


def head(device, sizes=((16384, 768, 50257), (16384, 896, 151936))):
    """time and memory of the head's log-probs and their gradients, against torch's"""
    for N, D, V in sizes:
        x, w = (torch.randn(n, D, device=device, dtype=torch.bfloat16, requires_grad=True) for n in (N, V))
        ids = torch.randint(V, (N,), device=device)
        ways = {name: partial(way, x, w, ids) for name, way in HEADS.items()}
        print_peaks(ways, device)
        report(f"N {N}, D {D}, V {V}", compare(ways, 7), N)


HEADS = {'ours': lambda x, w, ids: fused_logps(x, w, ids)[0].mean().backward(),
         'torch': lambda x, w, ids: torch.nn.functional.cross_entropy((x @ w.T).float(), ids).backward()}


WITH_TRL = {'liger_kernel': {'use_liger_kernel': True},
            'vllm': {'use_vllm': True, 'vllm_importance_sampling_correction': False}}


def jobs(device, sizes=(('SmolLM2-size', 64, 8, 128, 128), ('SmolLM2-size', 16, 8, 512, 256))):
    """sampling against transformers; a step and its memory against TRL, with Liger, with vLLM"""
    for size in sizes:
        case = Case(*size, device=device, dtype=torch.bfloat16)
        sample_case(case)
        step_case(case)
        for package, options in WITH_TRL.items():
            if find_spec(package):
                tell(f"  TRL with {package}")
                step_case(case, **options)


def gpu(page=ROOT / 'docs' / 'gpu.md', device='cuda', parts=(correct, head, jobs)):
    """What a GPU has to show becomes the page's last part; without one a line for each."""
    if device == 'cuda' and not torch.cuda.is_available():
        print("gpu: there is none. On one:", *(part.__doc__ for part in parts), sep='\n  ')
        return
    tell(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for part in parts:
        tell(part.__doc__)
        part(device)
    kept, heading, _ = page.read_text(encoding='utf-8').partition('## measured\n')
    page.write_text('\n'.join([kept + heading, '```', *TOLD, '```\n']), encoding='utf-8')


BENCHES = {'sample': sample, 'step': step, 'roof': roof, 'gpu': gpu}


def main(names):
    if not names or not set(names) <= BENCHES.keys():
        sys.exit(f"usage: python -m tools.bench {' | '.join(BENCHES)}")
    early.over()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__} with "
          f"{torch.get_num_threads()} threads")
    for name in names:
        BENCHES[name]()


if __name__ == '__main__':
    main(sys.argv[1:])
