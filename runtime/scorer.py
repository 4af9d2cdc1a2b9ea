"""The scorer service: its HTTP server, and the client that training asks with."""
import concurrent.futures
import functools
import hmac
import http.client
import http.server
import io
import ipaddress
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


class Punctual(io.RawIOBase):
    """What comes over a connection before its time is up. Raises TimeoutError."""

    def __init__(self, connection, seconds):
        self.connection, self.deadline = connection, time.monotonic() + seconds

    def readable(self):
        return True

    def readinto(self, buffer):
        self.connection.settimeout(max(1e-3, self.deadline - time.monotonic()))
        return self.connection.recv_into(buffer)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection."""

    def setup(self):
        super().setup()
        self.rfile = io.BufferedReader(Punctual(self.connection, self.server.patience))

    def log_message(self, *args): pass

    def reply(self, answer, *paths):
        """Send what answer() returns at one of the paths, a text or what becomes JSON, or why not."""
        try:
            try:
                if self.path not in paths:
                    raise Refused(404, f"there is no {self.path}, only {', '.join(paths)}")
                self.check_host()
                status, content = 200, answer()
            except Refused as e:
                status, content = e.args[0], {'error': e.args[1]}
            except TimeoutError:
                status, content = 408, {'error': f"the request took more than {self.server.patience:g} s"}
            except Exception as e:
                status, content = 500, {'error': f"{type(e).__name__}: {e}"[:500]}
            kind, body = 'text/html; charset=utf-8', content
            if not isinstance(content, str):
                kind, body = 'application/json', json.dumps(content)
            body = body.encode()
            self.connection.settimeout(self.server.patience)
            self.send_response(status)
            self.send_header('Content-Type', kind)
            self.send_header('Content-Length', str(len(body)))
            if status == 503:
                self.send_header('Retry-After', '1')
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client went away
            pass

    def check_host(self):
        """A page in a browser here may call us under a name of its own. Raises Refused."""
        host = self.headers.get('Host', 'localhost')
        name = urllib.parse.urlsplit(f'//{host}').hostname
        if is_local(self.server.server_address[0]) and not is_local(name):
            raise Refused(403, f"the Host is {host[:100]!r}, and this service answers this machine alone")


class ScorerHandler(Handler):
    """
    At most max_busy requests are computed at once, and of more than max_connections only /health is answered:
    who comes beyond that is told to come back.
    """

    def do_GET(self):
        self.reply(self.health, '/health')

    def do_POST(self):
        self.reply(self.scores, '/score_texts', '/score', '/score_batch')

    def health(self):
        return {'status': 'healthy', 'device': self.server.scorer.device}

    def scores(self):
        server, given = self.server, self.headers.get('Authorization', '')
        if server.token and not hmac.compare_digest(given.encode(), f'Bearer {server.token}'.encode()):
            raise Refused(401, "the header 'Authorization: Bearer SCORER_TOKEN' is wanted")
        if server.connections > server.max_connections:
            raise Refused(503, f"there are more than {server.max_connections} connections")
        request = self.read_json()
        if not server.free.acquire(blocking=False):
            raise Refused(503, f"{server.max_busy} requests are being answered already")
        try:
            rows = server.scorer.encode(self.texts_of(request))
            rewards, costs = server.batcher.ask(rows) if rows else ([], [])
        except ValueError as e:
            raise Refused(400, str(e)) from None
        finally:
            server.free.release()
        if not all(map(math.isfinite, rewards + costs)):
            raise ArithmeticError("a model gave NaN or infinity")
        return {'rewards': rewards, 'costs': costs}

    def read_json(self):
        length, most = self.headers.get('Content-Length', ''), self.server.max_bytes
        if self.headers.get_content_type() != 'application/json':  # which a page may not post unasked
            raise Refused(415, "the header 'Content-Type: application/json' is wanted")
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


def is_local(name):
    try:
        return ipaddress.ip_address(name or '').is_loopback
    except ValueError:
        return name == 'localhost'


class ScorerServer(http.server.ThreadingHTTPServer):
    """A judge.TextScorer behind HTTP: one thread a connection, batches across them."""
    request_queue_size, daemon_threads = 128, True
    patience = 60           # seconds for a request to arrive, and for its answer to leave
    max_connections = 256   # and a quarter more for /health

    def __init__(self, scorer, host='127.0.0.1', port=0, template='{prompt}{response}', token=None,
                 max_items=4096, max_bytes=16 << 20, max_busy=64):
        super().__init__((host, port), ScorerHandler)
        self.scorer, self.batcher = scorer, Batcher(scorer.score)
        self.join, self.token = joiner(template), token
        self.max_items, self.max_bytes, self.max_busy = max_items, max_bytes, max_busy
        self.free, self.connections, self.counting = threading.Semaphore(max_busy), 0, threading.Lock()

    def count(self, change):
        with self.counting:
            self.connections += change

    def get_request(self):
        accepted = super().get_request()
        self.count(1)
        return accepted

    def verify_request(self, request, client_address):
        return self.connections <= 1.25 * self.max_connections

    def shutdown_request(self, request):  # each that was accepted, whatever became of it
        super().shutdown_request(request)
        self.count(-1)

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
        self.ask('/health', None, check_health, seconds)

    def score(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """(rewards, costs) of texts."""
        scores, different = {}, list(dict.fromkeys(texts))
        for start in range(0, len(different), self.batch_size):
            batch = different[start:start + self.batch_size]
            columns = self.ask('/score_texts', {'texts': batch}, functools.partial(columns_in, n=len(batch)))
            scores |= zip(batch, zip(*columns, strict=True), strict=True)
        return [scores[text][0] for text in texts], [scores[text][1] for text in texts]

    def ask(self, path, content, read, patience=None):
        """read(answer to content, posted as JSON; None: a GET), which raises ValueError for one of no use."""
        patience = self.patience if patience is None else patience
        timeout = self.timeout if content else min(self.timeout, patience)
        body = json.dumps(content).encode() if content else None
        request = urllib.request.Request(self.url + path, body, self.headers)
        deadline, pause = None, 0.5  # from the first trouble on
        while True:
            retry_after = ''
            try:
                with self.opener.open(request, timeout=timeout) as response:
                    return read(json.loads(response.read(LARGEST_ANSWER)))
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


def in_threads(function, jobs, n=64):
    """[function(*job) for job in jobs], at most n at once, until one raises."""
    pool = concurrent.futures.ThreadPoolExecutor(n)
    try:
        return list(pool.map(lambda job: function(*job), jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def check_health(answer):
    if not isinstance(answer, dict) or answer.get('status') != 'healthy':
        raise ValueError(f"/health says {str(answer)[:100]}")


def columns_in(answer, n):
    """The n rewards and n costs in an answer, finite in fp32; else raises ValueError."""
    columns = []
    for key in ('rewards', 'costs'):
        values = answer.get(key) if isinstance(answer, dict) else None
        fine = isinstance(values, list) and len(values) == n
        if not fine or not all(type(x) in (int, float) and abs(x) <= LARGEST_SCORE for x in values):
            raise ValueError(f"its answer has not a list of {n} finite {key}")
        columns.append(list(map(float, values)))
    return columns


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
