"""
The scorer service: its HTTP server, and the client that training asks with.
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
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import torch

JUDGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'judge.py')
ROUTES = 'GET /health, POST /score_texts, /score, /score_batch'
LARGEST_ANSWER = 16 << 20  # bytes; two numbers for each of 4096 texts are far less


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
    process = subprocess.Popen([sys.executable, JUDGE, 'serve', f'--reward={reward_path}', f'--cost={cost_path}', f'--device={device}', '--port=0', '--with_parent=True'],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)  # Ctrl-C is for us, not for it
    line = process.stdout.readline()
    if 'http://' not in line:
        process.kill()
        process.wait()
        raise ScorerUnavailable("the scorer did not start; what it said stands above")
    return process, line.split()[-1]
