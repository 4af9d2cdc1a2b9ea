"""
Completions in turns: the policy stops, an environment (rewards/environments.py) answers into the same text,
the policy goes on. Rollout.own marks what it wrote itself, and that alone is trained on.

A row that waits keeps its keys and values; answers are read in one packed forward, and nothing is read twice.
A token's uniform number is that of its place among the row's own: no completion depends on its company.
"""
import contextlib
import itertools
import time
import types
from operator import itemgetter
from typing import Annotated

import torch

from grpo import Rollout
from kernels import padded_rows, wide
from kernels.decoding import draw_rows_torch
from policy import CausalPolicy, Decoder, GroupCache, check_request, prompts_of, read_prompts, uniforms
from rewards import fields_of
from rewards.environments import find_environment
from runtime import ranks
from runtime.config import Count, Positive
from runtime.console import Progress

PIECE = 32  # tokens of an answer that a row reads at once
CHAT = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]


# -----------------------------------------------------------------------------
# the sampler; shapes as in policy.py

class TurnCache(GroupCache):
    """A GroupCache whose rows have each a slot of their own, `at` (B,), and may read several tokens there."""

    def __init__(self, prefix, prompt_lengths, G, R, window):
        super().__init__(prefix, prompt_lengths, G, R, 1)
        self.at = prompt_lengths.new_zeros(len(prompt_lengths) * G)

    def go_to(self, counts):
        """Row b reads counts[b] tokens next, (B,) on the CPU. Returns the rows and slots (n,) of them all."""
        steps, device = torch.arange(int(counts.max())), self.at.device
        self.layout = padded_rows(counts, len(steps), device)
        rows, offsets = (x.to(device) for x in (steps < counts[:, None]).nonzero(as_tuple=True))
        self.places, self.read = (rows // self.width, rows % self.width), self.at[rows] + offsets
        self.n = int(self.read.max()) + 1
        self.later = self.slots[:self.n] > self.at[:, None, None] + steps.to(device)[:, None]  # (B, M, n)
        return rows, self.read

    def attend(self, layer, q, k, v):
        """The n tokens of go_to: q (n, H, d), k and v (n, H_kv, d) -> (n, H, d)."""
        (keys, values), (_, M, n), (line, place) = self.own[layer], self.later.shape, self.places
        (L, H_kv, width, _, d), dtype = values.shape, q.dtype
        q, k, v = map(wide, (q, k, v))
        keys[line, :, place, :, self.read], values[line, :, place, self.read] = k, v
        q = self.layout.pad(q).view(L, width, M, H_kv, -1, d).permute(0, 3, 1, 4, 2, 5)
        y = self.look(layer, q, self.later.view(L, 1, width, 1, M, n)).permute(0, 2, 4, 1, 3, 5)
        return self.layout.pack(y.reshape(L * width, M, -1, d)).to(dtype)

    def keep(self, rows):
        moved = super().keep(rows)
        self.at = self.at[moved.clamp(min=0)]
        return moved


class TurnDecoder(Decoder):
    """
    A Decoder that hears stop strings, and lets rows that have stopped run again. Meanwhile they write behind
    their end: there is room for a token more than they may have.
    """

    def __init__(self, policy, cache, u, positions, records):
        sampling = policy.temperature, policy.top_k, policy.top_p, policy.forbidden
        super().__init__(policy.model, cache, *u.shape, policy.tokenizer.eos_ids, sampling)
        self.start(u, positions)
        self.policy, self.records, self.most, self.seconds = policy, records, u.shape[1] - 1, 0.0
        self.tail = torch.arange(1 - policy.longest_stop, 1, device=u.device)
        self.own = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.lengths = torch.full_like(self.tokens[:, 0], self.most)
        self.begin, self.answered, ended, failed = torch.zeros_like(self.lengths.expand(4, -1))
        self.ended, self.failed = ended.bool(), failed.bool()

    def step(self):
        self.cache.go_to(torch.ones(len(self.rows), dtype=torch.long))
        hidden = self.read(self.rows, self.cache.at, self.positions)
        self.cache.at += self.running
        self.write(hidden)

    def read(self, rows, slots, positions):
        positions = (positions + slots).clamp(max=self.model.config.block_size - 1)  # behind the end too
        return self.model.run(self.tokens[rows, slots], positions, self.cache.attend)

    def write(self, hidden):
        rows, at, drew = self.rows, self.cache.at, self.running > 0
        draw_rows_torch(self.model.lm_head(hidden), self.u, rows, at, self.tokens, self.logps, self.allowed,
                        self.running, self.ends, self.sampling)  # the kernel draws for one slot
        self.own[rows, at] = True
        stops = (drew & (self.running == 0)) | self.stops()
        self.lengths[rows] = torch.where(stops, at + 1, self.lengths[rows])
        self.ended[rows] |= stops
        self.running *= ~stops & (at + 1 < self.most)
        self.cache.at = torch.where(self.running > 0, at, self.lengths[rows])

    def stops(self):
        """(B,) bool: rows that run, in whose newest token a stop string ends."""
        places = self.running.nonzero()
        rows, slots = self.rows[places], self.cache.at[places] + self.tail      # (n, 1), (n, longest_stop)
        turns = self.tokens[rows, slots.clamp(min=0)].masked_fill(slots < self.begin[rows], -1)
        stopped = torch.tensor(list(map(self.policy.stops, turns.tolist())), dtype=torch.bool)
        found = torch.zeros_like(self.running, dtype=torch.bool)
        found[places[:, 0]] = stopped.to(found.device)
        return found

    def ask(self):
        """
        Once a quarter of the rows have stopped: they run again behind what they are answered, or leave. False
        when none runs.
        """
        rows, since, N = self.rows, time.perf_counter(), len(self.lengths) - 1
        if 4 * int(self.running.sum()) > 3 * len(rows):
            return True
        asks = (self.running == 0) & self.ended[rows] & (self.lengths[rows] < self.most) & (rows < N)
        asks &= self.answered[rows] + 1 < self.policy.cfg.max_turns
        places, rows = asks.nonzero().squeeze(-1).tolist(), rows[asks].tolist()
        written = [self.tokens[row, :self.lengths[row]].tolist() for row in rows]
        records = [self.records[row * len(self.records) // N] for row in rows]
        answers = self.policy.answers(written, self.begin[rows].tolist(), records) if rows else []
        self.seconds += time.perf_counter() - since
        counts = torch.zeros(len(self.rows), dtype=torch.long)
        for place, row, ids in zip(places, rows, answers, strict=True):
            self.failed[row] = isinstance(ids, Exception)
            if isinstance(ids, list):
                counts[place] = self.append(place, row, ids)
        while counts.any():  # all but the last, which the next step reads
            part = counts.clamp(max=PIECE)
            places, slots = self.cache.go_to(part)
            self.read(self.rows[places], slots, self.positions[places])
            self.cache.at += part.to(slots.device)
            counts -= part
        if self.running.any() and not self.running.all():
            self.drop_ended()
        return bool(self.running.any())

    def append(self, place, row, ids):
        """Returns how many tokens are to be read before the last of ids."""
        start, R = int(self.lengths[row]), self.most
        end = min(start + len(ids), R)
        self.tokens[row, start:end] = torch.tensor(ids[:end - start], device=self.tokens.device)
        self.own[row, start:end], self.logps[row, start:end] = False, 0.0
        self.u[row, end:R] = self.u[row, start:start + R - end].clone()
        self.ended[row], self.lengths[row] = False, R
        if end > start:
            self.begin[row], self.answered[row] = end, self.answered[row] + 1
        self.running[place], self.cache.at[place] = end < R, start - 1
        return end - start


# -----------------------------------------------------------------------------
# the policy

class TurnPolicy(CausalPolicy):
    """
    A CausalPolicy whose completions ask. cfg: the settings of Asking, chat_template_kwargs, reward_errors;
    records_of(batch): P records with the columns that the environment sees, and `templated`.
    """

    def __init__(self, policy, cfg, environment, records_of):
        vars(self).update(vars(policy), cfg=cfg, environment=environment, records_of=records_of)
        stop = environment.stop if cfg.stop is None else cfg.stop
        try:
            self.tokenizer.encode(environment.says)
        except ValueError as e:
            raise ValueError(f"{environment} cannot answer this model: {e}") from None
        self.stop = [stop] if isinstance(stop, str) else stop
        self.longest_stop = 1 + max([len(text.encode()) for text in self.stop], default=0)  # tokens, at most

    @torch.no_grad()
    def sample(self, batch, group_size):
        """Its batch tells how often each was `answered`, where the environment `failed`, its seconds."""
        prompts, device = prompts_of(batch), self.model.wte.weight.device
        P, G, R = len(prompts), group_size, self.max_new_tokens
        check_request(prompts, self.model.config.block_size, G, R, self.temperature, self.top_k, self.top_p)
        u = uniforms(batch['seeds'].tolist(), G, R + 1).flatten(0, 1).to(device)
        hidden, prefix, lengths = read_prompts(lambda tokens, _: self.prefill(tokens, batch), prompts, device)
        cache = TurnCache(prefix, lengths, G, R + 1, 1)
        decoder = TurnDecoder(self, cache, u, lengths.repeat_interleave(G), self.records_of(batch))
        decoder.write(hidden.repeat_interleave(G, dim=0))
        with Progress('tokens', R) as progress:
            while decoder.ask():
                decoder.step()
                progress.step()
        made = decoder.completions(P, G, decoder.lengths[:-1], decoder.ended[:-1])
        own = decoder.own[:-1, :made.tokens.shape[-1]].cpu().unflatten(0, (P, G))
        answered, failed = (x[:-1].view(P, G).cpu() for x in (decoder.answered, decoder.failed))
        seconds = torch.full((P,), decoder.seconds / P)
        batch = batch | {'answered': answered, 'failed': failed, 'environment_time': seconds}
        ended = made.ended.cpu()
        return Rollout(batch, made.tokens, made.lengths.cpu(), made.logps, ended, made.allowed, own)

    def stops(self, ids):
        """Whether a stop string ends in the last token of a turn, -1 before it."""
        ids = [i for i in ids if i >= 0]
        before, text = map(self.tokenizer.decode, (ids[:-1], ids))
        return any(text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0 for stop in self.stop)

    def answers(self, written, begins, records):
        """
        What answers n completions, lists of ids, whose turns begin at `begins`: lists of ids, None where one
        is done, or what went wrong.
        """
        turns = [{'turn': self.text(ids[begin:])} for ids, begin in zip(written, begins, strict=True)]
        fields = [fields_of(record['columns']) | turn for record, turn in zip(records, turns, strict=True)]
        found = self.environment.answers([*map(self.text, written)], fields, self.cfg.environment_timeout)
        answers = []
        for ids, record, answer in zip(written, records, found, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise answer
                ended = ids[-1] in self.tokenizer.eos_ids
                done = answer is None or (ended and answer == '')
                answers.append(None if done else self.encoded(answer, ended, record['templated']))
            except (ValueError, RuntimeError, TimeoutError) as e:
                if self.cfg.reward_errors == 'raise':
                    raise
                self.environment.complain(e)
                answers.append(e)
        return answers

    def encoded(self, answer, ended, templated):
        """An answer's ids, cut to max_environment_tokens; a tool's message where the template has such."""
        if not isinstance(answer, str):
            got = f"{repr(answer)[:80]} ({type(answer).__name__})"
            raise ValueError(f"{self.environment} returned {got}, no text and not None")
        try:
            ids, most, mark = self.tokenizer.encode(answer), self.cfg.max_environment_tokens, []
        except ValueError as e:
            raise ValueError(f"{self.environment} answered {answer[:80]!r}: {e}") from None
        if len(ids) > most:
            with contextlib.suppress(ValueError):  # of a character that the vocabulary lacks
                mark = self.tokenizer.encode(' ...')
            ids = (ids[:max(0, most - len(mark))] + mark)[:most]
        message = self.as_tool(self.tokenizer.decode(ids), ended) if templated and ids else None
        return message or ids

    def as_tool(self, text, ended):
        """A text as a tool's message behind an assistant's; None where the chat template knows no tools."""
        with contextlib.suppress(ValueError):
            variables, tool = self.cfg.chat_template_kwargs or {}, {'role': 'tool', 'content': text}
            plain, told = (self.tokenizer.chat(chat, **variables) for chat in (CHAT, [*CHAT, tool]))
            end = max(i for i, token in enumerate(plain) if token in self.tokenizer.eos_ids)
            return told[end + ended:] if told != plain and told[:end] == plain[:end] else None

    def marked(self, rollout):
        """The texts, with what the environment wrote in brackets."""
        groups = zip(rollout.ids(), rollout.own.tolist(), strict=True)
        return [list(map(self.mark, *group)) for group in groups]

    def mark(self, ids, own):
        text = ''
        for mine, pairs in itertools.groupby(zip(ids, own, strict=False), key=itemgetter(1)):
            part = self.tokenizer.decode([i for i, _ in pairs])
            text += part if mine else f'⟦{part}⟧'
        return text


# -----------------------------------------------------------------------------
# what a job needs

class Asking:
    """What a job of prompts has for completions that ask."""
    environment = None

    class Settings:
        # completions that ask, see rewards/environments.py
        environment: types.FunctionType | str | None = None  # what answers: calculator, python, or a function
        stop: list | str | None = None          # strings that end a turn; None: the environment's
        max_turns: Annotated[int, '[2, inf)'] = 4  # of the policy; after the last nothing is answered
        max_environment_tokens: Count = 256     # of an answer, then it is cut; they count as new tokens
        environment_timeout: Positive = 30.0    # seconds; more is an error, see reward_errors

        @staticmethod
        def check(cfg):
            stop = [cfg.stop] if isinstance(cfg.stop, str) else cfg.stop or ()
            if not all(isinstance(text, str) and text for text in stop):
                raise ValueError(f"stop is {cfg.stop!r}: it must be texts, none of them empty")
            if stop and cfg.environment is None:
                raise ValueError("stop ends the turn of a completion that asks: set environment as well")
            if cfg.environment is not None and cfg.shard and not cfg.gather_to_sample:
                raise ValueError("environment with shard needs gather_to_sample: ranks do not ask in step")

    def find_environment(self, records):
        """What answers. Raises ValueError where a record lacks what it takes."""
        if self.cfg.environment is not None:
            self.environment = find_environment(self.cfg.environment)
            self.environment.check([fields_of(record) for record in records])

    def that_asks(self, policy):
        """The policy, one that asks where something answers."""
        asks = self.environment is not None
        return TurnPolicy(policy, self.cfg, self.environment, self.records_of) if asks else policy

    def records_of(self, batch):
        return [self.every_record[i] for i in batch['record'].tolist()]

    def less_failed(self, scores, rollout):
        """Scores {name: P lists of G}, with None for all that the environment failed."""
        for p, g in rollout.batch.get('failed', torch.zeros(0, 2)).nonzero().tolist():
            for values in scores.values():
                values[p][g] = None
        return scores

    def learn_beside(self, rollout):
        """How often completions asked and were answered, and how long that took."""
        metrics = super().learn_beside(rollout)
        if rollout.own is None:
            return metrics
        answers = rollout.batch['answered'].float()
        means = {'turns': 1 + answers, 'frac_asking': (answers > 0).float(),
                 'time_environment': rollout.batch['environment_time'].sum()}
        return metrics | {name: ranks.mean(values.mean().to(self.device)) for name, values in means.items()}
