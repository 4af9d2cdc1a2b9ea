"""
One model spread over all ranks: torch's own fully_shard (FSDP2), block by block.

    shard_model(model, dtype) -> {name: parameter}: fp32 shards, DTensors, which the optimizer steps
    whole(tree)               -> the same on the CPU, for a checkpoint: one file whatever the number of ranks
    part_of(value, p)         -> this rank's part of it, to load a checkpoint
    gathered(policy)          -> a context: the policy with a plain model, whole on every rank, to sample from
With gather_to_sample=False the sampler goes through the sharded model, all ranks together for each token.

A block's weights are collected just before they are used and dropped after; its gradient is summed in fp32,
each rank keeps its part. So all ranks must go through the same forwards: grpo.py, and tasks/nla.py for its
critic, give each the same number of micro-batches. docs/scaling.md counts the bytes.
"""
import copy
import warnings
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

# keys and values are views; nothing is changed in place
warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')


def is_sharded(model):
    return hasattr(model, 'skeleton')


def is_shard(tensor):
    """A DTensor? To import that class takes as long as to import torch."""
    return hasattr(tensor, 'full_tensor')


def units(model):
    """What is collected at once: each block, and the rest."""
    return [*getattr(model, 'trunk', model).blocks, model]


def shard_model(model: torch.nn.Module, dtype: torch.dtype, device: str,
                gather_to_sample: bool = True) -> dict[str, torch.Tensor]:
    """Shard a model on the CPU, in place; it computes in dtype. Returns {name: fp32 shard}, what learns."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    memo = {id(buffer): buffer for buffer in model.buffers()}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=False)
    skeleton = copy.deepcopy(model, memo)  # a copy without weights
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    param_dtype = None if dtype == torch.float32 else dtype
    precision = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    options = {'mesh': mesh, 'mp_policy': precision}
    for block in units(model)[:-1]:
        fully_shard(block, **options)
    # the head is used after the model's forward, see grpo.rollout_loss
    fully_shard(model, **options, reshard_after_forward=False)
    for method in ('prefill', 'complete'):
        if hasattr(model, method):  # a critic has neither
            register_fsdp_forward_method(model, method)
    for module in units(model):
        module.set_gradient_divide_factor(1.0)  # ranks hold shares of one loss: gradients are summed
        module.set_force_sum_reduction_for_comms(True)
    model.dtype, model.gather_to_sample = dtype, gather_to_sample
    model.skeleton = [skeleton]  # in a list: it is no part of the model
    model.to(device)  # its buffers
    return dict(model.named_parameters())


def drop_collected(model):
    """Only the shards stay: what a forward without a backward has collected is stale after a step."""
    if is_sharded(model):
        for module in units(model):
            module.reshard()


def whole(tree):
    """Every DTensor in dicts and lists whole, on the CPU of rank 0, else empty. All ranks must call it."""
    collected = {}

    def collect(tensor):
        if not is_shard(tensor):
            return tensor
        if id(tensor) not in collected:
            value = tensor.detach().full_tensor()
            collected[id(tensor)] = value.cpu() if dist.get_rank() == 0 else value.new_empty(0, device='cpu')
        return collected[id(tensor)]

    return tree_map(collect, tree)


def whole_norm(norm):
    """A norm over shards as the number it is, on every rank."""
    return norm.full_tensor() if is_shard(norm) else norm


def part_of(value, p):
    """This rank's part of a whole tensor, cut as the parameter p is."""
    if not is_shard(p):
        return value
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)


def local_part(p):
    """What of p lies on this rank, sharing its memory."""
    return p.detach().to_local() if is_shard(p) else p.detach()


def optimizer_parts(state, params):
    """An optimizer's state_dict of whole tensors, cut as its parameters are."""
    cut = {}
    for i, values in state['state'].items():
        cut[i] = dict(values)
        for key, value in values.items():
            if torch.is_tensor(value) and value.dim():
                cut[i][key] = part_of(value, params[i])
    return state | {'state': cut}


@torch.no_grad()
def collect_model(model):
    """A plain model, whole on every rank, in the dtype that it computes in."""
    drop_collected(model)
    plain = model.skeleton[0]
    state = {}
    for name, value in model.state_dict().items():
        if name != 'lm_head.weight' or not plain.config.tied:
            state[name] = value.to(model.dtype).full_tensor() if is_shard(value) else value
    plain.load_state_dict({'lm_head.weight': state['wte.weight']} | state, assign=True)
    if plain.config.tied:
        plain.lm_head.weight = plain.wte.weight
    return plain.requires_grad_(False).eval()


@contextmanager
def gathered(policy):
    """The policy with a plain model, whole on every rank; as it is, where nothing is to be collected."""
    if not (is_sharded(policy.model) and policy.model.gather_to_sample):
        yield policy
        return
    plain = collect_model(policy.model)
    try:
        yield policy.with_model(plain)
    finally:
        plain.to_empty(device='meta')
