"""
Train a language model with GRPO. All settings are the globals below; a config file and --key=value override them.
$ python train_grpo.py config/grpo_config.py                            # fill-in with a frozen judge, from an empty machine
$ python train_grpo.py config/arithmetic.py                             # a causal model on verifiable rewards
$ python train_grpo.py config/nla.py                                    # text that carries an activation
$ python train_grpo.py config/alignment.py                              # helpful, and safe: reward minus lambda times cost
$ python train_grpo.py config/arithmetic.py --kl_beta=0.02 --group_size=16
$ python train_grpo.py config/arithmetic.py --init_from=resume          # go on where it stopped, bit for bit on a CPU
$ torchrun --standalone --nproc_per_node=2 train_grpo.py config/grpo_config.py
"""
import contextlib
import copy
import json
import math
import os
import shutil
import sys
import time
import types

import torch
import torch.distributed as dist

from grpo import completion_logps, es_training_step, gather_rewards, grpo_training_step
from mirror import MirrorMap
from report import write_report
from runtime import console, ranks
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.checks import check_settings
from runtime.config import configure
from runtime.console import say, tell
from runtime.lora import add_lora, load_lora_state, merge_lora, quantize_int8, save_adapter
from runtime.masters import compute_in, configure_optimizers, copy_masters, update_reference
from runtime.ranks import all_reduce
from runtime.shard import (
    collect_model,
    drop_collected,
    gathered,
    local_part,
    optimizer_parts,
    part_of,
    shard_model,
    whole,
)
from runtime.trackers import asked_for
from tasks.alignment import Alignment
from tasks.completion import Completion
from tasks.fill_in import FillIn
from tasks.nla import NLA

task = 'fill_in'                                     # 'fill_in' | 'completion' | 'nla' | 'alignment'
# data: texts with masked slots, or prompts to answer
dataset = 'stdlib_char'                              # a folder under data/, or a file: text to fill in, or prompts (.json, .jsonl, .txt)
# fill-in
block_size = 48                                      # characters of a text, or of the context when a small model is trained from nothing
mask_kinds = ('random',)                             # of 'random', 'sticky', 'span', in equal shares
mask_ratio = (0.25, 0.35)                            # each text's share of masked characters lies between these
unmask_steps = 1                                     # K: fill in K steps, each seeing the fills before it
judge_checkpoint = 'out-{dataset}/judge.pt'          # its score is the reward
gold_checkpoint = 'out-{dataset}/judge_gold.pt'      # a second judge that only looks on, so that over-optimising shows
judge_iters = 500                                    # supervised steps of each judge
# completion
train_prompts: str | None = None                     # a .json, .jsonl or .txt file, a folder under data/, a Hugging Face data set; None: dataset
eval_prompts: str | None = None                      # the same; None: what the data set holds out, or eval_prompts_n of a file's
column_mapping: dict | types.FunctionType | None = None  # {'question': 'prompt'}: what the file calls our fields; or a function that makes of its record one with our fields
train_prompts_n: int | None = None                   # no more than the first so many
system_prompt = ''                                   # stands before each prompt
chat_template = False                                # True: prompts become the user's turn in the model's own chat template
max_prompt_length: int | None = None                 # in tokens
too_long = 'error'                                   # what to do with a longer one: 'error' | 'drop'
max_new_tokens = 64                                  # R: where an answer is cut off
rewards: list | str = ['exact_answer']               # a,b or a list of names, (name, weight), (name, weight, {parameters}), or functions; see rewards.py
reward_errors = 'raise'                              # 'drop': an answer for which a reward raises is warned of and left out
mask_truncated = False                               # True: answers that were cut off are not trained on
overlong_penalty = 0                                 # the last so many tokens before max_new_tokens take up to 1 off the reward, in a line
retain_text = ''                                     # its log-prob is logged at each evaluation: does the model forget its language?
# alignment: prompts as for completion, and a scorer of reward and cost
scorer_url: str | None = None                        # of `python judge.py serve` or another service of its kind; None: trained on preferences, and started as a child
scorer_batch_size = 32                               # texts of a request
scorer_timeout = 300.0                               # seconds that a request may take
scorer_patience = 60.0                               # seconds that a failing request is tried again, before the run saves and stops
scorer_template: str | None = None                   # '... {prompt} ... {response}', what is scored; None: what the policy reads, then its answer, and safe-rlhf's for a Hugging Face folder
scorer_device = 'cpu'                                # of the child
preferences: str | None = None                       # pairs of answers with PKU-SafeRLHF's fields: a file or a folder under data/; None: where the prompts are
reward_checkpoint = 'out-{dataset}/reward.pt'        # trained first if there is no such file; ours, or a Hugging Face folder
cost_checkpoint = 'out-{dataset}/cost.pt'            # the same for the cost
score_iters = 400                                    # supervised steps of each
lambda_cost = 1.0                                    # lambda, where it starts
lambda_adapt = True                                  # False: it stays
cost_threshold_d = 0.0                               # the mean cost shall be at most minus this
lambda_lr = 0.005                                    # of ln lambda
lambda_min = 1e-4                                    # its bounds
lambda_max = 5.0
lambda_rule = 'exponential'                          # ln lambda += lambda_lr * J | 'safe_rlhf': lambda_lr * lambda * J
lambda_positive_only = False                         # True: J counts as max(J, 0), so that lambda never falls
jc_ema_beta = 0.9                                    # J is averaged over iterations
true_reward: types.FunctionType | None = None        # f(text, prompt=..., ...) -> float, what the reward model stands for, where that is known: only logged
true_cost: types.FunctionType | None = None          # the same for the cost
# nla: an actor writes what an activation says, a critic rebuilds it from the text
activations = 'out-{dataset}/activations'            # a folder of data/activations/prepare.py, made if missing; or .npy, .pt, .safetensors with train_prompts
activation_layer: int | None = None                  # taken after this block of the source model, generator_checkpoint; None: two thirds up
activations_n = 20000                                # how many to train on
activation_context = 32                              # tokens that the source model sees, up to the place
nla_checkpoint = 'out-{dataset}/nla.pt'              # actor and critic to start from; taught first if there is no such file
injection_mode = 'project'                           # 'replace' | 'add' | 'project', a learned linear map
injection_layers = (0,)                              # 0: the marker's embedding; i: what block i puts out there
injection_scale: float | str | None = None           # 'raw', 'residual': the length of what stands there, or a length; None: that of an embedding at layer 0
injection_token = '<INJECT>'                         # in a prompt, where the vector goes; one token (characters have [MASK] for it)
injection_prompt = '<INJECT>'                        # the prompt of activations that come without one
text_reversed = False                                # True: texts are written latest word first, and the critic reads them turned round
warm_start_learning_rate = 5e-4                      # of the supervised start
warm_start_iters = 200                               # supervised steps of the actor
critic_start_iters = 100                             # and of the critic
nla_reward = 'mse'                                   # minus it; 'log_mse': minus its logarithm; 'cosine'
truncated_reward = -2.0                              # the most that a text gets that was cut off or is empty
critic_pooling = 'last'                              # 'last' | 'mean' | 'max'
critic_head = 'linear'                               # 'linear' | 'mlp'; both start as the identity
critic_target_norm = 'standard'                      # 'standard' | 'unit'
critic_learning_rate = 3e-4                          # constant
critic_train_epochs = 1                              # its steps on the answers of an iteration
critic_warmup_iters = 0                              # the actor rests as long
freeze_actor = False                                 # True: it rests all along; the control
# the model we start from ({dataset} becomes the data set's name); a .pt file that does not exist yet is trained first
init_from = 'generator'                              # 'generator': start from generator_checkpoint; 'resume': go on with out_dir
generator_checkpoint = 'out-{dataset}/generator.pt'  # ours, a Hugging Face directory, a .gguf file, or a name on the hub
n_layer = 3                                          # the size, when it has to be trained
n_head = 4
n_embd = 96
pretrain_iters = 1200                                # its supervised steps
pretrain_until = 1.0                                 # completion: that start ends sooner, at this held-out accuracy; 1 means never
# GRPO
batch_size = 32                                      # P: prompts of an iteration, all ranks together
group_size = 8                                       # G: answers to each
micro_batch_size: int | None = None                  # prompts of one forward; None: all at once. Changes memory, not the result
rollout_batch_size: int | None = None                # prompts sampled at once; their rewards (a sandbox's, a scorer's) are then worked out beside the sampling of the next. None: all at once
dynamic_sampling = 0                                 # up to so many times, groups whose rewards are all equal make room for other prompts'
max_iters = 200                                      # iterations: answers, rewards, a step
num_epochs_per_rollout = 1                           # mu: optimizer steps on one batch of answers
loss_type = 'grpo'                                   # 'grpo' | 'dapo' | 'dr_grpo' | 'gspo' | 'cispo' | 'reinforce'
advantage = 'grpo'                                   # 'grpo' | 'dr_grpo' | 'batch' | 'rloo' | 'gae', PPO's, with a value head
clip_low = 0.2                                       # a ratio below 1 - clip_low teaches a bad answer no more
clip_high = 0.2                                      # nor one above 1 + clip_high a good one
dual_clip: float | None = None                       # bounds the loss of bad answers that became likely; above 1
kl_beta = 0.1                                        # the leash to the reference; 0 needs none
kl_estimator = 'exact'                               # 'k1' | 'k2' | 'k3' | 'exact'
reward_combination = 'rewards'                       # several are weighted and then compared in the group | 'advantages': each compared by itself, then weighted
kl_in_reward = False                                 # True: kl_beta times the log-ratio is taken off the reward, and the loss has no KL
divergence = 'kl'                                    # 'kl' | 'l2' of log-probs | 'prob_l2' | 'neural_mirror', with mirror_coefficient instead of kl_beta | 'l2kl', 'prob_l2kl': both
mirror_coefficient = 1e-4                            # of a divergence other than the KL
mirror_weighting = 'token'                           # 'token' | 'is': divided by the token's probability | 'full': summed over the vocabulary, with kl_estimator 'exact'
mirror_init_scale = 0.01                             # neural_mirror: 126 neurons, a line and a logarithm, parameters uniform in [0, this)
mirror_seed = 42                                     # of its parameters
mirror_checkpoint: str | None = None                 # a mirror that `python es.py config/learn_mirror.py` has learned, or another run's ckpt.pt, instead of a drawn one
mirror_normalize = False                             # True: curvature 2 at probability 1/2, as the KL's: mirror_coefficient then compares with kl_beta
reference_mode = 'static'                            # 'static': where we started | 'ema' | 'periodic' | 'none'
ema_alpha = 0.99                                     # ema: reference = alpha * reference + (1 - alpha) * policy after each iteration
reference_update_freq = 500                          # periodic: reference = policy every so many iterations
reference_offload = False                            # True: the reference waits in the CPU's memory
entropy_coef = 0.0                                   # above 0: answers are kept different
gamma = 1.0                                          # of 'gae', as are the next three
gae_lambda = 0.95                                    # 0: one step ahead, 1: the whole return
value_coef = 0.5                                     # of the value head's squared error in the loss
value_clip: float | None = 0.2                       # how far its values may move in a step's loss
temperature = 0.8                                    # of sampling and of scoring alike
top_k = 0                                            # 0 is off; what top_k and top_p leave over is kept for scoring
top_p = 1.0                                          # 1 is off
# LoRA: train small matrices beside frozen ones
lora_r = 0                                           # rank; 0 trains all weights
lora_alpha = 16.0                                    # the adapters are scaled by lora_alpha / lora_r
lora_dropout = 0.0                                   # leave at 0: with dropout the policy that learns is not the one that sampled
lora_targets = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # of these matrices
load_in_8bit = False                                 # frozen weights as int8
# optimizer
optimizer = 'adamw'                                  # 'adamw' | 'es': evolution strategies, the same rewards without gradients; see es.py
es_pairs = 16                                        # directions tried both ways in an iteration, by all ranks together
es_sigma = 0.02                                      # how far
learning_rate = 6e-4                                 # at its highest
min_lr = 6e-5                                        # in the end
lr_schedule = 'cosine'                               # 'cosine' | 'linear' | 'constant', after the warm-up
warmup_iters = 10                                    # iterations in which it rises
weight_decay = 0.0                                   # AdamW's, of matrices alone
beta1 = 0.9                                          # Adam's averages
beta2 = 0.99
grad_clip = 1.0                                      # 0 is off
# evaluation, logs, checkpoints
eval_interval = 50                                   # iterations between two
eval_prompts_n = 512                                 # held-out texts or prompts
eval_batch_size = 256                                # completion: prompts sampled from at once
eval_samples = 4                                     # completion: sampled answers to each, beside the greedy one
eval_show = 3                                        # of which this many are printed
log_interval = 10                                    # between two lines and records in metrics.jsonl
hist_interval = 25                                   # every so many iterations all rewards go to rewards.jsonl, part by part
save_interval = 50                                   # between two checkpoints
keep_checkpoints = 1                                 # beside ckpt.pt and ckpt_best.pt, keep this many older ones; where ckpt.pt turns out to be damaged, the last of them serves
max_bad_steps = 5                                    # a step whose gradient is not finite is skipped; so many in a row stop the run
out_dir = 'out-grpo'                                 # where all of it goes; a used one is moved aside
quiet = False                                        # True: no lines but warnings, errors and how it ended
tensorboard = False                                  # True: metrics, histograms of rewards and samples also go to out_dir/tensorboard
wandb_log = False                                    # True: and to wandb
wandb_project = 'grpo'
wandb_run_name = 'fill-in'
wandb_mode = 'online'                                # 'offline' needs no account
# system
seed = 1                                             # of everything that is drawn
device = 'auto'                                      # 'cpu', 'cuda', 'cuda:1'; 'auto' takes a GPU when there is one
rank_timeout = 1800.0                                # seconds after which a process that hangs is given up; one that dies is noticed at once
precision = 'auto'                                   # 'fp32' | 'bf16' | 'fp16', what is computed in; what learns is fp32 always. 'auto': bf16 where it is faster
compile = False                                      # True: torch.compile for training and sampling (ten seconds per layer at first), and on a GPU CUDA graphs
gradient_checkpointing = False                       # True: less memory in backward, a quarter more time
shard = False                                        # True: weights, gradients and Adam are spread over all ranks (FSDP2), for models that no GPU holds alone
gather_to_sample = True                              # shard: every rank holds the whole model while it samples | False: it is collected block by block for every token
config = configure(globals())

console.quiet = quiet
check_settings(types.SimpleNamespace(**config))
trackers = asked_for(config)

# ---------------------------------------------------------------------------------------------------------------------
# ranks: torchrun tells each process who it is; without it there is one
rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if device == 'cuda' or (device == 'auto' and torch.cuda.is_available()):
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
elif device == 'auto':
    device = 'cpu'
device_type = 'cuda' if device.startswith('cuda') else 'cpu'
if device_type == 'cuda' and not torch.cuda.is_available():
    raise ValueError(f"device is {device!r} and this machine has no GPU that torch can use: leave it at 'auto' or take 'cpu'")
if world_size > 1 or shard:
    ranks.join('nccl' if device_type == 'cuda' else 'gloo', rank_timeout)
if device_type == 'cuda':
    torch.cuda.set_device(device)
if compile and device_type == 'cpu' and not shutil.which(os.environ.get('CXX', 'g++')):
    raise ValueError("compile on a CPU needs a C++ compiler, and there is no g++ here: install it, name yours in CXX, or leave compile at False")
if batch_size % world_size:
    raise ValueError(f"batch_size {batch_size} does not divide among {world_size} processes: make it a multiple of {world_size}")
if optimizer == 'es' and es_pairs % world_size:
    raise ValueError(f"es_pairs {es_pairs} does not divide among {world_size} processes: make it a multiple of {world_size}")
mirror = MirrorMap(mirror_init_scale, mirror_seed, mirror_normalize).to(device)
if mirror_checkpoint and init_from != 'resume':  # a resumed run keeps its own, whatever has become of the file
    mirror.load_state_dict(load_checkpoint(mirror_checkpoint, 'mirror', 'run', 'adapters')['mirror'])
master = rank == 0


def once(make):
    """Call make() on rank 0 while the others wait: files are made once."""
    if master:
        with contextlib.redirect_stdout(open(os.devnull, 'w') if quiet else sys.stdout):  # the scripts in data/ print
            make()
    ranks.wait_for_rank_0()


# ---------------------------------------------------------------------------------------------------------------------
# the job, the policy, the reference, the optimizer, and where a resumed run stopped

job = {'fill_in': FillIn, 'completion': Completion, 'nla': NLA, 'alignment': Alignment}[task](types.SimpleNamespace(**config), device, once, say)
checkpoint_path, metrics_path, samples_path, rewards_path = (os.path.join(out_dir, name) for name in ('ckpt.pt', 'metrics.jsonl', 'samples.jsonl', 'rewards.jsonl'))
model = job.load_model().eval()
start_weights = sum(p.double().sum() for p in model.parameters()).item()  # tells one start from another
if load_in_8bit:
    quantize_int8(model)
if lora_r:
    torch.manual_seed(seed)
    add_lora(model, lora_r, lora_alpha, lora_dropout, lora_targets)
    if task == 'nla':
        model.injection.requires_grad_(True)
model.gradient_checkpointing = gradient_checkpointing
if precision == 'auto':
    fast_bf16 = device_type == 'cuda' or (torch.cpu._is_avx512_bf16_supported() and model.config.n_embd >= 512)
    precision = 'bf16' if fast_bf16 else 'fp32'
dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}[precision]

with_reference = (kl_beta > 0 or divergence != 'kl') and reference_mode != 'none'
reference, averages = None, {}
if with_reference and not (lora_r and reference_mode == 'static'):
    frozen = copy.deepcopy(model)
    if reference_mode == 'static':
        frozen.requires_grad_(False)
    averages = shard_model(frozen, dtype, device) if shard else compute_in(frozen, dtype)  # in fp32 where the reference moves: an average of bf16 numbers would stand still
    frozen.requires_grad_(False)

if advantage == 'gae':  # after the reference, which needs none
    model.value_head = torch.nn.Linear(model.config.n_embd, 1, device=device)
    torch.nn.init.zeros_(model.value_head.weight)
    torch.nn.init.zeros_(model.value_head.bias)


def older_checkpoints():
    """The newest first."""
    return sorted((os.path.join(out_dir, name) for name in os.listdir(out_dir) if name[5:11].isdigit() and name.endswith('.pt')), reverse=True)


def newest_checkpoint():
    """ckpt.pt, or when that is damaged the newest older one that is not."""
    failures = []
    for path in [checkpoint_path, *older_checkpoints()]:
        try:
            checkpoint = load_checkpoint(path, 'adapters' if lora_r else 'run')
        except ValueError as e:
            failures.append(e)
            continue
        for failure in failures:
            tell(f"warning: {failure}")
        if failures:
            tell(f"warning: going on from {path} instead, iteration {checkpoint['iter']}")
        return checkpoint
    raise failures[0]


start_iter, best, saved_at, bad_steps, resumed = 0, -math.inf, None, 0, None
plain_config = json.loads(json.dumps(config, default=lambda function: function.__name__))  # functions by their names
if init_from == 'resume':
    resumed = newest_checkpoint()
    if not math.isclose(resumed['start_weights'], start_weights, rel_tol=1e-9, abs_tol=1e-6):  # a sum's last digits depend on the number of threads
        raise ValueError(f"the model at {job.generator_path} is not the one this run started from: restore it, for the reference and a LoRA run's frozen weights come from there")
    for key, old in resumed['config'].items():
        if key != 'init_from' and json.dumps(old) != json.dumps(plain_config.get(key)):
            say(f"resuming with {key} = {plain_config.get(key)!r} (it was {old!r})")
    if (resumed['config'].get('advantage') == 'gae') != (advantage == 'gae'):
        raise ValueError(f"this run began with advantage {resumed['config'].get('advantage')!r} and advantage is {advantage!r} now: a value head cannot come or go on the way")
    job.restore(resumed)
    if lora_r:
        beside = {name: resumed['model'].pop(name) for name in list(resumed['model']) if name.startswith(('value_head.', 'injection.'))}
        model.load_state_dict(beside, strict=False)
        load_lora_state(model, resumed['model'])
    else:
        model.load_state_dict(resumed['model'])
masters = shard_model(model, dtype, device, gather_to_sample) if shard else compute_in(model, dtype)
if compile:
    model.compile_blocks()
learning = [name for name, p in model.named_parameters() if p.requires_grad]
followed = [name for name in learning if name in averages]  # a reference has no value head
policy = job.policy(model)
if with_reference:
    reference = policy.with_model(frozen) if averages else policy.without_adapters()
    if averages and reference_offload:
        frozen.to('cpu')
adamw = configure_optimizers(masters.values(), weight_decay, learning_rate, (beta1, beta2))
adamw.register_step_post_hook(lambda *_: copy_masters(masters, model))
scaler = torch.amp.GradScaler(device_type, enabled=precision == 'fp16')
if resumed:
    start_iter, best, saved_at, bad_steps = resumed['iter'], resumed['best'], resumed['iter'], resumed['bad_steps']
    if mirror_checkpoint:
        mirror.load_state_dict(resumed['mirror'])
    if start_iter > max_iters:
        raise ValueError(f"max_iters is {max_iters} and this run has {start_iter} iterations behind it already: raise max_iters to go on")
    options_now = [{key: group[key] for key in ('weight_decay', 'betas')} for group in adamw.param_groups]
    adamw.load_state_dict(optimizer_parts(resumed['optimizer'], [p for group in adamw.param_groups for p in group['params']]))
    for group, now in zip(adamw.param_groups, options_now):  # today's settings count, not those that were saved
        group.update(now)
    if resumed['scaler'] and scaler.is_enabled():
        scaler.load_state_dict(resumed['scaler'])
    if averages and reference_mode != 'static':
        for name, value in resumed['reference'].items():
            averages[name].data.copy_(part_of(value, averages[name]))
        copy_masters(averages, frozen)

if master:
    if resumed:  # forget what was logged after the checkpoint: it is about to be logged again
        for path in (metrics_path, samples_path, rewards_path):
            with open(path, 'a+', encoding='utf-8') as f:
                f.seek(0)
                lines = [line for line in f if line.endswith('\n') and json.loads(line)['iter'] < start_iter]
            with open(path + '.tmp', 'w', encoding='utf-8') as f:
                f.writelines(lines)
            os.replace(path + '.tmp', path)
    elif os.path.exists(metrics_path):  # never overwrite an earlier run
        number = next(n for n in range(1, 10 ** 6) if not os.path.exists(f'{out_dir}.{n}'))
        os.rename(out_dir, f'{out_dir}.{number}')
        tell(f"{out_dir} held an earlier run: moved to {out_dir}.{number}")
    os.makedirs(out_dir, exist_ok=True)
    config_path = os.path.join(out_dir, 'config.json')
    with open(config_path + '.tmp', 'w', encoding='utf-8') as f:
        json.dump(plain_config, f, indent=1)
    os.replace(config_path + '.tmp', config_path)  # a resumed run reads it: whole or not at all
    if 'chars' not in job.saved():
        job.tokenizer.save(os.path.join(out_dir, 'tokenizer'))
    metrics_file, samples_file, rewards_file = (open(path, 'a', encoding='utf-8') for path in (metrics_path, samples_path, rewards_path))
trackers = [tracker(out_dir, plain_config, start_iter) for tracker in trackers if master]


def log(file, records):
    """Records at the end of a log of the run."""
    try:
        file.writelines(json.dumps(record) + '\n' for record in records)
        file.flush()
    except OSError as e:
        raise OSError(f"{file.name} could not be written ({e.strerror}): make room, and go on from the last checkpoint with --init_from=resume") from None


def number_or_none(x):
    """JSON has no NaN, which a reward is where it does not apply, and no infinity."""
    return x if math.isfinite(x) else None


@torch.no_grad()
def token_columns(group):
    """For each answer to a prompt: the texts of its first 256 tokens, the sampler's log-probs of them, how far this iteration has moved those, and for fill_in the slots that they fill."""
    with torch.compiler.set_stance('force_eager') if compile else contextlib.nullcontext():  # a single prompt would be compiled for apart
        changes = group.logps * math.nan if shard else completion_logps(policy, group)[0] - group.logps  # (1, G, R); a forward of a sharded model would take all ranks
    slots, columns = group.batch['slots'][0].tolist() if task == 'fill_in' else None, []
    for ids, n, *values in zip(group.tokens[0].tolist(), group.lengths[0].clamp(max=256).tolist(), group.logps[0].tolist(), changes[0].tolist()):
        logps, moved = ([number_or_none(round(x, 4)) for x in row[:n]] for row in values)
        columns.append({'tokens': [policy.tokenizer.token_text(i) for i in ids[:n]], 'logps': logps, 'logp_changes': moved} | ({'slots': slots[:n]} if slots else {}))
    return columns


def report():
    """report.html in out_dir, for whoever looks; whatever goes wrong with it is none of the run's business."""
    try:
        write_report([out_dir])
    except Exception as e:
        tell(f"warning: there is no new report.html: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no reason given'}")


def learning_rate_at(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    progress = (it - warmup_iters) / max(1, max_iters - warmup_iters)
    share = {'cosine': 0.5 * (1 + math.cos(math.pi * progress)), 'linear': 1 - progress, 'constant': 1.0}[lr_schedule]
    return min_lr + share * (learning_rate - min_lr) if lr_schedule != 'constant' else learning_rate


def weights_to_keep():
    """The fp32 masters, under the model's names; with LoRA the adapters alone. Shards, where the model is sharded."""
    drop_collected(model)
    of = {p: masters[name].detach() for name, p in model.named_parameters()}
    return {name: of[p] for name, p in model.state_dict(keep_vars=True).items() if p in of and (p.requires_grad or not lora_r)}


def run_kind():
    return {'kind': 'adapters' if lora_r else 'run', 'model_config': vars(model.config), 'config': plain_config}


def save_best(it):
    kept = whole({'model': weights_to_keep(), **job.saved()})
    if master:
        save_checkpoint(os.path.join(out_dir, 'ckpt_best.pt'), run_kind() | {'iter': it, 'best': best, **kept})


def save(it, beside=None):
    """Everything needed to go on with iteration `it` as if nothing had happened; all ranks call it. beside: what the job had to say when `it` began, if it has begun."""
    global saved_at
    kept = whole({'model': weights_to_keep(), 'optimizer': adamw.state_dict(), 'reference': {name: averages[name].detach() for name in followed} if averages and reference_mode != 'static' else {},
                  **(beside or job.saved())})
    if not master:
        return
    for file in (metrics_file, samples_file, rewards_file):  # the log reaches the disk before the checkpoint that builds on it
        file.flush()
        os.fsync(file.fileno())
    older = os.path.join(out_dir, f'ckpt_{saved_at or 0:06d}.pt')
    if keep_checkpoints and saved_at not in (None, it) and not os.path.exists(older):
        os.link(checkpoint_path, older)
    save_checkpoint(checkpoint_path, run_kind() | {'iter': it, 'best': best, 'bad_steps': bad_steps, 'start_weights': start_weights, 'mirror': mirror.state_dict(), 'scaler': scaler.state_dict(), **kept})
    saved_at = it
    for path in older_checkpoints()[keep_checkpoints:]:
        os.remove(path)


def save_and_say_so(it, beside=None, when=''):
    """When the run was told to stop, or the scorer is gone; all ranks call it, and who leaves first would take the others along."""
    save(it, beside)
    tell(f"stopped in iteration {it}; saved {checkpoint_path}. To go on{when}:\n  {console.this_run('--init_from=resume')}")
    ranks.wait_for_rank_0()


def export():
    """The trained model as `transformers` loads it, in export/; a LoRA run's adapters as `peft` loads them too, in adapter/. An NLA's actor and critic in nla.pt, a start for others."""
    final = collect_model(model, torch.float32) if shard else copy.deepcopy(model).float()
    beside = whole({name: value for name, value in job.saved().items() if name != 'critic_optimizer'})
    if not master:
        return
    if not shard:
        final.load_state_dict(weights_to_keep(), strict=False)
    if advantage == 'gae':
        del final.value_head
    if lora_r and task in ('completion', 'alignment'):
        save_adapter(final, os.path.join(out_dir, 'adapter'), job.generator_path)
    if lora_r:
        merge_lora(final)
    if task == 'nla':
        path = os.path.join(out_dir, 'nla.pt')
        quality = {key.removeprefix('eval/'): value for key, value in metrics.items() if key in ('eval/fve', 'eval/fve_greedy')}
        save_checkpoint(path, {'kind': 'nla', 'model': final.state_dict(), 'model_config': vars(model.config), 'quality': quality} | beside)
        say(f"actor and critic saved in {path}")
        return
    final.save_pretrained(os.path.join(out_dir, 'export'), eos_id=job.tokenizer.eos_id)
    job.tokenizer.save(os.path.join(out_dir, 'export'))
    say(f"exported to {os.path.join(out_dir, 'export')}")


ranks.listen()

# ---------------------------------------------------------------------------------------------------------------------
# the loop

total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or everything) / 1e6 for everything in (True, False))
say(f"{total:.2f}M parameters" + (f", {trained:.2f}M of them trained," if trained < total else '') + f" in {precision} on {device}, {batch_size} prompts x {group_size} answers an iteration, {world_size} process{'es' if world_size > 1 else ''}")
my_rows = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
options = {key: config[key] for key in ('group_size', 'advantage', 'kl_estimator', 'micro_batch_size', 'rollout_batch_size', 'dynamic_sampling', 'overlong_penalty', 'loss_type', 'clip_low', 'clip_high',
                                        'dual_clip', 'kl_beta', 'kl_in_reward', 'reward_combination', 'entropy_coef', 'grad_clip', 'mask_truncated', 'gamma', 'gae_lambda', 'value_coef', 'value_clip', 'divergence', 'mirror_coefficient', 'mirror_weighting')}
progress = console.Progress('training', max_iters, start_iter, bar_after=0)
for it in progress.over(range(start_iter, max_iters + 1)):
    metrics, evaluating, scorer_lost = {'iter': it}, it % eval_interval == 0 or it == max_iters, None
    if evaluating:
        began = time.perf_counter()
        all_evaluate = shard and (task == 'nla' or not gather_to_sample)  # what is sharded, as a critic is, takes all ranks; else the others wait for rank 0 below
        with gathered(policy) as whole_policy:
            if master or all_evaluate:
                try:
                    with ranks.breakable(not all_evaluate):
                        metrics |= job.evaluate(whole_policy)
                except ConnectionError as e:
                    scorer_lost = e
                except ranks.Stopped:  # as the flags say that the ranks exchange now
                    pass
        metrics['time_eval'] = time.perf_counter() - began
    is_best = master and metrics.get(job.headline, -math.inf) > best
    best = max(best, metrics.get(job.headline, -math.inf))

    # All ranks go the same way: one that got a signal, or has lost the scorer, tells the others.
    if evaluating:
        ranks.wait_for_rank_0()
    stopping, someone_lost, is_best = (flag > 0 for flag in all_reduce(torch.tensor([bool(ranks.stop_signals), scorer_lost is not None, is_best], dtype=torch.float, device=device), 'max').tolist())
    if someone_lost:
        save_and_say_so(it, when=' when the scorer is back')
        raise scorer_lost or ConnectionError("the scorer failed rank 0, whose message says how")
    if evaluating and master and not stopping:
        say(f"iter {it}: {job.describe(metrics)}")
    if is_best:  # before save(), which remembers its value
        save_best(it)
    if stopping:
        save_and_say_so(it)
        break
    if it == max_iters or (it % save_interval == 0 and it > start_iter):
        began = time.perf_counter()
        save(it)
        metrics['time_save'] = time.perf_counter() - began

    if it < max_iters:
        lr = learning_rate_at(it)
        for group in adamw.param_groups:
            group['lr'] = lr
        beside = job.saved()
        try:
            if optimizer == 'es':
                stats, rollout = es_training_step(policy, job.batch(it), [masters[name] for name in learning], job.rewards, group_size, seed=seed * 10 ** 6 + it, pairs=es_pairs,
                                                  sigma=es_sigma, learning_rate=lr, rank=rank, world_size=world_size, changed=lambda: copy_masters(masters, model))
            else:
                prompts = lambda attempt: {key: value[my_rows] for key, value in job.batch(it, attempt).items()}
                stats, rollout = grpo_training_step(policy, prompts(0), adamw, job.rewards, reference, num_epochs=num_epochs_per_rollout, others=prompts,
                                                    max_new_tokens=job.max_answer_tokens, scaler=scaler, learn=not job.actor_rests(it), mirror=mirror, **options)
        except ConnectionError:
            save_and_say_so(it, beside, ' when the scorer is back')  # rewards come before anything is learned from them, so that nothing has changed yet
            raise
        except ranks.Stopped:  # nor has it here
            save_and_say_so(it, beside)
            stopping = True
            break
        stats |= job.learn_beside(rollout)
        bad_steps = bad_steps + 1 if stats.get('bad_steps', 0) + stats.get('critic_bad_steps', 0) else 0
        if averages:
            update_reference(reference_mode, it + 1, *([local_part(of[name]) for name in followed] for of in (averages, masters)), ema_alpha, reference_update_freq)
            copy_masters(averages, frozen)
        metrics |= stats | {'lr': lr}
        progress.note(f"reward {metrics['mean_reward']:.3f}")
        if it % hist_interval == 0:
            parts = {name: gather_rewards(part) if optimizer == 'adamw' else part for name, part in rollout.reward_parts.items()}  # es: every rank has the same
            if master:
                log(rewards_file, [{'iter': it, **{name: [number_or_none(round(x, 4)) for x in part.flatten().tolist()] for name, part in parts.items()}}])
            for tracker in trackers:
                tracker.histograms(parts, it)
    if master and (it % log_interval == 0 or evaluating):
        if it < max_iters:
            learned = f"the best of {2 * es_pairs} {metrics['best_fitness']:.4f}" if optimizer == 'es' else 'the policy rests'
            if 'loss' in metrics:
                kl_shown = f"kl {metrics['mean_kl']:.4f}" if reference else "no reference"
                learned = (f"loss {metrics['loss']:+.4f}, {kl_shown}, entropy {metrics['entropy']:.3f}, clipped {metrics['clip_frac_low'] + metrics['clip_frac_high']:.3f}, "
                           f"grad norm {metrics['grad_norm']:.3f}, lr {lr:.1e}")
            say(f"iter {it}: reward {metrics['mean_reward']:.4f} +- {metrics['std_reward']:.3f}, {learned}, length {metrics['mean_length']:.1f}, "
                f"{metrics['tokens_per_s']:,.0f} tokens/s" + ''.join(f", {name} {metrics[key]:.4f}" for key, name in (('critic_loss', 'critic loss'), ('reward/cost', 'cost'), ('lambda', 'lambda')) if key in metrics) + progress.left(it + 1))
            asked, first = job.asked(rollout), rollout.rows(0, 1)
            parts = [{f'reward/{name}': number_or_none(value) for name, value in zip(first.reward_parts, values)} for values in zip(*(part[0].tolist() for part in first.reward_parts.values()))]
            samples = [{'iter': it, **asked, 'completion': text, **part, 'advantage': advantage_}
                       for text, part, advantage_ in zip(policy.texts(first)[0], parts, (first.advantages if advantage != 'gae' else first.advantages.sum(-1))[0].tolist())]
            log(samples_file, [sample | columns for sample, columns in zip(samples, token_columns(first))])
            for tracker in trackers if evaluating else ():
                tracker.samples(samples, it)
        log(metrics_file, [{name: number_or_none(value) for name, value in metrics.items()}])
        for tracker in trackers:
            tracker.log(metrics, it)
        if evaluating:
            report()
    if bad_steps >= max_bad_steps:
        raise FloatingPointError(f"NaN or infinity in the loss or its gradient in {bad_steps} iterations in a row; their steps were skipped. Lower learning_rate or raise kl_beta, and go on from the last checkpoint with --init_from=resume")

if master and stopping:
    report()
if master and task == 'nla' and not stopping:
    say(job.table(metrics))
if task != 'fill_in' and not stopping:
    export()
for tracker in trackers:
    tracker.finish()
if master and not stopping:
    console.closing(out_dir, job.closing, progress, job.try_out())
if dist.is_initialized():
    ranks.leave()
if stopping:
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit would wait for a reward that is still at work beside
