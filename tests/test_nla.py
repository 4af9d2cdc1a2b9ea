"""
Injection by invariants that hold to the last bit or by hand, the critic by what it must return, activations by a second way to them, and
the job as its user runs it.
"""

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.activations import load_activations, read_vectors, write_activations
from formats.tokenizer import CharTokenizer
from grpo import completion_logps, train_on_rollout
from model import GPT, GPTConfig
from nla import (
    Critic,
    Injection,
    NLAPolicy,
    as_read,
    encode_around,
    find_markers,
    fve,
    inject,
    marker_of,
    standardiser,
    truncate,
    turned_round,
)
from plain import plain
from policy import prompt_batch
from runtime.checkpoint import load_checkpoint
from runtime.lora import add_lora
from warm import PYTHON

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KINDS = {'gpt2': dict(), 'llama': dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, n_kv_head=2)}
TOKENIZER = CharTokenizer('abcdefghijklmnop', end=True)
MARKER = TOKENIZER.mask_id
PROMPTS = torch.tensor([[3, MARKER, 4, 1, 5], [9, 2, 6, MARKER, 0]])
SLOTS = torch.tensor([[1], [3]])


def tiny(kind='llama', mode='replace', layers=(0,), scale='raw', A=16):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=TOKENIZER.vocab_size, n_layer=3, n_head=4, n_embd=16, **KINDS[kind])).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.injection = Injection(model, A, mode, layers, scale)
    return model


def logits(model, vectors, slots=SLOTS, prompts=PROMPTS):
    return model.lm_head(model(prompts, edit=model.injection.edit(slots, vectors)))


def residual(model, layer):
    """What stands at the slots after `layer`, (P, 1, D), by looking on."""
    seen = {}
    model(PROMPTS, edit=lambda i, x: seen.setdefault(i, x))
    return seen[layer][torch.arange(2)[:, None], SLOTS]


def test_what_is_loaded_is_not_drawn_first():
    """Each part is made for a file's weights where torch's compiler cannot be imported: some ways to draw would, for a second."""
    code = """import sys
sys.modules['torch._dynamo'] = None
import torch
from judge import Judge, ScoreModel
from model import GPT, GPTConfig, NotDrawn
from nla import Critic, Injection
config = GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_head=2, n_embd=8)
with torch.device('meta'), NotDrawn():
    model = GPT(config)
    parts = [model, Injection(model, 8, scale=1.0), Judge(config, 0), ScoreModel(config, 'reward')]
assert all(p.is_meta for part in parts for p in part.parameters())
Critic(GPT(config), torch.zeros(8), 1.0)
print('made')"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == 'made\n', done.stderr[-1500:]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('layer', range(4))
def test_writing_what_is_there_already_changes_no_bit(kind, layer):
    model = tiny(kind, layers=(layer,))
    clean, there = model.logits(PROMPTS), residual(model, layer)
    assert torch.equal(logits(model, there), clean)
    assert torch.equal(logits(model, None), clean)
    adding = tiny(kind, 'add', (layer,))
    assert torch.equal(logits(adding, torch.zeros(2, 1, 16)), clean)
    v = torch.randn(2, 1, 16)
    assert torch.equal(logits(adding, v), logits(model, there + v))
    assert torch.equal(logits(tiny(kind, 'project', (layer,)), v), logits(model, v))  # the map starts as the identity
    if layer == 0:
        assert torch.equal(there, model.wte.weight[MARKER].expand(2, 1, 16))


def test_who_sees_the_vector():
    """Nothing before the slot, all behind it, and no other row; the tensor that was given stays as it was."""
    model = tiny(layers=(1,))
    v = torch.randn(2, 1, 16)
    changed = (logits(model, v) != logits(model, v + torch.tensor([1.0, 0.0])[:, None, None])).any(-1)
    assert changed.tolist() == [[False, True, True, True, True], [False] * 5]
    x = torch.randn(2, 5, 16, requires_grad=True)
    before = x.detach().clone()
    assert not torch.equal(inject(x, SLOTS, v), x) and torch.equal(x, before)


def test_lengths_by_hand():
    x = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    v, slot = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[1]])
    assert inject(x, slot, v)[0].tolist() == [[3, 4], [0, 2]]
    assert inject(x, slot, v, 'add')[0].tolist() == [[3, 4], [6, 10]]
    for factor in (1, 7):  # the vector's own length plays no part
        assert inject(x, slot, factor * v, 'replace', 5.0)[0].tolist() == [[3, 4], [0, 5]]
        assert inject(x, slot, factor * v, 'add', 'residual')[0].tolist() == [[3, 4], [6, 18]]
    assert tiny(scale=None).injection.settings['scale'] == [pytest.approx(tiny().wte.weight.norm(dim=1).mean().item())]


def test_several_markers_layers_and_widths():
    prompt, slots = torch.tensor([[MARKER, 3, MARKER, 4, 1]]), torch.tensor([[0, 2]])
    model = tiny()
    both = torch.randn(1, 2, 16)
    swapped = logits(model, both.flip(1), slots.flip(1), prompt)
    assert torch.equal(swapped, logits(model, both, slots, prompt)) and not torch.equal(swapped, logits(model, both.flip(1), slots, prompt))
    two = tiny(layers=(0, 2))
    v, there = torch.randn(2, 1, 16), {}
    two(PROMPTS, edit=lambda i, x: there.setdefault(i, two.injection.edit(SLOTS, v)(i, x)))
    for layer in (0, 2):
        assert torch.equal(there[layer][torch.arange(2)[:, None], SLOTS], v)
    assert not torch.allclose(logits(two, v), logits(model, v))
    narrow = tiny(A=5, mode='replace')
    assert narrow.injection.project[0].weight.shape == (16, 5)
    with pytest.raises(ValueError, match='width 16 do not fit an actor that takes 5:'):
        logits(narrow, torch.randn(2, 1, 16))


@pytest.mark.parametrize('mode', ['replace', 'add', 'project'])
def test_gradients_reach_the_vector_and_its_map(mode):
    """In float64 against finite differences; the other row's vector gets none from this row's loss."""
    model = tiny('gpt2', mode, (0, 2), 2.0).double()
    v = torch.randn(2, 1, 16, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(lambda v: logits(model, v)[:, -2:].sum(dim=(1, 2)), v, atol=1e-6)
    logits(model, v)[0].square().sum().backward()
    assert v.grad[0].abs().max() > 0 and v.grad[1].abs().max() == 0
    if mode == 'project':
        assert all(linear.weight.grad.abs().max() > 0 for linear in model.injection.project)


def policy_and_batch(model, n=2):
    batch = prompt_batch([[3, MARKER, 4, 1, 5], [9, 2, 6, MARKER]][:n], [11, 12][:n])
    return NLAPolicy(model, TOKENIZER, 12, start=copy.deepcopy(model.injection)), batch | {
        'slots': SLOTS[:n],
        'activation': torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(5))[:n],
    }


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mode,layers,scale', [('replace', (0,), 'raw'), ('add', (1,), 'residual'), ('project', (0, 3), None)])
def test_cached_generation_is_full_recomputation(kind, mode, layers, scale):
    """
    Greedy tokens one at a time through whole forwards, on prompts of different lengths; the sampler's log-probs are the trainer's; and the
    vector matters.
    """
    model = tiny(kind, mode, layers, scale)
    policy, batch = policy_and_batch(model)
    greedy = policy.greedy(batch)
    for p in range(2):
        ids = batch['prompts'][p, :batch['prompt_lengths'][p]].tolist()
        for token in greedy.tokens[p, 0, :greedy.lengths[p, 0]].tolist():
            scores = logits(model, batch['activation'][p : p + 1], SLOTS[p : p + 1], torch.tensor([ids]))[0, -1].masked_fill(
                policy.forbidden, -torch.inf
            )
            assert scores.argmax() == token
            ids.append(token)
    rollout = policy.sample(batch, 4)
    torch.testing.assert_close(completion_logps(policy, rollout)[0], rollout.logps, atol=1e-5, rtol=0)
    rollout.batch = batch | {'activation': batch['activation'].flip(0)}
    assert (completion_logps(policy, rollout)[0] - rollout.logps).abs().max() > 1e-2


@pytest.mark.parametrize('options', [dict(micro_batch_size=1), dict(checkpointing=True), dict(lora=True)])
def test_one_gradient_however_it_is_made(options):
    torch.manual_seed(1)
    model = tiny(mode='project', layers=(0, 1), scale=None)
    if options.get('lora'):
        add_lora(model, 4, 8.0)
        model.injection.requires_grad_(True)
    policy, batch = policy_and_batch(model)
    if options.get('lora'):  # the reference keeps the injection that it began with
        reference = policy.without_adapters()
        before = reference.hidden(policy.sample(batch, 4))
        with torch.no_grad():
            for p in model.injection.parameters():
                p.add_(0.3)
        assert torch.equal(reference.hidden(policy.sample(batch, 4))[:, :, 0], before[:, :, 0])
    rollout = policy.sample(batch, 4)
    rollout.advantages = torch.randn(2, 4)
    params = [p for p in model.parameters() if p.requires_grad]

    def gradient(**how):
        cfg = plain(grad_clip=0.0, loss_type='dr_grpo', **how)
        train_on_rollout(policy, rollout, torch.optim.SGD(params, lr=0.0), cfg)
        return torch.cat([p.grad.flatten() for p in params])

    expected = gradient()
    model.gradient_checkpointing = options.pop('checkpointing', False)
    options.pop('lora', None)
    torch.testing.assert_close(gradient(**options), expected, atol=1e-6, rtol=1e-5)
    assert expected.abs().max() > 0


def test_markers():
    assert find_markers([[1, 9, 2], [9, 1]], 9).tolist() == [[1], [0]]
    assert find_markers([[9, 9]], 9, count=2).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r'prompt 1 has 0 injection markers .* wants 1:'):
        find_markers([[9], [1, 2]], 9)
    assert find_markers([[9, 1, 9], [9, 9]], 9).tolist() == [[0, 2], [0, 1]]  # one vector for both
    with pytest.raises(ValueError, match='prompt 1 has 1 injection markers .* wants 2:'):
        find_markers([[9, 1, 9], [9]], 9)
    with pytest.raises(ValueError, match='prompt 0 has 1 injection markers .* wants 2:'):
        find_markers([[1, 9]], 9, count=2)
    assert encode_around(TOKENIZER, 'ab<X>c', '<X>', MARKER) == [0, 1, MARKER, 2] and marker_of(TOKENIZER, '<X>') == MARKER


@pytest.mark.parametrize('layers', [(4,), (), (1, 1)])
def test_layers_that_the_model_lacks(layers):
    with pytest.raises(ValueError, match='injection_layers is .*: take different ones of 0 to 3'):
        tiny(layers=layers)


# -----------------------------------------------------------------------------
# the critic

def make_critic(layer=2, pooling='last', head='linear', target_norm='standard', A=16):
    model = tiny()
    torch.manual_seed(2)
    return model, Critic(copy.deepcopy(truncate(model, layer)), torch.randn(A), 1.7, pooling, head, target_norm).eval()


@pytest.mark.parametrize('head', ['linear', 'mlp'])
@pytest.mark.parametrize('layer', [0, 2, 3])
def test_a_new_critic_given_the_true_text_returns_the_activation(layer, head):
    model, critic = make_critic(layer, head=head)
    tokens, seen = torch.randint(16, (4, 9)), {}
    model(tokens, edit=lambda i, x: seen.setdefault(i, x))
    h = seen[layer][:, -1]
    prediction = critic(tokens, torch.full((4,), 9))
    torch.testing.assert_close(prediction, critic.target(h), atol=2e-6, rtol=0)
    assert fve(*critic.standard(prediction, h)) > 1 - 1e-9
    assert not hasattr(critic.trunk, 'injection') and not any(p is q for p in critic.parameters() for q in model.parameters())


def test_pooling_by_hand_and_padding():
    hidden, lengths = torch.tensor([[[1.0], [4.0], [-2.0]], [[3.0], [9.0], [9.0]]]), torch.tensor([3, 1])
    for pooling, wanted in (('last', [-2, 3]), ('mean', [1, 3]), ('max', [4, 3])):
        _, critic = make_critic(pooling=pooling)
        assert critic.pool(hidden, lengths).squeeze(1).tolist() == wanted
        tokens = torch.randint(16, (3, 7))
        lengths7 = torch.tensor([7, 4, 2])
        other = torch.where(torch.arange(7) < lengths7[:, None], tokens, torch.randint(16, (3, 7)))
        assert torch.equal(critic(tokens, lengths7), critic(other, lengths7))
        torch.testing.assert_close(critic(tokens[1:2, :4], torch.tensor([4])), critic(tokens, lengths7)[1:2])


def test_scales():
    h = 3 + 2 * torch.randn(500, 8) * torch.arange(1, 9)
    mean, scale = standardiser(h.numpy())
    t = (h - mean) / scale
    assert t.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert fve(torch.zeros_like(t), t) == 0 and fve(t, t) == 1
    assert fve(0.5 * t, t) == pytest.approx(0.75, abs=1e-6) == 1 - ((0.5 * t - t).square().mean() / 1).item()
    _, critic = make_critic(target_norm='unit')
    tokens, lengths = torch.randint(16, (5, 6)), torch.full((5,), 6)
    seen = {}
    tiny()(tokens, edit=lambda i, x: seen.setdefault(i, x))
    torch.testing.assert_close(critic(tokens, lengths), critic.target(seen[2][:, -1]), atol=1e-5, rtol=0)  # here too a new critic knows
    assert fve(*critic.standard(critic(tokens, lengths), seen[2][:, -1])) > 1 - 1e-6
    prediction, h = critic(tokens, lengths), torch.randn(5, 16)
    cosine = torch.cosine_similarity(prediction, h)
    torch.testing.assert_close(
        (prediction - critic.target(h)).square().mean(1), 2 * (1 - cosine)
    )  # -MSE is -2 (1 - cos): 0 for equal, -2 for orthogonal
    with pytest.raises(ValueError, match='all activations are equal'):
        standardiser(np.ones((3, 4)))


def test_what_the_critic_reads():
    """Never the prompt, never the end token, turned round where texts are written latest first; cut off and empty ones are told."""
    assert turned_round(torch.tensor([[1, 2, 3, 0], [5, 0, 0, 0], [7, 8, 9, 6]]), torch.tensor([3, 1, 4])).tolist() == [
        [3, 2, 1, 0],
        [5, 0, 0, 0],
        [6, 9, 8, 7],
    ]
    policy, batch = policy_and_batch(tiny())
    rollout = policy.sample(batch, 2)
    end = TOKENIZER.eos_id
    rollout.tokens = torch.tensor([[[1, 2, end], [4, 5, 6]], [[end, 0, 0], [7, end, 0]]])
    rollout.lengths, rollout.ended = torch.tensor([[3, 3], [1, 2]]), torch.tensor([[True, False], [True, True]])
    texts, lengths, h, whole = as_read(rollout, True, True)
    assert lengths.tolist() == [2, 3, 0, 1] and whole.tolist() == [True, False, False, True]
    assert [row[:n] for row, n in zip(texts.tolist(), lengths.tolist(), strict=False)] == [[2, 1], [6, 5, 4], [], [7]]
    assert torch.equal(h, batch['activation'][:, 0].repeat_interleave(2, 0))


# -----------------------------------------------------------------------------
# activations

def make(**other):
    """The settings of a small folder of activations."""
    sizes = dict(activations_n=20, eval_prompts_n=100, activation_context=6)
    return SimpleNamespace(**(sizes | dict(activation_layer=2, seed=1) | other))


def test_activations_are_the_residuals(tmp_path):
    model = tiny().double().float()
    documents = {'train': ['abcdefghijklmnop' * 2, 'a', 'ponmlkjihgfedcba'], 'val': ['ponmabcdijkl']}
    write_activations(model, TOKENIZER, documents, make(), str(tmp_path / 'a'), None)
    header, splits = load_activations(str(tmp_path / 'a'))
    assert (header['layer'], header['width'], header['n_train'], header['n_val']) == (2, 16, 20, 7)
    where = np.load(tmp_path / 'a' / 'train_where.npy')
    assert len({tuple(w) for w in where}) == 20 and set(where[:, 0]) == {0, 2} and where[:, 1].min() >= 5
    for split, texts in documents.items():
        places = np.load(tmp_path / 'a' / f'{split}_where.npy')
        for i in range(0, len(splits[split]), 3):
            document, position = places[i]
            ids, seen = TOKENIZER.encode(texts[document])[max(0, position - 5):position + 1], {}
            model(torch.tensor([ids]), edit=seen.setdefault)
            torch.testing.assert_close(torch.from_numpy(splits[split].vectors[i].copy()), seen[2][0, -1], atol=1e-6, rtol=1e-6)
            assert splits[split].text(i, 3) == ids[-3:] and splits[split].text(i, 99) == ids
    train_vectors = torch.tensor(splits['train'].vectors)
    torch.testing.assert_close(torch.tensor(header['mean']), train_vectors.mean(0))
    with pytest.raises(ValueError, match="none of the 1 documents of split 'val' is longer than 12 tokens"):
        write_activations(model, TOKENIZER, documents, make(activation_context=13), str(tmp_path / 'c'), None)
    with pytest.raises(ValueError, match='lacks a file.*header.json'):
        load_activations(str(tmp_path / 'c'))
    with pytest.raises(ValueError, match='activation_layer is 4: this model has blocks 1 to 3'):
        write_activations(model, TOKENIZER, documents, make(activation_layer=4), str(tmp_path / 'd'), None)
    (tmp_path / 'a' / 'val.npy').write_bytes((tmp_path / 'a' / 'val.npy').read_bytes()[:50])
    with pytest.raises(ValueError, match='torn'):
        load_activations(str(tmp_path / 'a'))


def test_vectors_from_files(tmp_path):
    from safetensors.torch import save_file
    v = torch.randn(4, 3)
    np.save(tmp_path / 'v.npy', v.numpy())
    torch.save(v.bfloat16(), tmp_path / 'v.pt')
    save_file({'activations': v.half()}, tmp_path / 'v.safetensors')
    for name, dtype in (('v.npy', torch.float32), ('v.pt', torch.bfloat16), ('v.safetensors', torch.float16)):
        assert torch.equal(torch.tensor(read_vectors(str(tmp_path / name))), v.to(dtype).float())
    v[2, 1] = torch.inf
    np.save(tmp_path / 'bad.npy', v.numpy())
    np.save(tmp_path / 'flat.npy', np.ones(3))
    (tmp_path / 'torn.pt').write_bytes(b'PK')
    for name, message in (
        ('bad.npy', 'activation 2 is NaN or infinite'),
        ('flat.npy', r'shape \(3,\)'),
        ('torn.pt', 'torn.pt'),
        ('v.bin', 'is .npy, .pt or .safetensors'),
    ):
        with pytest.raises(ValueError, match=message):
            read_vectors(str(tmp_path / name))
    with pytest.raises(ValueError, match='none.npy: .*No such file'):
        read_vectors(str(tmp_path / 'none.npy'))


# -----------------------------------------------------------------------------
# the job

TOY = [
    '--n_layer=2',
    '--n_embd=32',
    '--n_head=2',
    '--pretrain_iters=20',
    '--activations_n=400',
    '--warm_start_iters=20',
    '--critic_start_iters=10',
    '--batch_size=4',
    '--group_size=4',
    '--eval_prompts_n=40',
    '--eval_interval=3',
    '--log_interval=1',
    '--save_interval=3',
    '--max_iters=6',
    '--critic_warmup_iters=2',
]


def train(cwd, *arguments, script='train_grpo.py', ok=True):
    environment = os.environ | {'PYTHONPATH': ROOT, 'OMP_NUM_THREADS': '1'}
    result = subprocess.run(
        [PYTHON, os.path.join(ROOT, script), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode == 0) == ok, result.stdout + result.stderr
    return result.stdout if ok and script != 'sample.py' else result.stderr.strip()  # its table goes there, the best answer to stdout


def metrics_of(folder):
    with open(folder / 'metrics.jsonl') as f:
        return [{k: v for k, v in json.loads(line).items() if not k.startswith('time_') and k != 'tokens_per_s'} for line in f]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nla')
    return folder, train(folder, os.path.join(ROOT, 'config', 'nla.py'), *TOY)


def test_the_job_from_nothing(run):
    """All stages; the actor rests through the warm-up, bit for bit, and then moves; the critic learns all along; the table is there."""
    folder, printed = run
    lines = metrics_of(folder / 'out-nla' / 'grpo')
    assert [line['iter'] for line in lines] == list(range(7)) and 'loss' not in lines[1] and 'loss' in lines[2]
    assert all(line['fve'] == pytest.approx(1 - line['critic_loss'], abs=1e-6) for line in lines[:-1])
    assert {
        'eval/fve',
        'eval/fve_greedy',
        'eval/fve_shuffled',
        'eval/cosine',
        'eval/text_nll',
        'eval/distinct_texts',
        'eval/fve_no_injection',
        'eval/fve_random_injection',
        'eval/fve_true_text',
    } <= lines[0].keys()
    assert 'held-out fraction of variance explained' in printed and 'PCA, 8 numbers' in printed
    start, end = load_checkpoint(folder / 'out-nla' / 'start.pt', 'nla'), load_checkpoint(folder / 'out-nla' / 'grpo' / 'ckpt.pt', 'run')
    assert set(start['model']) == set(end['model']) and not torch.equal(
        start['model']['injection.project.0.weight'], end['model']['injection.project.0.weight']
    )
    assert not torch.equal(start['critic']['linear.weight'], end['critic']['linear.weight'])


def test_the_frozen_actor_and_ppo(run):
    folder, _ = run
    train(folder, os.path.join(ROOT, 'config', 'nla.py'), *TOY, '--freeze_actor=True', '--out_dir=frozen')
    start, end = load_checkpoint(folder / 'out-nla' / 'start.pt', 'nla'), load_checkpoint(folder / 'frozen' / 'ckpt.pt', 'run')
    assert all(torch.equal(start['model'][name], p) for name, p in end['model'].items())
    last = metrics_of(folder / 'frozen')[-1]
    assert last['eval/fve_frozen_actor'] == last['eval/fve'] != metrics_of(folder / 'frozen')[0]['eval/fve']
    train(folder, os.path.join(ROOT, 'config', 'nla_ppo.py'), *TOY, '--out_dir=ppo')
    line = metrics_of(folder / 'ppo')[3]
    assert line['value_loss'] > 0 and load_checkpoint(folder / 'ppo' / 'ckpt.pt', 'run')['model']['value_head.weight'].abs().max() > 0


def test_resuming_changes_nothing(run):
    """Actor, critic and both optimizers go on where they were."""
    folder, _ = run
    config = os.path.join(ROOT, 'config', 'nla.py')
    train(folder, config, *TOY, '--max_iters=4', '--lr_schedule=constant', '--out_dir=parted')
    train(folder, config, *TOY, '--out_dir=parted', '--init_from=resume')
    whole, parted = (metrics_of(folder / name) for name in (os.path.join('out-nla', 'grpo'), 'parted'))
    for a, b in zip(whole, parted, strict=False):
        assert {k: v for k, v in a.items() if not k.startswith('eval/')} == {k: v for k, v in b.items() if not k.startswith('eval/')}
    assert whole[-1] == parted[-1]


def test_explaining(run):
    folder, _ = run
    printed = train(
        folder, '--checkpoint=out-nla/grpo/ckpt.pt', '--text=The value of the expression', '--num_samples=3', script='sample.py'
    )
    values = [float(line.split()[0]) for line in printed.splitlines()[1:]]
    assert len(values) == 4 and values == sorted(values, reverse=True) and '(greedy)' in printed
    np.save(folder / 'some.npy', np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32))
    assert 'explanation' in train(folder, '--checkpoint=out-nla/grpo/ckpt.pt', '--activations=some.npy', '--row=2', script='sample.py')
    assert 'error: row is 3' in train(
        folder, '--checkpoint=out-nla/grpo/ckpt.pt', '--activations=some.npy', '--row=3', script='sample.py', ok=False
    )


def test_given_activations_with_texts(run):
    """
    A file of vectors of another width with prompts and texts of its own; and what can be wrong with such files, each told in one line
    before anything is trained.
    """
    folder, _ = run
    rng = np.random.default_rng(0)
    np.save(folder / 'given.npy', rng.normal(size=(60, 7)).astype(np.float32))
    records = [{'prompt': 'What is <INJECT> like?', 'answer': 'abc' if i % 2 else 'the def', 'document': i // 3} for i in range(60)]

    def write(name, records):
        (folder / name).write_text(''.join(json.dumps(r) + '\n' for r in records))

    write('given.jsonl', records)
    arguments = [
        os.path.join(ROOT, 'config', 'nla.py'),
        *TOY,
        '--train_prompts=given.jsonl',
        '--activations=given.npy',
        '--nla_checkpoint=given.pt',
        '--out_dir=given',
        '--max_iters=3',
        '--text_reversed=False',
    ]
    train(folder, *arguments)
    assert 'eval/fve' in metrics_of(folder / 'given')[-1]

    def fails(*more):
        return train(folder, *arguments, '--out_dir=bad', *more, ok=False)

    write('short.jsonl', records[:50])
    assert (
        fails('--train_prompts=short.jsonl') == 'error: given.npy has 60 activations and short.jsonl 50 prompts: there must be one for each'
    )
    write('none.jsonl', records[:7] + [{'prompt': 'no marker'}] + records[8:])
    assert fails('--train_prompts=none.jsonl').startswith('error: prompt 7 has 0 injection markers')
    write('two.jsonl', records[:3] + [{'prompt': '<INJECT> and <INJECT>'}] + records[4:])
    np.save(folder / 'pairs.npy', rng.normal(size=(60, 2, 7)).astype(np.float32))
    assert fails('--activations=pairs.npy').startswith('error: prompt 0 has 1 injection markers (token')
    write('pairs.jsonl', [r | {'prompt': '<INJECT> and <INJECT>'} for r in records])
    pairs = ['--activations=pairs.npy', '--train_prompts=pairs.jsonl', '--nla_checkpoint=pairs.pt', '--out_dir=pairs', '--max_iters=2']
    train(folder, *arguments, *pairs)  # two vectors to a prompt, and the critic tells both: 14 numbers
    made = load_checkpoint(folder / 'pairs' / 'nla.pt', 'nla')
    assert made['nla']['injection']['activation_dim'] == 7 and len(made['critic']['mean']) == 14
    shown = train(folder, '--checkpoint=pairs/nla.pt', '--activations=pairs.npy', '--row=2', script='sample.py')
    assert '(greedy)' in shown
    assert fails('--train_prompts=two.jsonl').startswith('error: prompt 3 has 2 injection markers')
    assert fails('--max_prompt_length=5').startswith('error: prompt 0 has 15 tokens and max_prompt_length is 5')
    assert fails('--activations=none.npy', '--generator_checkpoint=untrained.pt') == (
        "error: none.npy: [Errno 2] No such file or directory: 'none.npy'")
    assert not (folder / 'untrained.pt').exists()
    vectors = rng.normal(size=(60, 7)).astype(np.float32)
    vectors[41, 3] = np.nan
    np.save(folder / 'nan.npy', vectors)
    assert (
        fails('--activations=nan.npy')
        == 'error: nan.npy: activation 41 is NaN or infinite'
    )
    np.save(folder / 'wide.npy', rng.normal(size=(60, 9)).astype(np.float32))
    assert 'activations: it has ' in fails('--activations=wide.npy')
    assert 'was made with activations of width = 7 and it is 9 now' in fails('--activations=wide.npy', '--remake=never')
    write('bare.jsonl', [{'prompt': r['prompt']} for r in records])
    train(
        folder, *arguments, '--train_prompts=bare.jsonl', '--nla_checkpoint=bare.pt', '--out_dir=bare', '--max_iters=1'
    )  # no texts: the actor starts unprepared
    assert 'injection_mode: it has "project", this run wants "add"' in fails('--injection_mode=add')
    assert 'was made with injection_mode = \'project\' and it is \'add\' now' in fails('--injection_mode=add', '--remake=never')
    assert "no prompts at 'activations'" in train(
        folder, os.path.join(ROOT, 'config', 'nla.py'), *TOY, '--dataset=activations', '--generator_checkpoint=new.pt', ok=False
    )
    other = load_checkpoint(folder / 'given.pt', 'nla')
    torch.save({key: value for key, value in other.items() if key != 'nla'}, folder / 'crafted.pt')
    assert fails('--nla_checkpoint=crafted.pt').startswith("error: crafted.pt has no dict 'nla'")


def test_explanations_of_one_token(run):
    """They need a second one for the end, unless the tokenizer has none."""
    folder, _ = run
    source = torch.load(folder / 'out-nla' / 'source.pt')
    torch.save(source | {'end': False}, folder / 'endless.pt')
    arguments = [os.path.join(ROOT, 'config', 'nla.py'), *TOY, '--max_new_tokens=1', '--max_iters=1', '--out_dir=one']
    assert train(folder, *arguments, ok=False).startswith('error: max_new_tokens is 1: ')
    assert train(folder, *arguments, '--generator_checkpoint=new.pt', ok=False).startswith('error: max_new_tokens is 1: ')
    made = ['--generator_checkpoint=endless.pt', '--activations=endless', '--nla_checkpoint=endless_start.pt']
    train(folder, *arguments, *made)
    assert metrics_of(folder / 'one')[-1]['eval/frac_whole'] == 1


@pytest.mark.parametrize(
    'more,turns',
    [
        ([], [(2, [])]),
        (
            [],
            [
                (2, ['--shard=True', '--max_iters=4']),
                (1, ['--max_iters=5']),
                (2, ['--shard=True', '--gather_to_sample=False', '--micro_batch_size=1']),
            ],
        ),
        (['--lora_r=2', '--learning_rate=1e-2'], [(2, ['--shard=True', '--max_iters=4']), (1, [])]),
    ],
    ids=['two', 'sharded, one, block by block', 'adapters: sharded, one'],
)
def test_the_same_run_whoever_does_it(run, tmp_path, more, turns):
    """
    torchrun: each process its own prompts, actor and critic whole or spread over both, and in turns, each going on from the other's
    checkpoint: every metric and all weights are those of one process without a break.
    """
    folder, out = run[0], str(tmp_path / 'out')
    one = folder / 'out-nla' / 'grpo'
    if more:
        one = tmp_path / 'one'
        train(folder, os.path.join(ROOT, 'config', 'nla.py'), *TOY, *more, f'--out_dir={one}')
    for n, (processes, settings) in enumerate(turns):
        launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else []
        arguments = [
            *launcher,
            os.path.join(ROOT, 'train_grpo.py'),
            os.path.join(ROOT, 'config', 'nla.py'),
            *TOY,
            *more,
            *settings,
            f'--out_dir={out}',
            *(['--init_from=resume'] if n else []),
        ]
        done = subprocess.run(
            [PYTHON, *arguments], cwd=folder, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for ours, theirs in zip(metrics_of(tmp_path / 'out'), metrics_of(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    ours, theirs = (load_checkpoint(path / 'ckpt.pt', 'run', 'adapters') for path in (tmp_path / 'out', one))
    for part in ('model', 'critic'):
        assert ours[part].keys() == theirs[part].keys() and all(
            torch.allclose(ours[part][name], p, rtol=1e-6, atol=1e-6) for name, p in theirs[part].items()
        )
    exported = [load_checkpoint(path / 'nla.pt', 'nla') for path in (tmp_path / 'out', one)]
    assert exported[0].keys() == exported[1].keys() and all(
        torch.equal(exported[0]['critic'][name], p) for name, p in ours['critic'].items()
    )


def test_a_hugging_face_model_with_adapters(tmp_path):
    """A tiny Llama with a tokenizer of its own: a special token marks the place; prompts longer than one token; LoRA on the actor; bf16."""
    tokenizers, transformers = (
        pytest.importorskip(name, reason='a checkpoint is made with it: pip install -r requirements-dev.txt')
        for name in ('tokenizers', 'transformers')
    )
    texts = [
        'The value of an expression is what it says, and a name is what it means. ' * 3,
        'A list holds values; a name holds one of them, or none at all. ' * 3,
    ]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=['<|end|>', '<empty>'], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|end|>').save_pretrained(tmp_path / 'llama')
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    ).save_pretrained(tmp_path / 'llama')
    (tmp_path / 'texts.jsonl').write_text(''.join(json.dumps({'text': f'{i} {text}'}) + '\n' for i in range(12) for text in texts))
    train(
        tmp_path,
        os.path.join(ROOT, 'config', 'nla.py'),
        *TOY,
        '--generator_checkpoint=llama',
        '--dataset=texts.jsonl',
        "--column_mapping={'text': 'prompt'}",
        '--injection_token=<empty>',
        '--injection_prompt=What is <empty>?',
        '--injection_layers=(0, 1)',
        '--critic_pooling=mean',
        '--critic_head=mlp',
        '--lora_r=4',
        '--load_in_8bit=True',
        '--precision=bf16',
        '--max_iters=3',
        '--out_dir=out',
    )
    assert metrics_of(tmp_path / 'out')[-1]['eval/fve'] < 1
    about = load_checkpoint(tmp_path / 'out' / 'ckpt_best.pt', 'adapters')['nla']
    assert about['prompt'] == bpe.encode('What is ').ids + [bpe.token_to_id('<empty>')] + bpe.encode('?').ids
    assert '(greedy)' in train(tmp_path, '--checkpoint=out/nla.pt', '--text=The value of a name', script='sample.py')
    other = [os.path.join(ROOT, 'config', 'nla.py'), *TOY, '--generator_checkpoint=llama', '--dataset=texts.jsonl',
             "--column_mapping={'text': 'prompt'}", '--max_iters=2', '--out_dir=made']
    assert 'injection_layers: it has [0, 1], this run wants [0]' in train(tmp_path, *other, ok=False)
    other += ['--nla_checkpoint=made.pt', '--injection_token=<HERE>', '--injection_prompt=<HERE> and <HERE>']
    train(tmp_path, *other)  # a marker that the tokenizer lacks: one more row, and the same vector in both places
    train(tmp_path, *other, '--max_iters=3', '--init_from=resume')
    saved = load_checkpoint(tmp_path / 'made' / 'nla.pt', 'nla')
    assert saved['model_config']['vocab_size'] == 301 == len(saved['model']['wte.weight']) == len(saved['model']['lm_head.weight'])
    assert saved['nla']['prompt'] == [300, *bpe.encode(' and ').ids, 300]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / 'made' / 'tokenizer')('<HERE>').input_ids == [300]
    assert '(greedy)' in train(tmp_path, '--checkpoint=made/nla.pt', '--text=The value of a name', script='sample.py')
