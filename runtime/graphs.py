"""
The decode step: compiled for a CPU; on a GPU its cache, its CUDA graphs, and what is kept of them from one
batch to the next.
"""
from collections.abc import Callable

import torch
from torch.nn import functional as F

from kernels import attend_rows


def compiled(step: Callable) -> Callable:
    """A function of no arguments through torch.compile, once for all sizes."""
    torch.fx.experimental._config.use_duck_shape = False  # sizes equal by chance stay apart
    return torch.compile(step, dynamic=True)


class RowCache:
    """
    policy.GroupCache for a GPU, where nothing moves: prompts (2, P, T, H_kv, d) and own slots (2, N + 1, H_kv,
    R, d), keys and values of N = P G rows, stay in their place, and attention finds them by a row's number,
    p G + g, or N for none. So it costs nothing that rows leave, no second cache ever exists, and captured
    steps stay valid. Rows leave by eighths of N: then there are few graphs.
    """
    turns, full = True, 0.9  # attend applies RoPE

    def __init__(self, model, like, G, T, R):
        """like: the keys of some layer, (P, any T, H_kv, d)."""
        P, _, H_kv, d = like.shape
        heads, self.G, self.n_rows, self.quantum = model.config.n_head // H_kv, G, P * G, -(-P * G // 8)
        self.prompt = [like.new_empty(2, P, T, H_kv, d) for _ in model.blocks]
        self.own = [like.new_empty(2, P * G + 1, H_kv, R, d) for _ in model.blocks]
        rope = model.rope(torch.arange(T + R, device=like.device), like.dtype)
        self.rope = rope and [angles.squeeze(1) for angles in rope]
        # the rows of a line read their prompt once; but a GPU has some 130 processors, each of which wants one
        self.width, queries = 1, 32 if like.dtype.itemsize == 2 else 16
        while self.width < G and 2 * self.width * heads <= queries and P * -(-G // (2 * self.width)) * H_kv >= 128:
            self.width *= 2
        self.most_lines = P * -(-G // self.width)
        self.lengths, self.at, self.row_room, self.line_room = (
            torch.zeros(n, dtype=torch.long, device=like.device) for n in (P, 1, P * G, self.most_lines + 1))

    def start(self, prefix, lengths):
        """Prompts of lengths (P,): each layer's keys and values, which leave the list `prefix`."""
        for room in self.prompt:
            k, v = prefix.pop(0)
            room[0, :, :k.shape[1]], room[1, :, :k.shape[1]] = k, v
        self.lengths.copy_(lengths)
        self.at.zero_()
        self.hold(torch.arange(self.n_rows, device=lengths.device))

    def hold(self, rows):
        """These rows (B,) from now on, groups together, in lines of at most `width` of one prompt."""
        index, most = torch.arange(len(rows), device=rows.device), min(len(rows), self.most_lines)
        opens = F.pad((rows // self.G).diff() != 0, (1, 0), value=True)
        in_group = index - torch.where(opens, index, 0).cummax(0).values
        begins = (in_group % self.width == 0) & (rows < self.n_rows)
        starts = begins.nonzero_static(size=most + 1, fill_value=len(rows)).squeeze(1)
        self.rows, self.starts = self.row_room[:len(rows)].copy_(rows), self.line_room[:most + 1].copy_(starts)

    def keep(self, rows):
        """As GroupCache.keep."""
        moved = F.pad(rows, (0, -len(rows) % self.quantum), value=-1)
        self.hold(torch.where(moved < 0, self.n_rows, self.rows[moved]))
        return moved

    def attend(self, layer, q, k, v):
        """As GroupCache.attend, of queries and keys that are not turned yet."""
        lines = self.rows, self.starts, self.G, self.width
        return attend_rows(q, k, v, self.rope, self.prompt[layer], self.own[layer], self.lengths, self.at, lines)

    def go_to(self, slot):
        """`at` alone tells a step where it is."""


class CapturedStep:
    """
    A step that is replayed as a CUDA graph, one for each number of rows. It changes its tensors in place, in
    memory that depends on that number alone, and never waits for the device.
    """

    def __init__(self, decoder, captures=True):
        self.decoder, self.captures, self.graphs, self.pool = decoder, captures, {}, None

    def __call__(self):
        n = len(self.decoder.rows)
        if not self.captures or n not in self.graphs:
            self.graphs[n] = None
            return self.decoder.step()  # the first of a number warms up
        if self.graphs[n] is None:
            graph = torch.cuda.CUDAGraph()
            # rewards of the batch before may use the device meanwhile, in their own thread
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode='thread_local'):
                self.decoder.step()
            self.graphs[n], self.pool = graph, graph.pool()
        self.graphs[n].replay()


class Kept:
    """A policy's last decoder on a GPU, with its buffers and graphs, for the next batch of its kind."""

    def __init__(self, captures=True):
        self.captures, self.key, self.step, self.T = captures, None, None, 0

    def take(self, model, key, T, make):
        """
        The CapturedStep of make(T), a policy.Decoder for prompts of T tokens: the one of before, if its model
        has its weights where they were, its adapters as they were, and key is the same. Large ones are not
        kept: training wants the memory.
        """
        if not self.captures:  # a sharded model, whose weights come and go
            return CapturedStep(make(T), captures=False)
        weights = [p.data_ptr() for p in model.parameters()]
        modes = [(module.training, getattr(module, 'on', True)) for module in model.modules()]
        key = key, id(model), weights, modes
        if key == self.key and T <= self.T:
            return self.step
        self.__init__()  # its memory is free before more is taken
        T = -(-T // 128) * 128
        step = CapturedStep(make(T))
        cache = step.decoder.cache
        n_bytes = sum(x.nbytes for x in cache.prompt + cache.own)
        if n_bytes <= torch.cuda.get_device_properties(cache.at.device).total_memory // 8:
            self.key, self.step, self.T = key, step, T
        return step
