"""The decode step: compiled for a CPU; on a GPU its cache and its CUDA graphs, kept from batch to batch."""
from collections.abc import Callable

import torch
from torch.nn import functional as F

from kernels.decoding import attend_rows


def compiled(step: Callable) -> Callable:
    """A function of no arguments through torch.compile, once for all sizes."""
    torch.fx.experimental._config.use_duck_shape = False  # sizes equal by chance stay apart
    return torch.compile(step, dynamic=True)


class RowCache:
    """
    policy.GroupCache for a GPU, where nothing moves: attend_rows finds a row's slots by its number. So it
    costs nothing that rows leave, no second cache ever exists, and captured steps stay valid.
    """

    def __init__(self, model, like, G, T, R):
        """like: the keys of some layer, (P, any T, H_kv, d)."""
        P, _, H_kv, d = like.shape
        heads, self.sizes = model.config.n_head // H_kv, (G, T, R)
        self.quantum = -(-P * G // 8)  # rows leave by eighths, so that there are few graphs
        self.slots = [like.new_zeros(2, P * T + (P * G + 1) * R, H_kv, d) for _ in model.blocks]
        self.at, self.lengths = (torch.zeros(n, dtype=torch.long, device=like.device) for n in (1, P + 1))
        rope = model.rope(torch.arange(T + R, device=like.device), like.dtype)
        self.rope = rope and [angles.squeeze(1) for angles in rope]
        # how many rows read their prompt together; but a GPU has some 130 processors, which all want work
        self.width, most = 1, 32 if like.dtype.itemsize == 2 else 16
        while self.width < G and 2 * self.width * heads <= most and P * G * H_kv >= 256 * self.width:
            self.width *= 2

    def start(self, prefix, lengths):
        """Prompts of lengths (P,): each layer's keys and values, which leave the list `prefix`."""
        P, (_, T, _) = len(lengths), self.sizes
        for slots in self.slots:
            prompts = slots[:, :P * T].unflatten(1, (P, T))
            k, v = prefix.pop(0)
            prompts[0, :, :k.shape[1]], prompts[1, :, :k.shape[1]] = k, v
        self.lengths[:-1] = lengths
        self.at.zero_()

    def pays(self, alive, places):
        """As GroupCache.pays."""
        return 0 < alive + -alive % self.quantum < places

    def keep(self, rows):
        """As GroupCache.keep. The Decoder says what `rows` are now."""
        return F.pad(rows, (0, -len(rows) % self.quantum), value=-1)

    def attend(self, layer, q, k, v):
        """As GroupCache.attend, of queries and keys that are not turned yet."""
        return attend_rows(q, k, v, self.rope, self.slots[layer], self.lengths, self.rows, self.at,
                           self.sizes, self.width)

    def go_to(self, slot):
        """`at` alone tells where a step is."""


class Kept:
    """
    A policy's decoder on a GPU, for batch after batch of one kind, and its step as CUDA graphs, one for each
    number of rows: it changes tensors in place, in memory that depends on that number alone.
    """

    def __init__(self, captures=True):
        self.captures, self.decoder, self.key, self.T = captures, None, None, 0

    def decoder_for(self, model, kind, T, make):
        """
        make(T), a policy.Decoder for prompts of T tokens, or the one of before, if its kind, its model, and
        where the model's weights lie and its adapters are switched on are the same.
        """
        weights = [p.data_ptr() for p in model.parameters()] if self.captures else ()
        modes = [(module.training, getattr(module, 'on', True)) for module in model.modules()]
        key = kind, id(model), weights, modes
        if key != self.key or T > self.T:
            self.decoder = self.graphs = self.pool = None  # their memory is free before more is taken
            self.key, self.T, self.graphs = key, -(-T // 128) * 128, {}
            self.decoder = make(self.T)
        return self.decoder

    def step(self):
        """The decoder's step; the second of a number of rows is captured, for the first warms up."""
        n = len(self.decoder.rows)
        if n not in self.graphs or not self.captures:
            self.graphs[n] = None
            return self.decoder.step()
        if self.graphs[n] is None:
            graph = torch.cuda.CUDAGraph()
            # rewards of the batch before may use the device meanwhile, in their own thread
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode='thread_local'):
                self.decoder.step()
            self.graphs[n], self.pool = graph, graph.pool()
        self.graphs[n].replay()

    def let_go(self):
        """Training wants the memory of a large cache."""
        if self.decoder is None:
            return
        cache = self.decoder.cache
        memory = torch.cuda.get_device_properties(cache.at.device).total_memory
        if sum(slots.nbytes for slots in cache.slots) > memory // 8:
            self.decoder = self.graphs = self.pool = self.key = None
