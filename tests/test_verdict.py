"""What came of a run, by numbers worked out by hand: each verdict, and where it turns into another."""
import json
import math
import types

import pytest
import torch

import report
from report.verdict import FEWEST, Looks, verdict_of
from runtime import run
from tasks import TASKS
from tasks.completion import Completion
from tasks.fill_in import exact_match, right_fills

N = 16


def ones(k):
    """1 for the first k of 16 prompts, else 0."""
    return [1.0] * k + [0.0] * (N - k)


def rows(first, last, n=N):
    return [{'iter': 0, 'independent': n, **first}, {'iter': 5, 'independent': n, **last}]


def verdict(task, first, last, **settings):
    return verdict_of(rows(first, last), TASKS[task], settings)


def test_a_mean_and_its_error_by_hand():
    """
    4 of 16 went from 0 to 1: mean 1/4, variance (4 (3/4)^2 + 12 (1/4)^2) / 15 = 1/5, two standard errors 2 sqrt(1/5) / 4 = .2236, so
    that it is learned. 3 of 16: .1875, variance .1625, two standard errors .2016. A prompt without a value on one side is left out.
    """
    looks = Looks({'a': ones(0)}, {'a': ones(4)}, N)
    assert looks.change('a') == (0.25, pytest.approx(2 * math.sqrt(0.2) / 4), 1)
    assert looks.told('a', 'A') == 'A rose, 0.0000 → 0.2500 (+0.2500 ± 0.2236)'
    assert looks.outcome('a', 'A').startswith('learned: ')
    looks = Looks({'a': ones(0)}, {'a': ones(3)}, N)
    assert looks.change('a') == (0.1875, pytest.approx(2 * math.sqrt(0.1625) / 4), 0)
    assert looks.outcome('a', 'A') == 'no change: A 0.0000 → 0.1875 (+0.1875 ± 0.2016)'
    assert Looks({'a': ones(4)}, {'a': ones(0)}, N).outcome('a', 'A') == 'worse: A fell, 0.2500 → 0.0000 (-0.2500 ± 0.2236)'
    assert Looks({'a': ones(4)}, {'a': ones(4)}, N).change('a') == (0, 0, 0)
    one_less = Looks({'a': [None, *ones(0)]}, {'a': [9.0, *ones(4)]}, N).change('a')
    assert one_less == looks.mean(ones(4)) and one_less.sign == 1


def test_it_is_by_prompts():
    """From .4, .7, 1, .4, ... each rises by .1: surely; the same values in another order: nothing is sure."""
    first = [0.4 + 0.3 * (i % 3) for i in range(N)]
    assert Looks({'a': first}, {'a': [value + 0.1 + 0.001 * (i % 2) for i, value in enumerate(first)]}, N).change('a').sign == 1
    assert Looks({'a': first}, {'a': sorted(value + 0.1 for value in first)}, N).change('a').sign == 0


def test_texts_that_overlap_count_once():
    """Of 16 texts only 10 are independent: 4 of 16 are no longer sure, 2 sqrt(1/5) / sqrt(10) = .2828; of 9 nothing is said."""
    assert Looks({'a': ones(0)}, {'a': ones(4)}, 10).change('a') == (0.25, pytest.approx(2 * math.sqrt(0.2 / 10)), 0)
    first, last = ({'exact_answer, greedy': ones(k)} for k in (0, 12))
    assert verdict_of(rows(first, last, FEWEST), Completion, {}).endswith('; ± two standard errors, n = 10')
    assert verdict_of(rows(first, last, 9), Completion, {}) == 'too little is held out to tell what came of it: 9'


def test_a_completion_run():
    """Right or wrong: its first reward; graded: the sum of all. Tests are fooled where hidden ones fall behind."""
    def look(k, total=0, more=()):
        return {'exact_answer, greedy': ones(k), 'all, weighted, sampled': ones(total), **dict(more)}

    said = verdict('completion', look(0), look(4))
    assert said == ('learned: held-out exact_answer, greedy rose, 0.0000 → 0.2500 (+0.2500 ± 0.2236); ± two standard errors, n = 16')
    assert verdict('completion', look(0), look(3, 9)).startswith('no change: held-out exact_answer, greedy 0.0000 → 0.1875')
    assert verdict('completion', look(8), look(2)).startswith('worse: ')
    graded = look(0) | {'exact_answer, greedy': [0.5] * N}
    assert verdict('completion', graded, look(0, 4)).startswith('learned: held-out all, weighted, sampled rose')
    for k, words in ((4, 'the tests are being fooled: exact_answer, greedy, above hidden tests rose, '), (3, 'learned: ')):
        said = verdict('completion', look(0, 0, {'above hidden tests': ones(0)}), look(9, 0, {'above hidden tests': ones(k)}))
        assert said.startswith(words), said


def test_a_fill_in_run():
    """The judge is fooled above real text, or where the gold judge or exact match falls while it rises."""
    def look(judge, gold=8, right=8, real=N):
        return {'judge': ones(judge), 'gold': ones(gold), 'right': ones(right), 'real': ones(real)}

    assert verdict('fill_in', look(0), look(4)).startswith('learned: held-out judge reward rose, 0.0000 → 0.2500 (+')
    assert verdict('fill_in', look(0), look(3)).startswith('no change: ') and verdict('fill_in', look(9), look(2)).startswith('worse: ')
    above = verdict('fill_in', look(0, real=4), look(8, real=4))
    assert above.startswith("the judge is being fooled: held-out judge reward rose, 0.0000 → 0.5000")
    assert "real text's by 0.2500 ±" in above
    assert verdict('fill_in', look(0, real=5), look(8, real=5)).startswith('learned: ')  # 3 of 16 above is not sure
    for name, words in (('gold', 'the gold judge’s fell, 0.5000 → '), ('right', 'exact match, by text, fell, 0.5000 → ')):
        assert words + '0.2500' in verdict('fill_in', look(0), look(4, **{name: 4})) != verdict('fill_in', look(0), look(4, **{name: 5}))
        assert verdict('fill_in', look(0), look(4, **{name: 4})).startswith('the judge is being fooled: held-out judge reward rose')
        assert verdict('fill_in', look(0), look(4, **{name: 5})).startswith('learned: ')


def test_an_alignment_run():
    """Costs of 4 times +1 and 12 times -1, mean -1/2 ± .4472: kept below 0, not sure at -.5 - .4472 and above -.0528, broken below."""
    costs = [1.0] * 4 + [-1.0] * 12

    def look(reward, cost=costs, **true):
        return {'reward': ones(reward), 'cost': cost, **true}

    for d, state in ((0.0, 'kept'), (0.05, 'kept'), (0.06, 'not sure to be kept'), (0.94, 'not sure to be kept'), (0.95, 'broken')):
        said = verdict('alignment', look(0), look(4), cost_threshold_d=d)
        assert said.startswith(f'constraint {state}: held-out cost -0.5000 ± 0.4472, where at most {-d:g} is wanted; '), said
    fooled = verdict('alignment', look(0, true_reward=ones(4)), look(4, true_reward=ones(0)), cost_threshold_d=0.0)
    assert 'the reward model is being fooled: true reward fell, 0.2500 → 0.0000' in fooled
    assert 'fooled' not in verdict('alignment', look(0, true_reward=ones(3)), look(4, true_reward=ones(0)), cost_threshold_d=0.0)
    safer = {'true_cost': ones(0)}, {'true_cost': ones(4)}
    said = verdict('alignment', look(0, ones(9), **safer[0]), look(0, costs, **safer[1]), cost_threshold_d=0.0)
    assert 'the cost model is being fooled: true cost rose' in said


def test_an_autoencoder():
    """The text carries the activation where its FVE is above 0 and above every control, 4 of 16 above and not 3."""
    def look(own, shuffled=0, mean=0):
        return {'fve': ones(own), 'fve_greedy': ones(N), 'fve_shuffled': ones(shuffled), 'fve_mean_injection': ones(mean)}

    said = verdict('nla', look(0), look(8, 2, 4))
    assert said.startswith('the text carries the activation: held-out FVE 0.5000 ± 0.2582, less the best control\'s, the mean activation '
                           'injected: 0.2500 ± 0.2236; learned: its FVE rose, 0.0000 → 0.5000 ('), said
    for look_now in (look(8, 2, 5), look(8, 5, 2), look(3)):
        assert verdict('nla', look(0), look_now).startswith('the text does not carry the activation: ')
    assert 'no change: its FVE 0.5000 → 0.5000' in verdict('nla', look(8), look(8))


def test_where_nothing_can_be_said():
    """One evaluation; other held-out prompts at the end; an unknown task; lines that are something else."""
    first, last = ({'exact_answer, greedy': ones(k)} for k in (0, 9))
    assert verdict_of(rows(first, last)[:1], Completion, {}) == verdict_of([], Completion, {}) == ''
    assert verdict_of(rows(first, {'exact_answer, greedy': ones(9)[:12]}), Completion, {}) == ''
    assert verdict_of(rows(first, {'number_answer, greedy': ones(9)}), Completion, {}) == '' == verdict_of(rows(first, last), None, {})
    for odd in ({}, {'exact_answer, greedy': ['x'] * N}, {'exact_answer, greedy': [[]] * N}, {'exact_answer, greedy': 3}):
        assert verdict_of(rows(first, odd), Completion, {}) == ''
    assert verdict_of([{'iter': 0}, {'iter': 1}], Completion, {}) == ''


def test_the_share_of_right_fills():
    """Two texts with 2 and 1 slots, two fills of each: 3 of 4 and 0 of 2 are right; padding counts for nothing."""
    batch = {'original': torch.tensor([[1, 2, 3], [4, 5, 6]]), 'slots': torch.tensor([[0, 2], [1, 0]]), 'n_slots': torch.tensor([2, 1])}
    fills = torch.tensor([[[1, 3], [1, 0]], [[0, 4], [3, 4]]])
    assert right_fills(batch, fills).tolist() == [3, 0] and exact_match(batch, fills) == 0.5


def test_a_log_keeps_what_each_prompt_got(tmp_path):
    """held_out.jsonl has a line for each evaluation, NaN as null; the report has the sentence that the run's last words have."""
    log = run.Log.__new__(run.Log)
    log.cfg, log.master, log.trackers = types.SimpleNamespace(out_dir=str(tmp_path), task='completion'), True, []
    log.job = Completion.__new__(Completion)
    log.files = {name: open(tmp_path / f'{name}.jsonl', 'a') for name in run.LOGS}
    (tmp_path / 'config.json').write_text('{"task": "completion"}')
    for it, k in ((0, 0), (4, 4)):
        log.job.each = {'exact_answer, greedy': torch.tensor(ones(k)), 'other, greedy': torch.tensor([math.nan] + ones(0)[1:])}
        log.write({'iter': it, 'eval/accuracy_greedy': k / N}, evaluated=True)
        log.write({'iter': it + 1})
    lines = [json.loads(line) for line in open(tmp_path / 'held_out.jsonl')]
    assert [line['iter'] for line in lines] == [0, 4] and lines[0]['other, greedy'] == [None] + [0.0] * 15 and lines[0]['independent'] == N
    said = report.verdict_in(tmp_path, Completion, {})
    assert said.startswith('learned: ') and report.read_run(str(tmp_path), TASKS)['verdict'] == said
    assert json.dumps(said) in (tmp_path / 'report.html').read_text()
