"""
Train a language model with GRPO.
$ python train_grpo.py config/grpo_config.py           # fill-in with a frozen judge, from an empty machine
$ python train_grpo.py config/arithmetic.py            # a causal model on verifiable rewards
$ python train_grpo.py config/alignment.py             # helpful, and safe: reward minus lambda times cost
$ python train_grpo.py config/nla.py                   # text that carries an activation
$ python train_grpo.py config/arithmetic.py --group_size=16 --kl_beta=0.02  # any setting; --help lists them
$ python train_grpo.py config/arithmetic.py --init_from=resume              # go on where it stopped
$ torchrun --standalone --nproc_per_node=2 train_grpo.py config/grpo_config.py
"""
import runtime.early  # noqa: F401, I001  before torch
import math
from typing import Annotated, Literal

import grpo
from data.prompts import source_name
from runtime import console, ranks, run
from runtime.config import Count, Natural, NonNegative, Positive, Share, configure, with_settings
from runtime.console import say
from tasks import TASKS
from tasks.evolution import es_training_step

# -----------------------------------------------------------------------------
# The settings of a run. Those of the step stand in grpo.py, those of a job in tasks/.
# A config file and --key=value set any of them by its bare name.

# the job
task: Literal['fill_in', 'completion', 'alignment', 'nla'] = 'fill_in'  # each is a file in tasks/
init_from: Literal['generator', 'resume'] = 'generator'  # 'resume': go on with out_dir
remake: Literal[False, True, 'never'] = False  # of a file made with other settings: refuse, remake, use
out_dir = 'out-grpo'                    # may hold {dataset}, {seed}, ...; a used one is moved aside
seed: Natural = 1                       # of everything that is drawn
# optimizer
batch_size: Count = 32                  # P: prompts of an iteration, all ranks together
max_iters: Natural = 200                # iterations: completions, rewards, a step
optimizer: Literal['adamw', 'es'] = 'adamw'  # 'es': evolution strategies, rewards without gradients
learning_rate: NonNegative = 6e-4       # the peak of its schedule
min_lr: NonNegative | None = None       # learning rate at the end; None: a tenth of the peak
lr_schedule: Literal['cosine', 'linear', 'constant'] = 'cosine'  # after the warm-up
warmup_iters: Natural = 10              # iterations in which the learning rate rises
weight_decay: NonNegative = 0.0         # AdamW's, on matrices alone
beta1: Annotated[float, '[0, 1)'] = 0.9  # Adam's averages
beta2: Annotated[float, '[0, 1)'] = 0.99
max_bad_steps: Count = 5                # so many skipped steps in a row end the run
# reference: what kl_beta and divergence compare with
reference_mode: Literal['static', 'ema', 'periodic', 'none'] = 'static'  # static: where we started
ema_alpha: Share = 0.99                 # ema: its share that stays in each iteration
reference_update_freq: Count = 500      # periodic: reference = policy, every so many iterations
reference_offload = False               # True: it waits in the CPU's memory
# LoRA: train small matrices beside frozen ones
lora_r: Natural = 0                     # rank; 0 trains all weights
lora_alpha: Positive | None = None      # they are scaled by lora_alpha / lora_r; None: 16, or theirs
lora_dropout: Annotated[float, '[0, 1)'] = 0.0  # above 0 the policy that learns is not the one that sampled
lora_targets: tuple | str | None = None  # q, k, v, o, gate, up, down; q_proj, ...; None: all, or theirs
load_in_8bit = False                    # frozen weights as int8
# evaluation, logs, checkpoints
eval_interval: Count = 50               # iterations between two evaluations
log_interval: Count = 10                # between two lines and records in metrics.jsonl
hist_interval: Count = 25               # every so many, all rewards go to rewards.jsonl, part by part
save_interval: Count = 50               # between two checkpoints
keep_checkpoints: Natural = 1           # older ones kept beside ckpt.pt, for when that is damaged
quiet = False                           # True: no lines but warnings, errors and how it ended
tensorboard = False                     # True: metrics, histograms and samples also go to out_dir/tensorboard
wandb_log = False                       # True: and to wandb
wandb_project = 'grpo'
wandb_run_name = 'fill-in'
wandb_mode: Literal['online', 'offline', 'shared', 'disabled'] = 'online'  # 'offline' needs no account
# system
device = 'auto'                         # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
precision: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'auto'  # of computing; what learns is fp32 always
compile = False                         # True: torch.compile; a GPU samples by CUDA graphs anyway
gradient_checkpointing = False          # True: less memory in backward, a quarter more time
shard = False                           # True: weights, gradients and Adam spread over all ranks (FSDP2)
gather_to_sample = True                 # shard: False collects the model block by block for every token
rank_timeout: Positive = 1800.0         # seconds after which a process that hangs is given up
cfg = configure(globals(), grpo.Settings, tasks=TASKS)
named = vars(cfg) | {'dataset': source_name(cfg.train_prompts or cfg.dataset)}
cfg.out_dir = with_settings('out_dir', cfg.out_dir, named)

# -----------------------------------------------------------------------------
# set-up: who we are, what we learn, what holds us back, where we stopped
console.quiet = cfg.quiet
run.check(cfg)
rank, world_size, device = run.processes(cfg)
job = TASKS[cfg.task](cfg, device)              # prompts, rewards, evaluation; its start is made if missing
state = run.State(cfg, job, device)             # weights to compute with, fp32 masters, AdamW, checkpoints
policy = job.policy(state.model)                # samples completions, and scores them again with gradients
reference = state.reference(policy)             # what holds us back, or None
start_iter = state.resume(job) if cfg.init_from == 'resume' else 0
log = run.Log(cfg, job, start_iter)             # metrics.jsonl, samples.jsonl, trackers, report.html
mine = slice(rank * cfg.batch_size // world_size, (rank + 1) * cfg.batch_size // world_size)


def prompts(it, attempt=0):
    """This rank's part of an iteration's prompts: a function of seed and iteration, with nothing to save."""
    return {name: rows[mine] for name, rows in job.batch(it, attempt).items()}


def learning_rate_at(it):
    if it < cfg.warmup_iters:  # rise in a line
        return cfg.learning_rate * (it + 1) / (cfg.warmup_iters + 1)
    if cfg.lr_schedule == 'constant':
        return cfg.learning_rate
    progress = (it - cfg.warmup_iters) / max(1, cfg.max_iters - cfg.warmup_iters)
    share = 1 - progress if cfg.lr_schedule == 'linear' else 0.5 * (1 + math.cos(math.pi * progress))
    lowest = cfg.learning_rate / 10 if cfg.min_lr is None else cfg.min_lr
    return lowest + share * (cfg.learning_rate - lowest)


def grpo_step(it, lr):
    def more_prompts(attempt):
        return prompts(it, attempt)

    state.set_learning_rate(lr)
    return grpo.grpo_training_step(policy, prompts(it), state.optimizer, job.rewards, cfg, reference,
                                   more_prompts, learn=not job.actor_rests(it))


def es_step(it, lr):
    seed = cfg.seed * 10 ** 6 + it
    return es_training_step(policy, job.batch(it), state.learning, job.rewards, cfg, lr, seed,
                            state.weights_changed)


step = es_step if cfg.optimizer == 'es' else grpo_step

# -----------------------------------------------------------------------------
# the loop
ranks.listen()                                  # a first signal asks to stop
log.opening(state, world_size)
for it in log.iterations():
    metrics, scorer_error = {'iter': it}, None
    last = it == cfg.max_iters

    # look: held-out prompts, with the same noise each time
    evaluating = it % cfg.eval_interval == 0 or last
    if evaluating:
        evaluated, scorer_error = run.evaluate(job, policy, cfg)
        metrics |= evaluated
    headline = metrics.get(job.headline, -math.inf)
    is_best = rank == 0 and headline > state.best
    flags = ranks.stop_signals, scorer_error, is_best
    stopping, scorer_lost, is_best = ranks.any_of(device, *flags)
    state.best = max(state.best, headline)
    if scorer_lost:
        state.save_and_say_so(it, log, job.saved(), ' when the scorer is back')
        raise scorer_error or ConnectionError("rank 0 has lost the scorer; see its message")

    # keep: everything needed to go on as if nothing had happened
    if evaluating and rank == 0 and not stopping:
        say(f"iter {it}: {job.describe(metrics)}")
    if is_best:
        state.save_best(job, it)
    if stopping:  # a signal that reached one rank counts for all
        state.save_and_say_so(it, log, job.saved())
        break
    if last or (it % cfg.save_interval == 0 and it > start_iter):
        metrics['time_save'] = state.save(it, log, job.saved())
    if last:
        log.write(metrics, evaluated=True)
        break

    # learn: sample a group of completions of each prompt, reward them, compare them, take a step
    lr, job_state = learning_rate_at(it), job.saved()
    try:
        stats, rollout = step(it, lr)
    except (ConnectionError, ranks.Stopped) as interruption:  # nothing has changed yet
        stopping = isinstance(interruption, ranks.Stopped)
        state.save_and_say_so(it, log, job_state, '' if stopping else ' when the scorer is back')
        if stopping:
            break
        raise
    stats |= job.learn_beside(rollout)          # an autoencoder's critic; lambda's metrics
    state.move_reference(it)                    # ema, periodic; a static one stays

    # tell
    metrics |= stats | {'lr': lr}
    log.note(metrics)
    if it % cfg.hist_interval == 0:
        log.rewards(it, rollout.reward_parts)
    if it % cfg.log_interval == 0 or evaluating or it + 1 == cfg.max_iters:
        say(log.line(metrics))
        log.write(metrics, rank == 0 and job.samples(policy, rollout), evaluating)
    state.stop_if_broken(stats)                 # steps that are not finite are skipped

if not stopping:
    if rank == 0 and (table := job.table(metrics)):
        say(table)
    state.export(job)
log.close(stopping)
run.leave(stopping)
