"""The scorer service: its HTTP server, and the client that training asks with."""
import concurrent.futures
import hmac
import http.client
import http.server
import json
import math
import os
import queue
import random
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

JUDGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'judge.py')
LARGEST_ANSWER = 16 << 20  # bytes; two numbers for each of 4096 texts are far less
LARGEST_SCORE = 3.4e38     # of fp32


class Batcher:
    """One thread that owns the models. What comes in while it computes is computed together next."""

    def __init__(self, score):
        self.score, self.queue = score, queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def ask(self, rows):
        """Scores of rows, after those that came before."""
        future = concurrent.futures.Future()
        self.queue.put((rows, future))
        return future.result()

    def work(self):
        while True:
            jobs = [self.queue.get()]
            while not self.queue.empty() and sum(len(rows) for rows, _ in jobs) < 256:
                jobs.append(self.queue.get())
            try:
                rewards, costs = self.score([row for rows, _ in jobs for row in rows])
            except Exception as e:  # out of memory, say: those who asked are told
                for _, future in jobs:
                    future.set_exception(e)
                continue
            for rows, future in jobs:
                n = len(rows)
                future.set_result((rewards[:n], costs[:n]))
                rewards, costs = rewards[n:], costs[n:]


class Refused(Exception):
    """Refused(status, why)"""


class ScorerHandler(http.server.BaseHTTPRequestHandler):
    """One request a connection, at most max_busy at once: who comes beyond that is told to come back."""
    timeout = 60  # seconds of a silent client

    def log_message(self, *args): pass

    def do_GET(self):
        self.reply(self.health, '/health')

    def do_POST(self):
        self.reply(self.scores, '/score_texts', '/score', '/score_batch')

    def reply(self, answer, *paths):
        """Send what answer() returns at one of the paths, or else why not."""
        server = self.server
        is_free = server.free.acquire(blocking=False)
        try:
            try:
                if not is_free:
                    raise Refused(503, f"{server.max_busy} requests are being answered already")
                if self.path not in paths:
                    raise Refused(404, f"there is no {self.path}, only {', '.join(paths)}")
                status, content = 200, answer()
            except Refused as e:
                status, content = e.args[0], {'error': e.args[1]}
            except Exception as e:
                status, content = 500, {'error': f"{type(e).__name__}: {e}"[:500]}
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            if status == 503:
                self.send_header('Retry-After', '1')
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client went away
            pass
        finally:
            if is_free:
                server.free.release()

    def health(self):
        return {'status': 'healthy', 'device': self.server.scorer.device}

    def scores(self):
        server, given = self.server, self.headers.get('Authorization', '')
        if server.token and not hmac.compare_digest(given.encode(), f'Bearer {server.token}'.encode()):
            raise Refused(401, "the header 'Authorization: Bearer SCORER_TOKEN' is wanted")
        request = self.read_json()
        try:
            rows = server.scorer.encode(self.texts_of(request))
        except ValueError as e:
            raise Refused(400, str(e)) from None
        rewards, costs = server.batcher.ask(rows) if rows else ([], [])
        if not all(map(math.isfinite, rewards + costs)):
            raise ArithmeticError("a model gave NaN or infinity")
        return {'rewards': rewards, 'costs': costs}

    def read_json(self):
        length, most = self.headers.get('Content-Length', ''), self.server.max_bytes
        if not re.fullmatch('[0-9]{1,12}', length):
            raise Refused(411, "the header Content-Length is wanted")
        if int(length) > most:
            for _ in range(min(int(length), 4 * most) >> 16):  # a client reads after it has sent all
                self.rfile.read(1 << 16)
            raise Refused(413, f"the request has {length} bytes, more than {most}: send fewer texts")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as e:
            raise Refused(400, f"the request is no JSON: {str(e)[:200]}") from None

    def texts_of(self, request):
        """The texts to score. Raises ValueError, Refused."""
        names = ['texts'] if self.path == '/score_texts' else ['prompts', 'responses']
        lists = [request.get(name) if isinstance(request, dict) else None for name in names]
        for texts in lists:
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"the request must be an object: {' and '.join(names)}, lists of strings")
        n, most = len(lists[0]), self.server.max_items
        if n != len(lists[-1]):
            raise ValueError(f"there are {n} prompts and {len(lists[1])} responses")
        if n > most:
            raise Refused(413, f"the request has {n} texts, more than {most}: send fewer at a time")
        return lists[0] if len(lists) == 1 else list(map(self.server.join, *lists))


def joiner(template):
    """'... {prompt} ... {response} ...' as a function (prompt, response) -> text."""
    parts = re.split(r'(\{prompt\}|\{response\})', template)
    if parts[1::2] != ['{prompt}', '{response}']:
        raise ValueError(f"template is {template!r}: it must have {{prompt}}, then {{response}}, once each")
    before, _, between, _, after = parts
    return lambda prompt, response: before + prompt + between + response + after


class ScorerServer(http.server.ThreadingHTTPServer):
    """A judge.TextScorer behind HTTP: one thread a request, batches across them."""
    request_queue_size, daemon_threads = 128, True

    def __init__(self, scorer, host='127.0.0.1', port=0, template='{prompt}{response}', token=None,
                 max_items=4096, max_bytes=16 << 20, max_busy=64):
        super().__init__((host, port), ScorerHandler)
        self.scorer, self.batcher = scorer, Batcher(scorer.score)
        self.join, self.token = joiner(template), token
        self.max_items, self.max_bytes, self.max_busy = max_items, max_bytes, max_busy
        self.free = threading.Semaphore(max_busy)

    def stop(self, *_):
        """Take no more connections, and let run() answer what is being answered, at most 10 s long."""
        threading.Thread(target=self.shutdown).start()

    def run(self):
        self.serve_forever(poll_interval=0.1)
        self.server_close()
        deadline = time.monotonic() + 10
        for _ in range(self.max_busy):
            self.free.acquire(timeout=max(0.0, deadline - time.monotonic()))


class ScorerUnavailable(ConnectionError):
    """The scorer gave no usable answer for as long as we were patient."""


class ScorerClient:
    """
    Asks a scorer service, batch_size texts at a time, each once. What may pass (no connection, 408, 429, 5xx,
    an answer of no use) is tried again for `patience` seconds; then, and at any other refusal, it raises
    ScorerUnavailable.
    """

    def __init__(self, url: str, batch_size: int = 32, timeout: float = 300.0, patience: float = 60.0,
                 token: str | None = None):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f"scorer_url is {url!r}; it must be like http://127.0.0.1:8000")
        self.url, self.batch_size = url.rstrip('/'), batch_size
        self.timeout, self.patience = timeout, patience
        self.headers, token = {'Content-Type': 'application/json'}, token or os.environ.get('SCORER_TOKEN')
        if token:
            self.headers['Authorization'] = f'Bearer {token}'
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a scorer is a neighbour

    def wait(self, seconds):
        """Until /health answers, for so many seconds."""
        self.ask([], seconds)

    def score(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """(rewards, costs) of texts."""
        scores, different = {}, list(dict.fromkeys(texts))
        for start in range(0, len(different), self.batch_size):
            batch = different[start:start + self.batch_size]
            scores |= zip(batch, zip(*self.ask(batch, self.patience), strict=True), strict=True)
        return [scores[text][0] for text in texts], [scores[text][1] for text in texts]

    def ask(self, texts, patience):
        """Rewards and costs, of one request; without texts it asks for /health."""
        path, body = '/score_texts', json.dumps({'texts': texts}).encode()
        timeout = self.timeout
        if not texts:
            path, body, timeout = '/health', None, min(timeout, patience)
        request = urllib.request.Request(self.url + path, body, self.headers)
        deadline, pause = None, 0.5  # from the first trouble on
        while True:
            retry_after = ''
            try:
                with self.opener.open(request, timeout=timeout) as response:
                    answer = json.loads(response.read(LARGEST_ANSWER))
                if texts:
                    return [finite_numbers(answer, key, len(texts)) for key in ('rewards', 'costs')]
                if isinstance(answer, dict) and answer.get('status') == 'healthy':
                    return answer
                raise ValueError(f"/health says {str(answer)[:100]}")
            except urllib.error.HTTPError as e:
                trouble, retry_after = f"status {e.code}: {reason_of(e)}", e.headers.get('Retry-After', '')
                if e.code not in (408, 429) and e.code < 500:
                    remedy = ": lower scorer_batch_size" if e.code == 413 else ''
                    raise ScorerUnavailable(f"the scorer at {self.url} refuses: {trouble}{remedy}") from None
            except (OSError, ValueError, RecursionError, http.client.HTTPException) as e:
                trouble = f"{type(e).__name__}: {e}"
            wait = float(retry_after) if retry_after.isdecimal() else pause * random.uniform(0.8, 1.2)
            deadline = deadline or time.monotonic() + patience
            if time.monotonic() + wait > deadline:
                raise ScorerUnavailable(f"the scorer at {self.url} gave no usable answer in {patience:.0f} s "
                                        f"({trouble}): does it run? `python judge.py serve` starts one")
            time.sleep(wait)
            pause = min(2 * pause, 10.0)


def finite_numbers(answer, key, n):
    """The n numbers, finite in fp32, that an answer has under key; else raises ValueError."""
    values = answer.get(key) if isinstance(answer, dict) else None
    fine = isinstance(values, list) and len(values) == n
    if not fine or not all(type(x) in (int, float) and abs(x) <= LARGEST_SCORE for x in values):
        raise ValueError(f"its answer has not a list of {n} finite {key}")
    return list(map(float, values))


def reason_of(error):
    """What a service says with an error status."""
    with error:
        try:
            return error.read(500).decode(errors='replace')
        except (OSError, http.client.HTTPException) as broken:
            return type(broken).__name__


def start_scorer(reward_path, cost_path, device='cpu'):
    """A scorer service as a child process on a free port: (process, url). It ends when we end."""
    command = [sys.executable, JUDGE, 'serve', f'--reward={reward_path}', f'--cost={cost_path}',
               f'--device={device}', '--port=0', '--with_parent=True']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # Ctrl-C is for us, not for it
    line = process.stdout.readline()
    if 'http://' not in line:
        process.kill()
        process.wait()
        raise ScorerUnavailable("the scorer did not start; it says why above")
    return process, line.split()[-1]
