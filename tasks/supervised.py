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


def never():
    return False


def supervised_loop(name, model, loss_of_batch, max_iters, learning_rate, weight_decay=0.1, enough=never):
    """
    AdamW on the loss that loss_of_batch() returns: cosine schedule with warm-up, gradients clipped at 1, a
    line every tenth of the way. It ends sooner once enough(), asked every 20 steps, is true.
    """
    optimizer = configure_optimizers(model.parameters(), weight_decay, learning_rate, (0.9, 0.98))
    warmup, start, recent = min(100, max_iters // 10 + 1), time.time(), []
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
        at, seconds = f"  {name} {it + 1}/{max_iters}", f"{time.time() - start:.0f} s"
        if (it + 1) % max(1, max_iters // 10) == 0:
            mean, recent = torch.stack(recent).mean().item(), []
            say(f"{at}: loss {mean:.3f}, {seconds}{progress.left(it + 1)}")
            progress.note(f"loss {mean:.3f}")
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss of the {name} is {mean}: lower learning_rate")
        if (it + 1) % 20 == 0 and enough():
            say(f"{at}: good enough, {seconds}")
            break


def own_tokenizer(tokenizer):
    """
    What a checkpoint holds of a tokenizer of characters; {} for another, which lies beside it in tokenizer/.
    """
    if not hasattr(tokenizer, 'chars'):
        return {}
    return {'chars': tokenizer.chars, 'end': tokenizer.eos_id is not None}


def save_model(path, kind, model, config, tokenizer, quality):
    """Write one of our checkpoint files, and say how good the model is: quality {name: float}."""
    own = own_tokenizer(tokenizer)
    weights = {'model': model.state_dict(), 'model_config': asdict(config)}
    save_checkpoint(path, {'kind': kind, **weights, 'quality': quality, **own})
    if not own:
        tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
    say(f"  saved {path}: " + ', '.join(f"{name} {value:.3f}" for name, value in quality.items()))


# -----------------------------------------------------------------------------
# a start for completion: prompts with their answers, characters as tokens

def check_answers(records):
    """Raises ValueError where there is no text to learn from."""
    for i, record in enumerate(records):
        if 'answer' not in record:
            prompt = str(record['prompt'])[:60]
            raise ValueError(f"prompt {i} ({prompt!r}) has no 'answer' to teach a model with: give the "
                             "answers, or name a model that exists in generator_checkpoint")


def character_tokenizer(records, system_prompt=''):
    """All characters of prompts and answers, and an end token."""
    check_answers(records)
    if not all(isinstance(r['prompt'], str) for r in records):
        raise ValueError("a model of characters knows no chat messages: give prompts that are texts, or "
                         "name a model that exists in generator_checkpoint")
    texts = [system_prompt + r['prompt'] + str(r['answer']) for r in records]
    return CharTokenizer(sorted(set(''.join(texts))), end=True)


def small_config(tokenizer, cfg):
    """A small Llama, so that what it becomes can be exported as one."""
    return GPTConfig(block_size=cfg.block_size, vocab_size=tokenizer.vocab_size, n_layer=cfg.n_layer,
                     n_head=cfg.n_head, n_embd=cfg.n_embd, norm='rmsnorm', position='rope', mlp='swiglu',
                     mlp_hidden=8 * cfg.n_embd // 3, bias=False)


def train_start(model, tokenizer, records, held_out, max_iters, seed=1, until=1.0):
    """
    A supervised start for a causal model, in place: next token on prompt + answer + end token, with the loss
    on the answer and its end alone. records, held_out: dicts with 'ids' (see encode_prompts) and 'answer'.
    until: it ends sooner at this greedy accuracy on some of held_out. Returns quality, held out: loss in nats
    per token and greedy accuracy. Raises ValueError when a record is longer than the model's block_size.
    """
    if tokenizer.eos_id is None:
        raise ValueError("the tokenizer has no end token: an answer could not be taught to end")
    check_answers(records + held_out)
    answers = {id(r): tokenizer.encode(str(r['answer'])) + [tokenizer.eos_id] for r in records + held_out}
    longest = max(len(r['ids']) + len(answers[id(r)]) for r in records + held_out)
    if longest > model.config.block_size:
        raise ValueError(f"a prompt with its answer has {longest} tokens, more than this model's block_size "
                         f"{model.config.block_size}: shorten it, or raise block_size")
    generator = torch.Generator().manual_seed(seed)

    def loss_of_batch():
        picked = torch.randint(len(records), (64,), generator=generator).tolist()
        return answer_loss(model, [records[i] for i in picked], answers)

    def good_enough():
        return until < 1 and start_quality(model, tokenizer, held_out[:256], answers)['accuracy'] >= until

    supervised_loop('model', model, loss_of_batch, max_iters, 3e-3, enough=good_enough)
    quality = start_quality(model, tokenizer, held_out, answers)
    model.eval()
    return quality


def answer_loss(model, records, answers):
    """Mean loss in nats of the answers' tokens after their prompts; answers: {id(record): token ids}."""
    rows = [r['ids'] + answers[id(r)] for r in records]
    T = max(map(len, rows))
    tokens, targets = [], []
    for record, row in zip(records, rows, strict=True):
        padding = T - len(row)
        tokens.append(row + [0] * padding)
        targets.append([-1] * (len(record['ids']) - 1) + answers[id(record)] + [-1] * (padding + 1))
    tokens, targets = (torch.tensor(x, device=model.wte.weight.device) for x in (tokens, targets))
    answer = targets >= 0
    return cross_entropy(model, model(tokens)[answer], targets[answer])


@torch.no_grad()
def start_quality(model, tokenizer, held_out, answers):
    """Loss in nats per token of the held-out answers, and the share of them that the model gives greedily."""
    model.eval()
    right, losses = 0, []
    for start in range(0, len(held_out), 256):
        batch = held_out[start:start + 256]
        losses.append(answer_loss(model, batch, answers).item() * len(batch))
        room = model.config.block_size - max(len(r['ids']) for r in batch)
        longest = max(len(answers[id(r)]) for r in batch)
        greedy = generate(model, [r['ids'] for r in batch], max_new_tokens=min(room, longest), temperature=0,
                          eos_id=tokenizer.eos_id)
        for record, ids, n in zip(batch, greedy.tokens, greedy.lengths.flatten(), strict=True):
            right += ids[0, :n].tolist() == answers[id(record)]
    model.train()
    return {'loss': sum(losses) / len(held_out), 'accuracy': right / len(held_out)}
