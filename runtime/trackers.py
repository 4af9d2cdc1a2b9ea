"""
Where a run's metrics go besides metrics.jsonl: Weights & Biases, and TensorBoard. Both show a section for
each word before a slash, so names are grouped there: train/loss, eval/reward, reward/mean_reward,
time/rollout. parts: an iteration's rewards {name: (P, G)}; rows: dicts with the same keys.
"""
import json
import os
import secrets

import torch

from formats.optional import optional
from report import lines_of, objects


def grouped(name):
    """What a metric is called in a tracker."""
    if '/' in name:
        return name.replace('reward_missing/', 'reward/missing_')
    if name.startswith('time_'):
        return name.replace('_', '/', 1)
    if name == 'tokens_per_s':
        return f'time/{name}'
    return f'reward/{name}' if 'reward' in name else f'train/{name}'


def known(parts):
    """{name of a histogram: the values of a reward where it applies}."""
    return {f'reward/{name}_histogram': part[~part.isnan()] for name, part in parts.items()}


class Wandb:
    """Sends a run's metrics, tables, histograms and scatter to wandb; a resumed run goes on under its id."""

    def __init__(self, out_dir, config, start_iter):
        import wandb
        self.wandb, id_path = wandb, os.path.join(out_dir, 'wandb_id')
        known_there = start_iter and os.path.exists(id_path)
        if not known_there:
            with open(id_path, 'w', encoding='utf-8') as f:
                f.write(secrets.token_hex(4))
        with open(id_path, encoding='utf-8') as f:  # wandb leaves out what a resumed run repeats
            self.run = wandb.init(
                project=config['wandb_project'], name=config['wandb_run_name'], id=f.read(), resume='allow',
                mode=config['wandb_mode'], config=config, dir=out_dir,
                settings=wandb.Settings(silent=True) if config['quiet'] else None)
        earlier = () if known_there else objects(lines_of(out_dir, 'metrics.jsonl'))
        for row in earlier:  # a run that goes on has it only now
            self.log({name: value for name, value in row.items() if value is not None}, row['iter'])

    def log(self, metrics, it):
        self.run.log({grouped(name): value for name, value in metrics.items() if name != 'iter'}, step=it)

    def histograms(self, parts, it):
        pictures = {name: self.wandb.Histogram(values.tolist()) for name, values in known(parts).items()}
        if {'helpfulness', 'cost'} <= parts.keys():
            points = torch.stack((parts['helpfulness'].flatten(), parts['cost'].flatten()), dim=1)[:2000]
            table = self.wandb.Table(['reward', 'cost'], points.tolist())
            scatter = self.wandb.plot.scatter(table, 'reward', 'cost', title='reward vs cost')
            pictures['scatter/reward_vs_cost'] = scatter
        self.run.log(pictures, step=it)

    def samples(self, rows, it):
        table = self.wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
        self.run.log({'samples': table}, step=it)

    def close(self):
        self.run.finish()


class TensorBoard:
    """In out_dir/tensorboard."""

    def __init__(self, out_dir, config, start_iter):
        from torch.utils.tensorboard import SummaryWriter
        # a resumed run repeats what came after its checkpoint
        self.writer = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=start_iter)
        self.text('config', json.dumps(config, indent=1, ensure_ascii=False), start_iter)

    def text(self, name, text, it):
        """Verbatim: indented as Markdown has code."""
        self.writer.add_text(name, ''.join(f'    {line}\n' for line in text.splitlines()), it)

    def log(self, metrics, it):
        for name, value in metrics.items():
            if name != 'iter':
                self.writer.add_scalar(grouped(name), value, it)
        self.writer.flush()  # what a kill loses a resumed run would not repeat

    def histograms(self, parts, it):
        for name, values in known(parts).items():
            if len(values):
                self.writer.add_histogram(name, values, it)

    def samples(self, rows, it):
        lines = []
        for row in rows:
            lines += [f'{name}: {value!r}' for name, value in row.items() if name != 'iter'] + ['']
        self.text('samples', '\n'.join(lines[:-1]), it)

    def close(self):
        self.writer.close()


def asked_for(config):
    """The trackers that a run's settings want. Raises ImportError naming the package that is missing."""
    trackers = []
    for key, tracker, module in (('wandb_log', Wandb, 'wandb'),
                                 ('tensorboard', TensorBoard, 'torch.utils.tensorboard')):
        if config[key]:
            optional(module, f"{key} needs a package: pip install {module.rpartition('.')[2]}")
            trackers.append(tracker)
    return trackers
