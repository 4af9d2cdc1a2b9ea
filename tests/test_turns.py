"""
Completions that ask: what the sampler writes in turns is what reading everything again would write, the gradient is that of the policy's
own tokens, and whatever an environment does is named.
"""
import contextlib
import json
import socket
import string
import subprocess
import time
import types

import pytest
import torch

import kernels
from formats.tokenizer import CharTokenizer, load_tokenizer
from grpo import (
    LOSS_TYPES,
    Rollout,
    completion_logps,
    compute_rewards,
    gae,
    grpo_training_step,
    rollout_loss,
    token_rewards_of,
    train_on_rollout,
    usable,
)
from model import GPT, GPTConfig
from plain import plain
from policy import CausalPolicy, prompt_batch, uniforms
from rewards.environments import find_environment
from simulated_gpu import SimulatedGPU
from tasks import show
from tasks.completion import Completion
from tasks.turns import Asking, TurnPolicy
from test_completion import KINDS, TOKENIZER, gradient, still, tiny
from test_hacking import ROOT
from warm import PYTHON

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [0, 0]]


def batch(prompts=PROMPTS, seeds=None):
    return prompt_batch(prompts, seeds or list(range(10, 10 + len(prompts))))


def policy_of(environment, kind='qwen3', R=24, **settings):
    own = {'stop': ['b', 'ca'], 'max_turns': 4, 'max_environment_tokens': 6, 'environment_timeout': 20.0}
    own |= {'chat_template_kwargs': None, 'reward_errors': 'raise'}
    cfg = types.SimpleNamespace(**own | {key: settings.pop(key) for key in list(settings) if key in own})
    policy = CausalPolicy(tiny(kind), TOKENIZER, R, **settings)
    record = {'columns': {}, 'templated': False}
    return TurnPolicy(policy, cfg, find_environment(environment), lambda batch: [record] * len(batch['seeds']))


def answers(text):
    """Nothing, done, a short answer and one that is cut at 6 tokens, as the length has it."""
    return [None, '', 'abc', 'jihgfedcba'][len(text) % 4]


def by_reading_again(policy, prompt, u, environment):
    """(tokens, own, log-probs, ended) of one row: the model reads the whole text for each token, u (R,) is for the policy's own."""
    R, tokens, own, logps, begin, answered = policy.max_new_tokens, [], [], [], 0, 0
    while len(tokens) < R:
        logits = policy.model.logits(torch.tensor([prompt + tokens]))[0, -1].double() / policy.temperature
        probs = logits.masked_fill(policy.forbidden, -torch.inf).softmax(-1)
        token = int(torch.searchsorted(probs.cumsum(-1), u[sum(own)] * probs.sum(), right=True))
        tokens, own, logps = tokens + [token], own + [True], logps + [probs[token].log().item()]
        turn = TOKENIZER.decode(tokens[begin:])
        ended = token == TOKENIZER.eos_id
        if not ended and not any(turn.endswith(stop) for stop in policy.stop):
            continue
        if len(tokens) == R or answered + 1 == policy.cfg.max_turns:
            return tokens, own, logps, True
        answer = environment(TOKENIZER.decode(tokens))
        if answer is None or (ended and not answer):
            return tokens, own, logps, True
        new = TOKENIZER.encode(answer)[:6][:R - len(tokens)]
        tokens, own, logps = tokens + new, own + [False] * len(new), logps + [0.0] * len(new)
        begin, answered = len(tokens) if new else begin, answered + bool(new)
    return tokens, own, logps, False


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_turns_by_continuation_are_turns_by_reading_again(kind):
    policy = policy_of(answers, kind, temperature=0.8)
    rollout, u = policy.sample(batch(), 6), uniforms(batch()['seeds'].tolist(), 6, 25)
    seen = set()
    for p, prompt in enumerate(PROMPTS):
        for g in range(6):
            tokens, own, logps, ended = by_reading_again(policy, prompt, u[p, g], answers)
            n = len(tokens)
            assert rollout.lengths[p, g] == n and rollout.tokens[p, g, :n].tolist() == tokens and rollout.own[p, g, :n].tolist() == own
            assert rollout.ended[p, g] == ended and not rollout.tokens[p, g, n:].any()
            torch.testing.assert_close(rollout.logps[p, g, :n], torch.tensor(logps), atol=1e-5, rtol=0)
            seen |= {('turns', sum(a and not b for a, b in zip(own, own[1:], strict=False))), ended, own[-1]}
    assert {('turns', 0), ('turns', 1), ('turns', 2), True, False} <= seen  # of each kind there are some
    assert torch.equal(rollout.mask.sum(-1), rollout.own_lengths) and (rollout.own_lengths < rollout.lengths).any()


@pytest.mark.parametrize('options', [{}, {'top_k': 5, 'top_p': 0.8, 'temperature': 1.3}])
def test_sampler_and_trainer_agree_on_own_tokens(options):
    policy = policy_of(answers, max_turns=6, **options)
    rollout = policy.sample(batch(), 8)
    logps, entropy = completion_logps(policy, rollout)
    assert (logps - rollout.logps).abs().max() < 1e-5 and ((entropy > 0) | ~rollout.mask).all() and not logps[~rollout.mask].any()


def test_a_row_alone_is_the_row_in_company():
    policy = policy_of(answers)
    together = policy.sample(batch(), 8)
    for p, prompt in enumerate(PROMPTS):
        alone = policy.sample(batch([prompt], [10 + p]), 8)
        assert torch.equal(alone.lengths[0], together.lengths[p]) and torch.equal(alone.mask[0], together.mask[p, :, :alone.mask.shape[-1]])
        assert torch.equal(alone.tokens[0], together.tokens[p, :, :alone.tokens.shape[-1]])
        torch.testing.assert_close(alone.logps[0], together.logps[p, :, :alone.tokens.shape[-1]], atol=1e-5, rtol=0)


def test_nothing_is_read_twice():
    """The prompt, and each token of the completion but its last, once; what was answered in one forward, 32 tokens of it at a time."""
    policy, read = policy_of(lambda text: 'abcdefghij' * 4 if len(text) < 30 else None, R=60, max_environment_tokens=40), []
    policy.model.wte.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    rollout = policy.sample(batch([[1, 2, 3]], [3]), 1)
    assert not rollout.own.all() and sum(read) == 3 + rollout.lengths.item() - 1
    assert sorted(read)[-2:] == [8, 32] and set(read[1:]) == {1, 8, 32}


def test_the_turn_that_an_environment_is_given():
    """It begins behind the last answer. An answer of nothing ends no turn, and what was answered is no part of a stop string."""
    turns, model = [], tiny()

    def environment(text, turn):
        turns.append((text, turn))
        return 'b' if len(text) % 2 else ''
    policy = policy_of(environment, stop=['b', 'bb'], R=61, max_turns=99)
    policy.forbidden = ~torch.isin(torch.arange(model.config.vocab_size), torch.tensor([0, 1]))
    rollout = policy.sample(batch([[1, 2, 3]], [3]), 1)  # with the prompt it fills the model's block of 64
    text, own, begin, wanted = policy.texts(rollout)[0][0], rollout.own[0, 0], 0, []
    for i in range(60):
        if own[i] and text[i] == 'b':
            wanted.append((text[:i + 1], text[begin:i + 1]))
            begin = begin if own[i + 1] else i + 2
    assert turns == wanted and len({len(turn) for _, turn in turns}) > 3 and not own.all()


def test_completions_may_fill_the_models_block():
    """Some do while others go on, and then write behind their end."""
    rollout = policy_of(lambda text: 'ab', 'gpt2', R=64 - 5, max_turns=99).sample(batch(), 6)
    assert (rollout.lengths == 59).any(dim=1).all() and torch.isfinite(rollout.logps).all()


def test_who_is_never_answered_samples_as_ever():
    policy = policy_of(lambda text: None, stop=[])
    ours, theirs = policy.sample(batch(), 8), CausalPolicy(policy.model, TOKENIZER, 24).sample(batch(), 8)
    assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.lengths, theirs.lengths) and torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.ended, theirs.ended) and policy.texts(ours) == policy.texts(theirs) == policy.marked(ours)
    greedy = policy.greedy(batch())
    assert torch.equal(greedy.tokens, CausalPolicy(policy.model, TOKENIZER, 24).greedy(batch()).tokens)


# --- learning

LETTERS = CharTokenizer('abcd', end=True)


def every_completion(R):
    """(ids, own) of all that a policy of a, b and the end can write in R tokens where b asks, and 'cd' is answered the first time."""
    def go_on(ids, own, answered):
        if len(ids) == R:
            return [(ids, own)]
        found = [(ids + [LETTERS.eos_id], own + [True])]
        found += go_on(ids + [0], own + [True], answered)
        asked = ids + [1], own + [True]
        if answered or len(ids) + 1 == R:
            return found + [asked]
        new = [2, 3][:R - len(ids) - 1]
        return found + go_on(asked[0] + new, asked[1] + [False] * len(new), True)
    return go_on([], [], False)


@pytest.fixture(scope='module')
def enumerated():
    """(policy, its rollout of all completions of a prompt, the gradient of the expected reward of one that depends on all tokens)."""
    model = tiny(seed=1)
    policy = CausalPolicy(model, LETTERS, 5)
    policy.forbidden = ~torch.isin(torch.arange(model.config.vocab_size), torch.tensor([0, 1, LETTERS.eos_id]))
    every = every_completion(5)
    R, reward = max(len(ids) for ids, _ in every), torch.randn(len(every), generator=torch.Generator().manual_seed(0))
    expected, probs = 0.0, []
    for (ids, own), r in zip(every, reward, strict=True):
        logits = model.logits(torch.tensor([[2, 3, 0, *ids]]))[0, 2:-1]
        logps = logits.masked_fill(policy.forbidden, -torch.inf).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        probs.append(logps[torch.tensor(own)].sum().exp())
        expected = expected + probs[-1] * r
    assert sum(probs).item() == pytest.approx(1, abs=1e-5)  # it is all of them
    expected.backward()
    wanted = -gradient(model)
    pad = [ids + [0] * (R - len(ids)) for ids, _ in every], [own + [True] * (R - len(own)) for _, own in every]
    lengths = torch.tensor([[len(ids) for ids, _ in every]])
    tokens, own = (torch.tensor(column)[None] for column in pad)
    rollout = Rollout(prompt_batch([[2, 3, 0]], [1]), tokens, lengths, torch.zeros(tokens.shape), own=own)
    rollout.logps = completion_logps(policy, rollout)[0].detach()
    rollout.batch['weights'] = torch.stack(probs).detach() * reward
    return policy, rollout, wanted


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_the_gradient_is_that_of_own_tokens(enumerated, loss_type):
    """Each completion's probability and reward play the part of its advantage, times what the loss divides by: counts of own tokens."""
    policy, rollout, wanted = enumerated
    own, N = rollout.own_lengths[0], len(rollout.own_lengths[0])
    assert (own < rollout.lengths[0]).any() and (own == rollout.lengths[0]).any()
    divisor = {'grpo': N * own, 'gspo': N * own, 'dapo': own.sum(), 'cispo': own.sum(), 'dr_grpo': N * 5, 'reinforce': N}[loss_type]
    rollout.advantages = (rollout.batch['weights'] * divisor)[None]
    stats = train_on_rollout(policy, rollout, still(policy.model), plain(grad_clip=0, loss_type=loss_type))
    assert (gradient(policy.model) - wanted).norm() < 1e-5 * wanted.norm()
    logps = rollout.logps[rollout.mask]
    assert stats['mean_log_prob'] == pytest.approx(logps.mean().item(), rel=1e-5) and stats['sampler_gap_max'] < 1e-6


def test_micro_batches_kl_and_entropy_count_own_tokens():
    """The same gradient and metrics from any cut; and whatever the columns hold at tokens that are not the policy's, NaN too."""
    policy = policy_of(answers, max_turns=6)
    rollout = policy.sample(batch(), 4)
    rollout.advantages = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    rollout.ref_logps = rollout.logps - 0.3
    found = []
    for size, fill in ((None, 0.0), (1, torch.nan), (3, 7.0)):
        for column in (rollout.logps, rollout.ref_logps):
            column[~rollout.mask] = fill
        cfg = plain(micro_batch_size=size, grad_clip=0, loss_type='grpo', kl_beta=0.1, entropy_coef=0.05)
        found.append((train_on_rollout(policy, rollout, still(policy.model), cfg), gradient(policy.model).clone()))
    for stats, whole in found[1:]:
        assert stats == pytest.approx(found[0][0], rel=1e-4, abs=1e-6) and (whole - found[0][1]).norm() < 1e-5 * whole.norm()
    # k3 of a policy that is e^0.3 times likelier than the reference, at each of its own tokens
    assert found[0][0]['mean_kl'] == pytest.approx(torch.expm1(torch.tensor(-0.3)).item() + 0.3, rel=1e-4)


def test_the_head_sees_own_rows_alone(monkeypatch):
    policy = policy_of(answers)
    rollout = policy.sample(batch(), 4)
    rollout.advantages, seen = torch.ones(4, 4), []
    row_stats = kernels.row_stats
    monkeypatch.setattr(kernels, 'row_stats', lambda z, *rest: seen.append(len(z)) or row_stats(z, *rest))
    rollout_loss(policy, rollout, 16, int(rollout.mask.sum()), plain())
    assert sum(seen) == rollout.own_lengths.sum() < rollout.lengths.sum()


def test_advantages_and_penalties_pass_over_what_was_answered():
    """GAE over own tokens is that of the text without the others; the reward and the overlong penalty stand at the last own token."""
    own = torch.tensor([[[True, True, False, False, True, True], [True, False, True, True, False, False]]])
    lengths = torch.tensor([[6, 5]])
    rollout = Rollout({}, torch.zeros(1, 2, 6, dtype=torch.long), lengths, torch.zeros(1, 2, 6), own=own)
    rewards, values = torch.randn(2, 1, 2, 6, dtype=torch.double)
    got = gae(rewards, values, rollout.mask, 0.9, 0.7)
    for g, places in enumerate(([0, 1, 4, 5], [0, 2, 3])):
        short = [x[0, g, places][None, None] for x in (rewards, values)]
        torch.testing.assert_close(got[0, g, places], gae(*short, torch.ones(1, 1, len(places), dtype=torch.bool), 0.9, 0.7)[0, 0])
    assert not got[~rollout.mask].any() and rollout.own_lengths.tolist() == [[4, 3]]
    # over the last 3 of 5 tokens: 4 own ones are 2 too many, 3 one, though 6 and 5 tokens stand there
    penalties = token_rewards_of(types.SimpleNamespace(max_new_tokens=5), rollout, None, plain(overlong_penalty=3))
    assert penalties.nonzero().tolist() == [[0, 0, 5], [0, 1, 3]] and penalties[penalties < 0].tolist() == pytest.approx([-2 / 3, -1 / 3])


def test_a_step_on_a_simulated_gpu():
    """It refuses tensors of two devices. The completions are those of the CPU, and the trainer finds their log-probs."""
    wanted = policy_of(answers).sample(batch(), 4)
    with SimulatedGPU():
        policy = policy_of(answers)
        policy.model.to('cuda')
        policy.forbidden = policy.forbidden.to('cuda')
        rewards = [('first', lambda policy, rollout: rollout.tokens[..., 0].float(), 1.0)]
        prompts = prompt_batch(PROMPTS, batch()['seeds'].tolist(), 'cuda')
        metrics, rollout = grpo_training_step(policy, prompts, still(policy.model), rewards, plain(group_size=4))
        assert rollout.tokens.is_cuda and metrics['sampler_gap_max'] < 1e-5 and metrics['grad_norm'] > 0
        assert rollout.tokens.cpu().tolist() == wanted.tokens.tolist() and torch.equal(rollout.own, wanted.own)


# --- environments

@pytest.mark.parametrize(('turn', 'answer'), [
    ('<<57*43>>', '2451'), ('so <<(3+4)*-2>> ', '-14'), ('<<0.1+0.2>>', '0.3'), ('<<1/3>>', '0.333333333333'), ('<<10^60>>', 'error'),
    ('<<1/10^8>>', '0.00000001'),
    ('<<2^10 - 7 ÷ 2>>', '1020.5'), ('<<10^49>>', '1' + 49 * '0'), ('<<9**9**9>>', 'error'), ('<<10^5000/3>>', 'error'),
    ('<<1/0>>', 'error'),
    ('<<>>', 'error'), ('<<' + 5000 * '9' + '>>', 'error'), ('<<' + 900 * '(' + '1' + 900 * ')' + '>>', 'error'),
    ('<<__import__("os")>>', 'error'), ('<<2>> and <<3+1>>', '4'), ('57*43', ''), ('<<57*43', ''), ('>>', ''),
])  # fmt: skip
def test_calculator(turn, answer):
    assert find_environment('calculator').answers(['...' + turn], [{'turn': turn}], 20.0) == [answer]


def block(code, tag='python'):
    return f'I try:\n```{tag}\n{code}\n```\n'


def ask_python(*turns):
    return find_environment('python').answers(['...'] * len(turns), [{'turn': turn} for turn in turns], 30.0)


def test_python_answers_with_what_is_printed_and_the_last_value():
    codes = ['print(1)\n2 + 3', 'x = 4', '"ab" * 2', '1 / 0', 'import sys\nsys.exit(3)', 'x = (', 'print("a" * 5000)',
             'import os\nos._exit(0)', 'while True: pass', '  # of a list\n  def f():\n      return None\n  f()']  # fmt: skip
    shown = [answer.removeprefix('```output\n').removesuffix('\n```\n') for answer in ask_python(*map(block, codes))]
    assert shown[:5] == ['1\n5', '', "'abab'", 'ZeroDivisionError: division by zero', 'SystemExit: 3'] and 'SyntaxError' in shown[5]
    assert shown[6] == 'a' * 2000 + ' ...' and shown[7:] == ['error: the process ended early', 'error: no end after 2 s', '']
    assert ask_python(block('1', ''), block('1', 'js'), 'no code', '```\n', '```python\nx = 1', block('1') + block('2')) == [
        '```output\n1\n```\n', '', '', '', '', '```output\n2\n```\n']  # fmt: skip


ATTACKS = {
    'read': "open('/etc/passwd').read()",
    'write': "open('{marker}', 'w').write('x')",
    'link': "import os; os.symlink('/etc/passwd', '{marker}')",
    'spawn': "import os; 1 / 0 if os.system('touch {marker}') else 'leak'",
    'process': "import subprocess; subprocess.run(['touch', '{marker}'])",
    'kill': "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    'network': "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    'secret': "import os; 'leak' if 'TURNS_SECRET' in os.environ else 1 / 0",
    'memory': "x = bytearray(8 << 30)",
    'parent': "import os; open(f'/proc/{{os.getppid()}}/environ').read()",
}


def test_python_does_not_leave_the_sandbox(tmp_path, monkeypatch):
    """Each answer is the error that the code met: no file, process, network, signal, secret or memory beyond its own."""
    monkeypatch.setenv('TURNS_SECRET', 'leak')
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.1)
        codes = [code.format(marker=tmp_path / 'marker', port=server.getsockname()[1]) for code in ATTACKS.values()]
        shown = dict(zip(ATTACKS, ask_python(*map(block, codes)), strict=True))
        with pytest.raises(TimeoutError):
            server.accept()
    for name, text in shown.items():
        assert 'Error' in text and 'root:' not in text and 'leak' not in text, (name, text)
    assert not list(tmp_path.iterdir())


def test_python_may_forge_only_its_own_answer():
    """The code writes replies of its own on the socket, a list and a long text: what comes of it is text, and no longer than others."""
    forge = "import os, sys\nfor fd in range(3, 20):\n    try: os.write(fd, b'{}\\n')\n    except OSError: pass\n"
    for reply in ('[1, 2]', '"' + 5000 * 'x' + '"'):
        for text in ask_python(block(forge.format(reply) + 'os._exit(0)'), block(forge.format(reply))):
            assert text.startswith('```output\n') and len(text) < 2100


def test_what_an_environment_is_given():
    def plain_one(text, turn, hint, answer=None):
        return f'{text}|{turn}|{hint}|{answer}'

    def lists(texts, turn, hint):
        return [f'{text}|{t}|{h}' for text, t, h in zip(texts, turn, hint, strict=True)]

    async def later(text, **record):
        return record['hint']

    lists.batched = True
    records = [{'turn': 't', 'hint': 'h'}, {'turn': 'u', 'hint': 'i', 'answer': 3}]
    for function, wanted in ((plain_one, ['a|t|h|None', 'b|u|i|3']), (lists, ['a|t|h', 'b|u|i']), (later, ['h', 'i'])):
        environment = find_environment(function)
        environment.check(records)
        assert environment.answers(['a', 'b'], records, 20.0) == wanted
    with pytest.raises(ValueError, match="environment 'plain_one' needs 'hint', and prompt 1 has none"):
        find_environment(plain_one).check([{'hint': 'h'}, {'hint': None}])
    with pytest.raises(ValueError, match="environment 'plain_one' needs 'hint', and this is neither in params nor a column"):
        find_environment(plain_one).check([{'prompt': 'h'}])
    for wrong in (lambda **fields: '', lambda completions, prompts: '', lambda token_ids: '', lambda: ''):
        with pytest.raises(ValueError, match="environment '<lambda>'"):
            find_environment(wrong).check([{}])
    with pytest.raises(ValueError, match="no environment 'calculater'; did you mean 'calculator'"):
        find_environment('calculater')


def broken(kind):
    def environment(text):
        if len(text) % 2:
            return None
        if kind == 'raises':
            raise KeyError('lost')
        if kind == 'late':
            time.sleep(30)
        return {'number': 7, 'unknown': 'é'}[kind]

    def one_too_few(texts):
        return [''] * (len(texts) - 1)
    one_too_few.batched = True
    return one_too_few if kind == 'short' else environment


@pytest.mark.parametrize(('kind', 'message'), [
    ('raises', r"environment 'environment' raised KeyError: 'lost' \(.*test_turns.py, line \d+\)"),
    ('late', 'environment took longer than environment_timeout, 0.2 s'),
    ('number', r"environment 'environment' returned 7 \(int\), no text and not None"),
    ('unknown', "environment 'environment' answered 'é': character 'é' at position 0 is not among"),
    ('short', r"environment 'one_too_few' returned a list of \d+ for \d+ texts"),
])  # fmt: skip
def test_what_an_environment_does_wrong_is_named_or_dropped(kind, message):
    policy = policy_of(broken(kind), environment_timeout=0.2 if kind == 'late' else 20.0)
    with pytest.raises((ValueError, RuntimeError, TimeoutError), match=message):
        policy.sample(batch(), 4)
    policy.cfg.reward_errors = 'drop'
    with pytest.warns(UserWarning, match='completions left out: .*' + message):
        rollout = policy.sample(batch(), 4)
    failed = rollout.batch['failed']
    assert failed.any() and failed.shape == (4, 4) and torch.equal(rollout.own_lengths, rollout.lengths)
    if failed.all():
        return
    # no reward judges them, and nothing of them is learned from
    scores = Asking.less_failed(None, {'a': [[1.0] * 4 for _ in range(4)]}, rollout)
    compute_rewards(policy, rollout, [('a', lambda policy, rollout: scores['a'], 1.0)])
    assert torch.equal(rollout.rewards.isnan(), failed) and torch.equal(usable(rollout, plain()).own_lengths == 0, failed)


def test_a_lost_service_is_no_error_to_drop():
    def environment(text):
        raise ConnectionError('gone')
    with pytest.raises(ConnectionError, match="environment 'environment': gone"):
        policy_of(environment, reward_errors='drop').sample(batch(), 4)


def test_a_tool_message_is_the_templates(tiny_qwen):
    """Behind a completion that an end token or a stop string has ended, the ids are those of the whole conversation in the template."""
    tokenizer = load_tokenizer(str(tiny_qwen))
    policy = policy_of(answers, max_environment_tokens=64)
    policy.tokenizer = tokenizer
    whole = [{'role': 'user', 'content': 'How many?'}, {'role': 'assistant', 'content': 'I ask <<3+4>>'}]
    wanted = tokenizer.chat([*whole, {'role': 'tool', 'content': '7 <|im_end|>'}])
    written = tokenizer.chat(whole[:1]) + tokenizer.encode('I ask <<3+4>>')
    for end in ([], [tokenizer.eos_id]):
        assert written + end + policy.encoded('7 <|im_end|>', bool(end), True) == wanted
    assert policy.encoded('7', True, False) == tokenizer.encode('7')  # the prompt was a plain text
    said = "{{ m.content }}<|im_end|>{% endfor %}"
    for template in ("{% for m in messages if m.role != 'tool' %}" + said, "{% for m in messages %}{{ m.content }}{% endfor %}",
                     "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}" + said):
        tokenizer.template = template
        assert policy.as_tool('7', True) is None and policy.encoded('7', True, True) == tokenizer.encode('7')


# --- a run

CONFIG = """
def helper(text, turn, n):
    return f'({n})' if turn.endswith('?') else None

def right(text, n, **record):
    return float(text.endswith(str(n))) + text.count('(') / 10

task, environment, stop, rewards = 'completion', helper, '?', [right]
max_new_tokens, max_environment_tokens, lr_schedule, warmup_iters = 10, 5, 'constant', 0
n_layer, n_head, n_embd, block_size, pretrain_iters, batch_size, group_size = 1, 2, 16, 24, 30, 4, 4
eval_interval, save_interval, log_interval, eval_prompts_n, eval_show, learning_rate = 2, 2, 1, 4, 1, 1e-2
"""


def run(folder, *arguments, script='train_grpo.py'):
    done = subprocess.run([PYTHON, str(ROOT / script), *arguments], cwd=folder, capture_output=True, text=True)
    return done


@pytest.fixture(scope='module')
def asking_run(tmp_path_factory):
    """A folder with config, prompts, and the run `whole` of four iterations; what it said."""
    folder = tmp_path_factory.mktemp('asking')
    (folder / 'asks.py').write_text(CONFIG)
    rows = [{'prompt': f'{n}+{n}', 'answer': f'a?({2 * n}){2 * n}', 'n': 2 * n} for n in range(1, 30)]
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    start = '--train_prompts=rows.jsonl', '--generator_checkpoint=start.pt', '--max_iters=4'
    done = run(folder, 'asks.py', *start, '--out_dir=whole')
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def lines(path):
    return [json.loads(line) for line in open(path)]


def test_a_run_tells_who_wrote_what(asking_run):
    folder, said = asking_run
    metrics, samples = lines(folder / 'whole/metrics.jsonl'), lines(folder / 'whole/samples.jsonl')
    assert any(0 < line.get('frac_asking', 0) <= 1 and line['turns'] > 1 and line['time_environment'] > 0 for line in metrics)
    asked = [sample for sample in samples if 0 in sample['own']]
    assert asked and '⟦(' in said
    for sample in asked:
        told = ''.join(token for token, own in zip(sample['tokens'], sample['own'], strict=True) if not own)
        assert set(told) <= set('()0123456789') and told in sample['completion'].replace('?', '')
    report = (folder / 'whole/report.html').read_text()
    assert '"own":[' in report and 'false' in report
    for line in metrics[:-1]:
        assert line['mean_length'] <= 10 and line['sampler_gap_max'] < 1e-5


@pytest.mark.parametrize('terminal', [True, False])
def test_sample_shows_who_wrote_what(terminal, capsys, monkeypatch):
    """On a terminal in brackets; a pipe gets the text alone. The run's settings say what answers, unless that is a function."""
    writer = writer_of('<<6*7>>')
    cfg = types.SimpleNamespace(environment=None, top_k=0, top_p=1.0, temperature=0.0, chat_template=False, chat_template_kwargs=None,
                                max_new_tokens=12, add_special_tokens=True, system_prompt='', seed=1)
    arguments = writer.model, writer.tokenizer, cfg
    assert not isinstance(show.policy_of({}, *arguments), TurnPolicy)
    assert not isinstance(show.policy_of({'config': {'environment': 'helper'}}, *arguments), TurnPolicy)
    assert 'nothing answers' in capsys.readouterr().err
    policy = show.policy_of({'config': {'environment': 'calculator', 'max_turns': 2}}, *arguments)
    monkeypatch.setattr('sys.stdout.isatty', lambda: terminal)
    wanted = '<<6*7>>⟦42⟧' if terminal else '<<6*7>>42'
    said = iter('ab')
    monkeypatch.setattr('builtins.input', lambda prompt: next(said, ''))
    show.chat(policy, cfg)
    assert capsys.readouterr().out.count(wanted) == 2 and policy.cfg.max_turns == 2
    show.complete(policy, [3], 1, 1, None)
    assert wanted in capsys.readouterr().out
    show.complete(policy, [3], 2, 1, None)
    assert wanted in capsys.readouterr().out


def test_a_vocabulary_must_have_the_answers_characters():
    """A start that is made here gets them; another model is refused before it trains."""
    calculator, cfg = find_environment('calculator'), types.SimpleNamespace(system_prompt='', retain_text='ab', stop=None)
    told = Completion.other_text(types.SimpleNamespace(environment=calculator, cfg=cfg))
    answers = calculator.answers(['<<7/2>>'] * 3, [{'turn': turn} for turn in ('<<7/2>>', '<<3-10>>', '<<2*(>>')], 9.0)
    assert answers == ['3.5', '-7', 'error'] and set(''.join(answers)) <= set(told)
    for characters, error in ((told + '<>', None), ('ab<>+0123456789', "cannot answer this model: character '-'")):
        model = GPT(GPTConfig(block_size=8, vocab_size=99, n_layer=1, n_head=1, n_embd=8))
        policy = CausalPolicy(model, CharTokenizer(characters, end=True))
        with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
            TurnPolicy(policy, cfg, calculator, None)


def test_a_resumed_run_is_the_same_to_the_last_bit(asking_run):
    folder, _ = asking_run
    arguments = ['asks.py', '--train_prompts=rows.jsonl', '--generator_checkpoint=start.pt', '--out_dir=parts']
    for more in (['--max_iters=2'], ['--max_iters=4', '--init_from=resume']):
        done = run(folder, *arguments, *more)
        assert done.returncode == 0, done.stderr
    whole, parts = (torch.load(folder / name / 'ckpt.pt', weights_only=False)['model'] for name in ('whole', 'parts'))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def writer_of(text):
    """A policy that writes this text behind a prompt of one token, whatever it reads: its positions alone count."""
    tokenizer = CharTokenizer(string.printable, end=True)
    model = GPT(GPTConfig(block_size=402, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=256, tied=False))
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    torch.nn.init.ones_(model.norm_f.weight)
    torch.nn.init.constant_(model.norm_f.bias, 0.01)  # behind the text all tokens are alike, and may be learned
    for place, i in enumerate(tokenizer.encode(text)):
        model.wpe.weight.data[place, place], model.lm_head.weight.data[i, place] = 1.0, 10.0
    return CausalPolicy(model.eval(), tokenizer, 400)


@pytest.mark.parametrize('attack', ["open('{}', 'w')", "import os; os.kill(os.getppid(), 9)"])
def test_a_step_of_a_policy_that_tries_to_leave_the_sandbox(attack, tmp_path):
    """It learns from answers that say what stopped it."""
    marker = tmp_path / 'marker'
    policy = policy_of('python', stop=None, max_turns=2, max_environment_tokens=250)
    vars(policy).update(vars(writer_of(block(attack.format(marker), ''))))

    def stopped(policy, rollout):
        texts, = policy.texts(rollout)
        return [['PermissionError: [Errno' in text for text in texts]]

    def ids(policy, rollout):
        return rollout.tokens.float().mean(dim=-1) / 1000
    rewards = [('stopped', stopped, 1.0), ('ids', ids, 1.0)]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    before = policy.model.lm_head.weight.detach().clone()
    cfg = plain(group_size=2)
    metrics, rollout = grpo_training_step(policy, batch([[3]], [1]), optimizer, rewards, cfg)
    assert metrics['reward/stopped'] == 1 and not rollout.own.all() and not marker.exists() and metrics['sampler_gap_max'] < 1e-4
    assert not torch.equal(before, policy.model.lm_head.weight) and 'root:' not in ''.join(policy.texts(rollout)[0])


def test_an_environment_of_ones_own(tmp_path):
    """The config of docs/hacking.md, as it stands there: guesses that are answered until one is right."""
    page = (ROOT / 'docs/hacking.md').read_text()
    config = page[page.index('def nearer('):].partition('```')[0]
    assert len([line for line in config.splitlines() if line]) <= 10
    (tmp_path / 'guess.py').write_text(config)
    small = ['--pretrain_iters=60', '--n_layer=1', '--n_head=2', '--n_embd=32', '--batch_size=8', '--eval_prompts_n=8', '--log_interval=1']
    done = run(tmp_path, str(ROOT / 'config/arithmetic.py'), 'guess.py', *small, '--max_iters=3', '--save_interval=3', '--out_dir=out')
    assert done.returncode == 0, done.stderr
    asked = [sample for sample in lines(tmp_path / 'out/samples.jsonl') if 0 in sample['own']]
    for sample in asked:
        turns = ''.join(token if own else f' {token} ' for token, own in zip(sample['tokens'], sample['own'], strict=True)).split()
        for guess, told in zip(turns[::2], turns[1::2], strict=False):
            assert told == ('+' if int(guess.rstrip('=')) < int(sample['answer']) else '=')
    assert asked


def test_contradictions_are_refused_in_a_line(asking_run):
    folder, _ = asking_run
    (folder / 'other.py').write_text(CONFIG.replace('n):', 'n, missing):'))
    start = ['--train_prompts=rows.jsonl', '--generator_checkpoint=start.pt', '--out_dir=none']
    for arguments, words in (
        (['--environment=calculator'], "environment is not a setting of task 'fill_in', it is for completion and alignment"),
        (['asks.py', *start, '--environment=calculater'], "there is no environment 'calculater'"),
        (['asks.py', *start, '--environment=None'], 'stop ends the turn of a completion that asks: set environment'),
        (['asks.py', *start, "--stop=['']"], "stop is ['']"),
        (['asks.py', *start, '--max_turns=1'], 'max_turns is 1'),
        (['asks.py', *start, '--shard', '--gather_to_sample=False'], 'environment with shard needs gather_to_sample'),
        (['other.py', *start], "environment 'helper' needs 'missing'"),
    ):
        done = run(folder, *arguments)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count('\n') == 1, done.stderr
