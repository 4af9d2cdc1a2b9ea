"""
What differs between the jobs that train_grpo.py can do: data, models, rewards and evaluation. A job is a
class with the names below, in a file of its own, and one line in tasks/__init__.py.
"""
import contextlib
import math

import torch

from formats.weights import adapter_base
from grpo import completion_logps
from model import GPT
from runtime.checkpoint import tokenizer_of
from runtime.config import Count, Natural, with_settings
from runtime.console import say
from runtime.lora import merge_lora, save_adapter
from runtime.run import numbers
from tasks.show import show_causal


class Task:
    """What jobs have in common. What only some of them need does nothing here."""

    class Settings:
        """Settings of every job."""
        # data
        dataset = 'stdlib_char'         # a folder under data/, or a file: texts to fill in, or prompts
        block_size: Count = 48          # characters of a text, or of the context of a model made here
        eval_prompts_n: Count = 512     # held-out texts or prompts
        eval_show: Natural = 3          # how many of them an evaluation prints
        # the model to start from; a .pt file that does not exist yet is trained first
        generator_checkpoint = 'out-{dataset}/generator.pt'  # ours, a Hugging Face folder or name, .gguf
        n_layer: Count = 3              # its size, when it has to be trained
        n_head: Count = 4
        n_embd: Count = 96
        pretrain_iters: Natural = 1200  # its supervised steps

    uses = ()               # settings of other jobs that this one reads too
    refuses = ()            # settings that this one cannot take, though it inherits them or all have them
    headline = ''           # the metric that makes a checkpoint the best one
    exported = 'export'     # where in out_dir the trained model goes in the end; '': beside its checkpoints
    each = {}               # {name: a value for each held-out prompt (P,)}, of the last evaluation
    independent = None      # how many prompts are; None: all
    sharded_beside = False  # True: something of the job is sharded too, so that all ranks must evaluate

    def __init__(self, cfg, device):
        self.cfg, self.device = cfg, device

    @property
    def home(self):
        """Where the model is loaded to: a GPU would not hold all of one that is to be sharded."""
        return 'cpu' if self.cfg.shard else self.device

    # What a job must have (a setting's default is a literal, and its name nobody else's):
    # tokenizer, see formats/tokenizer.py · generator_path: where its start comes from · load_model() -> GPT
    # policy(model) -> a policy, see grpo.py · rewards, see grpo.py, phase 2
    # batch(it, attempt=0) -> the prompts of an iteration, all ranks together: a function of these and the
    #   seed alone, so that there is no state to save; attempts 1, 2, ... are for dynamic_sampling
    # evaluate(policy) -> metrics; sets `each` · describe(metrics) -> a line
    # charts: in report/charts.json, under the name of its class
    # asked(rollout) -> {'prompt', 'answer'} of its first prompt, for samples.jsonl

    @property
    def remake(self):
        """What made() shall do: a run that goes on is told by State.resume what is not as it was."""
        return 'never' if self.cfg.init_from == 'resume' else self.cfg.remake

    def learns_from(self):
        """{name: a hash of the contents}; a run that goes on must find the same, see State.resume."""
        return {}

    def table(self, metrics):
        """The last evaluation in some lines; '' where describe has said it."""
        return ''

    @classmethod
    def verdict(cls, looks, settings):
        """
        What came of a run. looks: a report.verdict.Looks at what was in `each`; settings: the run's. The
        first reward counts where it is right or wrong, else the sum of all.
        """
        name = next(iter(looks.last))
        above = 'above hidden tests'
        if above in looks.last and looks.change(above).sign > 0:
            return f"the tests are being fooled: {looks.told(above, f'{name}, {above}')}"
        if set(looks.first[name] + looks.last[name]) - {0, 1, None}:
            name = 'all, weighted, sampled'
        return looks.outcome(name, f'held-out {name}')

    def saved(self):
        """What a checkpoint holds beside the weights; of what is sharded, this rank's part."""
        return {}

    def restore(self, checkpoint):
        """Take back what was saved."""

    def after_lora(self, model):
        """Let weights learn that LoRA has frozen."""

    def actor_rests(self, it):
        """Whether the policy does not learn in iteration `it`."""
        return False

    def learn_beside(self, rollout):
        """What else learns from the completions. Returns its metrics."""
        return {}

    @classmethod
    def load(cls, saved, path):
        """The fp32 model of what load_checkpoint has read from path; a LoRA run's with its adapters."""
        return GPT.from_checkpoint(saved, path)

    @classmethod
    def export(cls, saved, path, folder, adapter_folder):
        """
        Write the trained model of a checkpoint (see load) into a folder as others load it, and LoRA's
        adapters for peft into another.
        """
        model, tokenizer = cls.load(saved, path), tokenizer_of(path, saved)
        if saved['kind'] == 'adapters':
            save_adapter(model, adapter_folder, adapter_base(saved['start']) or saved['start'])
        ends, begin, pad = tokenizer.eos_ids, tokenizer.bos_id, tokenizer.pad_id
        tokenizer.save(folder)
        merge_lora(model).save_pretrained(folder, eos_id=ends, bos_id=begin, pad_id=pad)
        say(f"exported to {folder}")

    def try_out(self):
        """What sample.py needs to show the trained model: the file in out_dir, and its other arguments."""
        return 'export', []

    @classmethod
    def show(cls, saved, model, tokenizer, cfg):
        """What sample.py does with such a model. saved: the checkpoint's dict; cfg: sample.py's settings."""
        show_causal(saved, model, tokenizer, cfg)

    def token_places(self, rollout):
        """{'slots': [...]} where the tokens of a prompt's completions fill slots of a text."""
        return {}

    @torch.no_grad()
    def samples(self, policy, rollout):
        """
        What samples.jsonl keeps of the first prompt's completions, a dict each: text, rewards, advantage, and
        of 256 tokens the sampler's log-probs and how far this iteration has moved them.
        """
        group = rollout.pick(slice(0, 1))
        eager = torch.compiler.set_stance('force_eager') if self.cfg.compile else contextlib.nullcontext()
        if self.cfg.shard:  # a forward would take all ranks
            moved = group.logps * math.nan
        else:
            with eager:  # a single prompt would be compiled for itself
                moved = completion_logps(policy, group)[0] - group.logps
        advantages = group.advantages if group.advantages.dim() == 2 else group.advantages.sum(-1)
        parts = {f'reward/{name}': numbers(part[0]) for name, part in group.reward_parts.items()}
        asked, places, records = self.asked(rollout), self.token_places(group), []
        for g, text in enumerate(policy.texts(group)[0]):
            n = min(int(group.lengths[0, g]), 256)
            record = {**asked, 'completion': text, **{name: values[g] for name, values in parts.items()}}
            record |= {'advantage': advantages[0, g].item()}
            record['tokens'] = [policy.tokenizer.token_text(i) for i in group.tokens[0, g, :n].tolist()]
            if group.own is not None:  # 0: an environment wrote it
                record['own'] = group.own[0, g, :n].int().tolist()
            record['logps'] = numbers(group.logps[0, g, :n], 4)
            record['logp_changes'] = numbers(moved[0, g, :n], 4)
            records.append(record | {name: values[:n] for name, values in places.items()})
        return records


def path_of(key, settings, dataset):
    """A path that the settings name, with {dataset} and other settings' values in their places."""
    return with_settings(key, settings[key], settings | {'dataset': dataset})


def say_if_few(n, what):
    """What the figures of so many held-out prompts are worth, where that is little."""
    if n < 100:
        error = max(n, 1) ** -0.5
        say(f"note: {n} {what} are few: a share measured on them is known to ±{error:.2f} at best")


def longest_line(text):
    """The part of a text that fits into a command."""
    return max(text.splitlines(), key=len, default=text).strip()
