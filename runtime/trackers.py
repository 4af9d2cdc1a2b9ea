"""
Where a run's metrics go besides metrics.jsonl: Weights & Biases, and TensorBoard. Both show a section for each word before a slash, so names are grouped there: train/loss, eval/reward, reward/mean_reward,
time/rollout. A tracker has log(metrics, it), histograms(parts, it) of an iteration's rewards {name: (P, G)}, samples(rows, it), dicts with the same keys, and finish(). A run without one has an empty list.
"""
import importlib
import importlib.util
import json
import os
import secrets

import torch


def grouped(name):
    """What a metric is called in a tracker."""
    if '/' in name:
        return name.replace('reward_missing/', 'reward/missing_')
    if name.startswith('time_'):
        return name.replace('_', '/', 1)
    return f"{'time' if name == 'tokens_per_s' else 'reward' if 'reward' in name else 'train'}/{name}"


def reward_and_cost(parts):
    """(N, 2) for up to 2,000 answers, or None where there is no cost."""
    return torch.stack((parts['helpfulness'].flatten(), parts['cost'].flatten()), dim=1)[:2000].cpu() if {'helpfulness', 'cost'} <= parts.keys() else None


class Wandb:
    """Sends a run's metrics, tables, histograms and scatter to wandb; a resumed run goes on under its id."""

    def __init__(self, out_dir, config, start_iter):
        import wandb
        id_path = os.path.join(out_dir, 'wandb_id')
        if not (start_iter and os.path.exists(id_path)):
            with open(id_path, 'w', encoding='utf-8') as f:
                f.write(secrets.token_hex(4))
        with open(id_path, encoding='utf-8') as f:  # a resumed run goes on there, too; what it repeats wandb knows and leaves out
            self.run = wandb.init(project=config['wandb_project'], name=config['wandb_run_name'], mode=config['wandb_mode'], id=f.read(), resume='allow', config=config, dir=out_dir,
                                  settings=wandb.Settings(silent=True) if config['quiet'] else None)
        self.wandb = wandb

    def log(self, metrics, it):
        self.run.log({grouped(name): value for name, value in metrics.items() if name != 'iter'}, step=it)

    def histograms(self, parts, it):
        pictures = {f'reward/{name}_histogram': self.wandb.Histogram(part[~part.isnan()].tolist()) for name, part in parts.items()}
        points = reward_and_cost(parts)
        if points is not None:
            pictures['scatter/reward_vs_cost'] = self.wandb.plot.scatter(self.wandb.Table(['reward', 'cost'], points.tolist()), 'reward', 'cost', title='reward vs cost')
        self.run.log(pictures, step=it)

    def samples(self, rows, it):
        self.run.log({'samples': self.wandb.Table(list(rows[0]), [list(row.values()) for row in rows])}, step=it)

    def finish(self):
        self.run.finish()


class TensorBoard:
    """In out_dir/tensorboard. The scatter of reward and cost is drawn with matplotlib, where that is installed."""

    def __init__(self, out_dir, config, start_iter):
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(os.path.join(out_dir, 'tensorboard'), purge_step=start_iter)  # a resumed run repeats what came after its checkpoint
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
        for name, part in parts.items():
            if not part.isnan().all():
                self.writer.add_histogram(f'reward/{name}_histogram', part[~part.isnan()], it)
        points = reward_and_cost(parts)
        if points is not None and importlib.util.find_spec('matplotlib'):
            from matplotlib.figure import Figure
            figure = Figure()
            axes = figure.add_subplot(xlabel='reward', ylabel='cost')
            axes.plot(*points.T.numpy(), '.')
            self.writer.add_figure('scatter/reward_vs_cost', figure, it)

    def samples(self, rows, it):
        self.text('samples', '\n\n'.join('\n'.join(f'{name}: {value!r}' for name, value in row.items() if name != 'iter') for row in rows), it)

    def finish(self):
        self.writer.close()


def asked_for(config):
    """The trackers that a run's settings want. Raises ImportError naming the package that is missing."""
    found = []
    for key, tracker, module, remedy in (('wandb_log', Wandb, 'wandb', 'pip install wandb'), ('tensorboard', TensorBoard, 'torch.utils.tensorboard', 'pip install tensorboard')):
        if config[key]:
            try:
                importlib.import_module(module)
            except ImportError:
                raise ImportError(f"{key} needs a package that is not installed here: {remedy}") from None
            found.append(tracker)
    return found
