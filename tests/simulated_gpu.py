"""
A GPU that is not there. Inside `with SimulatedGPU() as gpu:` the device 'cuda' exists: tensors that are sent or made there say that they
lie there, and what is asked of them is computed on the CPU. So the way that the code takes on a GPU is run and can be looked at:

    with SimulatedGPU() as gpu:
        model.to('cuda')
        with gpu.watch() as seen:
            step()
    seen.launches, seen.syncs, seen.uploads, seen.attention     # Counters: how often, by operation and by line of the repo

or $ python tests/simulated_gpu.py train_grpo.py config/arithmetic.py --device=cuda --max_iters=2     # a whole run

What a GPU refuses is refused: tensors of two devices in one operation or one of the CPU in a collective (TwoDevices), a NumPy array of a
GPU's tensor (TypeError), and while a CUDA graph is captured whatever cannot be captured (NotCapturable).

How it works. A tensor is an ordinary one of the CPU; the Ledger knows whose memory stands for the GPU's. Names, a mode for torch's Python
functions, answers what asks for the place (device, is_cuda) and what sends (to, cpu). Operations, a mode for torch's operations, sees
every one, also those of backward: results lie where their inputs do. Triton kernels are replaced by their torch twins, each one launch.

What counts as a sync is what torch.cuda.set_sync_debug_mode warns of: the host waits until the GPU has done all that was asked of it. To
read a number is one, and so is a copy from the host unless it is non_blocking. What cannot be seen here: speed, races, memory that a
graph uses again, the way in which an operation is cut into kernels, how a GPU rounds.
"""
import os
import runpy
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == '__main__':
    sys.path.insert(0, ROOT)

import flash  # noqa: E402
import kernels  # noqa: E402
from kernels import decoding  # noqa: E402

CPU, CUDA = torch.device('cpu'), torch.device('cuda', 0)
Tensor = torch.Tensor
# They tell the host how many elements there are, or a number.
READ_BY_THE_HOST = {
    '_local_scalar_dense', 'nonzero', 'masked_select', 'equal', '_unique', '_unique2', 'unique_consecutive', 'unique_dim',
    'unique_dim_consecutive', 'bincount', 'repeat_interleave'
}
FUSED_ON_CUDA = {'_fused_rms_norm'}  # one kernel there, and several operations here


class TwoDevices(RuntimeError):
    """Tensors of the GPU and of the CPU in one operation."""


class NotCapturable(RuntimeError):
    """What a CUDA graph cannot hold, while one is captured."""


@dataclass
class Seen:
    """How often, by operation and, but for launches, by the line of the repo that asked for it."""
    launches: Counter = field(default_factory=Counter)   # kernels
    syncs: Counter = field(default_factory=Counter)      # the host waited
    uploads: Counter = field(default_factory=Counter)    # copies from the host
    attention: Counter = field(default_factory=Counter)  # which of torch's kernels for attention a GPU would take, cuDNN's left out


def tensors_in(tree):
    """All tensors in lists, tuples and dicts, as torch's pytree finds them but in a third of the time."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [x for part in tree for x in tensors_in(part)]


def line_of_the_repo():
    """The innermost line that is the repo's own and not this file's."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(ROOT) and path != __file__ and 'site-packages' not in path:
            return f'{os.path.relpath(path, ROOT)}:{frame.f_lineno}'
        frame = frame.f_back
    return 'outside'


@contextmanager
def aside():
    """What is computed inside is not noticed: tensors are those of the CPU that they are."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


class Ledger:
    """Whose memory stands for the GPU's. A weak reference keeps an address from being given to other memory."""

    def __init__(self):
        self.on_gpu, self.pinned = {}, {}

    @staticmethod
    def memory(tensor):
        return getattr(tensor, '_local_tensor', tensor).untyped_storage()  # a DTensor has none of its own

    def holds(self, x):
        """Whether x is a tensor on the GPU; a number is none."""
        with torch._C.DisableTorchFunction():
            return isinstance(x, Tensor) and self.memory(x)._cdata in self.on_gpu

    def place(self, tree):
        """From now on these tensors lie on the GPU. Returns them."""
        with torch._C.DisableTorchFunction():
            for tensor in tensors_in(tree):
                memory = self.memory(tensor)
                self.on_gpu[memory._cdata] = StorageWeakRef(memory)
        return tree

    def is_pinned(self, tensor):
        return self.memory(tensor)._cdata in self.pinned

    def pin(self, tensor):
        memory = self.memory(tensor)
        self.pinned[memory._cdata] = StorageWeakRef(memory)
        return tensor


class Sent(torch.autograd.Function):
    """A copy on the other device, whose gradient goes back."""

    @staticmethod
    def forward(ctx, x, gpu, there):
        ctx.gpu, ctx.there = gpu, there
        with aside():
            copy = x.detach().clone()
        return gpu.ledger.place(copy) if there else copy

    @staticmethod
    def backward(ctx, grad):
        return Sent.apply(grad, ctx.gpu, not ctx.there), None, None


class Call(threading.local):
    """The function that a thread is in: the place that it names for what it makes, or None, and whether one of its tensors is the GPU's."""
    home, near = None, False


class Names(TorchFunctionMode):
    """What asks for a tensor's place, sends it or reads it, and what is made on a device."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu, self.now = gpu, Call()
        self.handlers = {
            Tensor.device.__get__: lambda x: CUDA if gpu.ledger.holds(x) else x.device,
            Tensor.is_cuda.__get__: gpu.ledger.holds,
            Tensor.is_cpu.__get__: lambda x: not gpu.ledger.holds(x),
            Tensor.get_device: lambda x: 0 if gpu.ledger.holds(x) else -1,
            Tensor.to: self.to,
            Tensor.cpu: lambda x, **options: self.send(x, False),
            Tensor.cuda: lambda x, device=None, non_blocking=False: self.send(x, True, non_blocking),
            Tensor.pin_memory: lambda x: gpu.ledger.pin(x.clone()),
            Tensor.is_pinned: gpu.ledger.is_pinned,
            Tensor.tolist: self.tolist,
            Tensor.numpy: self.no_numpy,
            Tensor.__array__: self.no_numpy,
            Tensor.__deepcopy__: self.deepcopy,
            Tensor.record_stream: lambda x, stream: None,
            Tensor.backward: self.backward,
            torch.tensor: self.tensor,
            torch.as_tensor: self.tensor,
            torch.where: partial(self.where, torch.where),
            Tensor.where: partial(self.where, Tensor.where),
            F.scaled_dot_product_attention: self.attention,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.handlers:
            return self.handlers[func](*args, **kwargs)
        return self.call(func, *args, **kwargs)

    def call(self, func, *args, **kwargs):
        """What the function makes lies on the device it names or, temporaries as well, on the GPU if one of its tensors does."""
        now, home = self.now, kwargs.get('device')
        before = now.home, now.near
        now.home = None if home is None else torch.device(home).type == 'cuda'
        now.near = any(map(self.gpu.ledger.holds, tensors_in((args, kwargs))))
        if now.home:
            kwargs = kwargs | {'device': CPU}
        try:
            return func(*args, **kwargs)
        finally:
            now.home, now.near = before

    def send(self, x, there, non_blocking=False):
        here = self.gpu.ledger.holds(x)
        if here == there:
            return x
        self.gpu.copied('to', x, there, non_blocking)
        copy = Sent.apply(x, self.gpu, there)
        return self.gpu.ledger.pin(copy) if here and non_blocking else copy

    def to(self, x, *args, copy=False, **kwargs):
        if args and isinstance(args[0], Tensor):
            there, dtype, non_blocking = self.gpu.ledger.holds(args[0]), args[0].dtype, False
        else:
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
            there = self.gpu.ledger.holds(x) if device is None else device.type == 'cuda'
        sent = self.send(x, there, non_blocking)
        return self.call(Tensor.to, sent, dtype or x.dtype, copy=copy and sent is x)

    def tolist(self, x):
        if self.gpu.ledger.holds(x):
            self.gpu.wait('tolist')
        with torch._C.DisableTorchFunction():
            return x.tolist()

    def no_numpy(self, x, *args, **kwargs):
        if self.gpu.ledger.holds(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        with torch._C.DisableTorchFunction():
            return x.numpy(*args, **kwargs)

    def deepcopy(self, x, memo):
        with torch._C.DisableTorchFunction():
            copy = Tensor.__deepcopy__(x, memo)
        return self.gpu.ledger.place(copy) if self.gpu.ledger.holds(x) else copy

    def backward(self, x, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        with self:  # what it runs of ours asks for places, too
            torch.autograd.backward(x, gradient, retain_graph, create_graph, inputs=inputs)

    def engine(self, run):
        """torch.autograd.backward or grad: what the engine makes itself lies where the loss does."""
        def run_near_the_loss(tensors, *args, **kwargs):
            before, self.now.near = self.now.near, any(map(self.gpu.ledger.holds, tensors_in(tensors)))
            try:
                return run(tensors, *args, **kwargs)
            finally:
                self.now.near = before
        return run_near_the_loss

    def tensor(self, data, dtype=None, device=None, **options):
        """torch.tensor and torch.as_tensor, which first make a tensor on the host and wait until it is sent."""
        if isinstance(data, Tensor):
            same = data if dtype is None else self.to(data, dtype)
            return same if device is None else self.to(same, device)
        there = device is not None and torch.device(device).type == 'cuda'
        made = self.call(torch.tensor, data, dtype=dtype, **options)
        if there:
            self.gpu.copied('tensor', made, True, False)
            self.gpu.ledger.place(made)
        return made

    def where(self, func, *args, **kwargs):
        """A number may be the CPU's, but as a tensor it is sent."""
        tensors = tensors_in((args, kwargs))
        if any(map(self.gpu.ledger.holds, tensors)):
            for x in tensors:
                if x.dim() == 0 and not self.gpu.ledger.holds(x):
                    self.gpu.copied('where', x, True, False)
        return self.call(func, *args, **kwargs)

    def attention(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=False, **options):
        if self.gpu.ledger.holds(q):
            grouped, half = q.shape[1] != k.shape[1], q.dtype.itemsize == 2
            flash = attn_mask is None and half and q.shape[-1] <= 256
            kernel = 'flash' if flash else 'math' if grouped else 'efficient'
            self.gpu.seen.attention[f'{kernel} {line_of_the_repo()}'] += 1
        return self.call(F.scaled_dot_product_attention, q, k, v, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa, **options)


class Operations(TorchDispatchMode):
    """Every operation: where its results lie, whether it launches, whether the host waits, whether a GPU would refuse it."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, Tensor) and hasattr(kind, '__tensor_flatten__') for kind in types):
            return NotImplemented  # a DTensor: its local operations come here
        kwargs, name = kwargs or {}, func._schema.name.partition('::')[2]
        if func.namespace == 'aten' and func._can_decompose() and name not in FUSED_ON_CUDA:
            with self:  # in inference mode they are not yet taken apart
                return func.decompose(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self.gpu.operation(func, name, args, kwargs)


class SimulatedGPU:
    """See above. stand_ins: {an operation that only CUDA has: a function of the same arguments that computes it here}."""

    def __init__(self, stand_ins=()):
        self.ledger, self.seen = Ledger(), Seen()
        self.names, self.operations = Names(self), Operations(self)
        self.stand_ins = PRODUCTS | flash.STAND_INS | dict(stand_ins)
        self.capture = None

    def __enter__(self):
        with ExitStack() as stack:
            stack.enter_context(patch.multiple(torch.cuda, **cuda_functions(self)))
            stack.enter_context(patch.object(torch.accelerator, 'current_stream', lambda device=None: Stream(self)))
            stack.enter_context(patch.object(torch, 'compile', lambda f=None, **options: f or (lambda g: g)))
            # torch.autograd.grad would call our mode, which is off while it answers
            stack.enter_context(patch.object(torch.autograd, 'has_torch_function', lambda tensors: False))
            for name in ('backward', 'grad'):
                stack.enter_context(patch.object(torch.autograd, name, self.names.engine(getattr(torch.autograd, name))))
            # checkpoints compare what is made again, also its device, which they ask for where our mode is off
            checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
            stack.enter_context(patch.dict(checks, default=lambda x: {'shape': x.shape, 'dtype': x.dtype}))
            group = torch._C._group_tensors_by_device_and_dtype
            stack.enter_context(patch.object(torch._C, '_group_tensors_by_device_and_dtype', by_their_place(group)))
            stack.enter_context(patch.object(dist, 'init_process_group', through_gloo(dist.init_process_group)))
            stack.enter_context(patch.object(dist.Work, 'wait', quietly(dist.Work.wait)))  # gloo copies results, NCCL does not
            stack.enter_context(patch.object(ThreadPoolExecutor, 'submit', self.submit_from(ThreadPoolExecutor.submit)))
            for module in (kernels, decoding):
                for name in [name for name in vars(module) if name.endswith('_triton')]:
                    stack.enter_context(patch.object(module, name, self.kernel(module, name)))
            stack.enter_context(self.in_this_thread())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self.stack.close()

    @contextmanager
    def in_this_thread(self):
        with self.names, self.operations:
            yield

    def submit_from(self, submit):
        def submit_with_the_gpu(pool, function, *args, **kwargs):
            def run():
                with self.in_this_thread():
                    return function(*args, **kwargs)
            return submit(pool, run)
        return submit_with_the_gpu

    @contextmanager
    def watch(self):
        """A Seen of what goes on inside; what is outside goes on counting as before."""
        before, self.seen = self.seen, Seen()
        try:
            yield self.seen
        finally:
            self.seen = before

    # ---- what is noticed

    def wait(self, what):
        """The host waits for the GPU."""
        self.refuse_to_capture(f'{what}: the host would wait')
        self.seen.syncs[f'{what} {line_of_the_repo()}'] += 1

    def refuse_to_capture(self, what):
        capture = self.capture
        if capture and (capture.thread == threading.get_ident() or capture.mode == 'global'):
            raise NotCapturable(f'{what}, in {line_of_the_repo()}')

    def copied(self, what, x, there, non_blocking):
        """Tensor x is sent to the GPU (`there`) or from it."""
        if there:
            if not (non_blocking and self.ledger.is_pinned(x)):
                self.refuse_to_capture(f'{what}: a copy from memory that is not pinned')
            self.seen.uploads[f'{what} {line_of_the_repo()}'] += 1
        if not non_blocking:
            self.wait(what)

    # ---- operations

    def operation(self, func, name, args, kwargs):
        """Run it. Returns its results, which lie where they should."""
        holds, inputs = self.ledger.holds, tensors_in((args, kwargs))
        held = [x for x in inputs if holds(x)]
        now, there = self.names.now, bool(held)
        if not inputs or name.startswith('new_') or name.endswith('_like'):
            there = (there or now.near) if now.home is None else now.home
        if there and any(isinstance(x, torch.Generator) for x in [*args, *kwargs.values()]):
            raise TwoDevices(f'{name}: a generator of random numbers of the CPU, in {line_of_the_repo()}')
        if func.namespace in ('c10d', '_c10d_functional') and name not in ('barrier', 'wait_tensor'):
            if len(held) < len(inputs):
                raise TwoDevices(f'{name}: a tensor of the CPU in a collective of GPUs, in {line_of_the_repo()}')
            if not all(x.is_contiguous() for x in inputs):
                raise ValueError(f'{name}: Tensors must be contiguous, in {line_of_the_repo()}')
        elif held:
            self.look_at_copies(name, args, kwargs)
        launches = there and not func.is_view and 'empty' not in name and name not in ('lift_fresh', '_unsafe_view', 'detach_')
        if name in READ_BY_THE_HOST and held and kwargs.get('output_size') is None:
            self.wait(name)
            launches = launches and name != '_local_scalar_dense'
        function = self.stand_ins.get(func, func)
        if not launches:
            out = function(*args, **kwargs)
        else:
            self.seen.launches[name] += 1
            out = self.run(function, args, kwargs, written_by(func, args, kwargs))
        if there:
            known = {self.ledger.memory(x)._cdata for x in inputs}
            self.ledger.place([x for x in tensors_in(out) if self.ledger.memory(x)._cdata not in known])
        return out

    def look_at_copies(self, name, args, kwargs):
        """An operation with a tensor on the GPU: what of the CPU goes into it, and does the host wait?"""
        holds = self.ledger.holds
        if name in ('copy_', '_to_copy'):
            if name == 'copy_' and holds(args[0]) != holds(args[1]):
                there = holds(args[0])
                non_blocking = bool(args[2]) if len(args) > 2 else kwargs.get('non_blocking', False)
                self.copied(name, args[1], there, non_blocking and (there or self.ledger.is_pinned(args[0])))
            return
        absent = [x for x in tensors_in((args, kwargs)) if (x.dim() or name in ('stack', 'cat')) and not holds(x)]
        if name in ('index', 'index_put', 'index_put_', '_index_put_impl_') and holds(args[0]):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8) and holds(index):
                    self.wait('index by a mask')
                elif index is not None and not holds(index):
                    self.copied('index of the CPU', index, True, False)
            absent = [x for x in tensors_in((args[2:], kwargs)) if x.dim() and not holds(x)]
        if absent:
            shapes = ', '.join(str(tuple(x.shape)) for x in absent)
            raise TwoDevices(f'{name}: Expected all tensors to be on the same device; {shapes} on the CPU, in {line_of_the_repo()}')

    def kernel(self, module, name):
        """Stands in for module.NAME_triton: its torch twin, as one launch."""
        twin = getattr(module, f"{name.removesuffix('_triton')}_torch")

        def launch(*args, **kwargs):
            tensors = tensors_in((args, kwargs))
            if not all(map(self.ledger.holds, tensors)):
                raise TwoDevices(f'{name}: a Triton kernel cannot reach a tensor of the CPU, in {line_of_the_repo()}')
            self.seen.launches[name] += 1
            with aside():
                return self.ledger.place(self.run(twin, args, kwargs, tensors))

        return launch

    # ---- CUDA graphs

    def run(self, function, args, kwargs, written):
        """function(*args, **kwargs), which a capture that goes on remembers; written: the tensors that it changes in place."""
        capture = self.capture
        if not capture or capture.thread != threading.get_ident():
            return function(*args, **kwargs)
        capture.undo += [(x, x.clone()) for x in written]
        out = function(*args, **kwargs)
        capture.steps.append((function, args, kwargs, out))
        return out


def through_gloo(init_process_group):
    """A group of NCCL is one of gloo here; that it is given the GPU's tensors alone is looked at in Operations."""
    def init(backend=None, *args, **kwargs):
        return init_process_group('gloo' if backend == 'nccl' else backend, *args, **kwargs)
    return init


def by_their_place(group):
    """What optimizers and norms sort tensors with, by the device that these say they lie on."""
    def sort(lists, with_indices=False):
        return {(groups[0][0].device, dtype): (groups, indices) for (_, dtype), (groups, indices) in group(lists, with_indices).items()}
    return sort


def quietly(function):
    def run(*args, **kwargs):
        with aside():
            return function(*args, **kwargs)
    return run


def written_by(func, args, kwargs):
    """The tensors that an operation changes in place, by its schema."""
    written = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += tensors_in(args[i] if i < len(args) else kwargs.get(argument.name))
    return written


def product(name):
    """mm, bmm, addmm, baddbmm with out_dtype, which only CUDA has: products of the inputs, summed and kept in fp32."""
    def compute(*args, out=None, **options):
        tensors = [x.float() for x in args if isinstance(x, Tensor)]
        made = getattr(torch, name)(*tensors, **options)
        return made if out is None else out.copy_(made)
    return compute


PRODUCTS = {}
for name in ('mm', 'bmm', 'addmm', 'baddbmm'):
    packet = getattr(torch.ops.aten, name)
    PRODUCTS |= {getattr(packet, overload): product(name) for overload in packet.overloads() if overload.startswith('dtype')}


class CUDAGraph:
    """
    torch.cuda.CUDAGraph. A capture runs the operations, since their results' shapes are needed, then takes back what they have changed, and
    what they have made holds garbage: until a replay, which runs them again, nothing has happened.
    """

    def __init__(self, gpu):
        self.gpu, self.steps, self.undo, self.replays = gpu, [], [], 0

    def replay(self):
        self.replays += 1
        self.gpu.seen.launches['graph'] += 1
        with aside():
            for function, args, kwargs, out in self.steps:
                again = function(*args, **kwargs)
                for x, new in zip(tensors_in(out), tensors_in(again), strict=True):
                    if x.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        x.copy_(new)

    def reset(self):
        self.steps = []

    def pool(self):
        return (0, 0)


@contextmanager
def capturing(gpu, graph, pool=None, stream=None, capture_error_mode='global'):
    """torch.cuda.graph"""
    gpu.wait('capture')  # it begins with torch.cuda.synchronize()
    graph.thread, graph.mode, gpu.capture = threading.get_ident(), capture_error_mode, graph
    before = dict(gpu.ledger.on_gpu)
    try:
        yield
    finally:
        gpu.capture = None
        with aside():
            for x, old in reversed(graph.undo):
                x.copy_(old)
            for x in tensors_in([out for *_, out in graph.steps]):
                if gpu.ledger.memory(x)._cdata not in before and x.is_floating_point():
                    x.fill_(torch.nan)
        graph.undo = []


# ---- the part of torch.cuda that is needed

class Stream:
    """A stream, or an event, on which nothing is ever waited for but by the host."""

    def __init__(self, gpu):
        self.gpu, self.device, self.cuda_stream = gpu, CUDA, 0

    def synchronize(self):
        self.gpu.wait('synchronize')

    def query(self):
        return True

    def record(self, stream=None):
        pass

    def record_event(self, event=None):
        return event or Stream(self.gpu)

    wait = wait_event = wait_stream = record

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def cuda_functions(gpu):
    """{name: what stands in for torch.cuda.NAME}"""
    def stream(*args, **kwargs):
        return Stream(gpu)

    properties = SimpleNamespace(name='simulated', total_memory=2 ** 36, multi_processor_count=132, major=9, minor=0)
    return {
        'is_available': lambda: True, 'device_count': lambda: 1, 'current_device': lambda: 0, 'set_device': lambda device: None,
        'is_initialized': lambda: True, 'synchronize': lambda device=None: gpu.wait('synchronize'), 'Stream': stream, 'Event': stream,
        'current_stream': stream, 'default_stream': stream, 'stream': lambda s: s or Stream(gpu), 'device': stream,
        'get_device_properties': lambda device=None: properties, 'get_device_capability': lambda device=None: (9, 0),
        'is_current_stream_capturing': lambda: gpu.capture is not None, 'empty_cache': lambda: None,
        'graph_pool_handle': lambda: (0, 0), 'CUDAGraph': lambda keep_graph=False: CUDAGraph(gpu),
        'graph': lambda graph, **options: capturing(gpu, graph, **options)
    }


def main(script, *arguments):
    """Run a script of the repo, train_grpo.py --device=cuda ..., and say what was seen."""
    sys.argv = [script, *arguments]
    with SimulatedGPU() as gpu:
        runpy.run_path(script, run_name='__main__')
    for what, counter in vars(gpu.seen).items():
        print(f'{what}: {sum(counter.values()):,}')
        for name, n in counter.most_common(20 if what != 'launches' else 0):
            print(f'  {n:5,} {name}')


if __name__ == '__main__':
    main(*sys.argv[1:])
