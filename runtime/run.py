"""
What a run is made of besides its step: State (model, fp32 masters, AdamW, reference, checkpoints) and Log
(all that is written into out_dir or said). They know no task: they ask the job.
"""
import copy
import json
import math
import os
import re
import shutil
import sys
import time

import torch

from formats.text_files import first_line, near_path, read_json, write_text
from mirror import MirrorMap
from report import objects, verdict_in, write_report
from runtime import console, ranks
from runtime.checkpoint import check_fit, load_checkpoint, save_checkpoint
from runtime.console import say, tell
from runtime.lora import ADAPTER_SETTINGS, adapt, check_start, targets_of, weight_sum
from runtime.made import hold
from runtime.masters import compute_in, configure_optimizers, copy_masters, precision_of, update_reference
from runtime.shard import (
    drop_collected,
    gathered,
    local_part,
    optimizer_parts,
    part_of,
    shard_model,
    whole,
)
from runtime.trackers import asked_for

RESUME = '--init_from=resume'
LOGS = ('metrics', 'samples', 'rewards', 'held_out')


def in_out_dir(cfg, name):
    return os.path.join(cfg.out_dir, name)


def check(cfg):
    """Raises ValueError or FileNotFoundError, before time is spent, for a run that contradicts itself."""
    for contradiction, message in (
        (cfg.load_in_8bit and not cfg.lora_r, "load_in_8bit freezes the weights: set lora_r as well"),
        ((cfg.lora_alpha or cfg.lora_targets or cfg.lora_dropout) and not cfg.lora_r,
         "lora_alpha, lora_targets and lora_dropout mean nothing without lora_r: set it above 0"),
        (cfg.lr_schedule != 'constant' and (cfg.min_lr or 0) > cfg.learning_rate,
         f"min_lr, {cfg.min_lr}, is above learning_rate, {cfg.learning_rate}: the rate would rise"),
        (cfg.reference_offload and cfg.reference_mode in ('ema', 'periodic'),
         "reference_offload keeps the reference away, and reference_mode ema or periodic moves it"),
        (cfg.shard and (cfg.optimizer != 'adamw' or cfg.load_in_8bit or cfg.reference_offload or cfg.compile),
         "shard goes with optimizer adamw, without load_in_8bit, reference_offload and compile"),
        (cfg.shard and cfg.precision == 'fp16', "shard goes with precision fp32 or bf16, not fp16"),
        (cfg.shard and 'RANK' not in os.environ,
         "shard spreads the model over processes, which torchrun starts"),
    ):
        if contradiction:
            raise ValueError(message)
    cfg.lora_alpha, cfg.lora_targets = cfg.lora_alpha or 16.0, targets_of(cfg.lora_targets)
    asked_for(vars(cfg))  # is the package there?
    if cfg.kl_beta > 0 and cfg.kl_estimator == 'k1' and not cfg.kl_in_reward:
        tell("warning: k1 in the loss has zero gradient on average, it only adds noise; take k2 or exact")
    if cfg.init_from == 'resume':
        check_resume(cfg)
    cfg.out_dir = own_out_dir(cfg.out_dir, cfg.init_from == 'resume')


def own_out_dir(out_dir, resume):
    """
    out_dir without a link at its end: a folder that can be written, moved aside by a later run, and that is
    this run's alone until its process ends. Raises ValueError, OSError.
    """
    path = os.path.realpath(out_dir) if os.path.islink(out_dir.rstrip('/')) else os.path.normpath(out_dir)
    folder = os.path.abspath(path)
    if f'{os.getcwd()}/'.startswith(f"{folder.rstrip('/')}/"):
        raise ValueError(f"out_dir is {out_dir!r}, the current folder or one above it, and a used out_dir is "
                         "moved aside: name a folder of its own")
    used = os.path.exists(os.path.join(path, 'metrics.jsonl')) and not resume
    if used and os.path.ismount(path):
        raise ValueError(f"out_dir is {out_dir!r}, a mount point that holds a run and cannot be moved aside: "
                         "name a folder on it")
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"out_dir is {out_dir!r}, and nothing can be written at {folder}")
    if console.is_master():
        hold(path)
    return path


def check_resume(cfg):
    """That there is a run to resume, of this task and with the same weights to learn."""
    checkpoint, config = in_out_dir(cfg, 'ckpt.pt'), in_out_dir(cfg, 'config.json')
    if not os.path.exists(checkpoint):
        meant = near_path(checkpoint) or f": name the run's out_dir, or leave out {RESUME}"
        raise FileNotFoundError(f"there is no {checkpoint} to resume{meant}")
    if not os.path.exists(config):
        return
    before, now, fixed = read_json(config), plain_config(cfg), ['task', 'n_layer', 'n_head', 'n_embd']
    if before['lora_r'] or cfg.lora_r:
        fixed += ADAPTER_SETTINGS
    if 'gae' in (before['advantage'], cfg.advantage):  # a value head cannot come or go
        fixed.append('advantage')
    for key in fixed:
        old, new = before.get(key), now.get(key)
        if old != new:
            raise ValueError(f"the run in {cfg.out_dir} has {key} {old!r} and it is {new!r} now: leave it as "
                             "it was, or name another out_dir")


def usable_device(device):
    """The torch device that a setting names. Raises ValueError for one that torch cannot use here."""
    if device == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:  # no such device, or a torch that was built without
        why = first_line(e)
        raise ValueError(f"device is {device!r}, which torch cannot use here ({why}): take 'auto'") from None
    return device


def processes(cfg):
    """(rank, world_size, device) of this process, among those that torchrun has started."""
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    device = cfg.device
    if device == 'cuda' or (device == 'auto' and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = usable_device(device)
    on_gpu = device.startswith('cuda')
    if world_size > 1 or cfg.shard:
        ranks.join('nccl' if on_gpu else 'gloo', cfg.rank_timeout)
    if on_gpu:
        torch.cuda.set_device(device)
        # of fp32 judges, say
        torch.set_float32_matmul_precision('highest' if cfg.precision == 'fp32' else 'high')
    elif cfg.compile and not shutil.which(os.environ.get('CXX', 'g++')):
        raise ValueError("compile on a CPU needs a C++ compiler: install g++, or name yours in CXX")
    shared_out = {'batch_size': cfg.batch_size, 'minibatch_size': cfg.minibatch_size or 0}
    if cfg.optimizer == 'es':
        shared_out['es_pairs'] = cfg.es_pairs
    for key, count in shared_out.items():
        if count % world_size:
            raise ValueError(f"{key} is {count}; it must be a multiple of {world_size} processes")
    return rank, world_size, device


def name_of(function):
    """A function's name, or that of an object's class."""
    function = getattr(function, 'func', function)  # of functools.partial
    return getattr(function, '__name__', type(function).__name__)


def plain_config(cfg):
    """The settings as JSON has them; functions by their names."""
    return json.loads(json.dumps(vars(cfg), default=name_of))


# -----------------------------------------------------------------------------
# the weights

class State:
    """The weights of a run, what moves them, and the checkpoints that keep them."""

    def __init__(self, cfg, job, device):
        self.cfg, self.best, self.saved_at, self.bad_steps = cfg, -math.inf, None, 0
        self.path, self.start = in_out_dir(cfg, 'ckpt.pt'), job.generator_path
        inside = os.path.abspath(self.start).startswith(os.path.abspath(cfg.out_dir) + os.sep)
        if inside and cfg.init_from != 'resume' and os.path.exists(in_out_dir(cfg, 'metrics.jsonl')):
            raise ValueError(f"the start {self.start} lies in {cfg.out_dir}, which a new run moves aside: "
                             "name another out_dir")
        self.model = model = job.load_model().eval()
        self.learns_from = job.learns_from()
        self.start_weights = weight_sum(model)
        if cfg.lora_r:
            torch.manual_seed(cfg.seed)
            adapt(model, vars(cfg))
            job.after_lora(model)
        model.gradient_checkpointing = cfg.gradient_checkpointing
        self.device, self.dtype = device, precision_of(cfg.precision, device, model.config.n_embd)
        self.copy_reference()
        if cfg.advantage == 'gae':  # after the reference, which needs none
            model.value_head = torch.nn.Linear(model.config.n_embd, 1, device=device)
            torch.nn.init.zeros_(model.value_head.weight)
            torch.nn.init.zeros_(model.value_head.bias)
        self.masters = self.spread(model, cfg.gather_to_sample)
        if cfg.compile:
            model.compile_blocks()
        learning = [name for name, p in model.named_parameters() if p.requires_grad]
        self.learning = [self.masters[name] for name in learning]
        self.followed = [name for name in learning if name in self.averages]  # a reference has no value head
        betas, masters = (cfg.beta1, cfg.beta2), self.masters.values()
        self.optimizer = configure_optimizers(masters, cfg.weight_decay, cfg.learning_rate, betas)
        self.optimizer.register_step_post_hook(self.weights_changed)
        fp16 = self.dtype == torch.float16
        self.optimizer.scaler = torch.amp.GradScaler(device.partition(':')[0], enabled=fp16)
        self.mirror = MirrorMap(cfg.mirror_init_scale, cfg.mirror_seed, cfg.mirror_normalize).to(device)
        if cfg.mirror_checkpoint and cfg.init_from != 'resume':  # a resumed run keeps its own
            saved = load_checkpoint(cfg.mirror_checkpoint, 'mirror', 'run', 'adapters')
            self.mirror.load_state_dict(saved['mirror'])

    def spread(self, model, gather_to_sample=True):
        """{name: parameter} of a model, now in dtype: fp32 masters, or the shards of this rank."""
        if self.cfg.shard:
            return shard_model(model, self.dtype, self.device, gather_to_sample)
        return compute_in(model, self.dtype)

    def weights_changed(self, *_):
        """What the model computes with follows its masters."""
        copy_masters(self.masters, self.model)

    def copy_reference(self):
        """A frozen copy of the start, but for LoRA's static reference: the model with its adapters off."""
        cfg, self.frozen, self.averages = self.cfg, None, {}
        self.leashed = (cfg.kl_beta > 0 or cfg.divergence != 'kl') and cfg.reference_mode != 'none'
        static = cfg.reference_mode == 'static'
        if not self.leashed or (cfg.lora_r and static):
            return
        self.frozen = copy.deepcopy(self.model)
        if static:
            self.frozen.requires_grad_(False)
        # one that moves is averaged in fp32: an average of bf16 numbers would stand still
        self.averages = self.spread(self.frozen)
        self.frozen.requires_grad_(False)

    def reference(self, policy):
        """The policy that holds the other back; None where nothing does."""
        if not self.leashed:
            return None
        reference = policy.with_model(self.frozen) if self.averages else policy.without_adapters()
        if self.averages and self.cfg.reference_offload:
            self.frozen.to('cpu')
        reference.mirror = self.mirror
        return reference

    def move_reference(self, it):
        """After iteration `it`; a static one stays."""
        if not self.averages:
            return
        cfg = self.cfg
        ours = [local_part(self.averages[name]) for name in self.followed]
        theirs = [local_part(self.masters[name]) for name in self.followed]
        update_reference(cfg.reference_mode, it + 1, ours, theirs, cfg.ema_alpha, cfg.reference_update_freq)
        copy_masters(self.averages, self.frozen)

    def set_learning_rate(self, lr):
        for group in self.optimizer.param_groups:
            group['lr'] = lr

    def stop_if_broken(self, metrics):
        """Raises FloatingPointError after max_bad_steps iterations in a row whose steps were skipped."""
        bad = metrics.get('bad_steps', 0) + metrics.get('critic_bad_steps', 0)
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if self.bad_steps >= self.cfg.max_bad_steps:
            raise FloatingPointError(f"NaN or infinity in gradients, {self.bad_steps} iterations in a row: "
                                     f"lower learning_rate or raise kl_beta, and go on with {RESUME}")

    # -----------------------------------------------------------------------------
    # checkpoints

    def weights(self):
        """The fp32 masters (or shards), under the model's names; with LoRA the adapters alone."""
        drop_collected(self.model)
        masters = {p: self.masters[name].detach() for name, p in self.model.named_parameters()}
        kept = {}
        for name, p in self.model.state_dict(keep_vars=True).items():
            if p in masters and (p.requires_grad or not self.cfg.lora_r):
                kept[name] = masters[p]
        return kept

    def header(self):
        """What a checkpoint says of itself."""
        kind = 'adapters' if self.cfg.lora_r else 'run'
        return {'kind': kind, 'model_config': vars(self.model.config), 'config': plain_config(self.cfg),
                'start': self.start, 'start_weights': self.start_weights, 'learns_from': self.learns_from}

    def save_best(self, job, it):
        """ckpt_best.pt; all ranks call it."""
        kept = whole({'model': self.weights(), **job.saved()})
        if ranks.is_first():
            numbers = {'iter': it, 'best': self.best}
            save_checkpoint(in_out_dir(self.cfg, 'ckpt_best.pt'), self.header() | numbers | kept)

    def save(self, it, log, job_state):
        """
        All that is needed to go on with iteration `it`; all ranks call it. job_state: what the job
        had to save when `it` began.
        """
        cfg, start = self.cfg, time.perf_counter()
        moving = self.averages and cfg.reference_mode != 'static'
        reference = {name: self.averages[name].detach() for name in self.followed} if moving else {}
        learned = {'model': self.weights(), 'optimizer': self.optimizer.state_dict(), 'reference': reference}
        kept = whole(learned | job_state)
        if not ranks.is_first():
            return time.perf_counter() - start
        log.reach_the_disk()  # before the checkpoint that builds on it
        older = in_out_dir(cfg, f'ckpt_{self.saved_at or 0:06d}.pt')
        if cfg.keep_checkpoints and self.saved_at not in (None, it) and not os.path.exists(older):
            keep_as(self.path, older)
        state = {'iter': it, 'best': self.best, 'bad_steps': self.bad_steps,
                 'mirror': self.mirror.state_dict(), 'scaler': self.optimizer.scaler.state_dict()}
        save_checkpoint(self.path, self.header() | state | kept)
        self.saved_at = it
        for path in older_checkpoints(cfg.out_dir)[cfg.keep_checkpoints:]:
            os.remove(path)
        return time.perf_counter() - start

    def save_and_say_so(self, it, log, job_state, when=''):
        """When the run was told to stop, or the scorer is gone; all ranks call it."""
        self.save(it, log, job_state)
        export = console.tool('export', self.path, in_out_dir(self.cfg, f'export_{it:06d}'))
        tell(f"stopped in iteration {it}; saved {self.path}. To go on{when}:\n  {console.this_run(RESUME)}\n"
             f"To export the model as it is now:\n  {export}")
        ranks.wait_for_rank_0()  # a rank that left first would take the others along

    def resume(self, job):
        """Go on where the run in out_dir stopped. Returns the iteration."""
        cfg = self.cfg
        path, saved = newest_checkpoint(cfg.out_dir, 'run', 'adapters')
        check_start(saved, self.start_weights, self.start)
        say_what_changed(saved['config'], plain_config(cfg))
        check_learns_from(saved.get('learns_from', {}), self.learns_from, cfg.remake)
        if saved['iter'] > cfg.max_iters:
            raise ValueError(f"max_iters is {cfg.max_iters} and the run at {saved['iter']}: raise max_iters")
        job.restore(saved)
        weights = self.weights()
        check_fit(saved['model'], weights, path)
        self.copy_into(weights, saved['model'])
        self.weights_changed()
        if cfg.mirror_checkpoint:
            self.mirror.load_state_dict(saved['mirror'])
        self.resume_optimizer(saved)
        if self.averages and cfg.reference_mode != 'static':
            self.copy_into(self.averages, saved['reference'])
            copy_masters(self.averages, self.frozen)
        self.best, self.saved_at, self.bad_steps = saved['best'], saved['iter'], saved['bad_steps']
        return saved['iter']

    def copy_into(self, targets, values):
        for name, value in values.items():
            targets[name].data.copy_(part_of(value, targets[name]))

    def resume_optimizer(self, saved):
        """Adam's averages as they were saved; weight decay and betas as the settings say today."""
        groups = self.optimizer.param_groups
        today = [{'weight_decay': group['weight_decay'], 'betas': group['betas']} for group in groups]
        params = [p for group in groups for p in group['params']]
        self.optimizer.load_state_dict(optimizer_parts(saved['optimizer'], params))
        for group, settings in zip(self.optimizer.param_groups, today, strict=True):
            group.update(settings)
        if saved['scaler'] and self.optimizer.scaler.is_enabled():
            self.optimizer.scaler.load_state_dict(saved['scaler'])

    def export(self, job):
        """The trained model as others load it, see job.export, which tools/export.py calls too."""
        learned = {'model': self.weights(), **job.saved()}
        saved = self.header() | whole({key: learned[key] for key in learned if key != 'critic_optimizer'})
        if ranks.is_first():
            folders = (in_out_dir(self.cfg, name) for name in (job.exported, 'adapter'))
            job.export(saved, self.path, *folders)


def keep_as(path, other):
    """The file under another name too; a copy where the disk knows no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def older_checkpoints(out_dir):
    """The newest first."""
    found = [re.fullmatch(r'ckpt_(\d+)\.pt', name) for name in os.listdir(out_dir)]
    newest_first = sorted(filter(None, found), key=lambda name: int(name[1]), reverse=True)
    return [os.path.join(out_dir, name[0]) for name in newest_first]


def newest_checkpoint(out_dir, *kinds):
    """(path, checkpoint) of ckpt.pt, or when that is damaged of the newest older one that is not."""
    failures = []
    for path in [os.path.join(out_dir, 'ckpt.pt'), *older_checkpoints(out_dir)]:
        try:
            checkpoint = load_checkpoint(path, *kinds)
        except ValueError as e:
            failures.append(e)
            continue
        for failure in failures:
            tell(f"warning: {failure}")
        if failures:
            tell(f"warning: going on from {path} instead, iteration {checkpoint['iter']}")
        return path, checkpoint
    raise failures[0]


def check_learns_from(before, now, remake):
    """
    before, now: {name: a hash of the contents}. Raises ValueError where a resumed run would learn from others
    than it began with, unless remake is 'never'; other held-out prompts are told.
    """
    for name, content in before.items():
        if now.get(name) == content:
            continue
        if remake != 'never' and not name.startswith('held-out'):
            raise ValueError(f"{name}: changed since this run began, and may now hold what it held out: "
                             "restore them, or go on all the same with --remake=never")
        say(f"resuming with different {name}")


def say_what_changed(before, now):
    """The settings that a resumed run has otherwise than it began."""
    for key, old in before.items():
        if key not in ('init_from', 'remake') and json.dumps(old) != json.dumps(now.get(key)):
            say(f"resuming with {key} = {now.get(key)!r} (it was {old!r})")


# -----------------------------------------------------------------------------
# what is looked at and told

def evaluate(job, policy, cfg):
    """
    (metrics, the error of a scorer that is gone or None). Rank 0 evaluates while the others wait; where what
    it needs is sharded, all do.
    """
    start, metrics, lost = time.perf_counter(), {}, None
    all_evaluate = cfg.shard and (job.sharded_beside or not cfg.gather_to_sample)
    with gathered(policy) as sampler:
        if ranks.is_first() or all_evaluate:
            try:
                with ranks.breakable(not all_evaluate):
                    metrics = job.evaluate(sampler)
            except ConnectionError as e:
                lost = e
            except ranks.Stopped:  # the ranks agree on it after this
                pass
    metrics['time_eval'] = time.perf_counter() - start
    ranks.wait_for_rank_0()
    return metrics, lost


class Log:
    """What rank 0 tells: metrics, samples, rewards, config and report in out_dir, trackers, lines."""

    def __init__(self, cfg, job, start_iter):
        self.cfg, self.job, self.master, self.files = cfg, job, ranks.is_first(), {}
        self.paths = {name: in_out_dir(cfg, f'{name}.jsonl') for name in LOGS}
        if self.master:
            if cfg.init_from == 'resume':
                for path in self.paths.values():
                    forget_after(path, start_iter)
            elif os.path.exists(self.paths['metrics']):
                move_aside(cfg.out_dir)
            self.open_folder()
        self.trackers = []
        for tracker in asked_for(vars(cfg)) if self.master else ():
            self.trackers.append(tracker(cfg.out_dir, plain_config(cfg), start_iter))
        self.progress = console.Progress('training', cfg.max_iters, start_iter, bar_after=0)

    def open_folder(self):
        try:
            os.makedirs(self.cfg.out_dir, exist_ok=True)
            write_text(in_out_dir(self.cfg, 'config.json'), json.dumps(plain_config(self.cfg), indent=1))
            if 'chars' not in self.job.saved():
                self.job.tokenizer.save(in_out_dir(self.cfg, 'tokenizer'))
            self.files = {name: open(path, 'a', encoding='utf-8') for name, path in self.paths.items()}
        except OSError as e:
            raise OSError(f"{self.cfg.out_dir} cannot be written ({e.strerror}): make room, or name another "
                          "out_dir") from None

    def iterations(self):
        """The rest of the run, with a bar where there is a terminal."""
        return self.progress.over(range(self.progress.start, self.cfg.max_iters + 1))

    def opening(self, state, world_size):
        """A line: what learns, where, on how much."""
        cfg, params = self.cfg, list(state.model.parameters())
        total, trained = sum(p.numel() for p in params), sum(p.numel() for p in params if p.requires_grad)
        precision = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}[state.dtype]
        text = f"{total / 1e6:.2f}M parameters"
        if trained < total:
            text += f", {trained / 1e6:.2f}M of them trained,"
        say(f"{text} in {precision} on {state.device}, {cfg.batch_size} prompts x {cfg.group_size} "
            f"completions an iteration, {world_size} process{'es' * (world_size > 1)}")

    def append(self, name, records):
        """Records at the end of a log."""
        file = self.files[name]
        try:
            file.writelines(json.dumps(record) + '\n' for record in records)
            file.flush()
        except OSError as e:
            raise OSError(f"{file.name} could not be written ({e.strerror}): make room, and go on with "
                          f"{RESUME}") from None

    def reach_the_disk(self):
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def rewards(self, it, parts):
        """All rewards of an iteration, {name: (P, G)}, every hist_interval."""
        if self.cfg.optimizer == 'adamw':  # es: every rank has the same
            parts = {name: ranks.gather(part) for name, part in parts.items()}
        if self.master:
            record = {'iter': it}
            for name, part in parts.items():
                record[name] = numbers(part.flatten(), 4)
            self.append('rewards', [record])
        for tracker in self.trackers:
            tracker.histograms(parts, it)

    def note(self, metrics):
        """What stands behind the bar."""
        self.progress.note(f"reward {metrics['mean_reward']:.3f}")

    def write(self, metrics, samples=(), evaluated=False):
        """An iteration's metrics, and samples: dicts, see Task.samples."""
        it = metrics['iter']
        if self.master:
            self.append('samples', [{'iter': it, **sample} for sample in samples])
            self.append('metrics', [{name: number_or_none(value) for name, value in metrics.items()}])
        for tracker in self.trackers:
            if evaluated and samples:
                tracker.samples([{'iter': it, **sample} for sample in samples], it)
            tracker.log(metrics, it)
        if self.master and evaluated:
            each = {name: numbers(values, 4) for name, values in self.job.each.items()}
            n = self.job.independent or max(map(len, each.values()), default=0)
            self.append('held_out', [{'iter': it, 'independent': n, **each}])
            self.report()

    def line(self, m):
        """How an iteration went."""
        text = f"iter {m['iter']}: reward {m['mean_reward']:.4f} +- {m['std_reward']:.3f}, "
        if 'loss' in m:
            kl = f"kl {m['mean_kl']:.4f}" if 'mean_kl' in m else 'no reference'
            clipped = m['clip_frac_low'] + m['clip_frac_high']
            text += (f"loss {m['loss']:+.4f}, {kl}, entropy {m['entropy']:.3f}, clipped {clipped:.3f}, "
                     f"grad norm {m['grad_norm']:.3f}, lr {m['lr']:.1e}")
        elif 'best_fitness' in m:
            text += f"the best of {2 * self.cfg.es_pairs} {m['best_fitness']:.4f}"
        else:
            text += 'the policy is frozen'
        text += f", length {m['mean_length']:.1f}, {m['tokens_per_s']:,.0f} tokens/s"
        for key, name in (('critic_loss', 'critic loss'), ('reward/cost', 'cost'), ('lambda', 'lambda')):
            if key in m:
                text += f", {name} {m[key]:.4f}"
        return text + self.progress.left(m['iter'] + 1)

    def report(self):
        """A new report.html; whatever goes wrong with it does not end the run."""
        try:
            write_report([self.cfg.out_dir], {self.cfg.task: type(self.job)})
        except Exception as e:
            tell(f"warning: report.html could not be written: {type(e).__name__}: {first_line(e)}")

    def close(self, stopping):
        """The end: what to run next, unless the run was stopped."""
        for output in (*self.files.values(), *self.trackers):
            output.close()
        if self.master and stopping:
            self.report()
        elif self.master:
            out_dir, job = self.cfg.out_dir, self.job
            verdict = verdict_in(out_dir, type(job), vars(self.cfg))
            console.closing(out_dir, verdict, self.progress, job.try_out())


def leave(stopping):
    """The last act of a process."""
    if ranks.joined():
        ranks.leave()
    if stopping:
        sys.stdout.flush()
        os._exit(0)  # an ordinary exit would wait for a reward that is still at work in a thread


def number_or_none(x, digits=None):
    """JSON has no NaN, which a reward is where it does not apply, and no infinity."""
    if not math.isfinite(x):
        return None
    return x if digits is None else round(x, digits)


def numbers(tensor, digits=None):
    """A list of the numbers of a tensor (n,), rounded to digits; None for NaN and infinity."""
    return [number_or_none(value, digits) for value in tensor.tolist()]


def forget_after(path, it):
    """Drop what a log says of iteration `it` and later, soon logged again, and what is torn."""
    with open(path, 'ab+') as f:
        f.seek(0)
        lines = f.readlines()
    records = list(objects(lines))
    if len(records) < len(lines):
        tell(f"warning: damaged lines in {path}, {len(lines) - len(records)} of them, are dropped")
    kept = [json.dumps(record) + '\n' for record in records if record['iter'] < it]
    write_text(path, ''.join(kept))


def move_aside(out_dir):
    """An earlier run is never overwritten."""
    number = 1
    while os.path.exists(f'{out_dir}.{number}'):
        number += 1
    os.rename(out_dir, f'{out_dir}.{number}')
    tell(f"{out_dir} held an earlier run: moved to {out_dir}.{number}")
