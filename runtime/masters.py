"""
The weights that learn: fp32 masters of a model that computes in another precision, their optimizer, and the
reference that follows them.
"""
from functools import partial
from inspect import unwrap

import torch
import torch.nn as nn

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def precision_of(setting, device, width):
    """The dtype of a setting; 'auto' is bf16 where that is faster for a model of this width."""
    if setting != 'auto':
        return DTYPES[setting]
    fast_on_cpu = torch.cpu._is_avx512_bf16_supported() and width >= 512
    return torch.bfloat16 if str(device).startswith('cuda') or fast_on_cpu else torch.float32


def compute_in(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """
    Compute in dtype, learn in fp32, for a small update is lost in a bf16 weight: all weights become dtype, in
    place, and the trainable ones get an fp32 master each, which backward adds its gradient to. Returns
    {name: master}, what an optimizer steps and a checkpoint keeps: in fp32 the weights themselves.
    """
    masters = dict(model.named_parameters())
    if dtype == torch.float32:
        return masters
    for name, p in model.named_parameters():
        if p.requires_grad:
            masters[name] = nn.Parameter(p.detach().float().clone())
            p.register_post_accumulate_grad_hook(partial(hand_over_gradient, masters[name]))
        p.data = p.data.to(dtype)
    return masters


def hand_over_gradient(master, p):
    master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
    p.grad = None


@torch.no_grad()
def copy_masters(masters: dict[str, torch.Tensor], model: nn.Module) -> None:
    """The weights that the model computes with follow their masters; called after each optimizer step."""
    pairs = [(p, masters[name]) for name, p in model.named_parameters() if masters[name] is not p]
    if pairs:
        torch._foreach_copy_(*zip(*pairs, strict=True))


class AdamW(torch.optim.AdamW):
    """torch's, without the wrappers whose first call imports torch's compiler, for a second."""
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)


def configure_optimizers(params, weight_decay: float, learning_rate: float,
                         betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW as in nanoGPT: matrices and embeddings decay, biases and norms do not; fused."""
    params = [p for p in params if p.requires_grad]
    groups = [{'params': [p for p in params if p.dim() >= 2], 'weight_decay': weight_decay},
              {'params': [p for p in params if p.dim() < 2], 'weight_decay': 0.0}]
    return AdamW(groups, lr=learning_rate, betas=betas, fused=True)


@torch.no_grad()
def update_reference(mode: str, it: int, reference: list[torch.Tensor], policy: list[torch.Tensor],
                     ema_alpha: float = 0.99, update_freq: int = 500) -> None:
    """
    The reference's weights after iteration `it`, from 1, in place. ema: alpha * reference + (1 - alpha) *
    policy. periodic: the policy's, every update_freq iterations. static: as they were.
    """
    if mode == 'ema':
        torch._foreach_lerp_(reference, policy, 1 - ema_alpha)
    elif mode == 'periodic' and it % update_freq == 0:
        torch._foreach_copy_(reference, policy)
