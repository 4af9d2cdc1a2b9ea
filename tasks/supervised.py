"""
Supervised stages: the models that GRPO starts from. train_grpo.py calls these functions for a checkpoint that does not
exist yet; as a script it makes one of them, for instance a better generator than the one-minute default:
$ python pretrain.py --stage=generator --max_iters=10000
$ python pretrain.py --stage=judge --generator_checkpoint=out-stdlib_char/generator.pt --checkpoint=out-stdlib_char/judge.pt
$ python pretrain.py --stage=answerer --dataset=arithmetic --block_size=16
$ python pretrain.py --stage=answerer --dataset=my.jsonl --generator_checkpoint=path/to/model --chat_template=True --learning_rate=1e-5
$ python pretrain.py --stage=reward --dataset=preferences.jsonl --generator_checkpoint=path/to/model --checkpoint=reward.pt      # and --stage=cost
"""
import math
import os
import time
from dataclasses import asdict

import torch

from kernels import fused_loss
from runtime import console
from runtime.checkpoint import save_checkpoint
from runtime.console import say
from runtime.masters import configure_optimizers


def cross_entropy(model, hidden, targets):
    """Mean loss in nats of hidden (N, D) at predicting targets (N,)."""
    n = len(targets)
    return fused_loss(hidden[:, None], model.lm_head.weight, targets[:, None, None], torch.ones(n, 1, 1, dtype=torch.bool, device=hidden.device),
                      lambda units, logps, entropy, kl: -logps.sum() / n, counts=[1] * n)


def supervised_loop(name, model, loss_of_batch, max_iters, learning_rate, betas=(0.9, 0.98), weight_decay=0.1, enough=lambda: False):
    """Cosine schedule with warm-up, gradients clipped at 1, a progress line every tenth of the way. Ends sooner once enough(), asked every 20 steps, is true."""
    optimizer = configure_optimizers(model.parameters(), weight_decay, learning_rate, betas)
    warmup, start, recent = min(100, max_iters // 10 + 1), time.time(), []
    progress = console.Progress(name, max_iters)
    for it in progress.over(range(max_iters)):
        rate = min((it + 1) / warmup, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * it / max_iters)))
        for group in optimizer.param_groups:
            group['lr'] = learning_rate * rate
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        if (it + 1) % max(1, max_iters // 10) == 0:
            mean, recent = torch.stack(recent).mean().item(), []
            say(f"  {name} {it + 1}/{max_iters}: loss {mean:.3f}, {time.time() - start:.0f} s{progress.left(it + 1)}")
            progress.note(f"loss {mean:.3f}")
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss of the {name} is {mean}: lower learning_rate")
        if (it + 1) % 20 == 0 and enough():
            say(f"  {name} {it + 1}/{max_iters}: good enough, {time.time() - start:.0f} s")
            break


def save_model(path, kind, model, config, tokenizer, quality):
    """One of our checkpoint files. The tokenizer is in it, if it is one of characters; else it lies beside it in tokenizer/."""
    own = {'chars': tokenizer.chars, 'end': tokenizer.eos_id is not None} if hasattr(tokenizer, 'chars') else {}
    save_checkpoint(path, {'kind': kind, 'model': model.state_dict(), 'model_config': asdict(config), 'quality': quality, **own})
    if not own:
        tokenizer.save(os.path.join(os.path.dirname(path), 'tokenizer'))
    say(f"  saved {path}: " + ', '.join(f"{k} {v:.3f}" for k, v in quality.items()))


