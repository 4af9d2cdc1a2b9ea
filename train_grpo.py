"""
Train a language model with GRPO. All settings are the globals below; a config file and --key=value override them.
$ python train_grpo.py config/grpo_config.py
$ python train_grpo.py config/grpo_config.py --kl_beta=0.02 --group_size=16
$ python train_grpo.py config/grpo_config.py --init_from=resume        # go on where it stopped, bit for bit on a CPU
$ torchrun --standalone --nproc_per_node=2 train_grpo.py config/grpo_config.py
"""
import copy
import json
import math
import os
import signal
import sys

import torch
import torch.distributed as dist

from configurator import configure
from data.text import dataset_name, load_corpus, random_windows
from fill_in import MASK_KINDS, FillInPolicy, describe_fills, exact_match, score_fills
from grpo import ADVANTAGES, KL_ESTIMATORS, LOSS_TYPES, all_reduce, grpo_training_step
from judge import Judge
from model import GPT, GPTConfig, configure_optimizers, load_checkpoint, save_checkpoint
from pretrain import filler_config, masked_windows, save_model, train_generator, train_judge

# data: texts with masked slots
dataset = 'stdlib_char'                              # a folder under data/, or the path of any text file
block_size = 48                                      # characters of a text
mask_kinds = ('random',)                             # of 'random', 'sticky', 'span', in equal shares
mask_ratio = (0.25, 0.35)                            # each text's share of masked characters lies between these
# models ({dataset} becomes the data set's name); one that does not exist yet is trained first, about a minute each
init_from = 'generator'                              # 'generator': start from generator_checkpoint; 'resume': go on with out_dir
generator_checkpoint = 'out-{dataset}/generator.pt'
judge_checkpoint = 'out-{dataset}/judge.pt'          # its score is the reward
gold_checkpoint = 'out-{dataset}/judge_gold.pt'      # a second judge that only looks on, so that over-optimising shows
n_layer = 3                                          # the size, when a generator has to be trained
n_head = 4
n_embd = 96
pretrain_iters = 1200
judge_iters = 500
# GRPO
batch_size = 32                                      # P: texts of an iteration, all ranks together
group_size = 8                                       # G: fills of each text
micro_batch_size: int | None = None                  # texts of one forward; None: all at once. Changes memory, not the result
max_iters = 200
num_epochs_per_rollout = 1                           # mu: optimizer steps on one batch of fills
loss_type = 'grpo'                                   # 'grpo' | 'dapo' | 'dr_grpo' | 'gspo' | 'cispo' | 'reinforce'
advantage = 'grpo'                                   # 'grpo' | 'dr_grpo' | 'batch' | 'rloo'
clip_low = 0.2
clip_high = 0.2
dual_clip: float | None = None                       # bounds the loss of bad answers that became likely; above 1
kl_beta = 0.1                                        # the leash to the generator we started from; 0 needs no reference
kl_estimator = 'exact'                               # 'k1' | 'k2' | 'k3' | 'exact'
entropy_coef = 0.0
temperature = 0.8                                    # of sampling and of scoring alike
top_p = 1.0                                          # nucleus; the same nucleus is kept for scoring
unmask_steps = 1                                     # K: fill in K steps, each seeing the fills before it
# optimizer
learning_rate = 6e-4
min_lr = 6e-5
lr_schedule = 'cosine'                               # 'cosine' | 'linear' | 'constant', after the warm-up
warmup_iters = 10
weight_decay = 0.0
beta1 = 0.9
beta2 = 0.99
grad_clip = 1.0                                      # 0 is off
# evaluation, logs, checkpoints
eval_interval = 50
eval_prompts_n = 512                                 # held-out texts
eval_show = 3                                        # of which this many are printed
log_interval = 10
save_interval = 50
keep_checkpoints = 0                                 # beside ckpt.pt and ckpt_best.pt, keep this many older ones
out_dir = 'out-grpo'
wandb_log = False
wandb_project = 'grpo'
wandb_run_name = 'fill-in'
wandb_mode = 'online'                                # 'offline' needs no account
# system
seed = 1
device = 'auto'                                      # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
precision = 'auto'                                   # 'fp32' | 'bf16' (autocast); 'auto': bf16 on a GPU. Weights are fp32 always
config = configure(globals())

# ---------------------------------------------------------------------------------------------------------------------
# check what can be checked before any time is spent

for key, allowed in (('loss_type', LOSS_TYPES), ('advantage', ADVANTAGES), ('kl_estimator', KL_ESTIMATORS), ('init_from', ('generator', 'resume')),
                     ('lr_schedule', ('cosine', 'linear', 'constant')), ('precision', ('auto', 'fp32', 'bf16'))):
    if config[key] not in allowed:
        raise ValueError(f"{key} is {config[key]!r}; it must be one of {', '.join(allowed)}")
if group_size < 2:
    raise ValueError(f"group_size is {group_size}: a group's advantage compares its answers, so it needs at least 2 (8 is a good start)")
if len(mask_ratio) != 2 or not 0 < mask_ratio[0] <= mask_ratio[1] <= 1:
    raise ValueError(f"mask_ratio is {mask_ratio}: it must be (low, high) with 0 < low <= high <= 1, for instance (0.25, 0.35); at 0 there is nothing to fill in")
for kind in mask_kinds:
    if kind not in MASK_KINDS:
        raise ValueError(f"mask_kinds holds {kind!r}; it takes {', '.join(MASK_KINDS)}")
for key in ('block_size', 'batch_size', 'num_epochs_per_rollout', 'unmask_steps', 'eval_prompts_n', 'eval_interval', 'log_interval', 'save_interval'):
    if config[key] < 1:
        raise ValueError(f"{key} is {config[key]}: it must be at least 1")
if temperature <= 0 or not 0 < top_p <= 1:
    raise ValueError(f"temperature is {temperature} and top_p {top_p}: temperature must be above 0, top_p above 0 and at most 1")
if init_from == 'resume' and not os.path.exists(os.path.join(out_dir, 'ckpt.pt')):
    raise FileNotFoundError(f"there is no {os.path.join(out_dir, 'ckpt.pt')} to resume from: name the run's out_dir, or leave --init_from=resume away to start one")
if dual_clip is not None and dual_clip <= 1:
    raise ValueError(f"dual_clip is {dual_clip}: it must be above 1, or None")
if kl_beta > 0 and kl_estimator == 'k1':
    print("warning: k1 in the loss has zero gradient on average, it only adds noise; k2 or exact do what is meant")

# ranks: torchrun tells each process who it is; without it there is one
rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if device == 'auto':
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else 'cpu'
device_type = 'cuda' if device.startswith('cuda') else 'cpu'
if device_type == 'cuda' and not torch.cuda.is_available():
    raise ValueError(f"device is {device!r} and this machine has no GPU that torch can use: leave it at 'auto' or take 'cpu'")
if world_size > 1:
    dist.init_process_group('nccl' if device_type == 'cuda' else 'gloo')
if device_type == 'cuda':
    torch.cuda.set_device(device)
if batch_size % world_size:
    raise ValueError(f"batch_size {batch_size} does not divide among {world_size} processes: make it a multiple of {world_size}")
master = rank == 0
say = print if master else lambda *args, **kwargs: None
autocast = torch.autocast(device_type, torch.bfloat16, enabled=precision == 'bf16' or (precision == 'auto' and device_type == 'cuda'))

# ---------------------------------------------------------------------------------------------------------------------
# data, generator, judges

def once(make):
    """Call make() on rank 0 while the others wait: files are made once."""
    if master:
        make()
    if world_size > 1:
        dist.barrier()


once(lambda: load_corpus(dataset))  # prepares it on first use
tokenizer, corpus = load_corpus(dataset)
for ids in corpus.values():
    random_windows(ids, 1, block_size, torch.Generator())  # refuses now a split that is too short, not after a minute
generator_checkpoint, judge_checkpoint, gold_checkpoint = (
    path.format(dataset=dataset_name(dataset)) for path in (generator_checkpoint, judge_checkpoint, gold_checkpoint))


def load_generator():
    tokenizer.check_same(load_checkpoint(generator_checkpoint, 'generator', 'run')['chars'], generator_checkpoint)
    model = GPT.from_pretrained(generator_checkpoint).to(device).eval()
    if model.config.block_size < block_size:
        raise ValueError(f"the generator at {generator_checkpoint} reads texts of at most {model.config.block_size} characters and block_size is {block_size}: lower block_size, or name a generator that does not exist yet to have it trained")
    return model


def make_missing():
    if not os.path.exists(generator_checkpoint):
        say(f"there is no generator at {generator_checkpoint}: training one on {dataset}")
        model_config = filler_config(tokenizer, block_size, n_layer, n_head, n_embd)
        model, quality = train_generator(tokenizer, corpus, model_config, pretrain_iters, mask_kinds=mask_kinds, seed=seed, device=device)
        save_model(generator_checkpoint, 'generator', model, model_config, tokenizer, quality)
    for number, path in enumerate((judge_checkpoint, gold_checkpoint)):
        if not os.path.exists(path):
            say(f"there is no judge at {path}: training one on the fills of {generator_checkpoint}")
            generator = load_generator()
            judge, quality = train_judge(generator, tokenizer, corpus, judge_iters, mask_kinds=mask_kinds, seed=seed + 1000 * number)
            save_model(path, 'judge', judge, generator.config, tokenizer, quality)


once(make_missing)
judge, gold = (Judge.from_pretrained(path, tokenizer).to(device) for path in (judge_checkpoint, gold_checkpoint))
for path, one in ((judge_checkpoint, judge), (gold_checkpoint, gold)):
    if one.trunk.config.block_size < block_size + 1:
        raise ValueError(f"the judge at {path} reads texts of at most {one.trunk.config.block_size - 1} characters and block_size is {block_size}: lower block_size, or name a judge that does not exist yet to have it trained")
say(f"judge: held-out AUC {judge.quality['auc']:.3f}, R2 {judge.quality['r2']:.3f}; gold judge: AUC {gold.quality['auc']:.3f}, R2 {gold.quality['r2']:.3f}")

# ---------------------------------------------------------------------------------------------------------------------
# policy, reference, optimizer, and where a resumed run stopped

checkpoint_path, metrics_path, samples_path = (os.path.join(out_dir, name) for name in ('ckpt.pt', 'metrics.jsonl', 'samples.jsonl'))
resumed = None
if init_from == 'resume':
    resumed = load_checkpoint(checkpoint_path, 'run')
    tokenizer.check_same(resumed['chars'], checkpoint_path)
    model = GPT(GPTConfig(**resumed['model_config'])).to(device).eval()
    model.load_state_dict(resumed['model'])
    for key, old in resumed['config'].items():
        if key != 'init_from' and json.dumps(old) != json.dumps(config.get(key)):
            say(f"resuming with {key} = {config.get(key)!r} (it was {old!r})")
else:
    model = load_generator()
noise_rng = torch.Generator(device).manual_seed(seed * 10007 + rank)  # sampling: every rank draws its own fills
data_rng = torch.Generator().manual_seed(seed)                       # texts and masks: every rank draws all, and takes its share
policy = FillInPolicy(model, tokenizer, temperature, top_p, unmask_steps, noise_rng)
reference = policy.with_model(copy.deepcopy(model).requires_grad_(False)) if kl_beta > 0 else None
optimizer = configure_optimizers(model, weight_decay, learning_rate, (beta1, beta2))
start_iter, best = 0, -math.inf
if resumed:
    start_iter, best = resumed['iter'], resumed['best']
    optimizer.load_state_dict(resumed['optimizer'])
    if reference and resumed['reference']:
        reference.model.load_state_dict(resumed['reference'])
    data_rng.set_state(resumed['data_rng'])
    if len(resumed['noise_rngs']) == world_size:
        noise_rng.set_state(resumed['noise_rngs'][rank])
    else:
        say(f"saved by {len(resumed['noise_rngs'])} processes and resumed with {world_size}: the sampling noise is fresh")

if master:
    if resumed:  # forget what was logged after the checkpoint: it is about to be logged again
        for path in (metrics_path, samples_path):
            with open(path, encoding='utf-8') as f:
                lines = [line for line in f if line.endswith('\n') and json.loads(line)['iter'] < start_iter]
            with open(path + '.tmp', 'w', encoding='utf-8') as f:
                f.writelines(lines)
            os.replace(path + '.tmp', path)
    elif os.path.exists(metrics_path):  # never overwrite an earlier run
        number = next(n for n in range(1, 10 ** 6) if not os.path.exists(f'{out_dir}.{n}'))
        os.rename(out_dir, f'{out_dir}.{number}')
        say(f"{out_dir} held an earlier run: moved to {out_dir}.{number}")
    os.makedirs(out_dir, exist_ok=True)
    with open(os.path.join(out_dir, 'config.json'), 'w', encoding='utf-8') as f:
        json.dump(config, f, indent=1)
    metrics_file, samples_file = (open(path, 'a', encoding='utf-8') for path in (metrics_path, samples_path))


class NoWandb:
    """Stands in for a wandb run, so that the loop need not ask."""
    def log(self, *args, **kwargs): pass
    def finish(self): pass


if wandb_log and master:
    try:
        import wandb
    except ImportError:
        raise ImportError("wandb_log needs the package: pip install wandb") from None
    tracker = wandb.init(project=wandb_project, name=wandb_run_name, mode=wandb_mode, config=config, dir=out_dir)
else:
    tracker = NoWandb()


def draw_batch(split, n, rng):
    batch, _ = masked_windows(corpus[split], n, block_size, tokenizer, mask_kinds, mask_ratio, rng)
    return {key: value.to(device) for key, value in batch.items()}


def learning_rate_at(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    progress = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    share = {'cosine': 0.5 * (1 + math.cos(math.pi * progress)), 'linear': 1 - progress, 'constant': 1.0}[lr_schedule]
    return min_lr + share * (learning_rate - min_lr) if lr_schedule != 'constant' else learning_rate


def judge_reward(policy, rollout):
    return 1 - score_fills(judge, rollout.batch, rollout.tokens)


eval_batch = draw_batch('val', eval_prompts_n, torch.Generator().manual_seed(0))


@torch.no_grad()
def evaluate():
    """The policy on the same held-out texts with the same noise each time. The gold judge is never a reward."""
    frozen_noise = copy.copy(policy)
    frozen_noise.generator = torch.Generator(device).manual_seed(0)
    rollout = frozen_noise.sample(eval_batch, 2)
    if eval_show:
        say(describe_fills(tokenizer, eval_batch, rollout.tokens, eval_show))
    return {'eval/judge_reward': 1 - score_fills(judge, eval_batch, rollout.tokens).mean().item(),
            'eval/gold_reward': 1 - score_fills(gold, eval_batch, rollout.tokens).mean().item(),
            'eval/judge_reward_real': 1 - judge.score(eval_batch['original']).mean().item(),
            'eval/gold_reward_real': 1 - gold.score(eval_batch['original']).mean().item(),
            'eval/exact_match_sampled': exact_match(eval_batch, rollout.tokens),
            'eval/exact_match_greedy': exact_match(eval_batch, policy.greedy(eval_batch))}


def save(it):
    """Everything needed to go on with iteration `it` as if nothing had happened."""
    noise_rngs = [noise_rng.get_state()]
    if world_size > 1:
        noise_rngs = [None] * world_size
        dist.all_gather_object(noise_rngs, noise_rng.get_state())
    if not master:
        return
    for file in (metrics_file, samples_file):  # the log reaches the disk before the checkpoint that builds on it
        file.flush()
        os.fsync(file.fileno())
    save_checkpoint(checkpoint_path, {
        'kind': 'run', 'iter': it, 'best': best, 'model': model.state_dict(), 'model_config': vars(model.config), 'chars': tokenizer.chars,
        'optimizer': optimizer.state_dict(), 'reference': reference.model.state_dict() if reference else None,
        'data_rng': data_rng.get_state(), 'noise_rngs': noise_rngs,
        'config': config, 'judge_checkpoint': judge_checkpoint})
    if keep_checkpoints:
        kept = os.path.join(out_dir, f'ckpt_{it:06d}.pt')
        if os.path.exists(kept):
            os.remove(kept)
        os.link(checkpoint_path, kept)
        for old in sorted(name for name in os.listdir(out_dir) if name[5:11].isdigit() and name.endswith('.pt'))[:-keep_checkpoints]:
            os.remove(os.path.join(out_dir, old))


stop_signals = []
previous_handlers = {}


def ask_to_stop(number, frame):
    stop_signals.append(number)
    for s, handler in previous_handlers.items():  # a second one stops at once
        signal.signal(s, handler)


for s in (signal.SIGINT, signal.SIGTERM):
    previous_handlers[s] = signal.signal(s, ask_to_stop)

# ---------------------------------------------------------------------------------------------------------------------
# the loop

say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters on {device}, {batch_size} texts x {group_size} fills an iteration, {world_size} process{'es' if world_size > 1 else ''}")
my_rows = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
options = {key: config[key] for key in ('group_size', 'advantage', 'kl_estimator', 'micro_batch_size', 'loss_type', 'clip_low', 'clip_high',
                                        'dual_clip', 'kl_beta', 'entropy_coef', 'grad_clip')}
for it in range(start_iter, max_iters + 1):
    metrics = {'iter': it}
    if master and (it % eval_interval == 0 or it == max_iters):
        with autocast:
            metrics |= evaluate()
        say(f"iter {it}: held-out judge reward {metrics['eval/judge_reward']:.4f} (real text {metrics['eval/judge_reward_real']:.4f}), gold reward {metrics['eval/gold_reward']:.4f} "
            f"(real text {metrics['eval/gold_reward_real']:.4f}), exact match sampled {metrics['eval/exact_match_sampled']:.4f}, greedy {metrics['eval/exact_match_greedy']:.4f}", flush=True)
    is_best = metrics.get('eval/judge_reward', -math.inf) > best
    best = max(best, metrics.get('eval/judge_reward', -math.inf))

    if is_best:  # before save(), which remembers its value
        save_checkpoint(os.path.join(out_dir, 'ckpt_best.pt'), {'kind': 'run', 'iter': it, 'best': best, 'model': model.state_dict(), 'model_config': vars(model.config),
                                                               'chars': tokenizer.chars, 'config': config, 'judge_checkpoint': judge_checkpoint})

    # All ranks stop together: one that got the signal tells the others.
    stopping = all_reduce(torch.tensor(float(bool(stop_signals)), device=device), 'max').item() > 0
    if stopping or it == max_iters or (it % save_interval == 0 and it > start_iter):
        save(it)
    if stopping:
        arguments = [a for a in sys.argv[1:] if not a.startswith('--init_from')]
        say(f"stopped before iteration {it}; saved {checkpoint_path}. To go on:\n  python {' '.join([sys.argv[0], *arguments])} --init_from=resume")
        break

    if it < max_iters:
        lr = learning_rate_at(it)
        for group in optimizer.param_groups:
            group['lr'] = lr
        batch = {key: value[my_rows] for key, value in draw_batch('train', batch_size, data_rng).items()}
        with autocast:
            stats, rollout = grpo_training_step(policy, batch, optimizer, [('judge', judge_reward, 1.0)], reference,
                                                num_epochs=num_epochs_per_rollout, max_new_tokens=block_size, **options)
        metrics |= stats | {'lr': lr, 'frac_truncated': 0.0}  # a fill always ends: it has as many tokens as slots
    if master and (it % log_interval == 0 or len(metrics) > 1 and 'eval/judge_reward' in metrics):
        if it < max_iters:
            kl_shown = f"kl {metrics['mean_kl']:.4f}" if reference else "no reference"
            say(f"iter {it}: reward {metrics['mean_reward']:.4f} +- {metrics['std_reward']:.3f}, loss {metrics['loss']:+.4f}, {kl_shown}, entropy {metrics['entropy']:.3f}, "
                f"clipped {metrics['clip_frac_low'] + metrics['clip_frac_high']:.3f}, grad norm {metrics['grad_norm']:.3f}, lr {lr:.1e}, {metrics['tokens_per_s']:,.0f} tokens/s", flush=True)
            prompt = tokenizer.decode(rollout.batch['tokens'][0])
            for text, reward, advantage_ in zip(policy.texts(rollout.rows(0, 1))[0], rollout.reward_parts['judge'][0].tolist(), rollout.advantages[0].tolist()):
                samples_file.write(json.dumps({'iter': it, 'prompt': prompt, 'completion': text, 'reward/judge': reward, 'advantage': advantage_}) + '\n')
        metrics_file.write(json.dumps(metrics) + '\n')
        metrics_file.flush()
        tracker.log(metrics, step=it)

tracker.finish()
if dist.is_initialized():
    dist.barrier()  # nobody hangs up while another still speaks
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort an ordinary exit, long after the work is saved (pytorch issue 190489)
