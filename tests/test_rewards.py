"""Rewards: what they score, and what is said when they cannot. Every expected number is written out."""
import math
import sys
import types
import warnings
from collections.abc import Iterable
from fractions import Fraction

import pytest
import torch

from rewards import REWARDS, Reward, check_fields, resolve_rewards, score, score_completions
from rewards.answers import ARITHMETIC, final_number, reasoning_gym_task

# ---------------------------------------------------------------------------------------------------------------------
# numbers

@pytest.mark.parametrize('text, number', [
    ('42', 42), ('The answer is 42.', 42), ('3.', 3), ('= 3.50', Fraction(7, 2)), ('.5', Fraction(1, 2)), ('wait...5', 5),
    ('1,234', 1234), ('1,234,567.', 1234567), ('1,2345', Fraction(2469, 2000)), ('1{,}000', 1000),
    ('$18', 18), ('-$5', -5), ('$-5', -5), ('42€', 42), (r'\$1,000.50', Fraction(2001, 2)), ('25%', 25), (r'25\%', 25),
    ('-5', -5), ('= -5', -5), ('−5', -5), ('+5', 5), ('--5', 5), ('10 - 5 = 5', 5),
    ('3/4', Fraction(3, 4)), ('-3/4', Fraction(-3, 4)), ('6/4', Fraction(3, 2)), ('2 1/2.', Fraction(5, 2)),
    (r'\frac{1}{2}', Fraction(1, 2)), (r'-2\frac{1}{2}', Fraction(-5, 2)),
    ('**42**', 42), ('<b>42</b>', 42), ('x=42', 42), ('forty-two', 42), ('1e5', 100000), ('5km', 5), ('3rd', 3), ('5²', 25), ('2^{10}',
                                                                                                                              1024),
                                          (r'\boxed{4!}', 24),
    # no numbers: calculations without their result,
    ('10 - 5', None), ('(3)-5', None), ('16(2)', None), ('(3)(5)', None),
    # lists, spans, times, names, versions, dates, a division by zero, more digits than Python reads
    ('', None), ('3,4,5', None), ('10-5', None), ('12:30', None), ('x2', None), ('GPT-4', None), ('1.2.3', None),
    ('10/12/2024', None), ('6/0', None), ('9' * 5000, None)])
def test_numbers(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize('text, number', [
    # the number behind the last '####' comes first
    ('48/2 = <<48/2=24>>24 clips\n48+24 = 72\n#### 72', 72), ('#### 1,450,000', 1450000), ('#### $42', 42), ('####42.', 42),
    ('#### -3', -3), ('####  7 apples for 2 children', 7),
    ('#### 1\nno, I mean\n#### 2', 2), ('#### 42\nThat took 3 steps.', 42), (r'\boxed{3} #### 4', 4),
    # a heading is not an answer
    ('#### Conclusion\nSo there are 12 eggs.', 12), ('####\n42', 42), ('The answer is 42 ####', 42),
    # then the last \boxed{}, also when more follows
    (r'\boxed{42} and 7 more words', 42), (r'\boxed{1} then \boxed{2}', 2), (r'\boxed{\frac{1}{2}}', Fraction(1, 2)),
    (r'\boxed{x = \text{about } 12}', 12), (r'$\boxed{\$1,234}$', 1234),
    (r'\boxed{\boxed{5}}', 5), (r'so 7 \boxed{none}', None), (r'7 or \boxed{8', None), (r'\boxed{7} or \boxed{8', None),
    # then the last number, however far from the end it stands: some implementations look at the last 300 characters only
    ('First 3, then 4, so 12.', 12), ('It is 42. ' + 'And that is that. ' * 200, 42)])
def test_where_the_answer_is(text, number):
    assert final_number(text) == number


def test_number_answer():
    assert score('number_answer', 'so 42.0', reference='She has 40 + 2\n#### 42') == 1.0
    assert score('number_answer', 'so 42', reference=42) == score('number_answer', '0.5', reference=0.5) == 1.0
    assert score('number_answer', '0', reference=0) == 1.0
    assert score('number_answer', '0.33', reference='1/3') == 0.0  # exact, no tolerance
    assert score('number_answer', '142', reference='42') == score('number_answer', '4 2', reference='42') == 0.0  # no credit for a part
    assert score('number_answer', '', reference='42') == score('number_answer', 'no idea', reference='42') == 0.0
    assert score('number_answer', '42') is None and score('number_answer', '42', reference='many') is None
    assert score('number_answer', '<think>7</think><answer>8</answer> 9', reference='8', tag='answer') == 1.0


def test_gsm8k_solutions_are_read_as_their_authors_wrote_them():
    for solution, number in (('<<16-3-4=9>>9 eggs\n#### 18', 18),
                             ('It costs 80,000+50,000=$<<80000+50000=130000>>130,000\n#### 70,000', 70000), ('a loss of\n#### -10', -10)):
        assert final_number(solution) == number


# ---------------------------------------------------------------------------------------------------------------------
# the others

def test_exact_answer():
    assert score('exact_answer', ' 46\n', reference='46 ') == score('exact_answer', '46', reference=46) == score('exact_answer', '0',
        reference=0) == 1.0
    assert score('exact_answer', '146', reference='46') == score('exact_answer', '', reference='46') == 0.0
    assert score('exact_answer', 'paris', reference='Paris') == 0.0
    assert score('exact_answer', 'paris', reference='Paris', case_sensitive=False) == 1.0
    assert score('exact_answer', '<think>a</think>b</think> Paris', reference='Paris', after='</think>') == 1.0
    assert score('exact_answer', 'Paris', reference='Paris', after='</think>') == 0.0  # it never said that this is the answer
    assert score('exact_answer', '<answer>Rome</answer> or <answer> Paris </answer>.', reference='Paris', tag='answer') == 1.0
    assert score('exact_answer', '<answer>Paris', reference='Paris', tag='answer') == 0.0
    assert score('exact_answer', '46') is None and score('exact_answer', '', reference=' ') is None


@pytest.mark.parametrize('text, value', [
    ('<think>so</think><answer>4</answer>', 1), ('\n<think>\nso\n</think>\n\n<answer>4</answer>\n', 1),
    ('<think>so</think>', 0), ('<answer>4</answer><think>so</think>', 0), ('<think></think><answer>4</answer>', 0),
    ('<think> </think><answer>4</answer>', 0),
    ('<think>so</think> well <answer>4</answer>', 0), ('well <think>so</think><answer>4</answer>', 0),
    ('<think>so</think><answer>4</answer> done', 0),
    ('<think>so</think><answer>4</answer><answer>5</answer>', 0), ('<think>a<think>b</think></think><answer>4</answer>', 0),
    ('<think>so<answer>4</answer></think>', 0),
    ('<think>so</think><answer>4', 0), ('<think></answer></think><answer>4', 0), ('<think >so</think><answer>4</answer>', 0), ('', 0)])
def test_format_tag(text, value):
    assert score('format_tag', text) == value


def test_format_tag_takes_other_tags():
    assert score('format_tag', '<sum>4</sum>', tags='sum') == score('format_tag', '<a>1</a> <b>2</b> <c>3</c>', tags=['a', 'b', 'c']) == 1.0
    for tags in ((), ('a', 'a'), ('<a>',)):
        with pytest.raises(RuntimeError, match="'format_tag' raised ValueError: tags is .* must be different names"):
            score('format_tag', 'x', tags=tags)


@pytest.mark.parametrize('text, value', [
    ('{"a": 1}', 1), (' [1, 2] ', 1), ('```json\n{"a": 1}\n```', 1), ('Here it is:\n```\n[]\n```\nDone.', 1),
    ('', 0), ('{"a": 1', 0), ("{'a': 1}", 0), ('{"a": 1} ok', 0), ('```json\n{}\n```\n```json\n{}\n```', 0), ('```python\n{}\n```', 0),
    ('1', 0), ('"text"', 0), ('null', 0), ('[NaN]', 0), ('[Infinity]', 0), ('[' * 100000, 0), ('[' + '9' * 5000 + ']', 0)])
def test_format_json(text, value):
    assert score('format_json', text) == value


def test_format_json_keys():
    assert score('format_json', '{"name": "x", "age": 3, "more": 0}', keys=['name', 'age']) == 1.0
    assert score('format_json', '{"name": "x"}', keys=['name', 'age']) == score('format_json', '["name"]', keys=['name']) == 0.0
    with pytest.raises(RuntimeError, match="keys is 'name': it must be a list"):
        score('format_json', '{}', keys='name')


BOMB = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>'


@pytest.mark.parametrize('text, value', [
    ('<a/>', 1), ('<?xml version="1.0"?>\n<a x="1"><b>t</b></a>', 1), ('<?xml version="1.0" encoding="UTF-16"?><a>é</a>', 1),
    ('```xml\n<a/>\n```', 1), ('<a>&lt;</a>', 1), ('<a>' * 20000 + '</a>' * 20000, 1),
    ('', 0), ('text', 0), ('<a>', 0), ('<a></b>', 0), ('<a/><b/>', 0), ('<a/> text', 0), ('<a>&b;</a>', 0), ('<a>\ud800</a>', 0), (BOMB, 0),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', 0)])
def test_format_xml(text, value):
    assert score('format_xml', text) == value


def test_length():
    def words(n): return 'x ' * n
    assert [score('length', words(n), min_length=4, max_length=6) for n in (0, 3, 4, 6, 7)] == [0, 0, 1, 1, 0]
    assert [score('length', words(n), min_length=4, max_length=6, ramp=2) for n in (1, 2, 3, 4, 6, 7, 8)] == [0, 0, 0.5, 1, 1, 0.5, 0]
    assert [score('length', words(n), target_length=4) for n in (0, 1, 4, 5, 8, 100)] == [0, 0.25, 1, 0.75, 0, 0]
    assert [score('length', words(n)) for n in (9, 10, 500, 501)] == [0, 1, 1, 0]
    with pytest.raises(RuntimeError, match='min_length is 10, max_length 5'):
        score('length', 'x', max_length=5)


# ---------------------------------------------------------------------------------------------------------------------
# calling them

def test_every_reward_stays_in_its_range_on_anything():
    # which need more than a text; see test_rewards_catalogue.py
    for name in set(REWARDS) - {'reasoning_gym', 'bertscore', 'semantic_similarity', 'code_execution', 'code_correctness', 'fluency'}:
        for text in ('', ' ', 'x', '42', '{}', '<a/>', '\x00\ud800', '####', '\\boxed{', '```', '-' * 1000):
            value = score(name, text, prompt='Use two words.', reference='42', context='The sea, 42.')
            assert value is None or 0 <= value <= 1, (name, text)


def test_unknown_names_and_parameters():
    with pytest.raises(ValueError, match="no reward 'numbr_answer'; did you mean 'number_answer'"):
        score('numbr_answer', '')
    with pytest.raises(ValueError, match="no reward 'xyzzy'; there are: exact_answer, .*number_answer"):
        score('xyzzy', '')
    with pytest.raises(ValueError, match="'length' has no parameter 'min_len'; did you mean 'min_length'"):
        score('length', '', min_len=3)
    with pytest.raises(ValueError, match="'format_xml' has no parameter 'speed'; there are: none"):
        resolve_rewards([('format_xml', 1, {'speed': 1})])


def test_what_has_no_signature_or_no_name_of_a_function():
    (name, bound, _), = resolve_rewards([int])
    assert name == 'int' and bound('12') == 12
    assert [name for name, *_ in resolve_rewards([(REWARDS['bleu'].bind('bleu', {}), 0.5), ('bleu', 0.5)])] == ['bleu', 'bleu_2']


def one(function, text='some text', **fields):
    (_, bound, _), = resolve_rewards([function])
    return bound(text, **fields)


def divides(text):
    return 1 / text.count('z')


def test_a_reward_that_raises_is_named_and_its_error_kept():
    told = r"reward 'divides' raised ZeroDivisionError: division by zero \(.*test_rewards.py, line \d+\) for completion 'some text'"
    with pytest.raises(RuntimeError, match=told) as e:
        one(divides)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    with pytest.raises(RuntimeError) as e:
        one(divides, 'a' * 5000)
    assert len(str(e.value)) < 300  # a long completion is cut


@pytest.mark.parametrize('value, shown',
                         [(math.nan, 'nan'), (math.inf, 'inf'), ('0.5', "'0.5'"), ([1.0], r'\[1.0\]'), (torch.ones(2), 'tensor')])
def test_what_is_no_number_is_refused(value, shown):
    def odd(text):
        return value
    with pytest.raises(ValueError, match=f"reward 'odd' returned .*{shown}.*, not a finite number, for completion 'some text'"):
        one(odd)


def test_ours_stay_within_0_and_1_and_yours_need_not(monkeypatch):
    assert one(lambda text: -7) == -7.0 and one(lambda text: True) == 1.0 and one(lambda text: torch.tensor(0.5)) == 0.5
    assert one(lambda text: None) is None
    monkeypatch.setitem(REWARDS, 'high', Reward('high', lambda text: 1.5, catalogue=True))
    with pytest.raises(ValueError, match="reward 'high' returned '1.5' .float., not a number from 0 to 1"):
        score('high', 'x')


def test_a_function_gets_the_fields_that_it_takes():
    fields = dict(prompt='p', reference='r', tests=['t'], context='c')
    seen = {}

    def everything(text, reference=None, **kwargs):  # the signature of aligntune's custom rewards
        seen.update(kwargs, reference=reference, text=text)
        return 0.0
    one(everything, **fields)
    assert seen == {'text': 'some text', **fields}
    assert one(lambda text, *, prompt: len(prompt), **fields) == 1.0
    assert one(len, **fields) == 9.0

    class Scorer:
        def __call__(self, text, reference): return float(reference == 'r')
    assert one(Scorer(), **fields) == 1.0
    assert [name for name, _, _ in resolve_rewards([(Scorer(), 0.5), (lambda text: 0, 0.5)])] == ['Scorer', 'lambda']


def test_a_function_whose_arguments_do_not_fit_is_refused_early():
    for function, message in ((lambda: 0, 'its first argument must be the text'),
                              (lambda prompt, text: 0, r"takes \(prompt, text\): its first")):
        with pytest.raises(ValueError, match=message):
            resolve_rewards([function])
    with pytest.raises(ValueError, match="needs 'gold', and this is neither in params nor a column; there are: prompt, answer, reference"):
        check_fields(resolve_rewards([(lambda text, gold: 0, 0.5), ('length', 0.5)]), RECORDS)
    assert resolve_rewards([(lambda text, gold: gold, 1, {'gold': 3})])[0][1]('x') == 3.0


def test_resolve_rewards():
    def mine(text): return 0.25
    spec = ['number_answer', ('length', 0.5), ['length', 0.1, {'min_length': 1}], mine, (mine, 2), (mine, 0, {}),
            {'type': 'format_xml', 'weight': 0.3, 'params': {}}, {'type': 'format_json'},
            {'type': 'custom', 'weight': 0.5, 'params': {'reward_function': mine}}]
    with pytest.warns(UserWarning, match='the weights of the rewards sum to 6.4, not to 1'):
        resolved = resolve_rewards(spec)
    assert [(name, weight) for name, _, weight in resolved] == [
        ('number_answer', 1.0), ('length', 0.5), ('length_2', 0.1), ('mine', 1.0), ('mine_2', 2.0), ('mine_3', 0.0), ('format_xml', 0.3),
        ('format_json', 1.0), ('mine_4', 0.5)]
    functions = {name: function for name, function, _ in resolved}
    assert functions['length']('x') == 0.0 and functions['length_2']('x') == 1.0 and functions['mine_2']('x') == 0.25


@pytest.mark.parametrize('spec, message', [
    ([], 'at least one reward'), ({'length': 1}, "rewards is {'length': 1}: it must be a list"),
    ('lenght,honesty', "no reward 'lenght'; did you mean 'length'"), ([3], 'rewards holds 3: an element is a name or'),
    ([()], r'rewards holds \(\)'),
    (('length', 0.5), 'rewards holds 0.5'), ([('length', 1, {}, 4)], 'an element is'),
    (['lenght'], "no reward 'lenght'; did you mean 'length'"),
    ([('length', 'high')], "weight of reward 'length' is 'high': it must be a finite number"), ([('length', math.nan)], 'weight .* is nan'),
    ([('length', True)], 'is True'),
    ([('length', 1, 5)], "params of reward 'length' are 5"), ([{'name': 'length'}], "a dict of 'type', 'weight' and 'params'"),
    ([{'type': 'length', 'wieght': 1}], 'a dict of')])
def test_a_wrong_spec(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve_rewards(spec)


RECORDS = [{'prompt': '1+1=', 'answer': '2'}, {'prompt': '2+2=', 'reference': 4}]


def test_score_completions():
    resolved = resolve_rewards([('exact_answer', 0.5), ('length', 0.5, {'target_length': 2})])
    assert score_completions(resolved, [['2', '3', '2 2'], ['4', '', '2']], RECORDS) == {'exact_answer': [[1, 0, 0], [1, 0, 0]],
                                                                                         'length': [[0.5, 0.5, 1], [0.5, 0, 0.5]]}
    with pytest.raises(ValueError, match='1 groups of completions for 2 prompts'):
        score_completions(resolved, [['2']], RECORDS)
    assert score_completions(resolved, [['2']], [{'prompt': '1+1=', 'tests': []}]) == {'exact_answer': [[None]], 'length': [[0.5]]}


def test_check_fields():
    resolved = resolve_rewards([('number_answer', 0.5), ('length', 0.5)])
    assert check_fields(resolved, RECORDS + [{'prompt': '0+0=', 'answer': 0}]) == {}
    gaps = check_fields(resolved, RECORDS + [{'prompt': '3+3='}, {'prompt': '3+3=', 'answer': 'many'}])  # length judges them alone
    assert list(gaps) == ['number_answer'] and list(gaps['number_answer']) == [2, 3]
    assert str(gaps['number_answer'][2]) == ("reward 'number_answer' does not apply to prompt 2 ('3+3='): "
                                             "it needs reference, and the record has: prompt")
    with pytest.raises(ValueError, match="prompt 2 .*: it can do nothing with the reference 'many'"):  # nothing would judge this one
        check_fields(resolved[:1], RECORDS + [{'prompt': '3+3=', 'answer': 'many'}])
    # a reward that would judge nothing: the others do without it, and alone it is refused
    assert list(check_fields(resolved, [{'prompt': '3+3='}, {'prompt': '4+4='}])['number_answer']) == [0, 1]
    with pytest.raises(ValueError, match="'number_answer' does not apply to prompt 0 .*: it needs reference, and the record has"):
        check_fields(resolved[:1], [{'prompt': '3+3='}, {'prompt': '4+4='}])
    with pytest.warns(UserWarning, match="completions left out: reward 'divides' raised"):
        assert check_fields(resolve_rewards([divides]), RECORDS, errors='drop') == {}
    assert check_fields([], RECORDS) == {}
    with pytest.raises(RuntimeError, match="reward 'divides' raised ZeroDivisionError"):
        check_fields(resolve_rewards([divides]), RECORDS)
    with pytest.raises(ValueError, match="'never' does not apply to prompt 0 .*: it returned None"):
        def never(text): return None
        check_fields(resolve_rewards([never]), RECORDS)


def test_a_group_and_a_batch_at_once():
    """
    A function with group takes the texts of a group and the fields of its record; one with batched the different texts of all
    prompts that it applies to, and lists of fields.
    """
    seen = []

    def rank(texts, *, prompt):
        seen.append((list(texts), prompt))
        return [sorted(texts).index(text) for text in texts]
    rank.group = True

    def whole(texts, reference):
        seen.append((list(texts), reference))
        return torch.tensor([len(text) + r for text, r in zip(texts, reference, strict=True)])
    whole.batched, whole.needs = True, ('reference',)
    texts, records = [['b', 'a', 'b'], ['x', 'y', 'z'], ['b', 'c', 'c']], [{'prompt': 'p', 'answer': 1}, {'prompt': 'q'},
                                                                           {'prompt': 'r', 'answer': 2}]
    values = score_completions(resolve_rewards([(rank, 0.5), (whole, 0.5)]), texts, records)
    assert values == {'rank': [[1, 0, 1], [0, 1, 2], [0, 1, 1]], 'whole': [[2, 2, 2], [None] * 3, [3, 3, 3]]}
    assert seen == [(['b', 'a', 'b'], 'p'), (['x', 'y', 'z'], 'q'), (['b', 'c', 'c'], 'r'), (['b', 'a', 'b', 'c'], [1, 1, 2, 2])]
    with pytest.raises(ValueError, match="'short' returned a list of 1 for 3 texts"):
        def short(texts): return [1.0]
        short.group = True
        score_completions(resolve_rewards([short]), texts[:1], records[:1])
    for kind in ('group', 'batched'):
        def nothing(texts): return None
        setattr(nothing, kind, True)
        with pytest.raises(ValueError, match="'nothing' returned 'None', not a list"):
            score_completions(resolve_rewards([nothing]), texts[:1], records[:1])


def test_errors_stop_or_drop_the_answer():
    resolved = resolve_rewards([(divides, 0.5), ('length', 0.5, {'target_length': 1})])
    with pytest.raises(RuntimeError, match="'divides' raised ZeroDivisionError"):
        score_completions(resolved, [['z', 'a']], [{'prompt': 'p'}])
    with pytest.warns(UserWarning, match="completions left out: reward 'divides' raised Zero.*: division by zero .* for completion 'a'"):
        values = score_completions(resolved, [['z', 'a'], ['zz', 'z']], [{'prompt': 'p'}] * 2, errors='drop')
    assert values == {'divides': [[1, None], [0.5, 1]], 'length': [[1, None], [1, 1]]}

    def broken(texts): raise OSError('no model')
    broken.batched = True
    with pytest.raises(RuntimeError, match="'broken' raised OSError: no model .* for completion 'z' and 1 more"):
        score_completions(resolve_rewards([broken]), [['z', 'a']], [{'prompt': 'p'}])
    with pytest.warns(UserWarning, match="completions left out: reward 'broken' raised OSError: no model .* for completion 'z'") as told:
        assert score_completions(resolve_rewards([broken]), [['z', 'a']], [{'prompt': 'p'}], errors='drop') == {'broken': [[None, None]]}
    assert len(told) == 1  # of the cause, whatever the completion


def test_a_thousand_answers_that_fail_are_told_in_three_lines():
    def picky(text): raise ValueError(f'no {text}')
    with pytest.warns(UserWarning, match='completions left out') as told:
        score_completions(resolve_rewards([picky]), [list(map(str, range(1000)))], [{}], errors='drop')
    assert len(told) == 3


def test_weights_that_do_not_sum_to_1_are_told():
    with pytest.raises(ValueError, match='the weights of the rewards are all 0'):
        resolve_rewards([('number_answer', 0.0), ('length', 0)])
    with pytest.warns(UserWarning, match='weights of the rewards sum to 1.2, not to 1'):
        resolve_rewards([('number_answer', 1.0), ('length', 0.2)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        resolve_rewards([('number_answer', 0.7), ('length', 0.2), ('format_json', 0.1)])


def test_arguments_that_a_job_provides():
    def asks(text, start_log_probs): return start_log_probs([text])[0]
    provided = {'start_log_probs': lambda texts: [-len(text) for text in texts]}
    assert resolve_rewards([asks], provided)[0][1]('abc') == -3
    assert resolve_rewards(['exact_answer'], provided)[0][1]('a', reference='a') == 1
    # what the config gives comes first
    assert resolve_rewards([(asks, 1, {'start_log_probs': lambda texts: [7]})], provided)[0][1]('abc') == 7


# ---------------------------------------------------------------------------------------------------------------------
# columns, tokens, and functions written for other trainers

COLUMNS = [{'prompt': 'p', 'answer': 'a', 'difficulty': 2}, {'prompt': 'q', 'answer': 'b', 'difficulty': None, 'kind': 'x'}]
TOKENS = [[[1, 2], [3]], [[4], []]]
TEXTS = [['ab', 'c'], ['d', '']]


def scored(function, records=COLUMNS, texts=TEXTS, tokens=TOKENS, params=None, **options):
    resolved = resolve_rewards([(function, 1, params or {})])
    return score_completions(resolved, texts, records, tokens=tokens, **options)[resolved[0][0]]


def test_all_columns_reach_a_reward_by_name():
    seen = []

    def hard(text, difficulty): return difficulty
    def easy(text, kind='none', *, difficulty=7): return difficulty + len(kind)
    def everything(text, **columns):
        seen.append((text, columns))
        return len(columns['tokens'])
    assert scored(hard) == [[2, 2], [None, None]]  # a column that only some records have
    assert scored(easy) == [[6, 6], [8, 8]]
    assert scored(everything) == [[2, 1], [1, 0]]
    assert seen[0] == ('ab', {'prompt': 'p', 'answer': 'a', 'reference': 'a', 'tests': None, 'context': None, 'difficulty': 2,
                              'tokens': [1, 2]})
    assert scored(lambda text, answer, tokens: len(text) + len(tokens)) == [[4, 2], [2, 0]]
    assert scored(lambda tokens: len(tokens)) == [[2, 1], [1, 0]]
    assert list(check_fields(resolve_rewards([(hard, 0.5), ('length', 0.5)]), COLUMNS)['hard']) == [1]
    with pytest.raises(ValueError, match="'f' needs 'dificulty', .*; did you mean 'difficulty'"):
        def f(text, dificulty): return 0
        check_fields(resolve_rewards([(f, 0.5), ('length', 0.5)]), COLUMNS)
    with pytest.raises(ValueError, match="'g' needs 'anser'"):
        def g(text): return 0
        g.needs = ('anser',)
        check_fields(resolve_rewards([(g, 0.5), ('length', 0.5)]), COLUMNS)


def test_columns_of_groups_and_batches_are_lists():
    def ranks(texts, difficulty, tokens): return [difficulty + len(ids) for ids in tokens]
    ranks.group = True
    assert scored(ranks) == [[4, 3], [None, None]]
    seen = []

    def batch(texts, kind=None, **columns):
        seen.append((texts, kind, columns))
        return range(len(texts))
    batch.batched = True
    assert scored(batch, texts=[['x', 'x'], ['d', '']]) == [[0, 0], [1, 2]]
    texts, kind, columns = seen[0]
    assert (texts, kind, columns['tokens']) == (['x', 'd', ''], [None, 'x', 'x'], [[1, 2], [4], []])
    assert columns['difficulty'] == [2, None, None]


def test_parameters_win_over_columns():
    def level(text, difficulty): return difficulty
    assert scored(level, params={'difficulty': 9}) == [[9, 9], [9, 9]]
    # what stands in the data never reaches a parameter of the catalogue
    record = {'prompt': 'p', 'answer': 'a', 'after': ':', 'tag': 'b'}
    assert scored('exact_answer', [record], [['a']], None) == [[1.0]]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_fields(resolve_rewards([('exact_answer', 1, {'tag': 'b'})]), [record])


def trl_call(function, records, texts, tokens):
    """What TRL's GRPOTrainer makes of it: its own _calculate_rewards, on a trainer that has what that reads."""
    trainer = pytest.importorskip('trl.trainer.grpo_trainer')
    pytest.importorskip('accelerate').PartialState(cpu=True)  # TRL's logger needs it
    fake = types.SimpleNamespace(
        accelerator=types.SimpleNamespace(device='cpu', is_main_process=False), state=types.SimpleNamespace(global_step=0),
        args=types.SimpleNamespace(report_to=[]), reward_funcs=[function], reward_processing_classes=[None], environments=None,
        reward_func_names=['f'], _log_completion_extra=None, _log_metric=None)
    rows = [(record, text, ids) for record, group, lists in zip(records, texts, tokens, strict=True)
            for text, ids in zip(group, lists, strict=True)]
    completions = [[{'role': 'assistant', 'content': text}] if isinstance(record['prompt'], list) else text for record, text, _ in rows]
    values = trainer.GRPOTrainer._calculate_rewards(
        fake, [record for record, _, _ in rows], [record['prompt'] for record, _, _ in rows], completions, [ids for _, _, ids in rows])
    return [None if math.isnan(value) else value for value in values[:, 0].tolist()]


CHAT = [{**record, 'prompt': [{'role': 'user', 'content': record['prompt']}]} for record in COLUMNS]


@pytest.mark.parametrize('records', [COLUMNS[:1] * 2, CHAT[:1] * 2])
def test_functions_written_for_trl(records):
    """The same function gets the same arguments from TRL and from us, and the same scores come out."""
    seen = []

    def keep(prompts, completions, answer, **kwargs):
        columns = {key: value for key, value in kwargs.items() if key not in ('trainer_state', 'log_extra', 'log_metric')}
        seen.append((prompts, completions, answer, columns))
        return [None if len(ids) == 1 else len(str(c)) + 0.5 for c, ids in zip(completions, kwargs['completion_ids'], strict=True)]

    def lengths(completion_ids, **kwargs): return [-len(ids) for ids in completion_ids]
    def keywords(*, completions, prompts, difficulty, **_): return torch.tensor(difficulty)
    def anything(**kwargs): return [float(len(kwargs['completions'][0]))] * len(kwargs['prompts'])
    for function in (keep, lengths, keywords, anything):
        assert sum(scored(function, records), []) == trl_call(function, records, TEXTS, TOKENS), function.__name__
    assert seen[0] == seen[1] and seen[0][2] == ['a'] * 4 and seen[0][3]['difficulty'] == [2] * 4
    assert isinstance(seen[0][1][0], list) == isinstance(records[0]['prompt'], list)


def test_trl_functions_and_gaps():
    def hard(completions, difficulty): return difficulty
    assert scored(hard) == [[2, 2], [None, None]]  # called for the prompts that have it
    calls = []

    def count(completions, trainer_state=1, log_metric=None, **kwargs):
        log_metric('n', len(completions))
        calls.append((len(completions), trainer_state))
        return [0] * len(completions)
    assert scored(count) == [[0, 0], [0, 0]] and calls == [(4, None)]
    with pytest.raises(ValueError, match="'short' returned a list of 1 for 4 texts"):
        def short(completions, **kwargs): return [1.0]
        scored(short)
    with pytest.raises(RuntimeError, match="'broken' raised KeyError: 'x' .* for completion 'ab' and 3 more"):
        def broken(completions, **kwargs): raise KeyError('x')
        scored(broken)
    with pytest.raises(RuntimeError, match="'gold' raised .* for completion ''"):  # tried before any training
        def gold(prompts, completions, **kwargs): return [float(c[0]['content']) for c in completions]
        check_fields(resolve_rewards([gold]), COLUMNS)
    with pytest.raises(ValueError, match="'late' needs 'solution', .*; there are: prompt, answer"):
        def late(completions, solution, **kwargs): return [0] * len(completions)
        check_fields(resolve_rewards([late]), COLUMNS)


def test_a_list_is_what_the_signature_says():
    """Type hints as in a JAX trainer's README, the words of other trainers, and what is left unclear."""
    def ids(completions): return torch.tensor([sum(ids) for ids in completions])
    ids.__annotations__ = {'completions': 'List[List[int]]', 'return': 'jax.Array'}
    def texts(texts: list[str], answer: list[str]): return [len(t + a) for t, a in zip(texts, answer, strict=True)]
    def named(completions): return [len(completions)] * len(completions)
    def one(ids: list[int]): return sum(ids)
    def plain(texts: str): return len(texts)
    assert scored(ids) == [[3, 3], [4, 0]] and scored(texts) == [[3, 2], [2, 1]] and scored(named) == [[4, 4]] * 2
    assert scored(one) == [[3, 3], [4, 0]] and scored(plain) == [[2, 1], [1, 0]]
    for kind in ('List[List[int]]', 'Sequence[Sequence[int]]', Iterable[Iterable[int]], list[list[int]]):
        def f(x): return [len(ids) for ids in x]
        f.__annotations__ = {'x': kind}
        assert scored(f) == [[2, 1], [1, 0]]

    def a(texts): return 0
    def b(responses, **kwargs): return 0
    def c(x: torch.Tensor): return 0
    def d(x: list[list[str]]): return 0
    def e(completions: list[int], **kwargs): return 0
    def g(completions: str): return len(completions)
    for function in (a, b, c, d, e, g):
        with pytest.raises(ValueError, match=f"reward '{function.__name__}': `.*` may be a text .*: say which"):
            resolve_rewards([function])


# ---------------------------------------------------------------------------------------------------------------------
# reasoning_gym, its package played by a stub (tests/test_prompts.py runs the real one where it is installed)

@pytest.fixture
def gym(monkeypatch):
    def score_answer(answer, entry):
        # raises on junk, as prime_factorization does
        return 1.0 if [int(x) for x in answer.split('x')] == entry['metadata']['factors'] else 0.01
    stub = types.SimpleNamespace(create_dataset=lambda task, **options: types.SimpleNamespace(score_answer=score_answer))
    monkeypatch.setitem(sys.modules, 'reasoning_gym', stub)
    reasoning_gym_task.cache_clear()

    def record(task='primes', answer='2x3'):
        return {'task': task, 'options': {}, 'entry': {'answer': answer, 'metadata': {'factors': [2, 3]}}}
    yield record
    reasoning_gym_task.cache_clear()


def test_reasoning_gym(gym, monkeypatch):
    assert [score('reasoning_gym', text, context=gym()) for text in (' 2x3\n', '2x2', 'junk', '')] == [1, 0, 0, 0]
    assert score('reasoning_gym', '2x2', context=gym(), partial=True) == 0.01
    assert score('reasoning_gym', '2x3') is None and score('reasoning_gym', '2x3', context='a text') is None
    with pytest.raises(RuntimeError, match='invalid literal'):  # not the model's fault: the entry's own answer cannot be read either
        score('reasoning_gym', 'junk', context=gym(answer='two times three'))
    reasoning_gym_task.cache_clear()
    monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
    with pytest.raises(RuntimeError, match='pip install reasoning-gym'):
        score('reasoning_gym', '2x3', context=gym())


def test_reasoning_gym_never_passes_code_on(gym, tmp_path):
    flag = tmp_path / 'flag'
    code = f"__import__('os').system('touch {flag}')"
    with pytest.raises(RuntimeError, match="'n_queens' runs the model's answer as Python code"):
        score('reasoning_gym', code, context=gym('n_queens'))
    for text in (code, '9**9**9', '9* *9', '1' * 300, 'lambda: 1'):
        assert score('reasoning_gym', text, context=gym('countdown')) == 0.0
    assert not flag.exists()
    assert ARITHMETIC.fullmatch('(94*4 - 61) / 6')
