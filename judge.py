"""
Neural judges, frozen while a policy learns from them: Judge tells how much of a text a machine has filled in (fill-in's reward is 1 - score), ScoreModel is a reward
or a cost model on a causal trunk, LagrangeMultiplier the price of a cost. Keep a second judge, trained from another seed and never used for
reward: where the two part, the policy is learning the judge's mistakes, not the text.

As a script it serves a reward and a cost model over HTTP; ScorerClient asks it.
$ python judge.py serve --reward=out-shop/reward.pt --cost=out-shop/cost.pt --port=8000
$ curl -d '{"prompts": ["tker>"], "responses": ["tea egg rice"]}' http://127.0.0.1:8000/score_batch       # {"rewards": [...], "costs": [...]}
GET /health · POST /score_texts {"texts"} · POST /score, /score_batch {"prompts", "responses"}. Cost above 0 is unsafe.
"""
import concurrent.futures
import hmac
import http.client
import http.server
import json
import math
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import torch
import torch.nn as nn

import weights
from completion import tokenizer_of
from model import GPT, GPTConfig, build, entry, load_checkpoint

LAMBDA_RULES = ('exponential', 'safe_rlhf')
BEAVER_TEMPLATE = 'BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{response}'  # what safe-rlhf's models were trained on


class Judge(nn.Module):
    """
    A bidirectional trunk that reads [CLS] + text. A slot head says of each character how likely it was replaced; the
    score is sigmoid(w . h_CLS + a * logit(mean over the text of those) + b). Evidence gathered slot by slot is learned from T
    labels a text instead of one, so the score is good after a minute where h_CLS alone needs several.
    """

    def __init__(self, config: GPTConfig, cls_id: int):
        super().__init__()
        self.trunk = GPT(config)
        self.cls_id = cls_id
        self.slot_head = nn.Linear(config.n_embd, 1)
        self.score_head = nn.Linear(config.n_embd + 1, 1)
        with torch.no_grad():  # starts as: score = the share of slots that look replaced, and few do
            self.slot_head.bias.fill_(-2.0)
            self.score_head.weight.zero_()[0, -1] = 1.0
            self.score_head.bias.zero_()

    def forward(self, tokens, lengths=None):
        """tokens (N, T) right-padded, lengths (N,) or None. Returns logits of the score (N,) and of each position's being replaced (N, T)."""
        N, T = tokens.shape
        if T + 1 > self.trunk.config.block_size:
            raise ValueError(f"the judge reads texts of at most {self.trunk.config.block_size - 1} tokens and was given {T}: train a judge with a larger block_size, or lower block_size")
        cls = torch.full((N, 1), self.cls_id, device=tokens.device)
        hidden = self.trunk(torch.cat((cls, tokens), dim=1), None if lengths is None else lengths + 1)  # (N, 1 + T, D)
        slots = self.slot_head(hidden[:, 1:]).squeeze(-1)
        replaced = slots.float().sigmoid()
        if lengths is None:
            share = replaced.mean(dim=1, keepdim=True)
        else:
            share = replaced.masked_fill(torch.arange(T, device=tokens.device) >= lengths[:, None], 0.0).sum(dim=1, keepdim=True) / lengths[:, None]
        return self.score_head(torch.cat((hidden[:, 0], share.logit(eps=1e-4)), dim=1)).squeeze(-1), slots

    @torch.inference_mode()
    def score(self, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """How machine-filled each text looks: (N,) in (0, 1)."""
        return self(tokens, lengths)[0].sigmoid()

    @classmethod
    def from_pretrained(cls, path: str, tokenizer) -> 'Judge':
        """
        The judge in a checkpoint file, on the CPU, frozen, with `quality`, how well it told held-out texts apart (auc, r2).
        Raises as load_checkpoint does, and ValueError when it was trained on another vocabulary than the tokenizer's.
        """
        checkpoint = load_checkpoint(path, 'judge')
        tokenizer.check_same(entry(checkpoint, 'chars', list, path), path)
        judge = build(lambda config: cls(config, tokenizer.cls_id), entry(checkpoint, 'model_config', dict, path), entry(checkpoint, 'model', dict, path), path)
        judge.quality = entry(checkpoint, 'quality', dict, path)
        return judge.eval().requires_grad_(False)


class ScoreModel(nn.Module):
    """
    A reward or cost model: a causal trunk, and a linear head at the text's last token, its end. Kind 'reward': the better text has the higher score, normalized by mean
    and spread. Kind 'cost': above 0 is unsafe, so that only the spread may be normalized. The shape of safe-rlhf's models (arXiv 2310.12773).
    """

    def __init__(self, config: GPTConfig, kind: str):
        super().__init__()
        if kind not in ('reward', 'cost'):
            raise ValueError(f"a score model is of kind 'reward' or 'cost', not {kind!r}")
        self.trunk, self.kind = GPT(config), kind
        self.score_head = nn.Linear(config.n_embd, 1)
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('var', torch.ones(()))

    def forward(self, tokens, lengths):
        """Scores (N,) of tokens (N, T), right-padded, with true lengths (N,); what stands in padding plays no part."""
        last = self.trunk(tokens)[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        score = self.score_head(last).squeeze(-1).float()
        return (score - self.mean if self.kind == 'reward' else score) * self.var.rsqrt()

    @classmethod
    def from_pretrained(cls, path: str, kind: str) -> 'ScoreModel':
        """The model of that kind at path, frozen, on the CPU: our checkpoint, or a folder that weights.read_score_model takes. Raises as load_checkpoint does."""
        if path.endswith('.pt'):
            checkpoint = load_checkpoint(path, kind)
            model = build(lambda config: cls(config, kind), entry(checkpoint, 'model_config', dict, path), entry(checkpoint, 'model', dict, path), path)
        else:
            fields, state, head, found = weights.read_score_model(path)
            if found not in (None, kind):
                raise ValueError(f"{path} holds a {found} model where a {kind} model is wanted: check which path belongs to which key")
            state = {f'trunk.{name}': tensor for name, tensor in state.items()} | {'score_head.weight': head['weight'], 'score_head.bias': head['bias'], 'mean': head['mean'], 'var': head['var']}
            model = build(lambda config: cls(config, kind), fields, state, path)
        return model.eval().requires_grad_(False)


class LagrangeMultiplier:
    """
    Lambda, the price of a cost, so that E[C] + threshold <= 0: the larger the threshold, the stricter. update() goes by the exponential average of J = mean cost +
    threshold, which begins at the first J. rule 'exponential': ln lambda += lr * average; 'safe_rlhf': lr * lambda * average, gradient ascent in ln lambda (Safe RLHF, arXiv
    2310.12773; it averages the last 128 episodes, as ema_beta 0 does with batches of that size). positive_only: J counts as max(J, 0), and lambda never falls again.
    """

    def __init__(self, value: float = 1.0, lr: float = 0.005, minimum: float = 1e-4, maximum: float = 5.0, ema_beta: float = 0.9, threshold: float = 0.0, positive_only: bool = False, rule: str = 'exponential'):
        if not 0 < minimum <= maximum or value < 0 or not 0 <= ema_beta < 1 or rule not in LAMBDA_RULES:
            raise ValueError(f"lambda needs 0 < minimum ({minimum}) <= maximum ({maximum}), a value ({value}) of at least 0, 0 <= ema_beta ({ema_beta}) < 1 and a rule ({rule!r}) of {', '.join(LAMBDA_RULES)}")
        if lr < 0:
            raise ValueError(f"lambda's rate is {lr}: below 0 it would fall as the cost rises")
        self.value, self.lr, self.minimum, self.maximum, self.ema_beta = value, lr, minimum, maximum, ema_beta
        self.threshold, self.positive_only, self.rule, self.ema = threshold, positive_only, rule, None
        self.log_value = math.log(value) if value else -math.inf

    def update(self, mean_cost: float) -> float:
        """Takes in a batch's mean cost, the same on all ranks, and returns the new lambda. Raises FloatingPointError when the cost is not finite."""
        if not math.isfinite(mean_cost):
            raise FloatingPointError(f"the mean cost is {mean_cost}: lambda was not touched")
        J = mean_cost + self.threshold
        if self.positive_only:
            J = max(J, 0.0)
        self.ema = J if self.ema is None else self.ema_beta * self.ema + (1 - self.ema_beta) * J
        self.log_value += self.lr * self.ema * (self.value if self.rule == 'safe_rlhf' else 1.0)
        self.log_value = min(max(self.log_value, math.log(self.minimum)), math.log(self.maximum))
        self.value = math.exp(self.log_value)
        return self.value

    def state_dict(self) -> dict:
        return {'value': self.value, 'log_value': self.log_value, 'ema': self.ema}

    def load_state_dict(self, state):
        self.value, self.log_value, self.ema = state['value'], state['log_value'], state['ema']


def score_ids(tokenizer, text, room):
    """Token ids of a text as score models read it, in training and in service: cut to leave room, then the end token, which the score is read at; a Llama's begin token before."""
    told = json.loads(getattr(tokenizer, 'files', {}).get('tokenizer_config.json', '{}'))
    begin = [tokenizer.bos_id] if tokenizer.bos_id is not None and told.get('add_bos_token', 'Llama' in str(told.get('tokenizer_class'))) else []
    return begin + tokenizer.encode(text[:100 * room])[:room - 1 - len(begin)] + [tokenizer.eos_id]


# ---------------------------------------------------------------------------------------------------------------------
# the scorer service

class TextScorer:
    """A reward and a cost model, or one of them, with their tokenizers: encode(texts), then score(what it returned) -> (rewards, costs), lists of floats."""

    def __init__(self, reward_path: str, cost_path: str, device: str = 'cpu', max_length: int = 512, dtype: torch.dtype = torch.float32, batch_tokens: int = 16384):
        self.device, self.batch_tokens = device, batch_tokens
        self.parts = []
        for path, kind in ((reward_path, 'reward'), (cost_path, 'cost')):
            if not path:
                continue
            model, tokenizer = ScoreModel.from_pretrained(path, kind).to(device), tokenizer_of(path)
            model.trunk.to(dtype)
            model.score_head.to(dtype)
            if tokenizer.eos_id is None:
                raise ValueError(f"the tokenizer of {path} has no end token, and a score is read there")
            self.parts.append((model, tokenizer, min(max_length, model.trunk.config.block_size)))

    def encode(self, texts):
        """For each text its ids for each of the models."""
        return [[score_ids(tokenizer, text, room) for _, tokenizer, room in self.parts] for text in texts]

    @torch.inference_mode()
    def score(self, rows):
        scores = []
        for which, (model, *_) in enumerate(self.parts):
            ids = [row[which] for row in rows]
            order, found = sorted(range(len(ids)), key=lambda i: len(ids[i])), [0.0] * len(ids)
            while order:
                n = max(1, min(len(order), self.batch_tokens // len(ids[order[-1]])))
                some, order = order[-n:], order[:-n]
                lengths = torch.tensor([len(ids[i]) for i in some])
                tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids[i]) for i in some], batch_first=True)
                for i, score in zip(some, model(tokens.to(self.device), lengths.to(self.device)).tolist()):
                    found[i] = score
            scores.append(found)
        return tuple(scores)


class Batcher:
    """One thread that owns the models. What comes in while it computes is computed together next."""

    def __init__(self, score, max_rows=256):
        self.score, self.max_rows, self.queue = score, max_rows, queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def ask(self, rows):
        """Scores of rows, after those that came before."""
        future = concurrent.futures.Future()
        self.queue.put((rows, future))
        return future.result()

    def work(self):
        while True:
            jobs = [self.queue.get()]
            while sum(len(rows) for rows, _ in jobs) < self.max_rows and not self.queue.empty():
                jobs.append(self.queue.get())
            try:
                rewards, costs = self.score([row for rows, _ in jobs for row in rows])
                start = 0
                for rows, future in jobs:
                    future.set_result((rewards[start:start + len(rows)], costs[start:start + len(rows)]))
                    start += len(rows)
            except Exception as e:  # out of memory, say: those who asked are told, and the next ones may have more luck
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(e)


ROUTES = 'GET /health, POST /score_texts, /score, /score_batch'


class Refused(Exception):
    """A request that gets an error status and one line that says why."""

    def __init__(self, status, why):
        super().__init__(why)
        self.status = status


class ScorerHandler(http.server.BaseHTTPRequestHandler):
    """One request, one connection. At most max_busy are read and computed at once; a client beyond that is told to come back."""
    timeout = 60  # seconds of a silent client

    def log_message(self, *args): pass

    def do_GET(self):
        self.reply(self.health)

    def do_POST(self):
        self.reply(self.scores)

    def reply(self, make):
        with self.server.lock:
            self.server.n_busy += 1
            too_many = self.server.n_busy > self.server.max_busy
        try:
            try:
                if too_many:
                    raise Refused(503, f"{self.server.max_busy} requests are being answered already")
                status, body = 200, json.dumps(make(), allow_nan=False)
            except Refused as e:
                status, body = e.status, json.dumps({'error': str(e)})
            except Exception as e:
                status, body = 500, json.dumps({'error': f"{type(e).__name__}: {e}"[:500]})
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            if status == 503:
                self.send_header('Retry-After', '1')
            self.end_headers()
            self.wfile.write(body.encode())
        except OSError:  # the client went away
            pass
        finally:
            with self.server.lock:
                self.server.n_busy -= 1

    def health(self):
        if self.path != '/health':
            raise Refused(404, f"there is no {self.path}: {ROUTES}")
        return {'status': 'healthy', 'device': self.server.scorer.device}

    def scores(self):
        server = self.server
        if self.path not in ('/score', '/score_batch', '/score_texts'):
            raise Refused(404, f"there is no {self.path}: {ROUTES}")
        if server.token and not hmac.compare_digest(self.headers.get('Authorization', '').encode(), f'Bearer {server.token}'.encode()):
            raise Refused(401, "the header 'Authorization: Bearer ...' with the service's SCORER_TOKEN is wanted")
        length = self.headers.get('Content-Length', '')
        if not (length.isascii() and length.isdigit() and len(length) < 13):
            raise Refused(411, "the header Content-Length is wanted")
        if int(length) > server.max_bytes:
            for _ in range(min(int(length), 4 * server.max_bytes) >> 16):  # a client hears of it only when it has sent its own
                self.rfile.read(1 << 16)
            raise Refused(413, f"the request has {length} bytes, more than {server.max_bytes}: send fewer texts at a time")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as e:
            raise Refused(400, f"the request is no JSON: {str(e)[:200]}")
        names = ('texts',) if self.path == '/score_texts' else ('prompts', 'responses')
        if not isinstance(asked, dict):
            raise Refused(400, f"the request must be an object with {' and '.join(names)}, not a {type(asked).__name__}")
        lists = [asked.get(name) for name in names]
        for name, texts in zip(names, lists):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise Refused(400, f"{name!r} must be a list of strings")
        if len(set(map(len, lists))) > 1:
            raise Refused(400, f"there are {len(lists[0])} prompts and {len(lists[1])} responses")
        if len(lists[0]) > server.max_items:
            raise Refused(413, f"the request has {len(lists[0])} texts, more than {server.max_items}: send fewer at a time")
        texts = lists[0] if self.path == '/score_texts' else [server.join(*pair) for pair in zip(*lists)]
        if not texts:
            return {'rewards': [], 'costs': []}
        try:
            rows = server.scorer.encode(texts)
        except ValueError as e:
            raise Refused(400, str(e))
        rewards, costs = server.batcher.ask(rows)
        if not all(map(math.isfinite, rewards + costs)):
            raise ArithmeticError("a model gave NaN or infinity")
        return {'rewards': rewards, 'costs': costs}


def joiner(template):
    """'... {prompt} ... {response} ...' as a function (prompt, response) -> text. Raises ValueError unless each is there once, in this order."""
    before, found, rest = template.partition('{prompt}')
    between, found_too, after = rest.partition('{response}')
    if not found or not found_too or '{prompt}' in rest or '{response}' in after:
        raise ValueError(f"template is {template!r}: it must have {{prompt}} and, after it, {{response}}, each once")
    return lambda prompt, response: before + prompt + between + response + after


class ScorerServer(http.server.ThreadingHTTPServer):
    """The service of `python judge.py serve`: a TextScorer behind HTTP, one thread a request, batches across them."""
    request_queue_size, daemon_threads = 128, True

    def __init__(self, scorer, host='127.0.0.1', port=0, template='{prompt}{response}', token=None, max_items=4096, max_bytes=16 << 20, max_busy=64):
        super().__init__((host, port), ScorerHandler)
        self.scorer, self.batcher, self.join, self.token, self.max_items, self.max_bytes = scorer, Batcher(scorer.score), joiner(template), token, max_items, max_bytes
        self.lock, self.n_busy, self.max_busy = threading.Lock(), 0, max_busy

    def stop(self, *_):
        """Take no more connections, answer what is being answered, at most 10 s long."""
        threading.Thread(target=self.shutdown).start()

    def run(self):
        self.serve_forever(poll_interval=0.1)
        self.server_close()
        deadline = time.monotonic() + 10
        while self.n_busy and time.monotonic() < deadline:
            time.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------------------
# the client

LARGEST_ANSWER = 16 << 20  # bytes; two numbers for each of 4096 texts are far less


class ScorerUnavailable(ConnectionError):
    """The scorer gave no usable answer for as long as we were patient."""


class ScorerClient:
    """
    Asks a scorer service at url, batch_size texts at a time, each text once. What may pass (no connection, 408, 429, 5xx, an answer that is no list of as many numbers, finite in fp32)
    is tried again for `patience` seconds, with growing pauses or those of Retry-After; then, and at any other refusal, ScorerUnavailable is raised: never a made-up score.
    """

    def __init__(self, url: str, batch_size: int = 32, timeout: float = 300.0, patience: float = 60.0, token: str | None = None):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f"scorer_url is {url!r}; it must be like http://127.0.0.1:8000")
        self.url, self.batch_size, self.timeout, self.patience = url.rstrip('/'), batch_size, timeout, patience
        token = token or os.environ.get('SCORER_TOKEN')
        self.headers = {'Content-Type': 'application/json'} | ({'Authorization': f'Bearer {token}'} if token else {})
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a scorer is a neighbour

    def wait(self, seconds):
        """Return when /health answers. Raises ScorerUnavailable after so many seconds."""
        self.ask('/health', None, lambda answer: answer.get('status') == 'healthy', seconds)

    def score(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """(rewards, costs), two lists of floats, one of each for each text."""
        found, different = {}, list(dict.fromkeys(texts))
        for start in range(0, len(different), self.batch_size):
            some = different[start:start + self.batch_size]

            def usable(answer):
                return all(isinstance(answer.get(key), list) and len(answer[key]) == len(some) and all(type(x) in (int, float) and abs(x) <= torch.finfo(torch.float32).max for x in answer[key]) for key in ('rewards', 'costs'))

            answer = self.ask('/score_texts', {'texts': some}, usable, self.patience)
            found |= dict(zip(some, zip(map(float, answer['rewards']), map(float, answer['costs']))))
        return [found[text][0] for text in texts], [found[text][1] for text in texts]

    def ask(self, path, content, usable, patience):
        deadline, pause = None, 0.5  # from the first trouble on
        body = None if content is None else json.dumps(content).encode()
        while True:
            wanted = None
            try:
                with self.opener.open(urllib.request.Request(self.url + path, body, self.headers), timeout=self.timeout if content else min(self.timeout, patience)) as response:
                    answer = json.loads(response.read(LARGEST_ANSWER))
                if isinstance(answer, dict) and usable(answer):
                    return answer
                trouble = "its answer is not what was asked for: finite numbers, one of a kind for each text"
            except urllib.error.HTTPError as e:
                with e:
                    try:
                        why = e.read(500).decode(errors='replace')
                    except (OSError, http.client.HTTPException) as broken:
                        why = type(broken).__name__
                trouble, wanted = f"status {e.code}: {why}", e.headers.get('Retry-After', '')
                if e.code not in (408, 429) and e.code < 500:
                    raise ScorerUnavailable(f"the scorer at {self.url} refuses {path}, {trouble}" + (": lower scorer_batch_size" if e.code == 413 else '')) from None
            except (OSError, ValueError, RecursionError, http.client.HTTPException) as e:  # ValueError: no JSON; RecursionError: a thousand brackets
                trouble = f"{type(e).__name__}: {e}"
            wait = float(wanted) if wanted and wanted.isdecimal() else pause * random.uniform(0.8, 1.2)
            deadline = deadline or time.monotonic() + patience
            if time.monotonic() + wait > deadline:
                raise ScorerUnavailable(f"the scorer at {self.url} gave no usable answer to {path} for {patience:.0f} s ({trouble}). Is it running? `curl {self.url}/health` asks it; `python judge.py serve` starts one")
            time.sleep(wait)
            pause = min(2 * pause, 10.0)


def start_scorer(reward_path, cost_path, device='cpu'):
    """A scorer service as a child process on a free port: (process, url). It ends when we end, however we do. Raises ScorerUnavailable when it does not start."""
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), 'serve', f'--reward={reward_path}', f'--cost={cost_path}', f'--device={device}', '--port=0', '--with_parent=True'],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)  # Ctrl-C is for us, not for it
    line = process.stdout.readline()
    if 'http://' not in line:
        process.kill()
        process.wait()
        raise ScorerUnavailable("the scorer did not start; what it said stands above")
    return process, line.split()[-1]


if __name__ == '__main__':
    from configurator import configure
    reward = ''                                # a reward model: our checkpoint, or a Hugging Face folder
    cost = ''                                  # and a cost model
    host = '127.0.0.1'                         # 0.0.0.0 serves other machines too: set SCORER_TOKEN in the environment of both sides then
    port = 8000                                # 0: any free one
    template: str | None = None                # how /score joins '{prompt}' and '{response}'; None: one after the other, and for a Hugging Face folder as safe-rlhf does
    max_length = 512                           # tokens of a text; longer ones are cut
    max_items = 4096                           # texts of a request
    max_bytes = 16 << 20                       # of a request
    device = 'cpu'
    precision = 'fp32'                         # 'fp32' | 'bf16'
    with_parent = False                        # True: stop when standard input closes, as it does when the program that started this one ends
    arguments = [a for a in sys.argv[1:] if a != 'serve']
    configure(globals(), arguments)
    if precision not in ('fp32', 'bf16') or max_length < 3:
        raise ValueError(f"precision is {precision!r} and max_length {max_length}: fp32 or bf16, and at least 3")
    if sys.argv[1:2] != ['serve'] or not reward or not cost:
        raise ValueError("usage: python judge.py serve --reward=DIR --cost=DIR [--port=8000]; --help lists the settings")
    if not os.environ.get('SCORER_TOKEN') and host not in ('127.0.0.1', 'localhost'):
        print(f"warning: anyone who reaches {host} may ask; set SCORER_TOKEN in the environment", file=sys.stderr)
    scorer = TextScorer(reward, cost, device, max_length, {'fp32': torch.float32, 'bf16': torch.bfloat16}[precision])
    try:
        server = ScorerServer(scorer, host, port, template or ('{prompt}{response}' if reward.endswith('.pt') else BEAVER_TEMPLATE), os.environ.get('SCORER_TOKEN'), max_items, max_bytes)
    except OSError as e:
        raise OSError(f"cannot listen on {host}:{port} ({e.strerror}): name another --port, or 0 for any free one") from None
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, server.stop)
    if with_parent:
        threading.Thread(target=lambda: (sys.stdin.read(), server.stop()), daemon=True).start()
    print(f"scorer ready: scorer_url = http://{host}:{server.server_address[1]}", flush=True)
    server.run()
