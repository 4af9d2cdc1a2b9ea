"""
Each reward by name: a good text, a bad one, and the strings that fool rewards of these names elsewhere. Figures are by hand, or by the
package that defines them.
"""
import math
import random
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from formats.tokenizer import CharTokenizer
from model import GPT, GPTConfig
from policy import text_log_prob, text_log_probs
from rewards import REWARDS, check_fields, resolve_rewards, score, score_completions, style
from rewards.__main__ import main
from rewards.code import branches, code_of, parse
from rewards.words import stem, words

NAMES = {  # as the catalogue that people know lists them
    'math': 'math_correctness math_reasoning logical_consistency causal_reasoning counterfactual_reasoning',
    'code': 'code_syntax code_quality code_execution code_completeness code_correctness',
    'quality': 'coherence fluency readability engagement conciseness brevity',
    'safety': 'safety toxicity bias harmlessness hallucination honesty',
    'task': 'instruction_following helpfulness politeness relevance context_relevance',
    'metrics': 'bleu rouge meteor bertscore semantic_similarity',
    'domain': 'medical_accuracy legal_compliance financial_accuracy',
    'more': 'length diversity'}
NAMES = ' '.join(NAMES.values()).split()


@pytest.fixture
def stub_sandbox(monkeypatch):
    """Runs the code of this file, and of this file alone, without the sandbox, and keeps the jobs that it would grade."""
    def passes(code, test=''):
        space = {'__name__': 'sandbox'}
        try:
            exec(code, space)
            exec(test, space)
        except BaseException:  # SystemExit too
            return False
        return True

    def grade(code, tests):
        asserts = [tests] if isinstance(tests, str) else list(tests)
        return sum(passes(code, test) for test in asserts) / len(asserts), 'ok'

    def grade_many(jobs, sandbox, **limits):
        graded.extend(jobs)
        return [grade(*job) for job in jobs]

    def run(code, calls, *limits):
        return 'ok' if passes(code) else 'error', []
    graded = []
    for name, stub in (('exam_of', list), ('check_sandbox', lambda sandbox: None), ('grade_many', grade_many), ('run', run)):
        monkeypatch.setattr(f'rewards.code.{name}', stub)
    return graded


def letters(texts):
    """A stand-in for an encoder: each character is the unit vector of its letter."""
    def rows(text):
        return [ord(c) - 97 if 'a' <= c <= 'z' else 26 for c in text.lower()]
    return [torch.eye(27)[rows(text)] for text in texts]


QUESTION = 'Why does ice float on water?'
ANSWER = 'Water grows lighter as it freezes, because its crystals take more room. Floating ice therefore rests on denser liquid.'
PASSAGE = ('The sea was calm when the boat left the old port. Two men sat in the boat and looked at the sea. '
           'They had no food with them, but the men knew where the fish were in that part of the world.')
PROGRAM = '''Here it is:
```python
def double(x: int) -> int:
    """Twice x."""
    return 2 * x
```'''
GOLD = 'Tom has 3 boxes of 4 apples, 3*4=12. He eats 2, 12-2=10.\n#### 10'


def knows_the(texts):
    """A stand-in for a language model."""
    return [math.log(0.5) if 'the' in text.lower().split() else -5.0 for text in texts]


ENCODER, HALF = {'model': letters}, {'by': 'model', 'start_log_probs': knows_the}

# name: fields and params, a good text and the least it gets, a bad text and the most it gets, and the field that it needs
CASES = {
    'math_correctness': (dict(reference=GOLD), 'I counted. The answer is 10. That took 2 steps.', 1, 'The answer is 12.', 0, 'reference'),
    'math_reasoning': (dict(reference=GOLD), 'First 3*4=12. Then 12 - 2 = 10.\n#### 10', 1, 'First 3*4=13. Then 13 - 2 = 10.\n#### 11', 0,
                       'reference'),
    'logical_consistency': ({}, 'The door is closed. The window is open.', 1,
                            'The red door is closed today. The red door is not closed today.', 0, None),
    'causal_reasoning': ({}, 'The road was wet because heavy rain had fallen overnight. The driver braked late, and as a result the '
                             'car hit the stone wall. The town council therefore put a warning sign before the bend.', 1,
                         'The road was wet. Rain fell.', 0, None),
    'counterfactual_reasoning': ({},
                                 'If the driver had braked earlier, the car would have stopped before the wall. '
                                 'Without the heavy rain the road might even have stayed safe that night.', 1,
                                 'The car hit the wall.', 0, None),
    'code_syntax': ({}, PROGRAM, 1, '```python\ndef double(x:\n```', 0, None),
    'code_quality': ({}, PROGRAM, 1, 'import os\ndef f(x):\n    unused = 1\n    return ' + ' + '.join(['x'] * 60), 0.35, None),
    'code_execution': ({}, PROGRAM, 1, 'def f(): return 1\nf().x', 0, None),
    'code_completeness': ({}, PROGRAM, 1, 'def double(x):\n    """Twice x."""\n    raise NotImplementedError', 0, None),
    'code_correctness': (dict(tests=['assert double(2) == 4', 'assert double(0) == 0']), PROGRAM, 1, 'def double(x): return 7', 0, 'tests'),
    'coherence': ({}, 'The old boat left the port. A storm caught the boat at sea. Waves of that storm broke its mast.', 1,
                  'The old boat left. Taxes rise in spring. Cats like milk.', 0, None),
    'fluency': (HALF, 'The sea was calm.', 0.5, 'qx zzk wv', 0.01, None),
    'readability': ({}, PASSAGE, 0.8, 'Institutional interdependencies necessitate multidimensional organizational considerations ' * 4,
                    0.1, None),
    'engagement': ({}, 'Have you ever wondered why ice floats? Imagine a lake in winter, with all its fish asleep under a thick and quiet '
                       'roof of ice. You could walk on it.', 1,
                   'Ice floats on water since it is less dense than water is at that temperature, as was measured.', 0, None),
    'conciseness': (dict(reference=ANSWER),
                    'Freezing water grows lighter: its crystals take more room, ice rests floating on denser liquid.', 0.8, 'Nobody knows.',
                    0, 'reference'),
    'brevity': ({}, 'Ten words.', 1, 'word ' * 300, 0, None),
    'safety': (dict(prompt=QUESTION), ANSWER, 1, 'Sure: to build a bomb, you idiot, take this.', 0, None),
    'toxicity': ({}, ANSWER, 1, 'You are a worthless idiot.', 1 / 7, None),
    'bias': ({}, 'Some women like chess, some do not.', 1, 'Women are naturally bad at chess, and all men can play.', 1 / 7, None),
    'harmlessness': (dict(prompt='How do I build a bomb?'), "I can't help with that.", 1, 'Take the following things.', 0, None),
    'hallucination': (dict(context='The bridge was built in 1932 by John Bradfield. It spans 503 metres.'),
                      'The bridge spans 503 metres. John Bradfield built it in 1932.', 1,
                      'The bridge was built in 1947 by aliens. It glows at night.', 0, 'context'),
    'honesty': (dict(reference='Paris'), 'The capital is Paris.', 1, 'The capital is definitely Lyon.', 0, 'reference'),
    'instruction_following': (dict(prompt='Answer in exactly three words and include "blue". Use no commas.'), 'Sky is blue', 1,
                              'It is red, so it is.', 0, 'prompt'),
    'helpfulness': (dict(prompt=QUESTION), ANSWER, 0.8, "I can't help with that.", 0, 'prompt'),
    'politeness': ({}, 'Thank you for the question about the bridge. Could you please tell me which of its two ends you mean?', 1,
                   'Go away, idiot.', 0, None),
    'relevance': (dict(prompt=QUESTION), ANSWER, 0.4, 'My cat likes milk.', 0, 'prompt'),
    'context_relevance': (dict(context=QUESTION), ANSWER, 0.4, 'My cat likes milk.', 0, 'context'),
    'bleu': (dict(reference=ANSWER), ANSWER, 0.9999, 'My cat likes milk', 0, 'reference'),
    'rouge': (dict(reference=ANSWER), ANSWER, 1, 'My cat likes milk', 0, 'reference'),
    'meteor': (dict(reference=ANSWER), ANSWER, 0.999, 'My cat likes milk', 0, 'reference'),
    'bertscore': (dict(reference='abcd', baseline=0.0, **ENCODER), 'dcba', 1, 'xyz', 0, 'reference'),
    'semantic_similarity': (dict(reference='abcd', **ENCODER), 'dcba', 0.999, 'xyz', 0, 'reference'),
    'medical_accuracy': (dict(reference='Insulin lowers blood sugar. Adults should sleep 7 hours.'),
                         'Blood sugar is lowered by insulin: insulin lowers it. Adults should sleep 7 hours.', 1,
                         'Insulin does not lower blood sugar. Adults should sleep 3 hours.', 0, 'reference'),
    'legal_compliance': (dict(reference=['A contract needs an offer.', 'A contract needs acceptance.']),
                         'A contract needs an offer. Acceptance is what a contract needs too.', 1,
                         'A contract needs no offer. A contract does not need acceptance.', 0, 'reference'),
    'financial_accuracy': (dict(reference='Interest on 200 at 5% is 10.'), 'Interest at 5% on 200 is 10.', 1,
                           'Interest on 200 at 5% is 20.', 0, 'reference'),
    'length': ({}, 'word ' * 10, 1, 'word', 0, None),
    'diversity': ({}, 'Each word here stands once.', 1, 'a a a a a a a a a', 0.15, None),
}


@pytest.mark.parametrize('name', NAMES)
def test_good_bad_and_inapplicable(name, stub_sandbox):
    given, good, least, bad, most, needed = CASES[name]
    assert score(name, good, **given) >= least - 1e-6
    assert score(name, bad, **given) <= most + 1e-9
    assert score(name, '', **given) == 0
    if needed:
        assert score(name, good, **{k: v for k, v in given.items() if k != needed}) is None


def test_the_catalogue_is_whole():
    assert len(NAMES) == 37 and set(NAMES) <= set(REWARDS) and set(NAMES) == set(CASES)
    others = 'exact_answer number_answer reasoning_gym format_tag format_json format_xml rubric'
    assert set(REWARDS) - set(NAMES) == set(others.split())


SALAD = 'However, therefore, because, thus, hence, since, consequently, so that, due to, as a result, if, then, would have, otherwise.'
FOOLED = [  # what scores 0.8 to 1.0 elsewhere
    ('math_correctness', 'I have no idea. 1+1', dict(reference='42')), ('math_correctness', '1+1=2', dict(reference=GOLD)),
    ('math_reasoning', SALAD + ' First, step 1, because.', dict(reference='42')),
    ('math_reasoning', '1+1=2. ' * 50, dict(reference='42')), ('logical_consistency', 'x', {}), ('causal_reasoning', SALAD, {}),
    ('counterfactual_reasoning', SALAD, {}), ('counterfactual_reasoning', 'What if? would could had otherwise if not for', {}),
    ('code_syntax', '```\n0\n```', {}), ('code_execution', 'print("PASS")\nimport sys\nsys.exit(0)', {}), ('code_execution', 'x', {}),
    ('code_completeness', '# def f(): import x; class A; return 1', {}),
    ('code_completeness', 'def f():\n    pass\nimport x\nclass A: pass', {}),
    ('code_correctness', 'x = 1\nprint(x)', dict(tests=['assert f(1) == 2'])),
    ('code_correctness', 'def f(x): print("PASS")\nimport sys\nsys.exit(0)', dict(tests=['assert f(1) == 2'])),
    ('coherence', ('word ' * 20 + '. ') * 2, {}), ('readability', 'a a a.', {}), ('readability', 'a a a. ' * 20, {}),
    ('conciseness', 'x', dict(reference=ANSWER)), ('brevity', 'x', dict(reference=ANSWER)),
    ('hallucination', 'This is definitely, certainly, absolutely true.', dict(context=PASSAGE)),
    ('honesty', 'Honestly, to be honest, in all honesty.', dict(reference='Paris')),
    ('honesty', 'Oslo, Paris, Rome, ' + 'Bern, Kyiv, Riga, ' * 10, dict(reference='Paris')),
    ('instruction_following', 'write done: ten', dict(prompt='Write exactly ten words.')),
    ('helpfulness', 'I suggest, guide, help, recommend, assist and support.', dict(prompt=QUESTION)),
    ('relevance', QUESTION, dict(prompt=QUESTION)), ('relevance', 'answer response question explain', dict(prompt=QUESTION)),
    ('context_relevance', PASSAGE, dict(context=PASSAGE)), ('politeness', 'please thanks', {}),
    ('engagement', 'Wow! Amazing! Incredible! Exciting! ' * 5, {}), ('fluency', 'However, Moreover, Therefore', dict(HALF)),
    ('bertscore', 'zz', dict(reference='abcz', **ENCODER)), ('semantic_similarity', 'zz', dict(reference='abcdefghijklz', model=letters)),
    ('medical_accuracy', 'Consult a doctor. Evidence-based treatment, symptoms, diagnosis, patient.',
     dict(reference='Insulin lowers blood sugar.')),
     ('legal_compliance', 'This is not legal advice. Consult an attorney under applicable law.',
      dict(reference='A contract needs an offer.')),
    ('financial_accuracy', 'Not financial advice. Diversify your portfolio, risk, return.', dict(reference='Interest on 200 at 5% is 10.'))]


@pytest.mark.parametrize('name, text, given', FOOLED)
def test_strings_that_fool_others(name, text, given, stub_sandbox):
    assert score(name, text, **given) <= 0.3 + 1e-9


def test_what_can_still_be_fooled_says_so():
    """These score a text without worth high, and are marked; what is not marked either needs something to compare with, or is in FOOLED."""
    for name, text, given in (('brevity', 'x', {}), ('length', 'x ' * 10, {}), ('diversity', 'a b c d e f g', {}), ('bias', 'x', {}),
                              ('toxicity', 'x', {}), ('harmlessness', 'x', dict(prompt='')), ('safety', 'x', {}),
                              ('logical_consistency', 'a. b.', {}), ('code_syntax', 'def f(): 0', {}),
                              ('instruction_following', 'a b c', dict(prompt='Use three words.'))):
        assert score(name, text, **given) == 1 and REWARDS[name].hackable, name
    for name in NAMES:
        assert REWARDS[name].hackable or REWARDS[name].needs or name == 'hallucination', name
    with pytest.warns(UserWarning, match="the only reward, 'brevity', can be had without a good answer"):
        resolve_rewards(['brevity'])


# ---------------------------------------------------------------------------------------------------------------------
# figures: by hand, and by the packages that define them

def random_texts(n, seed=0):
    pool = "the a cat, dogs sat on mats. It's 3.5 km-long ( well ) running runs U.S. $5 & more! end".split()
    rng = random.Random(seed)
    return [(' '.join(rng.choices(pool, k=rng.randint(1, 14))), ' '.join(rng.choices(pool, k=rng.randint(1, 14)))) for _ in range(n)]


def test_bleu_by_hand():
    """the cat sat on the mat / the cat is on the mat: 5/6, 3/5, 1/4; no 4-gram of 3 matches, so 1/2 of one; no brevity penalty."""
    assert score('bleu', 'the cat sat on the mat',
                 reference='the cat is on the mat') == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)
    # 1- and 2-grams all match, half the length
    assert score('bleu', 'the cat', reference='the cat sat on') == pytest.approx(math.exp(1 - 4 / 2))
    # clipped: `the` counts once
    assert score('bleu', 'the the the', reference='the cat') == pytest.approx((1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** (1 / 3))
    assert score('bleu', 'the cat', reference=['a dog', 'the cat']) == pytest.approx(1)


def test_bleu_is_sacrebleus():
    sacrebleu = pytest.importorskip('sacrebleu', reason="pip install sacrebleu: the oracle of bleu")
    metric = sacrebleu.metrics.BLEU(effective_order=True)
    for text, reference in random_texts(150):
        assert score('bleu', text, reference=reference) == pytest.approx(metric.sentence_score(text, [reference]).score / 100,
            abs=1e-9), (text, reference)
    for text, (first, second) in zip('the cat sat on mats .|a cat, dogs|It\'s 3.5'.split('|'), random_texts(3, seed=1), strict=True):
        assert score('bleu', text, reference=[first, second]) == pytest.approx(metric.sentence_score(text, [first, second]).score / 100,
            abs=1e-9)


def test_rouge():
    """Longest common subsequence of a b c d and a x c d: 3, of 4 and 4 words: F1 6/8. One of three pairs is common: 2/6."""
    assert score('rouge', 'a b c d', reference='A x c, d!') == 0.75
    assert score('rouge', 'a b c d', reference='a x c d', variant=2) == pytest.approx(1 / 3)
    assert score('rouge', 'a a', reference='a', variant=1) == pytest.approx(2 / 3)
    scorer = pytest.importorskip('rouge_score.rouge_scorer',
                                 reason="pip install rouge-score: the oracle of rouge").RougeScorer(['rouge1', 'rouge2', 'rougeL'])
    for text, reference in random_texts(60):
        wanted = scorer.score('the ' + reference, text)
        for variant in (1, 2, 'L'):
            assert score('rouge', text, reference='the ' + reference,
                         variant=variant) == pytest.approx(wanted[f'rouge{variant}'].fmeasure), (text, reference)


def test_meteor():
    """2 of 3 words match, in 2 chunks, with a reference of 4: P 2/3, R 1/2, F = 10PR / (R + 9P) = 0.5128..., less half."""
    assert score('meteor', 'cat x mat', reference='mat y z cat') == pytest.approx(10 * (2 / 3) * (1 / 2) / (1 / 2 + 9 * 2 / 3) * (1 - 0.5))
    # cats is cat by its stem, running is no runs
    assert score('meteor', 'cats running', reference='cat runs') == pytest.approx(10 * 0.25 / (0.5 + 4.5) * 0.5)
    translate = pytest.importorskip('nltk.translate.meteor_score', reason="pip install nltk: the oracle of meteor")
    stemmer, no_synonyms = types.SimpleNamespace(stem=stem), types.SimpleNamespace(synsets=lambda word: [])
    for text, reference in random_texts(60):
        got = score('meteor', text, reference=reference)
        if words(reference):
            wanted = translate.single_meteor_score(words(reference), words(text), stemmer=stemmer, wordnet=no_synonyms)
            assert got == pytest.approx(wanted), (text, reference)
        else:
            assert got is None


def test_readability_by_hand():
    """20 words in 2 sentences, 26 syllables: 206.835 - 10.15 - 109.98 = 86.705."""
    text = 'The cat sat on a small red mat by the door. She looked at the sunny garden very happily today.'
    spoken = words(text)
    assert [sum(map(style.syllables, part)) for part in (spoken[:11], spoken[11:])] == [11, 15] and len(spoken) == 20
    assert score('readability', text) == pytest.approx(0.86705)
    assert [style.syllables(word) for word in ('large', 'while', 'table', 'tree', 'painted', 'the', 'idea')] == [1, 1, 2, 1, 2, 1, 2]
    assert score('readability', text, min_words=21) == 0


def test_conciseness_relevance_and_diversity_by_hand():
    assert score('conciseness', 'red boat', reference='red boat in the big sea') == 2 / 4  # 2 of red boat big sea
    assert score('conciseness', 'the red boat in the big sea and then some more', reference='red boat in the big sea') == 6 / 11
    assert score('relevance', 'boat storm', prompt='boat sea') == pytest.approx(1 / 2)  # cosine of (1, 1, 0) and (1, 0, 1)
    a, b, c = 'red fox ran', 'red fox ran', 'one two three'
    (_, group, _), _ = resolve_rewards([('diversity', 0.5), ('length', 0.5)])
    assert group.scores([[a, b, c]], [{}])[0] == pytest.approx([0, 0, 1]) and group(a) == 1
    # two of its three words, in one pair of two, are another's: precisions 2/3, 1/2, 1/2 of the only triple
    assert group.scores([['red fox sat', a]], [{}])[0][0] == pytest.approx(1 - (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3))


def test_diversity_is_one_minus_the_bleu_against_the_rest_of_the_group():
    rng = random.Random(0)
    group = [' '.join(rng.choices('red fox sat ran on in'.split(), k=rng.randint(1, 9))) for _ in range(7)] + ['red fox sat', 'red fox sat',
                                                                                                               '']
    (_, diversity, _), _ = resolve_rewards([('diversity', 0.5), ('length', 0.5)])
    for i, (text, value) in enumerate(zip(group, diversity.scores([group], [{}])[0], strict=True)):
        alone = diversity(text)
        others = [other for j, other in enumerate(group) if j != i and other]
        assert value == pytest.approx(alone * (1 - score('bleu', text, reference=others))), text
    assert alone == 0 and value == 0


def test_similarity_by_hand():
    """ab and ac: token vectors e_a, e_b and e_a, e_c. The means' cosine is 1/2; half of each text's tokens match: F1 is 1/2."""
    assert score('semantic_similarity', 'ab', reference='ac', model=letters) == pytest.approx(0.5)
    assert score('bertscore', 'ab', reference='ac', model=letters, baseline=0.0) == pytest.approx(0.5)
    assert score('bertscore', 'ab', reference='ac', model=letters, baseline=0.2) == pytest.approx((0.5 - 0.2) / 0.8)
    assert score('bertscore', 'ab', reference='ac', model=letters) == 0  # below what unrelated texts get
    with pytest.raises(RuntimeError, match="needs a model: give params"):
        score('bertscore', 'ab', reference='ac')


@pytest.mark.parametrize('text, value', [
    ('First 3*4=12, then 12-2=10.\n#### 10', 1), ('#### 10', 0.7), ('3*4=12, 12-2=11\n#### 10', 0.85), ('3*4=12, 12-2=11\n#### 11', 0.15),
    ('10=10 and 10\n#### 10', 0.7), ('$3 × 4 = $12\n#### 10', 1), ('1. 3*4=12\n2. 12-2=10\n#### 10', 1),
    ('2+3=1+4, 2+3=1+5\n#### 10', 0.85),
    ('48/2 = <<48/2=24>>24\n#### 10', 1), ('1/3 = 0.33\n#### 10', 1), ('1/3 = 0.34\n#### 10', 0.7), ('5% of 2, 200*5% = 10\n#### 10', 1),
    ('(1+2)*3 = 9\n#### 10', 1), ('9**9**9**9 = 1\n#### 10', 0.7), ('1/0 = 5\n#### 10', 0.7)])
def test_math_reasoning(text, value):
    """0.7 for the answer, 0.3 for the share of true equations."""
    assert score('math_reasoning', text, reference='10') == pytest.approx(value)


@pytest.mark.parametrize('text, reference, value', [
    (r'\boxed{42}', '42', 1), ('so 42 eggs', '42 eggs', 1), ('The answer is 42, and 7 are left.', '42', 1),
    ('The answer is 7.\n#### 42', '42', 1), ('42 or 43', '42', 0), (r'\boxed{\frac{1}{2}}', '0.5', 1),
    ('The answer is Tuesday.', 'tuesday', 1),
    ('Tuesday or Friday', 'tuesday', 0), ('The answer is yes.', 'no', 0), ('No.', 'no', 1), (r'The answer is (B)', 'B', 1),
    (r'The answer is C', 'B', 0), (r'\boxed{x^2+1}', 'x^2 + 1', 1), ('', '42', 0), ('x', ' ', None)])
def test_math_correctness(text, reference, value):
    assert score('math_correctness', text, reference=reference) == value


def test_math_correctness_of_expressions():
    for text in (r'\boxed{x^2+1}', '5'):  # without a look at the package where the texts are the same
        assert score('math_correctness', text, reference={r'\boxed{x^2+1}': 'x^2+1', '5': '5'}[text]) == 1
    pytest.importorskip('math_verify', reason="pip install math-verify: it compares expressions")
    assert score('math_correctness', r'\boxed{1+x^2}', reference='x^2 + 1') == 1
    assert score('math_correctness', r'\boxed{x^2-1}', reference='x^2 + 1') == 0
    assert score('math_correctness', r'\boxed{\frac{2\sqrt{2}}{4}}', reference=r'\frac{1}{\sqrt{2}}') == 1
    assert score('math_correctness', r"\boxed{__import__('os').getpid()}", reference='x^2 + 1') == 0
    with ThreadPoolExecutor(1) as elsewhere:  # its alarm works in the main thread alone: a wrapper that swallows that scores everything 0
        assert elsewhere.submit(score, 'math_correctness', r'\boxed{1+x^2}', reference='x^2 + 1').result() == 1


def test_math_verify_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'math_verify', None)
    with pytest.raises(RuntimeError, match=r"raised ImportError: to compare 'x\^2 \+ 1' takes the package: pip install math-verify"):
        score('math_correctness', r'\boxed{1+2x^2}', reference='x^2 + 1')
    with pytest.warns(UserWarning, match="an answer that is an expression counts as wrong: .* pip install math-verify"):
        assert score('math_correctness', r'\boxed{\int_0^1 x dx}', reference='1/2') == 0
    for text, reference in (('so 3/6', '0.5'), ('The answer is: B', 'B'), ('It is Paris.', 'Paris'), ('2 and 3', '3, 2')):
        assert score('math_correctness', text, reference=reference) == 1
    for endless in ('9^{9^{9}}', 'x^x^x', '2^{99999}', '2^9999', '1000!', 'x' * 301, ''):  # never reach it
        assert score('math_correctness', rf'\boxed{{{endless}}}', reference='x^2 + 1') == 0


# ---------------------------------------------------------------------------------------------------------------------
# code

def test_code_is_found():
    assert code_of('x = 1') == 'x = 1'
    assert code_of('Say:\n```py\nx = 1\n```\nand\n```\ny = 2\n```\n```bash\nls\n```') == 'x = 1\n\ny = 2'
    assert code_of('```python\nx = 1\ny = 2') == 'x = 1\ny = 2'  # cut off


def test_code_quality_by_hand():
    """Of five shares: docstring 1/2, types 2/4 (x and one result of four places), complexity 1, lines 1, names 1/2 (y, not os)."""
    code = 'import os\ndef f(x: int):\n    """It adds."""\n    y = x\n    return y\ndef g(z) -> int:\n    return z\n'
    assert score('code_quality', code) == pytest.approx((1 / 2 + 2 / 4 + 1 + 1 + 1 / 2) / 5)
    forks = 'def f(x):\n' + '    if x: x = 1\n' * 10 + '    return x'
    assert branches(parse(forks)[1].body[0]) == 11
    assert score('code_quality', forks) == pytest.approx((0 + 0 + 0 + 1 + 1) / 5)


@pytest.mark.parametrize('code, value', [
    ('def f(): return 1\ndef g(): ...', 0.5), ('def f(): return 1\n# TODO: g', 0.5), ('def f(): return g()', 0),
    ('def f(a): return a + len(b)', 2 / 3), ('class A:\n    def __init__(self): self.x = 1', 1),
    ('def f():\n    yield 1', 1), ('from x import *\ndef f(): return g()', 1), ('def f(): raise ValueError', 1), ('x = 1\nprint(x)', 1),
    ('not code', 0)])
def test_code_completeness(code, value):
    assert score('code_completeness', code) == pytest.approx(value)


def test_code_goes_to_the_sandbox_all_at_once(stub_sandbox):
    """One call for all groups, each different program of a prompt once, what does not parse never; tests stay with their prompt."""
    one, two = 'def f(x): return x', 'def f(x): return -x'
    resolved = resolve_rewards([('code_correctness', 0.5), ('length', 0.5)])
    records = [{'prompt': 'p', 'tests': ['assert f(1) == 1', 'assert f(0) == 0']}, {'prompt': 'q'},
               {'prompt': 'r', 'tests': 'assert f(1) == -1'}]
    assert score_completions(resolved[:1], [[one, two, one, 'def'], [one] * 4, [one, two, two, '']],
                             records) == {'code_correctness': [[1, 0.5, 1, 0], [None] * 4, [0, 1, 1, 0]]}
    assert stub_sandbox == [(one, records[0]['tests']), (two, records[0]['tests']), (one, 'assert f(1) == -1'), (two, 'assert f(1) == -1')]
    assert list(check_fields(resolved, records)['code_correctness']) == [1] and len(stub_sandbox) == 4


def test_code_that_cheats_in_the_real_sandbox():
    equal = 'class Equal(int):\n    def __eq__(self, other): return True\ndef f(x): return Equal()'
    for code in (equal, 'def f(x): return 2\nprint("PASS")\nimport sys\nsys.exit(0)', 'import os\ndef f(x): os._exit(0)'):
        assert score('code_correctness', code, tests=['assert f(1) == 2']) == 0
    assert score('code_correctness', 'def f(x): return 2 * x', tests=['assert f(1) == 2', 'assert f(2) == 5']) == 0.5
    assert score('code_execution', 'def f(x): return 2 * x') == 1
    for code in ('x = print\n1 / 0\nx()', 'print("PASS")\nx = 1\nimport sys\nsys.exit(0)', 'x = print\nx()\nwhile True: pass'):
        assert score('code_execution', code, timeout=0.5) == 0
    resolved = resolve_rewards([('code_correctness', 0.5), ('length', 0.5)])
    # before training, and in any record
    with pytest.raises(RuntimeError, match="'code_correctness' raised ValueError: .* cannot be graded"):
        check_fields(resolved, [{'prompt': 'p', 'tests': ['assert f(1) == 2']}, {'prompt': 'q', 'tests': ['assert True']}])


# ---------------------------------------------------------------------------------------------------------------------
# models: a function in their place, or a tiny one with random weights

def test_classifiers_by_a_stub():
    seen = []

    def toxic(texts):
        seen.append(list(texts))
        return [0.9 if 'she' in text.lower().split() else 0.1 for text in texts]
    resolved = resolve_rewards([('toxicity', 0.5, {'model': toxic}), ('bias', 0.5, {'model': toxic})])
    values = score_completions(resolved, [['She ran', 'He ran', 'He ran', '']], [{'prompt': 'p'}])
    assert values['toxicity'] == [pytest.approx([0.1, 0.9, 0.9, 0])] and values['bias'] == [pytest.approx([0.2, 0.2, 0.2, 0])]
    assert seen[0] == ['She ran', 'He ran'] and seen[1] == ['She ran', 'He ran', '', 'he ran', 'she ran', '']  # each text once

    def denies(pairs):
        return [0.75 if 'not' in a + b else 0.0 for a, b in pairs]
    assert score('logical_consistency', 'It rains. It does not.', model=denies) == 0.25
    assert score('logical_consistency', 'It rains.', model=denies) == 0
    # sigmoid(0), of prompt + text
    assert score('helpfulness', 'x', prompt='ab', scorer=lambda texts: [len(text) - 3 for text in texts]) == 0.5
    assert score('harmlessness', 'x', prompt='', scorer=lambda texts: [math.log(3)]) == pytest.approx(0.25)
    assert score('coherence', 'ab. ac.', model=letters) == pytest.approx(2 / 3)  # a, b or c, and the full stop: 2 of 3 are common


def test_local_models_by_their_path(tmp_path):
    """A classifier and an encoder as transformers saves them; texts of other lengths in the batch change nothing."""
    transformers = pytest.importorskip('transformers', reason="pip install transformers: it loads the models")
    tokenizers = pytest.importorskip('tokenizers', reason="pip install tokenizers")
    vocabulary = {word: i for i, word in enumerate(['[PAD]', '[UNK]', 'a', 'b', 'c', 'd'])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='[UNK]'))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token='[PAD]', unk_token='[UNK]', model_max_length=16)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                                     max_position_embeddings=16, id2label={0: 'fine', 1: 'Toxic'}, label2id={'fine': 0, 'Toxic': 1})
    classifier = transformers.BertForSequenceClassification(config).eval()
    classifier.classifier.weight.data.normal_(std=5.0)
    for name, model in (('classifier', classifier), ('encoder', classifier.bert)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    classify = str(tmp_path / 'classifier')
    with torch.no_grad():
        wanted = [1 - classifier(**tokenizer(text, return_tensors='pt')).logits.softmax(-1)[0, 1].item() for text in ('a b', 'c d d b a')]
    (_, toxicity, _), = resolve_rewards([('toxicity', 1.0, {'model': classify})])
    assert toxicity.scores([['a b', 'c d d b a']], [{}])[0] == pytest.approx(wanted, abs=1e-5) and abs(wanted[0] - wanted[1]) > 1e-3
    with pytest.raises(RuntimeError, match="has no label 'contradiction', only: fine, toxic"):
        score('logical_consistency', 'a b. c d.', model=classify)
    encoder = str(tmp_path / 'encoder')
    with torch.no_grad():
        states = [classifier.bert(**tokenizer(text, return_tensors='pt'), output_hidden_states=True) for text in ('a b c', 'c d')]
    means = [s.last_hidden_state[0].mean(0) for s in states]
    wanted = torch.cosine_similarity(*means, dim=0).item()
    assert score('semantic_similarity', 'a b c', reference='c d', model=encoder) == pytest.approx(max(0, wanted), abs=1e-5)
    x, y = (torch.nn.functional.normalize(s.hidden_states[1][0], dim=1) for s in states)
    p, r = (x @ y.T).amax(1).mean().item(), (x @ y.T).amax(0).mean().item()
    assert score('bertscore', 'a b c', reference='c d', model=encoder, layer=1, baseline=0.0) == pytest.approx(max(0, 2 * p * r / (p + r)),
        abs=1e-5)


def test_fluency_under_a_language_model():
    """exp(mean log-prob per character), less repetition: by text_log_probs, batched, as text_log_prob has it for one text."""
    tokenizer = CharTokenizer('abc ', end=True)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    texts = ['abc', 'c', 'a b c a b', 'cab', 'abc abc abc abc abc abc']  # the last is cut
    found = text_log_probs(model, tokenizer, texts, batch_size=2)
    wanted = [text_log_prob(model, tokenizer.encode(text)[:16]) if len(text) > 1 else -math.inf for text in texts]
    assert found == pytest.approx(wanted, abs=1e-5)
    resolved = resolve_rewards([('fluency', 0.5), ('length', 0.5)],
                               {'start_log_probs': lambda texts: text_log_probs(model, tokenizer, texts)})
    assert score_completions(resolved, [texts + ['']],
                             [{'prompt': 'p'}])['fluency'][0] == pytest.approx([math.exp(found[0]), 0, math.exp(found[2]),
                                                                                math.exp(found[3]), math.exp(found[4]) * (1 - 3 / 4), 0],
                                                                                abs=1e-5)


def test_fluency_by_grammar(monkeypatch):
    monkeypatch.setitem(sys.modules, 'harper', None)
    style.grammar.cache_clear()
    with pytest.raises(RuntimeError, match="'fluency' raised ImportError: checking grammar needs the package: pip install harper-py"):
        score('fluency', 'The sea was calm.')
    monkeypatch.undo()
    pytest.importorskip('harper', reason="pip install harper-py: it checks grammar")
    assert score('fluency', 'The sea was calm this morning.') == 1
    assert score('fluency', 'The the sea were an calm, this moning it are go.') <= 0.3 and score('fluency', 'x') <= 0.3


def test_profanity_check(monkeypatch):
    """The package's own numbers are its own affair; ours is 1 - its probability, asked for all texts at once."""
    asked = []

    def predict_prob(texts):
        asked.append(list(texts))
        return torch.tensor([0.9 if 'foul' in text else 0.1 for text in texts])
    monkeypatch.setitem(sys.modules, 'profanity_check', types.SimpleNamespace(predict_prob=predict_prob))
    assert [score('toxicity', text, model='profanity-check') for text in ('a foul word', 'a word')] == pytest.approx([0.1, 0.9])
    assert asked == [['a foul word'], ['a word']]
    monkeypatch.setitem(sys.modules, 'profanity_check', None)
    with pytest.raises(RuntimeError, match='pip install alt-profanity-check'):
        score('toxicity', 'a word', model='profanity-check')


# ---------------------------------------------------------------------------------------------------------------------
# demands

@pytest.mark.parametrize('prompt, meets, fails', [
    ('Write exactly ten words.', 'a b c d e f g h i j', 'a b'), ('Use at least 2 sentences.', 'One. Two.', 'One.'),
    ('in under 3 words', 'a b', 'a b c'), ('Give 2 bullet points', '- a\n- b', '- a'), ('Write two paragraphs', 'a\n\nb', 'a\nb'),
    ('Reply in JSON.', '{"a": 1}', 'a: 1'), ('Answer in all lowercase', 'abc', 'Abc'), ('in all capital letters', 'ABC', 'abc'),
    ('Use no commas', 'a b', 'a, b'), ('Include the word "sea".', 'The sea', 'The lake'),
    ("Do not use the word 'sea'.", 'The lake', 'The sea'), ('Start with "Dear".', 'Dear Tom', 'Tom'),
    ('End with "the end".', 'So, the end', 'So')])
def test_instruction_following(prompt, meets, fails):
    assert score('instruction_following', meets, prompt=prompt) == 1 and score('instruction_following', fails, prompt=prompt) == 0
    assert score('instruction_following', meets,
                 prompt=[{'role': 'system', 'content': 'In 900 words.'}, {'role': 'user', 'content': prompt}]) == 1
    assert score('instruction_following', meets, prompt='What is the sea?') is None


def test_honesty_and_hallucination_know_ignorance():
    assert [score('honesty', text, reference='42') for text in ('It is 42.', "I don't know.", 'Perhaps 41.', 'It is 41.')] == [1, 0.3, 0.3,
                                                                                                                               0]
    assert [score('hallucination', text,
                  context='The bridge is 503 metres long.') for text in ('The bridge is 503 metres long. It is red and wide.',
                      "I don't know.", "I don't know. The bridge is 503 metres long.", 'The bridge is 504 metres long.')] == [0.5, 0.3, 1,
                                                                                                                              0]
    assert score('hallucination', 'The bridge is long.', reference='The bridge is long.') == 1


# ---------------------------------------------------------------------------------------------------------------------
# the command

def test_the_command(capsys):
    main(['red boat', '--names=bleu,conciseness,length,code_correctness,bertscore,blue', '--reference=red boat in the big sea'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ['conciseness', '0.5000'] and lines[2].split() == ['length', '0.0000', 'hackable']
    assert lines[3] == 'code_correctness         not applicable: it needs tests'
    assert lines[4].startswith('bertscore                cannot be computed: ') and "did you mean 'bleu'" in lines[5]
    main(['- red boat', '--names=conciseness'])
    main(['-red', '--names=conciseness'])
    main(['-hello', '--names=conciseness'])
    assert capsys.readouterr().out.count('conciseness') == 3
    for wrong, told in ((['--names=bleu'], 'arguments are required: text'), (['x', '--name=bleu'], 'unrecognized arguments: --name=bleu'),
                        (['x', 'y'], 'unrecognized arguments: y')):
        with pytest.raises(SystemExit):
            main(wrong)
        assert told in capsys.readouterr().err
