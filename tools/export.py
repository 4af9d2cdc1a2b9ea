"""
The trained model of a checkpoint, as other programs load it: what a run exports at its end, of any moment.
$ python -m tools.export out-grpo/ckpt_best.pt best  # best/: for transformers, or nla.pt, or fill_in.pt
$ python -m tools.export out-grpo best               # the newest checkpoint of a run
$ python -m tools.export out-grpo best --hub=owner/name  # and to the Hugging Face hub, private
A LoRA run's adapters are merged into the model, and lie beside it in best/adapter for peft.
"""
import os

from formats.optional import optional
from formats.text_files import first_line
from runtime.checkpoint import entry, load_checkpoint
from runtime.config import configure
from runtime.console import say
from runtime.run import newest_checkpoint
from tasks import TASKS

KINDS = ('run', 'adapters', 'nla', 'generator')


def read(path):
    """(path, checkpoint) of a checkpoint, or of the newest in a run's out_dir."""
    if os.path.isfile(os.path.join(path, 'ckpt.pt')):
        return newest_checkpoint(path, *KINDS)
    return path, load_checkpoint(path, *KINDS)


def task_of(saved, path):
    """The class of the task that a checkpoint is of. Raises ValueError for one that is not known here."""
    task = 'completion' if entry(saved, 'model_config', dict, path).get('causal') else 'fill_in'
    config = entry(saved, 'config', dict, path) if 'config' in saved else {}
    task = config.get('task', 'nla' if 'nla' in saved else task)
    if task not in list(TASKS):
        raise ValueError(f"{path} is of task {task!r}, which this version lacks: it has {', '.join(TASKS)}")
    return TASKS[task]


def push(folder, name, private):
    """Send a folder to the hub. Raises ConnectionError."""
    hub = optional('huggingface_hub', "--hub takes a package: pip install huggingface_hub")
    try:
        repo = hub.HfApi().create_repo(name, private=private, exist_ok=True).repo_id
        hub.HfApi().upload_folder(repo_id=repo, folder_path=folder)
    except Exception as e:  # of many kinds: no network, no token, no such owner
        raise ConnectionError(f"the hub did not take {name!r}: {first_line(e)} (it is in {folder})") from None
    say(f"pushed to https://huggingface.co/{repo}")


def main(names, cfg):
    if len(names) != 2:
        raise ValueError(f"it takes two names, a checkpoint or out_dir and a new folder; given: {len(names)}")
    source, folder = names
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise ValueError(f"{folder} is there and not empty: name a new folder, or delete it first")
    path, saved = read(source)
    task = task_of(saved, path)
    if cfg.base and saved['kind'] == 'adapters':
        saved['start'] = cfg.base
    task.export(saved, path, folder, os.path.join(folder, 'adapter'))
    if cfg.hub:
        push(folder, cfg.hub, cfg.private)


if __name__ == '__main__':
    base = ''       # where the model is that a LoRA run started from; '': where it was
    hub = ''        # also push the folder there, name or owner/name
    private = True  # a new repo of the hub is seen by nobody else
    main(*configure(globals(), names=True))
