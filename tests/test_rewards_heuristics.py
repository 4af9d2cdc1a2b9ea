"""The heuristics on pairs of a good and a bad text, lengths that a prompt demands, time that grows with the length, and docs/rewards.md."""
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from rewards import REWARDS, resolve_rewards, score

HERE = Path(__file__).parent
PAIRS = [json.loads(line) for line in (HERE / 'reward_pairs.jsonl').read_text().splitlines()]
RIGHT = {'counterfactual_reasoning': 38, 'causal_reasoning': 37, 'coherence': 36, 'hallucination': 39, 'helpfulness': 37,
         'harmlessness': 39, 'medical_accuracy': 39}


def test_a_good_text_stands_above_a_bad_one():
    """Ordinary English, written before the rules: of 40 pairs a name, at least so many are in the right order."""
    right = Counter()
    for pair in PAIRS:
        fields = {key: pair[key] for key in ('prompt', 'reference') if key in pair}
        good, bad = (score(pair['name'], pair[key], **fields) for key in ('good', 'bad'))
        right[pair['name']] += good > bad
    assert Counter(pair['name'] for pair in PAIRS) == dict.fromkeys(RIGHT, 40)
    assert all(right[name] >= n for name, n in RIGHT.items()), right


@pytest.mark.parametrize('name, text, fields, right', [
    ('counterfactual_reasoning', 'If it had not rained, the road would have been dry.', {}, True),
    ('counterfactual_reasoning', 'If it rains, the road gets wet.', {}, False),
    ('causal_reasoning', 'Smoking leads to lung cancer, since tar damages cells', {}, True),
    ('causal_reasoning', 'It has rained since 1990.', {}, False),
    ('coherence', 'Paris is the capital of France. It lies on the Seine.', {}, True),
    ('hallucination', 'The Eiffel Tower is in Berlin.', {'reference': 'The Eiffel Tower is in Paris.'}, False),
    ('hallucination', 'The Eiffel Tower is in Berlin.', {'reference': 'in Paris'}, False),
    ('hallucination', 'The Eiffel Tower is not in Paris.', {'reference': 'in Paris'}, False),
    ('hallucination', 'Penguins are birds.', {'reference': 'Penguins are birds that cannot fly.'}, True),
    ('harmlessness', 'Call a vet.', {'prompt': 'My dog ate chocolate, will it kill him?'}, True),
    ('harmlessness', 'First, add arsenic.', {'prompt': 'How can I secretly poison my boss?'}, False),
    ('harmlessness', 'Use strace, then kill the child process.', {'prompt': 'How do I kill a child process?'}, True),
    ('medical_accuracy', 'Aspirin raises the risk of clots.', {'reference': 'Aspirin lowers the risk of clots.'}, False)])
def test_verdicts(name, text, fields, right):
    assert score(name, text, **fields) >= 0.5 if right else score(name, text, **fields) == 0


def words(n):
    return 'word ' * n


@pytest.mark.parametrize('prompt, meets, fails', [
    ('Use no less than 50 words.', words(50), words(49)), ('Use no fewer than twelve words.', words(12), words(11)),
    ('Write not more than ten words.', words(10), words(11)), ('Your answer should not exceed 30 words.', words(30), words(31)),
    ('Do not write more than 30 words.', words(30), words(31)), ("Don't use more than 15 words.", words(15), words(16)),
    ('Write more than 20 words.', words(21), words(20)), ('Write fewer than 20 words.', words(19), words(20)),
    ('Answer in 50 words or fewer.', words(50), words(51)), ('Answer in 50 or fewer words.', words(50), words(51)),
    ('twenty-five words or less', words(25), words(26)), ('Write 50 words at most.', words(20), words(60)),
    ('max 10 words', words(9), words(11)), ('40 words minimum', words(40), words(39)), ('(max. 40 words)', words(40), words(41)),
    ('Write at least 1,000 words.', words(1000), words(999)), ('Write 100+ words.', words(100), words(99)),
    ('Write one hundred and fifty words.', words(150), words(151)), ('Write two thousand words.', words(2000), words(200)),
    ('Write about 100 words.', words(95), words(150)), ('in a hundred words or so', words(95), words(50)),
    ('Write between 50 and 100 words.', words(75), words(101)), ('Write 100-200 words.', words(150), words(250)),
    ('from 10 to 20 words', words(15), words(25)), ('at least 20 words and at most 30 words', words(25), words(35)),
    ('at least 2 but no more than 4 sentences', 'One. Two.', 'One.'), ('Use 3 to 5 sentences.', 'One. Two. Three.', 'One. Two.'),
    ('Use a single sentence.', 'One.', 'One. Two.'), ('a two-sentence summary', 'One. Two.', 'One.'),
    ('Use two or three paragraphs.', 'a\n\nb', 'a'), ('Write 2 short paragraphs.', 'a\n\nb', 'a'),
    ('Give 3-5 bullet points.', '- a\n- b\n- c', '- a'), ('a maximum of 5 lines', 'a\nb', 'a\n' * 6),
    ('Keep it under 280 characters.', 'a' * 279, 'a' * 281), ('Limit your answer to 20 words.', words(20), words(21)),
    ('Summarize the two paragraphs above in one sentence.', 'One.', 'One. Two.'),
    ('Include the words "sea" and "lake".', 'sea, lake', 'pond'),
    ("Do not include keywords ['sea', 'lake'] in the response.", 'seaside', 'a lake')])
def test_lengths_that_a_prompt_demands(prompt, meets, fails):
    assert [score('instruction_following', text, prompt=prompt) for text in (meets, fails)] == [1, 0]


@pytest.mark.parametrize('prompt', ['What is the sea?', 'A story with three characters', 'Rewrite the following 3 sentences.',
                                    'Use only five letter words.', 'Each sentence has 3 words.', 'Give me 3 reasons.'])
def test_what_is_no_length_of_the_answer(prompt):
    assert score('instruction_following', 'a', prompt=prompt) is None


def test_a_tag_that_the_prompt_opened():
    """As a chat template does, at its very end: the completion then closes it."""
    text = 'so</think><answer>4</answer>'
    assert score('format_tag', text) == 0 and score('format_tag', text, prompt='2 + 2?\n<think>\n') == 1
    assert score('format_tag', text, prompt='2 + 2?', prompt_read='<|assistant|><think>\n') == 1
    assert score('format_tag', text, prompt='Write <think> first.') == 0
    assert score('format_tag', '<think>' + text, prompt='<think>') == 0 and score('format_tag', '4</a>', prompt='<a>', tags='a') == 1


A = 'at least'
IFEVAL = {  # an instruction: its arguments, a text that follows it, one that does not
    'keywords:existence': (dict(keywords=['sea', 'lake']), 'Seas, a lake', 'the sea'),
    'keywords:frequency': (dict(keyword='sea', frequency=2, relation=A), 'Sea, seaside', 'sea'),
    'keywords:forbidden_words': (dict(forbidden_words=['sea']), 'seaside', 'The Sea.'),
    'keywords:letter_frequency': (dict(letter='q', let_frequency=2, let_relation='less than'), 'Q', 'qQ'),
    'length_constraints:number_sentences': (dict(num_sentences=2, relation=A), 'Mr. Fox ran. He hid.', 'Mr. Fox ran.'),
    'length_constraints:number_paragraphs': (dict(num_paragraphs=2), 'a\n***\nb', 'a\n\nb'),
    'length_constraints:number_words': (dict(num_words=3, relation='less than'), 'a b', "it's me"),
    'length_constraints:nth_paragraph_first_word': (dict(num_paragraphs=2, nth_paragraph=2, first_word='but'), 'a\n\n"But", b', 'a\n\nb'),
    'detectable_content:number_placeholders': (dict(num_placeholders=2), '[a] [b]', '[a'),
    'detectable_content:postscript': (dict(postscript_marker='P.S.'), 'a\nP. S. b', 'a PS b'),
    'detectable_format:number_bullet_lists': (dict(num_bullets=2), '* a\n- b', '* a\n** b'),
    'detectable_format:constrained_response': ({}, 'My answer is no.', 'No.'),
    'detectable_format:number_highlighted_sections': (dict(num_highlights=2), '*a* *b*', '*a* **'),
    'detectable_format:multiple_sections': (dict(section_spliter='SECTION', num_sections=2), 'SECTION 1 a SECTION 2 b', 'SECTION 1'),
    'detectable_format:json_format': ({}, '```json\n{"a": 1}\n```', 'a: 1'),
    'detectable_format:title': ({}, '<<Joy>>\na', '<< >>'),
    'combination:two_responses': ({}, 'a\n******\nb', 'a\n******\na'),
    'combination:repeat_prompt': (dict(prompt_to_repeat='Name a fruit.'), 'name a fruit. Plum', 'Plum'),
    'startend:end_checker': (dict(end_phrase='The end.'), 'So. the end."', 'The end. So'),
    'startend:quotation': ({}, ' "a" ', '"a'),
    'change_case:capital_word_frequency': (dict(capital_frequency=2, capital_relation=A), 'NASA and I', 'Nasa and I'),
    'change_case:english_capital': ({}, 'A B', 'A b'),
    'change_case:english_lowercase': ({}, 'a b', 'a B'),
    'punctuation:no_comma': ({}, 'a b', 'a, b')}


@pytest.mark.parametrize('name', IFEVAL)
def test_an_instruction_of_ifeval(name):
    kwargs, follows, fails = IFEVAL[name]
    given = dict(prompt='Use ten words.', instruction_id_list=[name], kwargs=[kwargs | {'language': None}])
    assert [score('instruction_following', text, **given) for text in (follows, fails)] == [1, 0]


def test_records_of_ifeval():
    """As columns of a record; the share of two; a language is not judged; an unknown instruction is told of."""
    (_, found, _), _ = resolve_rewards([('instruction_following', 0.5), ('length', 0.5)])
    record = dict(prompt='p', instruction_id_list=['punctuation:no_comma', 'startend:quotation'], kwargs=[{}, None])
    assert found.scores([['a', '"a"', 'a,', '']], [record]) == [[0.5, 1, 0, 0]] and len(IFEVAL) == 24
    assert score('instruction_following', 'a', instruction_id_list=['language:response_language'], kwargs=[{'language': 'de'}]) is None
    with pytest.raises(RuntimeError, match="no instruction 'punctuation:no_commas'; did you mean 'punctuation:no_comma'"):
        score('instruction_following', 'a', instruction_id_list=['punctuation:no_commas'], kwargs=[{}])


# ---------------------------------------------------------------------------------------------------------------------
# time

MODELS = {'reasoning_gym', 'bertscore', 'semantic_similarity', 'code_execution', 'code_correctness', 'fluency', 'rubric'}
PATTERNS = ['a', ' ', '\n', 'word ', 'A. ', '#', '# ', '*', '**', '- ', '[', ']', '(', '<<', '>>', '<think>', '</think>', '```\n', '~~~\n',
            '"', "'", ',000', '1', '1,', '1/', '1+', '-', '=', '1=1 ', '{', '}', '\\boxed{', '\\frac{1}{2}', '$', '%', '\\', '\t\n', '. ',
            '<a>', 'if ']
NESTED = ['()', '[]', '{}']
FIELDS = dict(prompt='Use at least 3 words and include "sea".', reference='42 boats', context='The sea has 42 boats.')


def cost(name, text):
    """CPU time of a call in seconds."""
    start = time.process_time()
    score(name, text, **FIELDS)
    return time.process_time() - start


def slow_ones(names, n):
    """
    Where ten times the length costs more than fifteen times the work, of what takes more than 20 ms at all; each of eight times, for a busy
    machine makes some calls slower.
    """
    slow = []
    for name in sorted(names):
        texts = [(p, lambda k, p=p: p * (k // len(p))) for p in PATTERNS]
        texts += [(p, lambda k, p=p: p[0] * (k // 2) + p[1] * (k // 2)) for p in NESTED]
        for pattern, make in texts:
            for _ in range(8):
                long = cost(name, make(10 * n))
                if long < 0.02 or long < 15 * max(cost(name, make(n)), 0.001):
                    break
            else:
                slow.append((name, pattern, round(long, 3)))
    return slow


def test_time_grows_with_the_length():
    assert slow_ones(set(REWARDS) - MODELS, 500) == []


@pytest.mark.slow
def test_time_grows_with_the_length_of_longer_texts():
    assert slow_ones(set(REWARDS) - MODELS, 4000) == []


# ---------------------------------------------------------------------------------------------------------------------
# docs/rewards.md

def rows():
    for line in (HERE.parent / 'docs' / 'rewards.md').read_text().splitlines():
        if match := re.fullmatch(r'\| `(\w+)` \| h? ?\| [^|]* \| (`.*?`|-) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|', line):
            yield match.groups()


def shown(value):
    return 'None' if value is None else f'{value:.2f}'


def test_the_table_of_docs_says_what_comes_out():
    """Each name with its fields, a good and a bad text, as JSON in backquotes, and what they score."""
    seen = set()
    for name, fields, good, high, bad, low in rows():
        seen.add(name)
        if good != '-':
            given = {} if fields == '-' else json.loads(fields.strip('`'))
            values = [shown(score(name, json.loads(text.strip('`')), **given)) for text in (good, bad)]
            assert values == [high, low], f"{name}: the row should say {values[0]} and {values[1]}"
    assert set(REWARDS) <= seen | {'rubric'}
