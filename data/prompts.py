"""
Prompts to answer, as plain dicts: {'prompt': text or chat messages, 'answer': ..., ...}.

load_prompts reads them, load_split keeps some for evaluation, draw_mixture says which ones an iteration
takes, and encode_prompts turns them into token ids.
"""
import contextlib
import difflib
import functools
import itertools
import json
import math
import os
import random

from data.sources import (
    HUGGING_FACE_NAME,
    HUGGING_FACE_SPLITS,
    SUFFIXES,
    NoSplit,
    is_one_split,
    read_file,
    read_hugging_face,
)
from data.text import FOLDER, dataset_name, folders_that, prepare, write_recipe
from formats.chat import variables_read
from formats.text_files import near_path, replacing
from rewards.reward import FIELDS
from runtime import ranks
from runtime.console import say

OUR_NAMES = (*FIELDS, 'answer', 'hidden_tests')
OTHER_NAMES = {'prompt': ('question', 'problem', 'instruction', 'query', 'input'),
               'answer': ('solution', 'ground_truth', 'label', 'target', 'response', 'output')}
CHAT_NAMES = ('messages', 'conversations')
ROLES = {'human': 'user', 'gpt': 'assistant', 'chatgpt': 'assistant', 'bot': 'assistant'}  # ShareGPT's
say_once = functools.cache(say)


def write_splits(script, read=(), **splits):
    """
    What a prepare.py leaves beside itself: {split}.jsonl of records, and recipe.json, see data/text.py. read:
    the files that it made them from.
    """
    folder = os.path.dirname(os.path.abspath(script))
    for split, records in splits.items():
        path = os.path.join(folder, f'{split}.jsonl')
        with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
        print(f"{path}: {len(records):,} prompts")
    write_recipe(script, read)


def as_messages(prompt):
    return [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt


def is_message(value):
    """Whether it is a chat message with the texts that templates read."""
    texts = [value.get('role'), value.get('content')] if isinstance(value, dict) else [None]
    return all(isinstance(text, str) for text in texts)


def check_prompt(prompt):
    """Raises ValueError unless prompt is a text, or chat messages that end before the model's turn."""
    messages = as_messages(prompt)
    if not isinstance(messages, list) or not all(map(is_message, messages)):
        raise ValueError(f"the prompt is {prompt!r} ({type(prompt).__name__}); it must be a text, or a list "
                         "of chat messages, which must have the texts 'role' and 'content'")
    if not messages or not messages[-1]['content'].strip():
        raise ValueError(f"the prompt is empty: {prompt!r}")
    if messages[-1]['role'] == 'assistant':
        raise ValueError("the last chat message is the assistant's: end with the user's")


def directed(column_mapping, columns):
    """
    The mapping as {their column: our name}, whichever way round it was written, or the function that it is.
    Raises ValueError where a record's columns allow both.
    """
    if callable(column_mapping):
        return column_mapping
    names = [name for name in column_mapping.values() if isinstance(name, str)]
    if len(set(names)) < len(column_mapping):
        raise ValueError(f"column_mapping {column_mapping} must give each column a name, and another one")
    result = {}
    for theirs, ours in column_mapping.items():
        turned = theirs in OUR_NAMES and ours in columns
        if turned and theirs in columns and ours not in OUR_NAMES:
            raise ValueError(f"column_mapping={{{theirs!r}: {ours!r}}} can mean both, for both are columns; "
                             f"{{{ours!r}: {theirs!r}}} takes {ours!r} as the {theirs}")
        result |= {ours: theirs} if turned and theirs not in columns else {theirs: ours}
    return result


def other_names(columns):
    """
    {our name: the column that is taken for it} where a record's columns lack 'prompt' or 'answer' and one of
    the names that others use is there. Raises ValueError where several are.
    """
    spelled, found = {str(column).strip().lower(): column for column in columns}, {}
    for ours, names in OTHER_NAMES.items():
        if ours in columns or (ours == 'answer' and 'reference' in columns):
            continue
        names = (ours,) if ours in spelled else names
        taken = [spelled[name] for name in names if name in spelled]
        if len(taken) > 1:
            several = ' and '.join(map(repr, taken))
            raise ValueError(f"there is no field {ours!r}, and {several} could each be it: say which, "
                             f"column_mapping={{{taken[0]!r}: {ours!r}}}")
        if taken:
            found[ours] = taken[0]
    return found


def mapped(record, column_mapping):
    """The record with its columns renamed, or what the user's function makes of it."""
    if callable(column_mapping):
        try:
            made = column_mapping(dict(record))
        except Exception as e:
            raise ValueError(f"column_mapping raised {type(e).__name__}: {e}") from e
        if not isinstance(made, dict):
            raise ValueError(f"column_mapping returned {made!r} ({type(made).__name__}), not a dict")
        return made
    for theirs in column_mapping:
        if theirs not in record:
            raise ValueError(f"column_mapping names the column {theirs!r}, and there are: "
                             f"{', '.join(map(str, record))}")
    renamed = {ours: record[theirs] for theirs, ours in column_mapping.items()}
    return {key: value for key, value in record.items() if key not in column_mapping} | renamed


def of_chat(messages):
    """{'prompt', 'answer'} of a conversation: a last message of the assistant's is the answer."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"the conversation is {messages!r}; it must be a list of chat messages")
    turns = []
    for message in messages:
        role, text = message.get('role', message.get('from')), message.get('content', message.get('value'))
        turns.append({'role': ROLES.get(role, role), 'content': text})
    if turns and turns[-1]['role'] == 'assistant':
        return {'prompt': turns[:-1], 'answer': turns[-1]['content']}
    return {'prompt': turns}


def of_pair(chosen, rejected):
    """
    {'prompt', 'chosen', 'rejected'} of two texts or conversations with the same beginning, which is the
    prompt, cut as TRL's extract_prompt does.
    """
    if type(chosen) is not type(rejected) or not isinstance(chosen, (str, list)):
        raise ValueError(f"chosen is {chosen!r} and rejected {rejected!r}: they must be two texts, or two "
                         "lists of chat messages")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (one, other) in pairs if one != other), None)
    if n is None:
        n = max(0, min(len(chosen), len(rejected)) - 1)
    elif chosen[n - 1:n] == ' ':
        n -= 1
    return {'prompt': chosen[:n], 'chosen': chosen[n:], 'rejected': rejected[n:]}


def as_record(item, column_mapping, others):
    """An item of a source as a record, its columns mapped and its prompt checked. Raises ValueError."""
    is_chat = isinstance(item, list) and item and isinstance(item[0], dict)
    record = {'prompt': item} if isinstance(item, str) or is_chat else item
    if not isinstance(record, dict):
        raise ValueError(f"{item!r} ({type(item).__name__}) is neither a text nor an object")
    record = mapped(record, column_mapping)
    for ours, theirs in others.items():
        if theirs in record:
            record.setdefault(ours, record[theirs])
    if 'prompt' not in record and {'chosen', 'rejected'} <= record.keys():
        record |= of_pair(record['chosen'], record['rejected'])
    chats = [name for name in CHAT_NAMES if name in record]
    if 'prompt' not in record and chats:
        record = of_chat(record[chats[0]]) | record
    if 'prompt' not in record:
        raise ValueError(f"there is no field 'prompt', only: {', '.join(map(str, record)) or 'nothing'}; "
                         "name another with column_mapping={'that field': 'prompt'}")
    check_prompt(record['prompt'])
    if record.get('answer') != record.get('answer'):  # a NaN is how tables say that a cell is empty
        record['answer'] = None
    return record


def prepared(name, split):
    """data/name/split.jsonl, made by data/name/prepare.py when it is not there yet."""
    file = os.path.join(FOLDER, name, f'{split}.jsonl')
    if not os.path.isfile(file) and os.path.isfile(os.path.join(FOLDER, name, 'train.bin')):
        raise ValueError(f"data/{name} is a corpus of text, it has no prompts")
    prepare(FOLDER, name, file)
    if not os.path.isfile(file):
        raise FileNotFoundError(f"data/{name}/prepare.py wrote no {split}.jsonl: it has no such split")
    return file


def read_source(source, split):
    """(where, item) of all that load_prompts finds."""
    name = source.rstrip('/')
    if os.path.isfile(source):
        return read_file(source)
    if name == os.path.basename(name) and os.path.isfile(os.path.join(FOLDER, name, 'prepare.py')):
        return read_file(prepared(name, split))
    if os.path.isdir(source):
        for name in dict.fromkeys((split, *HUGGING_FACE_SPLITS.get(split, ()))):
            files = [os.path.join(source, f'{name}{suffix}') for suffix in ('.jsonl', *SUFFIXES)]
            for file in filter(os.path.isfile, files):
                return read_file(file)
        script = os.path.join(source, 'prepare.py')
        advice = f": run `python {script}` first" if os.path.isfile(script) else ''
        raise NoSplit(f"the folder {source} has no {split}.jsonl{advice}")
    # data/promts.jsonl reads like owner/name: what starts in a folder of ours or ends like a file is a path
    is_path = source.lower().endswith(SUFFIXES) or os.path.isdir(source.split('/')[0])
    if HUGGING_FACE_NAME.fullmatch(source) and not is_path:
        return read_hugging_face(source, split)
    known = folders_that('write_splits', FOLDER)
    near = difflib.get_close_matches(source, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else near_path(source)
    raise FileNotFoundError(f"no prompts at {source!r}: it is no file, no folder under data/ (there are: "
                            f"{', '.join(known)}) and no Hugging Face name, owner/name{meant}")


def load_prompts(source: str, column_mapping=None, split: str = 'train') -> list[dict]:
    """
    Dicts, each with at least 'prompt'. source: a file (whatever the split), the name of a folder under data/
    (prepared on first use), a folder with train.jsonl and val.jsonl, or another suffix, or a Hugging Face
    data set, 'owner/name', 'owner/name:config', 'owner/name:config:train[:1%]'. A local path wins.
    column_mapping renames, {their column: our field}, or is a function of a record that returns another.
    A column that is taken for the prompt or the answer (see other_names) keeps its name too. Raises
    ValueError, FileNotFoundError, ImportError.
    """
    if not isinstance(source, str):
        raise ValueError(f"{source!r} names several sources: here it must be one")
    column_mapping, others, records = column_mapping or {}, None, []
    for where, item in read_source(source, split):
        try:
            if others is None and isinstance(item, dict):  # its columns tell what those of all mean
                column_mapping = directed(column_mapping, item)
                others = other_names(mapped(item, column_mapping))
            records.append(as_record(item, column_mapping, others or {}))
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None
    if not records:
        raise ValueError(f"{source} holds no prompts")
    if others:
        taken = ', '.join(f"{column!r} as the {ours}" for ours, column in others.items())
        say_once(f"{source}: taking {taken}")
    return records


def source_name(source):
    """A short name of what train_prompts names, for file names."""
    return '+'.join(map(dataset_name, source)) if isinstance(source, dict) else dataset_name(source)


# -----------------------------------------------------------------------------
# what a run learns from, and what it is evaluated on

def key_of(record):
    """Equal for equal prompts."""
    return json.dumps(record['prompt'], sort_keys=True)


def held_out_split(records, n, seed):
    """
    (train, val), both in their old order: n different prompts drawn by seed for val, the others for train; a
    tenth of them, at least one, where n would leave none. All records of a prompt stay together. Raises
    ValueError where there is but one prompt.
    """
    keys = list(map(key_of, records))
    different = sorted(set(keys))
    if n < 1 or len(different) < 2:
        raise ValueError(f"cannot hold out {n} prompts of {len(different)} different ones: at least 1 must "
                         "be held out, and 1 left")
    if n >= len(different):
        tenth = max(1, len(different) // 10)
        say_once(f"only {tenth} of {len(different)} prompts held out: {n} would leave none to train on")
        n = tenth
    held_out = set(random.Random(f'{seed} held out').sample(different, n))
    train, val = [], []
    for record, key in zip(records, keys, strict=True):
        (val if key in held_out else train).append(record)
    return train, val


def split_source(source, records, column_mapping, n_eval, seed):
    """
    (train, held out, by_seed) of one source: its validation or test split, else n_eval of the records, drawn
    by seed. A source of one prompt is evaluated on it.
    """
    if not is_one_split(source):
        with contextlib.suppress(NoSplit):
            return records, load_prompts(source, column_mapping, 'val')[:n_eval], False
    if all(record['prompt'] == records[0]['prompt'] for record in records):
        say(f"{source} has only one prompt, so evaluation uses the training prompt")
        return records, records[:1], False
    return *held_out_split(records, n_eval, seed), True


def load_split(sources, column_mapping, n_train, eval_prompts, n_eval, seed):
    """
    (train, held out, by_seed): what a run learns from, at most n_train records in a list for each source;
    what it is evaluated on, n_eval records of eval_prompts or of the sources by their shares; whether any of
    these were drawn by seed. sources: one, or {source: share of the prompts}.
    """
    shares = sources if isinstance(sources, dict) else {sources: 1.0}
    if not all(type(share) in (int, float) and 0 < share < math.inf for share in shares.values()):
        raise ValueError(f"train_prompts is {shares}: each source needs a share above 0")
    train, held_out, by_seed = [], [], False
    for source, share in shares.items():
        if not os.path.isfile(source):
            ranks.once(functools.partial(load_prompts, source, column_mapping))  # prepares it on first use
        records, held, drawn = load_prompts(source, column_mapping)[:n_train], [], False
        if not eval_prompts:
            n = math.ceil(n_eval * share / sum(shares.values()))
            records, held, drawn = split_source(source, records, column_mapping, n, seed)
        train.append(records)
        held_out.append(held)
        by_seed |= drawn
    if len(shares) > 1:
        train = told_apart(shares, train, held_out)
    if eval_prompts:
        held_out = [load_prompts(eval_prompts, column_mapping, 'val')[:n_eval]]
        learned = set(map(key_of, itertools.chain(*train)))
        both = sum(key_of(record) in learned for record in held_out[0])
        if both:
            say_once(f"note: {both} of the {len(held_out[0])} prompts of {eval_prompts} are trained on too")
    return train, list(itertools.chain(*held_out)), by_seed


def told_apart(sources, train, held_out):
    """
    What each source trains on without what another holds out. All records, a list for each source, get the
    column 'source' where they have none.
    """
    kept = []
    for i, source in enumerate(sources):
        for record in train[i] + held_out[i]:
            record.setdefault('source', source)
        elsewhere = set(map(key_of, itertools.chain(*held_out[:i], *held_out[i + 1:])))
        kept.append([record for record in train[i] if key_of(record) not in elsewhere])
        if not kept[i]:
            raise ValueError(f"nothing of {source} is left to train on: the other sources hold it out")
    return kept


@functools.lru_cache(maxsize=16)  # an iteration touches one epoch or the seam of two, resampling others
def epoch_order(n_records, seed, epoch):
    order = list(range(n_records))
    random.Random(f'{seed} epoch {epoch}').shuffle(order)  # seeds that are texts give unrelated orders
    return order


def draw_indices(n_records: int, count: int, iteration: int, seed: int, shuffle: bool = True) -> list[int]:
    """
    The records of an iteration, a list of count indices, from an endless sequence of epochs, shuffled or in
    order. It depends on the arguments alone: a resumed run restores nothing, a rank takes its share of it.
    """
    return take(n_records, iteration * count, (iteration + 1) * count, seed, shuffle)


def take(n_records, start, end, seed, shuffle):
    """The places start to end of the endless sequence."""
    if not shuffle:
        return [p % n_records for p in range(start, end)]
    return [epoch_order(n_records, seed, p // n_records)[p % n_records] for p in range(start, end)]


def draw_mixture(sizes, weights, count, iteration, seed, shuffle=True):
    """
    draw_indices for records of several sources, one behind the other, with their sizes and weights. Each has
    an endless sequence of its own; of all prompts drawn so far its share is right to a prompt.
    """
    if len(sizes) == 1:
        return draw_indices(sizes[0], count, iteration, seed, shuffle)
    indices, first, start, end, left = [], 0, iteration * count, (iteration + 1) * count, sum(weights)
    for i, (n_records, weight) in enumerate(zip(sizes, weights, strict=True)):
        share = 1.0 if i == len(sizes) - 1 else weight / left  # of what the sources before it have left
        mine = math.floor(start * share), math.floor(end * share)
        indices += [first + n for n in take(n_records, *mine, f'{seed} source {i}', shuffle)]
        start, end = start - mine[0], end - mine[1]
        first, left = first + n_records, left - weight
    return indices


# -----------------------------------------------------------------------------
# what the model reads

def goes_through_template(prompt, tokenizer, chat_template):
    """Whether the chat template renders a prompt. Raises ValueError for a list of messages that it cannot."""
    if isinstance(prompt, str):
        return chat_template is True
    if not chat_template:
        raise ValueError("it is a list of chat messages: set chat_template='auto'")
    if chat_template == 'auto' and not tokenizer.has_chat_template:
        raise ValueError("it is a list of chat messages, and the model has no chat template: give texts, or "
                         "put a chat_template.jinja beside its tokenizer.json")
    return True


def render(record, tokenizer, system_prompt='', chat_template='auto', chat_template_kwargs=None,
           add_special_tokens=True):
    """
    (ids, text) of a prompt, through the chat template or as the system prompt and then the prompt.
    add_special_tokens: that gets the begin token that transformers gives it.
    """
    prompt = record['prompt']
    if goes_through_template(prompt, tokenizer, chat_template):
        messages = as_messages(prompt)
        if system_prompt and messages[0]['role'] != 'system':  # a record's own is more specific than ours
            messages = [{'role': 'system', 'content': system_prompt}] + messages
        ids = tokenizer.chat(messages, **chat_template_kwargs or {})
        return ids, tokenizer.decode(ids, special=True)
    encode = tokenizer.encode_prompt if add_special_tokens else tokenizer.encode
    return encode(system_prompt + prompt), system_prompt + prompt


def encode_prompts(records, tokenizer, system_prompt='', chat_template='auto', max_prompt_length=None,
                   too_long='error', **options):
    """
    (records, n_dropped): new dicts with 'ids', a list of int, 'text', what the model reads, 'columns', the
    record as it was, 'templated', whether a chat template rendered it. For a prompt with more than
    max_prompt_length tokens 'error' raises and 'drop' leaves it out. All other settings: see render. Raises
    ValueError with the prompt's index.
    """
    encoded = []
    for i, record in enumerate(records):
        try:
            ids, text = render(record, tokenizer, system_prompt, chat_template, **options)
        except ValueError as e:
            raise ValueError(f"prompt {i}: {e}") from None
        if not ids:
            raise ValueError(f"prompt {i} has no tokens: {record['prompt']!r}")
        if max_prompt_length is None or len(ids) <= max_prompt_length:
            templated = goes_through_template(record['prompt'], tokenizer, chat_template)
            columns = {'columns': record, 'templated': templated}
            encoded.append({**record, 'ids': list(ids), 'text': text, **columns})
        elif too_long == 'error':
            raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is "
                             f"{max_prompt_length}: raise it, or leave such prompts out with too_long='drop'")
    if not encoded:
        raise ValueError(f"all {len(records)} prompts are longer than max_prompt_length {max_prompt_length}")
    return encoded, len(records) - len(encoded)


def say_how_prompts_are_read(records, tokenizer, cfg):
    """The special tokens around plain prompts, and chat_template_kwargs that no template reads."""
    rendered = [goes_through_template(record['prompt'], tokenizer, cfg.chat_template) for record in records]
    if cfg.add_special_tokens and (tokenizer.prefix or tokenizer.suffix) and not all(rendered):
        around = [tokenizer.decode(ids, special=True) for ids in (tokenizer.prefix, tokenizer.suffix)]
        say(f"plain prompts become {'...'.join(around)!r}, as in transformers; "
            "--add_special_tokens=False leaves that out")
    read = variables_read(tokenizer.template) if tokenizer.has_chat_template and any(rendered) else {}
    unread = [name for name in cfg.chat_template_kwargs or {} if name not in read]
    if unread:
        why = f"it reads {', '.join(sorted(read))}" if read else "no prompt goes through one"
        say(f"note: no chat template reads {', '.join(unread)} of chat_template_kwargs: {why}")
