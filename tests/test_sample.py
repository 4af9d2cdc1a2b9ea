"""The sampler against full recomputation, against itself in other company, and against counted frequencies."""
import shutil

import pytest
import torch

from formats.tokenizer import Tokenizer
from kernels import pack, unpack
from kernels.decoding import choices, draw
from model import GPT, GPTConfig
from policy import CausalPolicy, GroupCache, generate, prompt_batch, uniforms

KINDS = {'gpt2': dict(), 'llama': dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, n_kv_head=2),
         'qwen3': dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False, n_kv_head=1, qk_norm=True, head_dim=16, tied=False)}
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9], [3, 2, 3]]
EOS = 7
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def tiny(kind='llama', V=37):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=V, n_layer=2, n_head=4, n_embd=32, **KINDS[kind])).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def each(answers):
    """(p, g, tokens of the answer, their log-probs), unpadded."""
    for p, g in torch.cartesian_prod(*map(torch.arange, answers.lengths.shape)).tolist():
        n = answers.lengths[p, g]
        yield p, g, answers.tokens[p, g, :n], answers.logps[p, g, :n]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('options', [{}, dict(temperature=0.7), dict(top_k=5, top_p=0.8, temperature=1.3)])
def test_log_probs_are_those_of_a_whole_forward(kind, options):
    """
    Shared prefix, own cache, ragged prompts, rows that leave: every token's recorded log-prob is the one of reading prompt + answer at
    once.
    """
    model = tiny(kind)
    answers = generate(model, PROMPTS, 8, 40, eos_id=EOS, seed=1, **options)
    assert 'top_k' in options or len(answers.lengths.unique()) > 4, 'the test wants rows that leave at different times'
    for p, g, tokens, logps in each(answers):
        logits = model.logits(torch.tensor(PROMPTS[p] + tokens.tolist())[None])[0, len(PROMPTS[p]) - 1:-1] / options.get('temperature', 1)
        if answers.allowed is not None:
            logits[~unpack(answers.allowed[p, g, :len(tokens)], 37)] = -torch.inf
        torch.testing.assert_close(logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], logps, atol=1e-5, rtol=0)
        assert (tokens == EOS).sum() == int(answers.ended[p, g]) == int(tokens[-1] == EOS), (
            'it stops at the first end token, which it keeps'
        )
        assert answers.ended[p, g] or len(tokens) == 40


@pytest.mark.parametrize('ends', [(EOS, 11, 30), [11], torch.tensor([30, EOS]), ()])
def test_it_stops_at_the_first_of_several_end_tokens(ends):
    """As without any, cut behind the first of them; that one stays, and its log-prob."""
    model = tiny()
    whole, cut = generate(model, PROMPTS, 8, 40, seed=1), generate(model, PROMPTS, 8, 40, eos_id=ends, seed=1)
    places = torch.isin(whole.tokens, torch.tensor(list(ends), dtype=torch.long))
    found = places.any(-1)
    assert torch.equal(cut.ended, found) and torch.equal(cut.lengths, torch.where(found, places.int().argmax(-1) + 1, 40))
    assert bool(len(ends)) == bool(found.any())
    for p, g, tokens, logps in each(cut):
        assert torch.equal(tokens, whole.tokens[p, g, :len(tokens)])
        torch.testing.assert_close(logps, whole.logps[p, g, :len(tokens)], atol=1e-5, rtol=0)


def test_what_has_no_token_is_never_sampled_and_no_end_is_text():
    """A vocabulary with a hole, 3, and one row more than ids; an end token that is not special has a text."""
    class Words(Tokenizer):
        vocab_size, ids, eos_ids = 36, [i for i in range(36) if i != 3], (EOS, 11)

        def decode(self, ids, special=False):
            return ' '.join(map(str, ids))

    policy = CausalPolicy(tiny(), Words(), 40)
    assert policy.forbidden.nonzero().flatten().tolist() == [3, 36]
    rollout = policy.sample(prompt_batch(PROMPTS, [1, 2, 3, 4]), 8)
    assert rollout.ended.any() and not rollout.ended.all()
    for p, g, tokens, _ in each(rollout):
        kept = tokens[:-1] if rollout.ended[p, g] else tokens
        assert policy.texts(rollout)[p][g] == ' '.join(map(str, kept.tolist())) and not set(tokens.tolist()) & {3, 36}
        assert not set(kept.tolist()) & {EOS, 11} and rollout.ended[p, g] == (tokens[-1].item() in (EOS, 11))


def test_greedy_is_the_argmax_of_a_whole_forward():
    model = tiny()
    answers = generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    for p, _, tokens, _ in each(answers):
        ids = list(PROMPTS[p])
        for _ in range(12):
            ids.append(model.logits(torch.tensor(ids)[None])[0, -1].argmax().item())
        assert tokens.tolist() == ids[len(PROMPTS[p]):]


def test_an_answer_does_not_depend_on_its_company():
    """Same prompt, same seed, same place in the group: alone, in a batch, among longer prompts, in a larger group."""
    model = tiny()
    together = generate(model, PROMPTS, 4, 20, eos_id=EOS, seed=[11, 12, 13, 14])
    for p in range(4):
        alone = generate(model, [PROMPTS[p]], 2, 20, eos_id=EOS, seed=[11 + p])
        for g in range(2):
            n = alone.lengths[0, g]
            assert n == together.lengths[p, g] and torch.equal(alone.tokens[0, g, :n], together.tokens[p, g, :n])
    assert torch.equal(
        generate(model, PROMPTS, 4, 20, eos_id=EOS, seed=3).tokens, generate(model, PROMPTS, 4, 20, eos_id=EOS, seed=3).tokens
    )
    assert not torch.equal(generate(model, PROMPTS, 4, 20, seed=3).tokens, generate(model, PROMPTS, 4, 20, seed=4).tokens)


def test_the_prompt_is_read_once_and_finished_rows_leave():
    """Rows of the last norm: the prompts' tokens, then one for each answer that still runs, with at most a tenth of the places to spare."""
    model, seen = tiny(), []
    model.norm_f.register_forward_hook(lambda m, i, o: seen.append(o.numel() // o.shape[-1]))
    answers = generate(model, PROMPTS, 8, 30, eos_id=EOS, seed=1)
    running = [int((answers.lengths > step).sum()) for step in range(1, len(seen))]
    assert seen[0] == sum(map(len, PROMPTS)) and seen[-1] < 32 / 1.5
    assert all(alive <= n <= alive / 0.85 / 0.9 for alive, n in zip(running, seen[1:], strict=False))


def test_rows_that_stay_are_moved_into_full_lines():
    """By hand: 3, 1 and 2 of 3 rows stay, and lie in lines of 2; the prompts' keys and each row's own go with them."""
    prefix = [tuple(torch.randn(2, 3, 4, 2, 5))]
    cache = GroupCache(prefix, torch.tensor([4, 4, 4]), 3, 6, 1)
    cache.own[0][0][:] = torch.arange(9.0).view(3, 1, 3, 1, 1)
    keys = cache.keys[0].clone()
    moved = cache.keep(torch.tensor([0, 1, 2, 4, 6, 8]))
    assert moved.tolist() == [0, 1, 2, 4, 6, 8] and cache.width == 1     # wider lines would leave a quarter of the places empty
    cache.keep(torch.tensor([0, 1, 2, 4, 5]))
    assert cache.prompt.tolist() == [0, 0, 0, 2, 2] and cache.own[0][0][:, 0, 0, 0, 0].tolist() == [0, 1, 2, 6, 8]
    assert torch.equal(cache.keys[0].view(5, 2, 5, 4), keys.view(3, 2, 5, 4)[cache.prompt])
    full = GroupCache(prefix, torch.tensor([4, 4, 4]), 4, 6, 1)
    assert full.keep(torch.tensor([0, 3, 4, 5, 6, 7, 9, 10])).tolist() == [0, 3, 4, 5, 6, 7, 9, 10] and full.width == 2
    assert full.prompt.tolist() == [0, 1, 1, 2]


def test_draws_follow_the_probabilities():
    """
    100,000 draws of 5 tokens: each count within 5 standard deviations (a false alarm once in 300,000 runs); forbidden and impossible ones
    never.
    """
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf, 3.0]).expand(100_000, 5)
    u = uniforms([5], 100, 1000).flatten()
    tokens, logps, _ = draw(logits, u, 2.0, 0, 1.0, torch.tensor([False, False, True, False, False]))
    p = torch.tensor([2.0, 1.0, -torch.inf, -torch.inf, 3.0]).div(2).softmax(0)
    counts = tokens.bincount(minlength=5)
    assert ((counts - 1e5 * p).abs() <= 5 * (1e5 * p * (1 - p)).sqrt()).all() and counts[2] == counts[3] == 0
    torch.testing.assert_close(logps.exp(), p[tokens])


def test_uniform_numbers():
    """Even in every sixteenth, unrelated between neighbouring seeds, answers and tokens, never 1."""
    u = uniforms(list(range(100)), 20, 50)
    counts = (u * 16).long().flatten().bincount(minlength=16)
    assert ((counts - 6250).abs() < 5 * (6250 * 15 / 16) ** 0.5).all() and 0 <= u.min() and u.max() < 1
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[:, :, 1:], u[:, :, :-1])):
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 5 / a.numel() ** 0.5
    last = draw(torch.zeros(1, 4), torch.tensor([1 - 2.0 ** -32], dtype=torch.float64), 1, 0, 1.0, None)
    assert last[0].item() == 3


def test_bits():
    for V in (8, 13, 64):
        allowed = torch.rand(3, 2, V) < 0.5
        assert torch.equal(unpack(pack(allowed), V), allowed) and pack(allowed).shape[-1] == -(-V // 8)


def test_choices_by_hand():
    log_probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.05, 0.0, 0.9]]).log()
    assert choices(log_probs, 0, 0.6).tolist() == [[True, True, False, False], [False, False, False, True]]
    assert choices(log_probs, 0, 1e-6).sum(-1).tolist() == [1, 1]
    assert choices(log_probs, 3, 1).tolist() == [[True, True, True, False], [True, True, False, True]]
    assert choices(log_probs, 2, 0.6).tolist() == [[True, False, False, False], [False, False, False, True]]  # .5 / (.5 + .3) is enough


def test_bad_input():
    model = tiny()
    state = torch.get_rng_state()
    assert not torch.equal(generate(model, [[1]], 4, 8).tokens, generate(model, [[1]], 4, 8).tokens) and torch.equal(
        torch.get_rng_state(), state
    )
    broken = tiny()
    broken.norm_f.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match='NaN'):
        generate(broken, [[1]], 2, max_new_tokens=5)
    with pytest.raises(ValueError, match='prompt 1 is empty'):
        generate(model, [[1], []])
    with pytest.raises(ValueError, match='60 tokens and max_new_tokens 5 exceed.*block_size of 64'):
        generate(model, [[1] * 60], max_new_tokens=5)
    with pytest.raises(ValueError, match='top_p 0'):
        generate(model, [[1]], max_new_tokens=5, top_p=0)


@pytest.mark.skipif(shutil.which('g++') is None and not torch.cuda.is_available(), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize('options', [{}, dict(top_k=5, top_p=0.8)])
def test_compiling_changes_nothing(options):
    """
    The step compiled, in windows of 64 slots, on a GPU a CUDA graph each: the same tokens; other numbers of prompts, rows and tokens are
    not compiled for again.
    """
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=110, vocab_size=37, n_layer=1, n_head=4, n_embd=32, **KINDS['llama'])).to(DEVICE).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    plain, compiled = (generate(model, PROMPTS, 8, 90, eos_id=(EOS, 11), seed=1, compile=compile, **options) for compile in (False, True))
    assert plain.lengths.max() > 64 and len(plain.lengths.unique()) > 8
    assert torch.equal(plain.tokens, compiled.tokens) and torch.equal(plain.lengths, compiled.lengths)
    torch.testing.assert_close(plain.logps, compiled.logps, atol=1e-5, rtol=0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        generate(model, PROMPTS[1:] + PROMPTS, 5, 100, eos_id=(EOS, 11), seed=2, compile=True, **options)
