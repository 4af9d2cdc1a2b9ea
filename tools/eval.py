"""
Models side by side on held-out prompts, without training.
$ python -m tools.eval start out-grpo/ckpt_best.pt out-grpo  # a run's start, its best, its newest checkpoint
$ python -m tools.eval start out-grpo --prompts=test.jsonl   # on other prompts than the run held out
$ python -m tools.eval owner/name model.gguf --prompts=test.jsonl --rewards=number_answer
Each reward, greedy and sampled: the mean with its standard error over prompts, and in brackets the difference
to the first model, with the standard error of that, prompt by prompt. A job whose rewards are no functions of
a text shows what it measures.
"""
import os
import types

import torch

import grpo
from data.prompts import source_name
from formats.text_files import near_path, read_json
from rewards import REWARDS
from rewards.environments import ENVIRONMENTS
from runtime import console, run
from runtime.checkpoint import load_checkpoint
from runtime.config import Count, Positive, configure, keys_of, read_config_file, rooms_of
from runtime.lora import merge_lora
from runtime.masters import compute_in, precision_of
from tasks import TASKS
from tasks.completion import Completion

ALONE = {'shard': False, 'compile': False, 'eval_show': 0, 'init_from': 'resume'}  # a model is what it is
WITHOUT_A_RUN = {'task': 'completion', 'seed': 1, 'batch_size': 1, 'optimizer': 'adamw', 'device': 'auto',
                 'precision': 'auto'}
# functions are in config.json by their names alone
FUNCTIONS = ('rewards', 'column_mapping', 'environment', 'true_reward', 'true_cost')


def settings_of(names):
    """
    The settings of the first run that one of the models belongs to; {} where none does. Raises ValueError for
    runs that share no prompts.
    """
    folders = [folder for name in names for folder in (name, os.path.dirname(name))]
    paths = [os.path.join(folder, 'config.json') for folder in folders]
    runs = [read_json(path) for path in paths if os.path.isfile(path)]
    runs = [settings for settings in runs if settings.get('task') in TASKS]
    kinds = {issubclass(TASKS[settings['task']], Completion) or settings['task'] for settings in runs}
    if len(kinds) > 1:
        tasks = ' and '.join(dict.fromkeys(settings['task'] for settings in runs))
        raise ValueError(f"runs of {tasks} cannot be asked the same: compare those of one task")
    settings = runs[0] if runs else {}
    for key, value in settings.items():
        if isinstance(value, str):
            name = source_name(settings['train_prompts'] or settings['dataset'])
            settings[key] = value.replace('{dataset}', name)
    return settings


def asked(names, cfg):
    """What the models are asked, as settings of a run: those of theirs, else completion's, and then cfg's."""
    settings, of_run = dict(WITHOUT_A_RUN), settings_of(names)
    if not of_run and not (cfg.prompts and cfg.rewards):
        raise ValueError(f"none of {', '.join(names)} lies in a run's out_dir: give --prompts and --rewards")
    for room in (grpo.Settings, *rooms_of(Completion)):
        settings |= vars(room)
    settings |= of_run
    given = read_config_file(cfg.config, settings) if cfg.config else {}
    settings |= {key: given[key] for key in FUNCTIONS if key in given}
    if cfg.prompts:
        settings |= {'train_prompts': cfg.prompts, 'eval_prompts': cfg.prompts, 'eval_prompts_n': 10 ** 9}
    settings |= {key: value for key, value in vars(cfg).items() if key in settings and value is not None}
    lost = [settings[key] for key in FUNCTIONS[1:] if isinstance(settings.get(key), str)]
    lost = [name for name in lost if name not in ENVIRONMENTS]
    for element in settings['rewards'] if isinstance(settings['rewards'], list) else ():
        name = element[0] if isinstance(element, (list, tuple)) else element
        lost += [name] if isinstance(name, str) and name not in REWARDS else []
    if lost:
        raise ValueError(f"{lost[0]!r} is not in the catalogue; if it is a function of the run's config: "
                         "--config=config/NAME.py")
    return settings | ALONE


def path_of(name, settings):
    """Where the model of that name is. Raises FileNotFoundError."""
    if name == 'start':
        name = settings['nla_checkpoint' if settings['task'] == 'nla' else 'generator_checkpoint']
    if os.path.isfile(os.path.join(name, 'ckpt.pt')):
        name = os.path.join(name, 'ckpt.pt')
    if name.endswith('.pt') and not os.path.isfile(name):
        raise FileNotFoundError(f"there is no checkpoint at {name}{near_path(name)}")
    return name


def job_with(path, settings, device):
    """(the job, its policy with the model at path). Raises FileNotFoundError for what the job would train."""
    task, cfg = TASKS[settings['task']], types.SimpleNamespace(**settings)
    saved = load_checkpoint(path, 'run', 'adapters', 'generator', 'nla') if path.endswith('.pt') else {}
    if issubclass(task, Completion):
        cfg.generator_checkpoint = path
    elif saved.get('kind') == 'nla':
        cfg.nla_checkpoint = path
    made = [str(getattr(cfg, key)) for key in sorted(keys_of(task)) if key.endswith('_checkpoint')]
    gone = [path for path in made if path.endswith('.pt') and not os.path.isfile(path)]
    if gone and not settings.get('scorer_url'):
        raise FileNotFoundError(f"{gone[0]}, which the run made, is gone: nothing is trained here")
    job = task(cfg, device)
    model = merge_lora(task.load(saved, path) if saved else job.load_model()).to(device).eval()
    job.generator_path = settings['generator_checkpoint']  # for rewards that compare with the start
    if saved.get('kind') in ('run', 'adapters'):
        job.restore(saved)
    compute_in(model.requires_grad_(False), precision_of(cfg.precision, device, model.config.n_embd))
    return job, job.policy(model)


def look(job, policy):
    """{reward, greedy or sampled: the mean (P,) over each prompt's completions, NaN where it judges none}"""
    metrics = job.evaluate(policy)
    rows = job.each if getattr(job, 'reward_functions', None) else metrics
    return {name: torch.as_tensor(value).double().view(-1) for name, value in rows.items()}


def mean_and_error(values, sign=''):
    """As text, of numbers one for each prompt; NaN where a prompt has none."""
    values = values[~values.isnan()]
    text = f'{values.mean():{sign}.3f}'
    return f'{text} ± {values.std() / len(values) ** 0.5:.3f}' if len(values) > 1 else text


def cell(values, first):
    """A model's values beside those of the first model."""
    if values is None or first is None or values is first:
        return '' if values is None else mean_and_error(values)
    if len(values) != len(first):
        raise ValueError(f"of {len(first)} prompts one model reads {len(values)}: raise max_prompt_length")
    return f"{mean_and_error(values)} ({mean_and_error(values - first, '+')})"


@torch.no_grad()
def main(names, cfg):
    if not names or len(set(names)) < len(names):
        raise ValueError("name the models, each once: checkpoints, out_dirs, folders, .gguf files, or start")
    console.quiet, settings = True, asked(names, cfg)
    paths = [path_of(name, settings) for name in names]
    _, _, device = run.processes(types.SimpleNamespace(**settings))
    results = [look(*job_with(path, settings, device)) for path in paths]
    lines = [['', *names]]
    for row in dict.fromkeys(row for result in results for row in result):
        lines.append([row, *(cell(result.get(row), results[0].get(row)) for result in results)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print('  '.join(map(str.ljust, line, widths)).rstrip())


if __name__ == '__main__':
    prompts = ''                    # a file, a folder under data/ or a hub name; '': what the run held out
    config = ''                     # the run's config file, where its rewards are functions
    # instead of the run's settings
    rewards: str | list | tuple | None = None
    eval_samples: Count | None = None
    max_new_tokens: Count | None = None
    temperature: Positive | None = None
    chat_template: bool | None = None
    device: str | None = None
    main(*configure(globals(), names=True))
