"""
Completion: a causal model goes on from a prompt, G times. A group shares its prompt, so training, like sampling, reads
each prompt once: one forward over (P, T) prompts whose keys and values all G answers attend to, with gradients.
Shapes: P prompts · G answers · T prompt tokens · R answer tokens · D width · V vocabulary.
"""
import copy
import os

import torch

import weights
from console import Progress
from data.tokenizer import char_tokenizer, load_tokenizer
from grpo import Rollout
from lora import adapters_off
from model import load_checkpoint
from sample import generate
from shard import is_sharded


class CausalPolicy:
    """The policy of completion; see grpo.py for what a policy is. Its batch: prompts (P, T) int64 right-padded, prompt_lengths (P,) and seeds (P,) on the CPU."""

    def __init__(self, model: torch.nn.Module, tokenizer, max_new_tokens: int = 256, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, compile: bool = False):
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} must be above 0: at 0 all answers of a group are equal and there is nothing to learn from")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.temperature, self.top_k, self.top_p, self.compile = temperature, top_k, top_p, compile
        self.forbidden = forbidden_tokens(tokenizer, model)

    def with_model(self, model):
        """The same distribution under another model's weights: a reference."""
        other = copy.copy(self)
        other.model = model
        return other

    def without_adapters(self):
        """The same model with its LoRA adapters switched off: a reference that costs no memory."""
        def hidden(rollout):
            with adapters_off(self.model):
                return self.hidden(rollout)

        other = copy.copy(self)
        other.hidden = hidden
        return other

    def prefill(self, prompts, batch):
        """Prompts (P, T) read once; see GPT.prefill."""
        return self.model.prefill(prompts)

    def sample(self, batch: dict, group_size: int) -> Rollout:
        """Answers at the policy's temperature; each depends on its prompt, its seed and its place in the group, not on the rest of the batch."""
        prompts = [row[:n] for row, n in zip(batch['prompts'].tolist(), batch['prompt_lengths'].tolist())]
        with Progress('tokens', self.max_new_tokens) as progress:
            on_token = progress.step if self.model.wte.weight.device.type == 'cpu' else None  # a GPU would have to be waited for at each token
            answers = generate(self.model, prompts, group_size, self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.tokenizer.eos_id, batch['seeds'].tolist(), self.forbidden,
                               on_token, self.compile, lambda tokens: self.prefill(tokens, batch), lockstep=is_sharded(self.model))
        return Rollout(batch=batch, tokens=answers.tokens, lengths=answers.lengths.cpu(), logps=answers.logps, ended=answers.ended.cpu(), allowed=answers.allowed)

    def greedy(self, batch: dict) -> Rollout:
        """The likeliest token each time: a rollout with one answer per prompt."""
        other = copy.copy(self)
        other.temperature, other.top_k, other.top_p = 0.0, 0, 1.0
        return other.sample(batch, 1)

    def hidden(self, rollout: Rollout) -> torch.Tensor:
        """Hidden states (P, G, R, D) that predict the answers' tokens; the first comes from the prompt's end, and all share its forward."""
        P, G, R = rollout.tokens.shape
        lengths, steps = rollout.batch['prompt_lengths'], max(int(rollout.lengths.max()) - 1, int(is_sharded(self.model)))  # the ranks of a sharded model do alike
        states, prefix = self.prefill(rollout.batch['prompts'][:, :int(lengths.max())], rollout.batch)
        lengths = lengths.to(states.device, non_blocking=True)
        hidden = states[torch.arange(P, device=states.device), lengths - 1][:, None, None].expand(P, G, 1, -1)
        if steps:
            tokens = rollout.tokens[:, :, :steps].masked_fill(~rollout.mask[:, :, :steps], 0)
            hidden = torch.cat((hidden, self.model.answer(tokens, prefix, lengths)), dim=2)
        return torch.nn.functional.pad(hidden, (0, 0, 0, R - hidden.shape[2]))

    def texts(self, rollout: Rollout) -> list[list[str]]:
        """The answers without their end token: P lists of G strings."""
        return [[self.tokenizer.decode(ids[:n]) for ids, n in zip(group, lengths)]
                for group, lengths in zip(rollout.tokens.tolist(), rollout.lengths.tolist())]


def forbidden_tokens(tokenizer, model):
    """(V,) bool, or None when there are none: rows that only pad the embedding, and the characters' [MASK], [PAD] and [CLS]. They are never sampled."""
    forbidden = torch.arange(model.config.vocab_size) >= tokenizer.vocab_size
    if hasattr(tokenizer, 'chars'):
        forbidden[[i for i in tokenizer.special_ids if i != tokenizer.eos_id]] = True
    return forbidden.to(model.wte.weight.device) if forbidden.any() else None


def prompt_batch(prompts: list[list[int]], seeds: list[int], device: str = 'cpu') -> dict[str, torch.Tensor]:
    """prompts: P lists of token ids; seeds: P ints. The batch that a CausalPolicy samples from."""
    longest = max(map(len, prompts))
    return {'prompts': torch.tensor([list(p) + [0] * (longest - len(p)) for p in prompts], device=device),
            'prompt_lengths': torch.tensor([len(p) for p in prompts]), 'seeds': torch.tensor(seeds)}


@torch.no_grad()
def text_log_prob(model, ids):
    """Mean log-prob per token of a text (token ids): what a model has kept of its language while it learned something else."""
    log_probs = model.logits(torch.tensor([ids], device=model.wte.weight.device))[0, :-1].float().log_softmax(dim=-1)
    return log_probs.gather(-1, torch.tensor(ids[1:], device=log_probs.device)[:, None]).mean().item()


@torch.no_grad()
def text_log_probs(model, tokenizer, texts, batch_size=16):
    """For each text the mean log-prob per character, in nats, of what follows its first token; -inf when nothing does. What is longer than the model reads is cut."""
    rows, found = [tokenizer.encode(text)[:model.config.block_size] for text in texts], [-float('inf')] * len(texts)
    order = sorted((i for i, ids in enumerate(rows) if len(ids) > 1), key=lambda i: len(rows[i]))  # like lengths together
    for some in (order[start:start + batch_size] for start in range(0, len(order), batch_size)):
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in some], batch_first=True).to(model.wte.weight.device)  # (N, T); the model is causal, so padding on the right is not seen
        log_probs = model.logits(tokens)[:, :-1].float().log_softmax(dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        for i, row in zip(some, log_probs.cpu()):
            ids = rows[i]
            found[i] = row[:len(ids) - 1].sum().item() / max(1, len(tokenizer.decode(ids)) - len(tokenizer.decode(ids[:1])))
    return found


def tokenizer_of(path):
    """
    The tokenizer that belongs to the model at path (see GPT.from_pretrained): of one of our checkpoint files it is in there, for
    characters, or in the run's tokenizer/ folder; else it lies beside the weights.
    """
    if path.endswith('.pt'):
        saved = load_checkpoint(path, 'generator', 'run', 'nla', 'reward', 'cost')
        if 'chars' in saved:
            return char_tokenizer(saved, path)
        return load_tokenizer(os.path.join(os.path.dirname(path), 'tokenizer'))
    return load_tokenizer(weights.local_folder(path))
