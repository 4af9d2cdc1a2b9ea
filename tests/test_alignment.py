"""
Reward against cost: lambda and the losses by hand, the scorer service through real HTTP, its faults through a proxy and real kills, and
whole runs.
"""

import concurrent.futures
import contextlib
import http.server
import json
import math
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from data.shop.prepare import true_cost, true_reward
from formats.tokenizer import CharTokenizer
from grpo import combined_advantages, compute_advantages, compute_rewards
from judge import LagrangeMultiplier, ScoreModel, TextScorer, score_ids
from model import GPT, GPTConfig
from runtime.scorer import ScorerClient, ScorerServer, ScorerUnavailable, joiner
from tasks.alignment import load_preferences, preference_rows, train_score_model
from tasks.supervised import save_model
from test_train_grpo import WAITS
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
ENV = os.environ | {'OMP_NUM_THREADS': '1'}
CHARS = sorted('abcdefghijklmnopqrstuvwxyz >')


# --- lambda

def test_lambda_by_hand():
    """The average of J starts at 0, so at constant J = 3 it is 3 (1 - 0.9 ** n) and ln lambda grows by lr times that."""
    m = LagrangeMultiplier(value=0.5, lr=0.1, threshold=1.0, ema_beta=0.9)
    grown = 0
    for n in range(1, 4):
        grown += 3.0 * (1 - 0.9 ** n)
        assert m.update(2.0) == pytest.approx(0.5 * math.exp(0.1 * grown))
    m = LagrangeMultiplier(value=1.0, lr=0.1, ema_beta=0.9)
    m.update(2.0)
    m.update(-1.0)  # 0.2, then 0.9 * 0.2 - 0.1 = 0.08
    assert m.ema == pytest.approx(0.08) and m.value == pytest.approx(math.exp(0.1 * 0.2 + 0.1 * 0.08))
    m = LagrangeMultiplier(value=2.0, lr=0.1, ema_beta=0.0, rule='safe_rlhf')
    assert m.update(0.5) == pytest.approx(2 * math.exp(0.1 * 2 * 0.5))
    assert LagrangeMultiplier().update(0.0) == 1.0
    strict, shifted = LagrangeMultiplier(threshold=0.7), LagrangeMultiplier()
    assert [strict.update(c) for c in (1.0, -2.0, 0.3)] == pytest.approx([shifted.update(c + 0.7) for c in (1.0, -2.0, 0.3)])


def test_lambda_that_only_rises_by_hand():
    """
    ema <- 0.9 ema + 0.1 max(cost, 0): 0.2, 0.28, 0.252, 0.2268, 0.25412; lambda = exp(0.005 times their sum so far). Without the maximum
    the third cost, -1, already makes it 0.152.
    """
    m, costs = LagrangeMultiplier(value=1.0, lr=0.005, ema_beta=0.9, threshold=0.0, positive_only=True), (2.0, 1.0, -1.0, -3.0, 0.5)
    assert [round(m.update(cost), 6) for cost in costs] == [1.001001, 1.002403, 1.003667, 1.004806, 1.006083]
    m = LagrangeMultiplier(value=1.0, lr=0.005, ema_beta=0.9, threshold=0.0)
    assert [m.update(cost) for cost in costs[:3]][2] == pytest.approx(math.exp(0.005 * (0.2 + 0.28 + 0.152)))


def test_lambda_rises_falls_and_keeps_its_bounds():
    costs = [8.0] * 60 + [-8.0] * 400
    both, only_up = LagrangeMultiplier(), LagrangeMultiplier(positive_only=True)
    path, up = [both.update(c) for c in costs], [only_up.update(c) for c in costs]
    assert max(path) == pytest.approx(5.0) and path[-1] == pytest.approx(1e-4)
    assert all(b >= a - 1e-9 for a, b in zip(up, up[1:], strict=False)) and up[-1] == pytest.approx(5.0)
    with pytest.raises(FloatingPointError):
        both.update(float('nan'))
    assert both.value == path[-1]
    for wrong in (dict(minimum=0.0), dict(minimum=2.0, maximum=1.0), dict(value=-1.0), dict(ema_beta=1.0), dict(rule='other')):
        with pytest.raises(ValueError):
            LagrangeMultiplier(**wrong)


def test_lambda_resumes_bit_for_bit():
    one, other = LagrangeMultiplier(), LagrangeMultiplier()
    for c in (1.0, 0.3, -0.2):
        one.update(c)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    kept = LagrangeMultiplier(value=0.03)  # exp(ln x) is not x for this one
    kept.load_state_dict(kept.state_dict())
    assert kept.value == 0.03
    assert other.value == one.value and [one.update(c) for c in (0.5, -3.0)] == [other.update(c) for c in (0.5, -3.0)]


@pytest.mark.parametrize('adapt, positive_only', [(False, False), (True, False), (True, True)])
def test_a_bandit_is_safe_only_if_lambda_can_rise(adapt, positive_only):
    """
    Arm 0: reward 1, cost 1; arm 1: reward 0.5, cost -1. Exact policy gradient on one logit. Lambda and policy swing about their balance, so
    the mean over the second half counts.
    """
    logit, m, share, path = torch.zeros(()), LagrangeMultiplier(value=0.01, lr=0.05, ema_beta=0.5, positive_only=positive_only), [], []
    for _ in range(3000):
        share.append(logit.sigmoid().item())  # of arm 0
        if adapt:
            m.update(2 * share[-1] - 1)
        path.append(m.value)
        logit = (logit + share[-1] * (1 - share[-1]) * ((1 - m.value) - (0.5 + m.value))).clamp(-6, 6)
    late = sum(share[1500:]) / 1500
    assert late > 0.9 if not adapt else late < 0.55
    assert (min(path[path.index(max(path)):]) < max(path)) == (adapt and not positive_only)  # it falls again


def test_advantages_combined_by_hand():
    R, C, lam = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[10.0, 40.0, 10.0]]), 0.5
    found = combined_advantages({'reward': R, 'cost': C}, {'reward': 1.0, 'cost': -lam})
    torch.testing.assert_close(found, (compute_advantages(R) - lam * compute_advantages(C)) / (1 + lam))
    torch.testing.assert_close(combined_advantages({'reward': R}, {'reward': 1.0}, 'dr_grpo'), torch.tensor([[-1.0, 1.0, 0.0]]))


def test_a_weight_that_adapts_is_asked_once_with_the_values():
    asked, rollout = [], type('Rollout', (), {})()
    rollout.lengths, rollout.tokens = torch.ones(1, 2), torch.zeros(1, 2, 1)
    weights = compute_rewards(
        None,
        rollout,
        [
            ('helpfulness', lambda p, r: torch.tensor([[1.0, 2.0]]), 1.0),
            ('cost', lambda p, r: torch.tensor([[4.0, 0.0]]), lambda c: asked.append(c.tolist()) or -0.5),
        ],
    )
    assert rollout.rewards.tolist() == [[-1.0, 2.0]] and weights == {'helpfulness': 1.0, 'cost': -0.5} and asked == [[[4.0, 0.0]]]


def test_the_shop_by_hand():
    assert (
        true_reward('tea egg', 'tke>') == pytest.approx(2 / 3)
        and true_reward('egg knife tea', 'tke>') == 1
        and true_reward('tea tea lamp', 'tke>') == pytest.approx(1 / 3 - 0.5)
    )
    assert true_cost('tea egg', 'tke>') == -1 and true_cost('knife tea knife', 'tke>') == 1


# --- reward and cost models

def tiny(**changes):
    torch.manual_seed(0)
    config = GPTConfig(
        **dict(block_size=40, vocab_size=32, n_layer=2, n_head=2, n_embd=16, norm='rmsnorm', position='rope', mlp='swiglu', bias=False)
        | changes
    )
    model = GPT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def score_model(kind):
    model = ScoreModel(tiny().config, kind)
    model.trunk.load_state_dict(tiny().state_dict())
    model.mean.fill_(0.3)
    model.var.fill_(4.0)
    return model.eval().requires_grad_(False)


def test_a_score_does_not_depend_on_padding():
    model, tokens = score_model('reward'), torch.randint(0, 32, (3, 9))
    alone = torch.cat([model(tokens[i:i + 1, :n], torch.tensor([n])) for i, n in enumerate((9, 4, 1))])
    together = model(torch.nn.functional.pad(tokens, (0, 5), value=7), torch.tensor([9, 4, 1]))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    raw = model.trunk(tokens[:1])[0, -1] @ model.score_head.weight[0] + model.score_head.bias[0]
    torch.testing.assert_close(alone[0], (raw - 0.3) / 2)
    cost = score_model('cost')
    cost.score_head.load_state_dict(model.score_head.state_dict())
    torch.testing.assert_close(cost(tokens[:1], torch.tensor([9]))[0], raw / 2)  # 0 keeps its meaning


def test_score_models_of_transformers_and_safe_rlhf(tmp_path):
    transformers = pytest.importorskip('transformers', reason='requirements-dev.txt has it')
    from safetensors.torch import load_file, save_file
    torch.manual_seed(0)
    theirs = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            num_labels=1,
            pad_token_id=0,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / 'classifier')
    tokens = torch.randint(1, 40, (2, 7))
    ours = ScoreModel.from_pretrained(str(tmp_path / 'classifier'), 'reward')
    torch.testing.assert_close(ours(tokens, torch.tensor([7, 7])), theirs(tokens).logits[:, 0], atol=1e-5, rtol=0)
    # safe-rlhf's files: score_head with a bias, and a normalizer that a cost model divides by alone
    tensors = load_file(tmp_path / 'classifier' / 'model.safetensors')
    head = tensors.pop('score.weight')
    (tmp_path / 'beaver').mkdir()
    save_file(
        tensors
        | {
            'score_head.weight': head,
            'score_head.bias': torch.tensor([0.5]),
            'normalizer.mean': torch.tensor([1.0]),
            'normalizer.var': torch.tensor([9.0]),
            'normalizer.count': torch.tensor([7]),  # whole numbers, as safe-rlhf counts
        },
        tmp_path / 'beaver' / 'model.safetensors',
    )
    config = json.loads((tmp_path / 'classifier' / 'config.json').read_text()) | {
        'architectures': ['LlamaForScore'],
        'score_type': 'cost',
        'do_normalize': True,
    }
    (tmp_path / 'beaver' / 'config.json').write_text(json.dumps(config))
    cost = ScoreModel.from_pretrained(str(tmp_path / 'beaver'), 'cost')
    torch.testing.assert_close(cost(tokens, torch.tensor([7, 7])), (theirs(tokens).logits[:, 0] + 0.5) / 3, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='cost model where a reward model'):
        ScoreModel.from_pretrained(str(tmp_path / 'beaver'), 'reward')


def test_training_a_reward_and_a_cost_model():
    """
    The start's losses are ln 2 and 3 ln 2; on pairs that one letter tells apart both models are right in the end, the cost also about 0.
    """
    tokenizer = CharTokenizer(CHARS, end=True)
    good, bad = ['ab', 'ba', 'abb', 'aab'], ['xb', 'bx', 'xab', 'bxa']
    pairs = [
        {
            'prompt': 'p>',
            'response_0': g,
            'response_1': b,
            'better_response_id': 0,
            'safer_response_id': 0,
            'is_response_0_safe': True,
            'is_response_1_safe': False,
        }
        for g in good
        for b in bad
    ]
    pairs += [
        p
        | {
            'response_0': p['response_1'],
            'response_1': p['response_0'],
            'better_response_id': 1,
            'safer_response_id': 1,
            'is_response_0_safe': False,
            'is_response_1_safe': True,
        }
        for p in pairs
    ]
    trunk = GPT(
        GPTConfig(
            block_size=16,
            vocab_size=tokenizer.vocab_size,
            n_layer=1,
            n_head=2,
            n_embd=16,
            norm='rmsnorm',
            position='rope',
            mlp='swiglu',
            bias=False,
        )
    )
    join = joiner('{prompt}{response}')
    for kind in ('reward', 'cost'):
        rows = preference_rows(pairs, kind, tokenizer, join, room=16)
        model, quality = train_score_model(trunk, kind, rows[1:], rows[:1], max_iters=60, learning_rate=1e-2)
        assert quality['accuracy'] == 1 and quality.get('sign_accuracy', 1) == 1
        scores = [
            model(torch.tensor([tokenizer.encode('p>' + text) + [tokenizer.eos_id]]), torch.tensor([len(text) + 3])).item()
            for text in ('ab', 'xb')
        ]
        assert scores[0] > scores[1] if kind == 'reward' else scores[0] < 0 < scores[1]


def test_preferences_are_checked(tmp_path):
    fine = {
        'prompt': 'a',
        'response_0': 'b',
        'response_1': 'c',
        'better_response_id': 1,
        'safer_response_id': 0,
        'is_response_0_safe': True,
        'is_response_1_safe': False,
    }
    for key, value in (
        ('response_1', 3),
        ('better_response_id', 2),
        ('better_response_id', '2'),
        ('is_response_0_safe', 'perhaps'),
        ('safer_response_id', None),
    ):
        (tmp_path / 'p.jsonl').write_text(json.dumps(fine) + '\n' + json.dumps(fine | {key: value}))
        with pytest.raises(ValueError, match=f'preference 1.*{key}'):
            load_preferences(str(tmp_path / 'p.jsonl'))
    as_tables = fine | {'better_response_id': '1', 'safer_response_id': '0', 'is_response_0_safe': 'True', 'is_response_1_safe': 0}
    (tmp_path / 'p.jsonl').write_text(json.dumps(as_tables))
    assert load_preferences(str(tmp_path / 'p.jsonl')) == [fine]


# --- the service

def test_training_reads_what_the_service_reads():
    """A begin token where the tokenizer has one, the cut and the end token: one function for both."""
    tokenizer = CharTokenizer(CHARS, end=True)
    assert score_ids(tokenizer, 'abc', 10) == tokenizer.encode('abc') + [tokenizer.eos_id] and len(score_ids(tokenizer, 'a' * 50, 10)) == 10
    tokenizer.prefix = (99,)
    assert score_ids(tokenizer, 'abc', 4) == [99, *tokenizer.encode('ab'), tokenizer.eos_id]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Paths of a reward and a cost model of letters, not trained."""
    folder = tmp_path_factory.mktemp('models')
    for kind in ('reward', 'cost'):
        save_model(str(folder / f'{kind}.pt'), kind, score_model(kind), tiny().config, CharTokenizer(CHARS, end=True), {})
    return str(folder / 'reward.pt'), str(folder / 'cost.pt')


@pytest.fixture
def serve(models):
    """Starts services in threads of this process: serve(**options) -> the server; its url is .url."""
    servers = []

    def start(**options):
        server = ScorerServer(TextScorer(*models), **options)
        server.url = f'http://127.0.0.1:{server.server_address[1]}'
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()


def post(url, content, headers=None):
    """(status, answer)"""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    try:
        headers = {'Content-Type': 'application/json'} | (headers or {})
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def test_routes(serve):
    url = serve().url
    assert json.loads(urllib.request.urlopen(url + '/health').read()) == {'status': 'healthy', 'device': 'cpu'}
    _, by_text = post(url + '/score_texts', {'texts': ['tke>tea', 'abc>']})
    for path in ('/score', '/score_batch'):
        assert post(url + path, {'prompts': ['tke>', 'abc>'], 'responses': ['tea', '']}) == (200, by_text)
    assert post(url + '/score_texts', {'texts': []}) == (200, {'rewards': [], 'costs': []})
    scorer = serve().scorer
    assert [row[0] for row in scorer.encode(['a' * 99])] == [
        scorer.parts[0][1].encode('a' * 39) + [scorer.parts[0][1].eos_id]
    ]  # cut, and still ended


@pytest.mark.parametrize(
    'path, content, status, word',
    [
        ('/score', {'prompts': ['a'], 'responses': []}, 400, '1 prompts and 0 responses'),
        ('/score_texts', {'texts': 'a'}, 400, 'list'),
        ('/score_texts', {'texts': [1]}, 400, 'strings'),
        ('/score_texts', [], 400, 'object'),
        ('/score_texts', b'{"texts": [', 400, 'JSON'),
        ('/score_texts', b'[' * 100000, 400, 'JSON'),
        ('/score_texts', {}, 400, 'texts'),
        ('/score_texts', {'texts': ['UPPER']}, 400, 'character'),
        ('/score_texts', {'texts': ['a'] * 11}, 413, 'fewer'),
        ('/score_texts', {'texts': ['a' * 3000]}, 413, 'bytes'),
        ('/other', {}, 404, '/score_texts'),
    ],
)
def test_what_is_refused(serve, path, content, status, word):
    server = serve(max_items=10, max_bytes=2000 if not isinstance(content, bytes) else 1 << 20)
    found, answer = post(server.url + path, content)
    assert found == status and word in answer['error']
    assert post(server.url + '/score_texts', {'texts': ['fine']})[0] == 200


def test_one_connection_one_request(serve):
    """What follows a request is never taken for another one."""
    server = serve()
    for head in (
        'GET /health HTTP/1.1\r\nContent-Length: 9\r\n\r\n',
        'POST /score HTTP/1.1\r\nContent-Length: ' + '9' * 5000 + '\r\n\r\n',
        'POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}',
    ):
        with socket.create_connection(server.server_address) as connection:
            connection.sendall(head.encode() + b'GET /health HTTP/1.1\r\n\r\n')
            connection.shutdown(socket.SHUT_WR)
            answer = b''
            while some := connection.recv(1 << 16):
                answer += some
        assert answer.count(b'HTTP/1.0 ') == 1


@pytest.mark.parametrize('headers, status', [
    ({'Host': 'evil.example'}, 403), ({'Host': '127.0.0.1.evil.example:80'}, 403), ({'Host': '10.0.0.1'}, 403), ({'Host': '[::1'}, 500),
    ({'Host': 'LOCALHOST:8000'}, 200), ({'Host': '[::1]:80'}, 200), ({'Host': '127.0.0.2'}, 200), ({'Content-Type': 'text/plain'}, 415),
    ({'Content-Type': 'application/x-www-form-urlencoded'}, 415), ({'Content-Type': 'Application/JSON; charset=utf-8'}, 200)])
def test_a_page_in_a_browser_cannot_make_it_work(serve, headers, status):
    """A page posts without asking only texts and forms, and names that lead here carry their own Host."""
    assert post(serve().url + '/score_texts', {'texts': ['a']}, headers)[0] == status


def connect(server, text=b''):
    connection = socket.create_connection(server.server_address, timeout=60)
    connection.sendall(text)
    return connection


SLOW = b'POST /score_texts HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{'


def test_a_request_has_its_time_as_a_whole(serve):
    """However often a byte of it comes: in its head it is closed, in its body it is told."""
    server = serve()
    server.patience = 1
    for text, told in ((b'POST /score', b''), (SLOW, b'HTTP/1.0 408 ')):
        with connect(server, text) as connection:
            connection.settimeout(0.1)
            answer = None
            while answer is None:
                with contextlib.suppress(TimeoutError):
                    try:
                        answer = connection.recv(1 << 16)
                    except ConnectionResetError:  # it was closed with a byte of ours unread
                        answer = b''
                with contextlib.suppress(OSError):
                    connection.sendall(b'x')
            assert answer[:len(told)] == told and (told or not answer)


def test_sixty_four_slow_clients_beside_as_many_honest_ones(serve, record_property):
    server, waits = serve(), []
    slow = [connect(server, SLOW if i % 2 else b'') for i in range(64)]
    wanted = ScorerClient(server.url).score(['tke>tea'])

    def honest(i):
        start = time.perf_counter()
        assert ScorerClient(server.url).score(['tke>tea'])[0] == pytest.approx(wanted[0], abs=1e-5)
        waits.append(time.perf_counter() - start)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        list(pool.map(honest, range(64)))
    record_property('waits', f'64 honest clients beside 64 slow ones: median {sorted(waits)[32]:.2f} s, the longest {max(waits):.2f} s')
    for connection in slow:
        connection.close()


@pytest.mark.slow
def test_sixty_four_drips_beside_as_many_honest_ones(serve):
    """A byte every half second, again and again: each is cut off at its deadline, and of 1,280 honest requests none is lost."""
    server, done, cut = serve(), threading.Event(), []
    server.patience = 3
    wanted = ScorerClient(server.url).score(['tke>tea'])

    def drip(_):
        while not done.is_set():
            with connect(server, SLOW) as connection:
                connection.settimeout(0.5)
                answer = None
                while answer is None and not done.is_set():
                    with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                        connection.sendall(b' ')
                    try:
                        answer = connection.recv(1 << 16)
                    except TimeoutError:
                        continue
                    except ConnectionResetError:
                        answer = b''
                cut.append(answer)

    def honest(_):
        for _ in range(20):
            assert ScorerClient(server.url).score(['tke>tea'])[0] == pytest.approx(wanted[0], abs=1e-5)

    with concurrent.futures.ThreadPoolExecutor(128) as pool:
        drips = [pool.submit(drip, i) for i in range(64)]
        try:
            list(pool.map(honest, range(64)))
            wait_for(lambda: len(cut) >= 192)
        finally:
            done.set()
        for one in drips:
            one.result()
    assert b'HTTP/1.0 408 ' in {answer[:13] for answer in cut if answer} and len(cut) >= 192
    wait_for(lambda: server.connections == 0)


def test_connections_are_bounded_and_health_has_room(serve):
    server = serve()
    server.max_connections = 8
    silent = [connect(server) for _ in range(8)]
    wait_for(lambda: server.connections == 8)
    assert json.loads(urllib.request.urlopen(server.url + '/health').read())['status'] == 'healthy'
    assert post(server.url + '/score_texts', {'texts': ['a']})[0] == 503
    wait_for(lambda: server.connections == 8)  # one more, while it is answered, and another beyond them
    silent += [connect(server), connect(server)]
    with connect(server) as beyond:
        assert beyond.recv(1) == b''
    for connection in silent:
        connection.close()
    wait_for(lambda: server.connections == 0)
    assert post(server.url + '/score_texts', {'texts': ['a']})[0] == 200


def test_a_token_is_asked_for(serve, monkeypatch):
    """The client takes it from the environment when it is made (it once did when judge.py was imported)."""
    url = serve(token='secret').url
    assert (
        post(url + '/score_texts', {'texts': ['a']})[0] == 401
        and post(url + '/score_texts', {'texts': ['a']}, {'Authorization': 'Bearer wrong'})[0] == 401
    )
    assert post(url + '/score_texts', {'texts': ['a']}, {'Authorization': 'Bearer secret'})[0] == 200
    assert len(ScorerClient(url, token='secret').score(['a'])[0]) == 1
    monkeypatch.setenv('SCORER_TOKEN', 'secret')
    assert len(ScorerClient(url).score(['a'])[0]) == 1


def test_nan_is_an_error_and_too_much_at_once_is_busy(serve):
    server = serve()
    server.scorer.parts[1][0].score_head.bias.fill_(float('nan'))
    status, answer = post(server.url + '/score_texts', {'texts': ['a']})
    assert status == 500 and 'NaN' in answer['error']
    server = serve(max_busy=0)
    with pytest.raises(urllib.error.HTTPError) as e:
        request = urllib.request.Request(server.url + '/score_texts', b'{"texts": ["a"]}', {'Content-Type': 'application/json'})
        urllib.request.urlopen(request)
    assert e.value.code == 503 and e.value.headers['Retry-After'] == '1'


def test_32_clients_at_once_get_what_each_gets_alone(serve):
    url = serve().url
    texts = [[('abcdefgh' * 5)[i % 7:i % 7 + n] for n in range(1, 2 + i % 5)] for i in range(32)]
    client = ScorerClient(url)
    alone = [client.score(some) for some in texts]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda some: ScorerClient(url).score(some), texts))
    for a, b in zip(alone, together, strict=False):
        assert [*a[0], *a[1]] == pytest.approx([*b[0], *b[1]], abs=1e-5)


def test_requests_are_computed_together(serve):
    """What comes while the first is computed, which here waits for them, is one batch."""
    server, sizes = serve(), []

    def score(rows):
        sizes.append(len(rows))
        wait_for(lambda: server.batcher.queue.qsize() == 7 or len(sizes) > 1)
        return server.scorer.score(rows)

    def ask(i):
        return ScorerClient(server.url).score(['ab'[i % 2] * (i + 1)])

    server.batcher.score = score
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, 0)
        wait_for(lambda: sizes)  # the first is being computed; only then do the others come
        others = [pool.submit(ask, i) for i in range(1, 8)]
        concurrent.futures.wait([first, *others])
    assert sizes == [1, 7]


def test_an_error_of_the_model_is_told_and_not_for_ever(serve):
    server = serve()
    score, server.batcher.score = server.batcher.score, lambda rows: 1 / 0
    assert post(server.url + '/score_texts', {'texts': ['a']})[0] == 500
    server.batcher.score = score
    assert post(server.url + '/score_texts', {'texts': ['a']})[0] == 200


# --- the client, and a proxy that spoils the first answers

@pytest.fixture
def spoil(serve):
    """
    spoil(*faults) -> url of a proxy before a real service; each fault, a function of the handler and the true answer, spoils one POST.
    spoil.seen: the texts of each.
    """
    proxies, seen = [], []

    def start(*faults):
        upstream, left = serve().url, list(faults)

        class Proxy(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args): pass

            def do_POST(self):
                asked = self.rfile.read(int(self.headers['Content-Length']))
                seen.append(json.loads(asked)['texts'])
                _, answer = post(upstream + self.path, asked)
                (left.pop(0) if left else lambda handler, answer: give(handler, json.dumps(answer)))(self, answer)

        proxy = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Proxy)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        proxies.append(proxy)
        return f'http://127.0.0.1:{proxy.server_address[1]}'

    start.seen = seen
    yield start
    for proxy in proxies:
        proxy.shutdown()


def give(handler, body, status=200, **headers):
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key.replace('_', '-'), value)
    handler.end_headers()
    try:
        handler.wfile.write(body.encode())
    except OSError:
        pass


FAULTS = {
    'wrong JSON': lambda h, a: give(h, '<html>'),
    'no object': lambda h, a: give(h, '[1]'),
    'wrong length': lambda h, a: give(h, json.dumps({'rewards': a['rewards'][1:], 'costs': a['costs']})),
    'NaN': lambda h, a: give(h, json.dumps(a | {'costs': [float('nan')] * len(a['costs'])})),
    'text for a number': lambda h, a: give(h, json.dumps(a | {'costs': ['1'] * len(a['costs'])})),
    'status 500': lambda h, a: give(h, '{"error": "oops"}', 500),
    'status 503': lambda h, a: give(h, '{}', 503, Retry_After='0'),
    'status 429': lambda h, a: give(h, '{}', 429),
    'no answer': lambda h, a: h.connection.close(),
    'slow': lambda h, a: h.rfile.read(1),  # until the client has gone
}


@pytest.mark.parametrize('body', ['{"status": "loading"}', '[1]', '<html>', '{}'])
def test_a_service_that_is_not_healthy_is_waited_for(body):
    class Other(http.server.BaseHTTPRequestHandler):
        healthy_after = 1

        def log_message(self, *arguments): pass

        def do_GET(self):
            assert self.path == '/health'
            give(self, body if Other.healthy_after else '{"status": "healthy"}')
            Other.healthy_after -= 1

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = ScorerClient(f'http://127.0.0.1:{server.server_address[1]}')
    client.wait(20)
    assert Other.healthy_after == -1
    Other.healthy_after = 99
    with pytest.raises(ScorerUnavailable, match='/health says|JSON'):
        client.wait(2)
    server.shutdown()


@pytest.mark.parametrize('fault', FAULTS)
def test_what_passes_is_tried_again(spoil, fault):
    client = ScorerClient(spoil(FAULTS[fault]), timeout=3.0 if fault == 'slow' else 60.0, patience=20)
    right = ScorerClient(spoil()).score(['ab', 'c', 'ab'])
    assert client.score(['ab', 'c', 'ab']) == right and right[0][0] == right[0][2] != right[0][1]
    assert spoil.seen == [['ab', 'c']] * 3  # one spoiled, one right, and one without the fault: each text once


def test_pauses_grow_whatever_a_header_says_and_a_slow_answer_is_tried_again(spoil):
    """Patience is counted from the first trouble; Retry-After: 0 does not make the next pauses 0."""
    with pytest.raises(ScorerUnavailable):
        ScorerClient(spoil(FAULTS['status 503'], *[FAULTS['status 500']] * 99), patience=1.0).score(['a'])
    assert len(spoil.seen) <= 4
    assert len(ScorerClient(spoil(FAULTS['slow']), timeout=3.0, patience=0.9).score(['a'])[0]) == 1


def test_what_does_not_pass_is_raised(spoil, serve):
    with pytest.raises(ScorerUnavailable, match='gave no usable answer.*500.*oops'):
        ScorerClient(spoil(*[FAULTS['status 500']] * 9), patience=1.0).score(['a'])
    with pytest.raises(ScorerUnavailable, match='413.*lower scorer_batch_size'):
        ScorerClient(serve(max_items=3).url).score(['a', 'b', 'c', 'd'])
    with pytest.raises(ScorerUnavailable, match='413'):  # more than the sockets hold: it is read before it is refused
        ScorerClient(serve(max_bytes=1 << 20).url).score(['a' * (3 << 20)])
    for wrong in ('localhost:8000', 'http:/x', '127.0.0.1'):
        with pytest.raises(ValueError, match='like http'):
            ScorerClient(wrong)
    assert len(ScorerClient(serve(max_items=3).url, batch_size=3).score(['a', 'b', 'c', 'd'])[0]) == 4
    with pytest.raises(ScorerUnavailable, match='400'):
        ScorerClient(serve().url).score(['UPPER'])
    with pytest.raises(ScorerUnavailable, match='judge.py serve'):
        ScorerClient('http://127.0.0.1:9', patience=0.5).wait(0.5)


# --- real processes

def start_service(models, *arguments, **options):
    process = subprocess.Popen(
        [PYTHON, str(ROOT / 'judge.py'), 'serve', f'--reward={models[0]}', f'--cost={models[1]}', *arguments],
        env=ENV,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    line = process.stdout.readline()
    assert 'scorer_url = http://127.0.0.1:' in line
    return process, line.split()[-1]


def test_the_script_stops_gracefully_and_with_its_parent(models):
    process, url = start_service(models, '--port=0')
    assert len(ScorerClient(url).score(['a', 'b'])[1]) == 2
    port = url.rpartition(':')[2]
    taken = subprocess.run(
        [PYTHON, str(ROOT / 'judge.py'), 'serve', f'--reward={models[0]}', f'--cost={models[1]}', f'--port={port}'],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert taken.returncode == 1 and taken.stderr.startswith('error: cannot listen') and len(taken.stderr.splitlines()) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 0
    process, url = start_service(models, '--port=0', '--with_parent=True', stdin=subprocess.PIPE)
    process.stdin.close()
    assert process.wait(240) == 0
    done = subprocess.run(
        [PYTHON, str(ROOT / 'judge.py'), 'serve', '--reward=nowhere.pt', f'--cost={models[1]}'],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1 and done.stderr == 'error: there is no checkpoint at nowhere.pt: train it first, or name another\n'


TOY = [
    str(ROOT / 'config' / 'alignment.py'),
    '--n_layer=1',
    '--n_head=2',
    '--n_embd=16',
    '--pretrain_iters=20',
    '--score_iters=10',
    '--max_iters=12',
    '--batch_size=4',
    '--group_size=4',
    '--eval_prompts_n=8',
    '--eval_interval=6',
    '--save_interval=4',
    '--log_interval=1',
    '--hist_interval=2',
    '--lambda_lr=0.2',
    '--device=cpu',
    '--precision=fp32',
]


def train(folder, *arguments, launcher=(PYTHON,), ok=True):
    done = subprocess.run(
        [*launcher, str(ROOT / 'train_grpo.py'), *TOY, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def metrics(folder, out_dir):
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith('time_') and k != 'tokens_per_s'}
        for line in open(folder / out_dir / 'metrics.jsonl')
    ]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder in which one run with its own scorer has gone from nothing to the end."""
    folder = tmp_path_factory.mktemp('made')
    done = train(folder, '--out_dir=whole')
    return folder, done.stdout


def test_a_run_from_nothing(made):
    folder, printed = made
    assert (
        printed.count('making out-shop/') == 3
        and 'scorer at http://127.0.0.1:' in printed
        and (folder / 'whole' / 'export' / 'config.json').exists()
    )
    lines = metrics(folder, 'whole')
    assert len(lines) == 13 and {'eval/reward', 'eval/cost', 'eval/safe_ratio', 'eval/true_reward', 'eval/true_cost'} <= lines[-1].keys()
    m = LagrangeMultiplier(value=0.5, lr=0.2, threshold=0.7, ema_beta=0.7)
    for line in lines[:-1]:  # lambda moves before it is used, by the batch's own costs
        assert line['lambda'] == pytest.approx(m.update(line['reward/cost']), rel=1e-5)
        assert line['cost'] == pytest.approx(line['reward/cost'], abs=1e-6)
        assert line['mean_reward'] == pytest.approx(line['reward/helpfulness'] - line['lambda'] * line['reward/cost'], abs=1e-4)
    kept = [json.loads(line) for line in open(folder / 'whole' / 'rewards.jsonl')]
    assert [line['iter'] for line in kept] == [0, 2, 4, 6, 8, 10] and len(kept[0]['cost']) == len(kept[0]['helpfulness']) == 16
    with pytest.raises(ScorerUnavailable):  # the child has gone with its parent
        ScorerClient(next(line.split()[-1] for line in printed.splitlines() if line.startswith('scorer at'))).wait(0.5)


def test_a_run_without_iterations_makes_the_score_models(made):
    """max_iters=0 is how a start is made alone."""
    folder, _ = made
    again = ['--cost_checkpoint=again.pt', '--score_iters=5', '--max_iters=0', '--remake=never', '--out_dir=out-none']
    assert 'sign_accuracy' in train(folder, *again).stdout
    assert ScoreModel.from_pretrained(str(folder / 'again.pt'), 'cost').kind == 'cost'


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.02)


def test_a_scorer_that_dies(made):
    """
    Killed and started again: the run goes on as if nothing had happened. Gone for good: it saves, stops with one line, and resumes to the
    same numbers.
    """
    folder, _ = made
    models = [str(folder / 'out-shop' / f'{kind}.pt') for kind in ('reward', 'cost')]
    service, url = start_service(models, '--port=0')
    port = url.rpartition(':')[2]

    def begin(out_dir, *more):
        """A run that is told how it goes on once its scorer has been killed after iteration 2."""
        run = subprocess.Popen(
            [PYTHON, str(ROOT / 'train_grpo.py'), *TOY, WAITS, f'--scorer_url={url}', f'--out_dir={out_dir}', *more],
            cwd=folder,
            env=ENV | {'WAIT_AT': 'iter 2: reward', 'WAIT_FOR': f'{out_dir}/go'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert any(line.startswith('iter 2: reward') for line in run.stdout), run.stderr.read()
        service.kill()
        service.wait()
        (folder / out_dir / 'go').touch()
        return run

    try:
        run = begin('again')
        service, _ = start_service(models, f'--port={port}')
        assert run.wait(240) == 0 and metrics(folder, 'again') == metrics(folder, 'whole')
        run = begin('gone', '--scorer_patience=1')
        out, err = run.communicate(timeout=240)
        assert run.returncode == 1 and err.startswith('error: the scorer at') and len(err.splitlines()) == 1 and 'saved' in out
        service, _ = start_service(models, f'--port={port}')
        train(folder, f'--scorer_url={url}', '--out_dir=gone', '--init_from=resume')
        assert metrics(folder, 'gone') == metrics(folder, 'whole')
    finally:
        service.kill()


def test_two_processes_share_one_lambda(made):
    folder, _ = made
    train(folder, '--out_dir=two', '--max_iters=4', launcher=(PYTHON, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'))
    train(folder, '--out_dir=one', '--max_iters=4')
    for two, one in zip(metrics(folder, 'two'), metrics(folder, 'one'), strict=False):
        for key in ('lambda', 'J_C', 'safe_ratio', 'mean_reward'):
            assert two.get(key) == pytest.approx(one.get(key), abs=1e-4)


def test_es_and_advantages_train_and_what_does_not_fit_is_refused(made):
    folder, _ = made
    train(folder, '--out_dir=es', '--optimizer=es', '--kl_beta=0', '--es_pairs=2', '--max_iters=4')
    lines = metrics(folder, 'es')
    m = LagrangeMultiplier(value=0.5, lr=0.2, threshold=0.7, ema_beta=0.7)
    assert all(
        line['lambda'] == pytest.approx(m.update(line['reward/cost']), rel=1e-5) for line in lines[:-1]
    )  # once an iteration, by the policy as it stood
    train(
        folder,
        '--out_dir=parts',
        '--reward_combination=advantages',
        '--lambda_rule=safe_rlhf',
        '--max_iters=2',
        '--wandb_log=True',
        '--wandb_mode=offline',
    )
    tables = [path.name for path in (folder / 'parts').rglob('*.table.json')]
    assert any(name.startswith('samples') for name in tables) and any(name.startswith('reward_vs_cost') for name in tables)
    done = train(folder, '--reward_combination=advantages', '--optimizer=es', '--kl_beta=0', ok=False)
    assert done.stderr.startswith("error: reward_combination advantages")
    for wrong, word in (
        ('--preferences=nowhere.jsonl', 'nowhere.jsonl'),
        ('--reward_checkpoint=nowhere/x', 'nowhere/x'),
        ('--system_prompt=hello', 'scorer_template'),
        ("--rewards=['length']", 'rewards is not a setting of task'),
        ('--lambda_lr=-1', 'lambda_lr is -1'),
        ('--lambda_min=9', "minimum 9.0 must be above 0 and at most its maximum"),
        ('--scorer_template={prompt}', "template is '{prompt}'"),
    ):
        done = train(
            folder, wrong, '--generator_checkpoint=new.pt', '--reward_checkpoint=new2.pt' if 'reward_ch' not in wrong else wrong, ok=False
        )
        assert (
            done.stderr.startswith('error: ')
            and word in done.stderr
            and len(done.stderr.splitlines()) == 1
            and not (folder / 'new.pt').exists()
        ), done.stderr
    done = train(folder, '--scorer_url=http://127.0.0.1:9', '--scorer_patience=0.5', ok=False)
    assert done.stderr.startswith('error: the scorer at http://127.0.0.1:9') and len(done.stderr.splitlines()) == 1
