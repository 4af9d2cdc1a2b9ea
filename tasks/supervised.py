"""
The supervised loop that makes what GRPO starts from: generators, judges, reward models, actors and critics.
What each of them learns stands in the file of its job.
"""
import math
import os
import time
from dataclasses import asdict

import torch

from formats.tokenizer import CharTokenizer
from kernels import fused_loss
from model import GPTConfig
from policy import generate
from runtime import console
from runtime.checkpoint import save_checkpoint
from runtime.console import say
from runtime.masters import configure_optimizers


def cross_entropy(model, hidden, targets):
    """Mean loss in nats of hidden (N, D) at predicting targets (N,)."""
    n = len(targets)
    mask = torch.ones(n, 1, 1, dtype=torch.bool, device=hidden.device)

    def mean_loss(rows, logps, entropy, kl):
        return -logps.sum() / n

    return fused_loss(hidden[:, None], model.lm_head.weight, targets[:, None, None], mask, mean_loss,
                      counts=[1] * n)


def supervised_loop(name, model, loss_of_batch, max_iters, learning_rate, weight_decay=0.1, enough=None):
    """
    AdamW on the loss that loss_of_batch() returns: cosine schedule with warm-up, gradients clipped at 1. It
    ends sooner once enough(), asked every 20 steps, is true.
    """
    optimizer = configure_optimizers(model.parameters(), weight_decay, learning_rate, (0.9, 0.98))
    warmup, start, recent = min(100, max_iters // 10 + 1), time.monotonic(), []
    progress = console.Progress(name, max_iters)
    for it in progress.over(range(max_iters)):
        cosine = 0.5 * (1 + math.cos(math.pi * it / max_iters))
        for group in optimizer.param_groups:
            group['lr'] = learning_rate * min((it + 1) / warmup, 0.1 + 0.9 * cosine)
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        at, seconds = f"  {name} {it + 1}/{max_iters}", f"{time.monotonic() - start:.0f} s"
        if (it + 1) % max(1, max_iters // 10) == 0:
            mean, recent = torch.stack(recent).mean().item(), []
            say(f"{at}: loss {mean:.3f}, {seconds}{progress.left(it + 1)}")
            progress.note(f"loss {mean:.3f}")
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss of the {name} is {mean}: lower learning_rate")
        if enough and (it + 1) % 20 == 0 and enough():
            say(f"{at}: as good as was asked, {seconds}")
            break


def own_tokenizer(tokenizer):
    """What a checkpoint holds of a tokenizer of characters; {} for another, which lies beside it."""
    if not hasattr(tokenizer, 'chars'):
        return {}
    return {'chars': tokenizer.chars, 'end': tokenizer.eos_id is not None}


def save_model(path, kind, model, config, tokenizer, quality, recipe=None):
    """
    Write one of our checkpoint files, and say how good the model is: quality {name: float}. recipe: what it
    was made by, see runtime/made.py.
    """
    own = own_tokenizer(tokenizer)
    if not own:
        tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
    weights = {'model': model.state_dict(), 'model_config': asdict(config)}
    save_checkpoint(path, {'kind': kind, 'recipe': recipe, **weights, 'quality': quality, **own})
    say(f"  saved {path}: " + ', '.join(f"{name} {value:.3f}" for name, value in quality.items()))


# -----------------------------------------------------------------------------
# a start for completion: prompts with their answers, characters as tokens

def character_tokenizer(records, system_prompt=''):
    """All characters of prompts and answers, and an end token. Raises ValueError where one is no text."""
    for i, record in enumerate(records):
        if record.get('answer') is None or not isinstance(record['prompt'], str):
            raise ValueError(f"prompt {i} ({str(record['prompt'])[:60]!r}) needs to be a text with an "
                             "'answer' to train a start on; or set generator_checkpoint to an existing model")
    return CharTokenizer(characters_of(records, system_prompt), end=True)


def characters_of(records, system_prompt):
    texts = (f"{r['prompt']}{'' if r.get('answer') is None else r['answer']}" for r in records)
    return sorted(set(system_prompt).union(*texts))


def small_config(tokenizer, cfg):
    """A small Llama, so that what it becomes can be exported as one."""
    return GPTConfig(block_size=cfg.block_size, vocab_size=tokenizer.vocab_size, n_layer=cfg.n_layer,
                     n_head=cfg.n_head, n_embd=cfg.n_embd, norm='rmsnorm', position='rope', mlp='swiglu',
                     mlp_hidden=8 * cfg.n_embd // 3, bias=False)


def train_start(model, tokenizer, records, held_out, max_iters, seed=1, until=1.0):
    """
    A supervised start for a causal model, in place: next token on prompt + answer + end token, with the loss
    on the answer and its end alone. records, held_out: from encode_prompts, with an 'answer'. until: the
    greedy accuracy on some of held_out that is enough. Returns start_quality on held_out.
    """
    def taught(records):
        """[(token ids of the prompt, of the answer with its end)...]"""
        return [(r['ids'], tokenizer.encode(str(r['answer'])) + [tokenizer.eos_id]) for r in records]

    pairs, held_out = taught(records), taught(held_out)
    longest = max(len(ids) + len(answer) for ids, answer in pairs + held_out)
    if longest > model.config.block_size:
        raise ValueError(f"a prompt with its answer has {longest} tokens and block_size is "
                         f"{model.config.block_size}: shorten it, or raise block_size")
    generator = torch.Generator().manual_seed(seed)

    def loss_of_batch():
        picked = torch.randint(len(pairs), (64,), generator=generator).tolist()
        return answer_loss(model, [pairs[i] for i in picked])

    def good_enough():
        return start_quality(model, tokenizer, held_out[:256])['accuracy'] >= until

    supervised_loop('model', model, loss_of_batch, max_iters, 3e-3, enough=good_enough if until < 1 else None)
    quality = start_quality(model, tokenizer, held_out)
    model.eval()
    return quality


def answer_loss(model, pairs, edit=None):
    """Mean loss in nats of the answers' tokens after their prompts, pairs of token ids. edit: see GPT.run."""
    T = max(len(ids) + len(answer) for ids, answer in pairs)
    tokens, targets = torch.zeros(len(pairs), T, dtype=torch.long), torch.full((len(pairs), T), -1)
    for row, (ids, answer) in enumerate(pairs):
        end = len(ids) + len(answer)
        tokens[row, :end] = torch.tensor(ids + answer)
        targets[row, len(ids) - 1:end - 1] = torch.tensor(answer)
    tokens, targets = tokens.to(model.wte.weight.device), targets.to(model.wte.weight.device)
    hidden = model(tokens, torch.tensor([len(ids) + len(answer) for ids, answer in pairs]), edit)
    return cross_entropy(model, hidden[targets >= 0], targets[targets >= 0])


@torch.no_grad()
def start_quality(model, tokenizer, pairs):
    """Loss in nats per token of the answers, and the share of them that the model gives greedily."""
    model.eval()
    right, losses = 0, []
    for start in range(0, len(pairs), 256):
        batch = pairs[start:start + 256]
        prompts, answers = zip(*batch, strict=True)
        losses.append(answer_loss(model, batch).item() * len(batch))
        room = model.config.block_size - max(map(len, prompts))
        greedy = generate(model, list(prompts), max_new_tokens=min(room, max(map(len, answers))),
                          temperature=0, eos_id=tokenizer.eos_ids)
        for answer, ids, n in zip(answers, greedy.tokens, greedy.lengths.flatten(), strict=True):
            right += ids[0, :n].tolist() == answer
    model.train()
    return {'loss': sum(losses) / len(pairs), 'accuracy': right / len(pairs)}
