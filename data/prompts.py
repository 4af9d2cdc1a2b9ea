"""
Prompts to answer, as plain dicts: {'prompt': text or chat messages, 'answer': ..., ...}.

load_prompts reads them, held_out_split keeps some for evaluation, draw_indices says which ones an iteration
takes, and encode_prompts turns them into token ids.
"""
import difflib
import functools
import json
import os
import random
import re

from data.text import FOLDER, folders_that, prepare, read_text_file, write_recipe
from formats.text_files import parse_json, replacing
from runtime.made import content_of, content_of_path

SUFFIXES = ('.json', '.jsonl', '.txt')
HUGGING_FACE_NAME = re.compile(r'[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?')
# what data sets call the held-out part, and pairs of answers
HUGGING_FACE_SPLITS = {'val': ('val', 'validation', 'valid', 'dev', 'test'), 'preferences': ('train',)}


def write_splits(script, read=(), **splits):
    """
    What a prepare.py leaves beside itself, each file whole or not at all: {split}.jsonl of records, and
    recipe.json, see data/text.py. read: the files that it made them from.
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


def check_prompt(prompt):
    """Raises ValueError unless prompt is a text, or chat messages that end before the model's turn."""
    messages = as_messages(prompt)
    if not isinstance(messages, list):
        raise ValueError(f"the prompt is {prompt!r} ({type(prompt).__name__}); it must be a text, or a list "
                         "of chat messages like {'role': 'user', 'content': '...'}")
    for message in messages:
        texts = [message.get(key) for key in ('role', 'content')] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the chat message {message!r} must have the texts 'role' and 'content'")
    if not messages or not messages[-1]['content'].strip():
        raise ValueError(f"the prompt is empty: {prompt!r}")
    if messages[-1]['role'] == 'assistant':
        raise ValueError("the last chat message is the assistant's: end with the user's")


def mapped(record, column_mapping):
    """The record with its columns renamed, or what the user's function makes of it."""
    if callable(column_mapping):
        name = getattr(column_mapping, '__name__', 'column_mapping')
        try:
            made = column_mapping(dict(record))
        except Exception as e:
            raise ValueError(f"{name} raised {type(e).__name__}: {e}") from e
        if not isinstance(made, dict):
            raise ValueError(f"{name} returned {made!r} ({type(made).__name__}), not a dict with a 'prompt'")
        return made
    for theirs, ours in column_mapping.items():
        if theirs not in record:
            turned = f"; did you mean {{{ours!r}: {theirs!r}}}?" if ours in record else ''
            raise ValueError(f"column_mapping names the column {theirs!r}, and there are: "
                             f"{', '.join(map(str, record))}{turned}")
    renamed = {ours: record[theirs] for theirs, ours in column_mapping.items()}
    return {key: value for key, value in record.items() if key not in column_mapping} | renamed


def as_record(item, column_mapping, where):
    """An item of a source as a record, its columns mapped and its prompt checked. Raises ValueError."""
    try:
        record = {'prompt': item} if isinstance(item, str) else item
        if not isinstance(record, dict):
            raise ValueError(f"{item!r} ({type(item).__name__}) is neither a text nor an object")
        record = mapped(record, column_mapping)
        if 'prompt' not in record:
            raise ValueError(f"there is no field 'prompt', only: {', '.join(map(str, record)) or 'nothing'}; "
                             "name another with column_mapping={'that field': 'prompt'}")
        check_prompt(record['prompt'])
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None
    return record


def read_file(path):
    """(where, item) of all in a .json, .jsonl or .txt file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: prompts come as .json ({{\"prompts\": [...]}}), .jsonl (an object a line) "
                         f"or .txt (a prompt a line), not as {suffix or 'a file without a suffix'}")
    text = read_text_file(path).removeprefix('\ufeff')
    if suffix == '.json':
        items, name = parse_json(text, path), ''
        if isinstance(items, dict):
            if 'prompts' not in items:
                keys = ', '.join(items) or 'nothing'
                raise ValueError(f"{path}: there is no 'prompts' in it, only: {keys}; it must be "
                                 "{\"prompts\": [...]} or a bare list")
            items, name = items['prompts'], 'prompts'
        if not isinstance(items, list):
            raise ValueError(f"{path}: the prompts are {type(items).__name__}, they must be a list")
        yield from ((f'{path}, {name}[{i}]', item) for i, item in enumerate(items))
        return
    for number, line in enumerate(text.split('\n'), 1):  # splitlines would cut a JSON text at U+2028
        if line.strip():
            yield f'{path}, line {number}', parse_json(line, path, number) if suffix == '.jsonl' else line


def prepared(name, split):
    """data/name/split.jsonl, made by data/name/prepare.py when it is not there yet."""
    file = os.path.join(FOLDER, name, f'{split}.jsonl')
    if not os.path.isfile(file) and os.path.isfile(os.path.join(FOLDER, name, 'train.bin')):
        raise ValueError(f"data/{name} is a corpus of text, it has no prompts")
    prepare(FOLDER, name, file)
    if not os.path.isfile(file):
        raise FileNotFoundError(f"data/{name}/prepare.py wrote no {split}.jsonl: it has no such split")
    return file


def read_hugging_face(source, split):
    """(where, row) of owner/name or owner/name:config, through the package `datasets` and the network."""
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{source!r} is no file here; from Hugging Face: pip install datasets") from None
    name, _, config = source.partition(':')
    try:
        wanted = HUGGING_FACE_SPLITS.get(split, ())
        if wanted:
            known = datasets.get_dataset_split_names(name, config or None)
            split = next((s for s in wanted if s in known), None)
            if split is None:
                raise ValueError(f"it has the splits {', '.join(known)} and none of {', '.join(wanted)}")
        rows = datasets.load_dataset(name, config or None, split=split)
    except Exception as e:
        raise ValueError(f"could not load {source!r} from Hugging Face ({type(e).__name__}: "
                         f"{' '.join(str(e).split())[:300]}); a local file needs no network") from None
    return ((f'{source}, {split} row {i}', row) for i, row in enumerate(rows))


def read_source(source, split):
    """(where, item) of all that load_prompts finds."""
    name = source.rstrip('/')
    if os.path.isfile(source):
        return read_file(source)
    if name == os.path.basename(name) and os.path.isfile(os.path.join(FOLDER, name, 'prepare.py')):
        return read_file(prepared(name, split))
    if os.path.isdir(source):
        file = os.path.join(source, f'{split}.jsonl')
        if not os.path.isfile(file):
            script = os.path.join(source, 'prepare.py')
            advice = f": run `python {script}` first" if os.path.isfile(script) else ''
            raise FileNotFoundError(f"the folder {source} has no {split}.jsonl{advice}")
        return read_file(file)
    # data/promts.jsonl reads like owner/name: what starts in a folder of ours or ends like a file is a path
    is_path = source.lower().endswith(SUFFIXES) or os.path.isdir(source.split('/')[0])
    if HUGGING_FACE_NAME.fullmatch(source) and not is_path:
        return read_hugging_face(source, split)
    known = folders_that('write_splits', FOLDER)
    near = difflib.get_close_matches(source, known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ''
    raise FileNotFoundError(f"no prompts at {source!r}: it is no file, no folder under data/ (there are: "
                            f"{', '.join(known)}{meant}) and no Hugging Face name, owner/name")


def load_prompts(source: str, column_mapping=None, split: str = 'train') -> list[dict]:
    """
    source: a file (.json {"prompts": [...]} or a bare list, .jsonl, .txt with a prompt a line; split plays no
    part), the name of a folder under data/ (prepared on first use), a folder that holds train.jsonl and
    val.jsonl, or a Hugging Face data set, 'owner/name' or 'owner/name:config'. A local path wins.
    column_mapping renames, {their column: our field}, or is a function of a record that returns another.
    Returns a list of dicts, each with at least 'prompt'. Raises ValueError, FileNotFoundError, ImportError.
    """
    column_mapping = column_mapping or {}
    if not callable(column_mapping) and len(set(column_mapping.values())) < len(column_mapping):
        raise ValueError(f"column_mapping {column_mapping} gives two columns the same new name")
    records = [as_record(item, column_mapping, where) for where, item in read_source(source, split)]
    if not records:
        raise ValueError(f"{source} holds no prompts")
    return records


def content_of_prompts(source, split='train', column_mapping=None):
    """A hash of what load_prompts reads: of a local file as a whole, which is quicker, where that will do."""
    name = os.path.join(source, f'{split}.jsonl')
    paths = () if callable(column_mapping) else (source, os.path.join(FOLDER, name), name)
    if not any(map(os.path.isfile, paths)):
        records = load_prompts(source, column_mapping, split)  # prepares it on first use
    for path in filter(os.path.isfile, paths):
        return content_of(content_of_path(path), column_mapping)
    return content_of(records)


def held_out_split(records, n, seed):
    """
    (train, val), both in their old order: n different prompts drawn by seed for val, the others for train.
    All records of a prompt stay together. Raises ValueError when nothing would be left.
    """
    keys = [json.dumps(record['prompt'], sort_keys=True) for record in records]
    different = sorted(set(keys))
    if not 1 <= n < len(different):
        raise ValueError(f"cannot hold out {n} prompts of {len(different)} different ones: at least 1 must "
                         "be held out, and 1 left")
    held_out = set(random.Random(f'{seed} held out').sample(different, n))
    train, val = [], []
    for record, key in zip(records, keys, strict=True):
        (val if key in held_out else train).append(record)
    return train, val


@functools.lru_cache(maxsize=8)  # an iteration touches one epoch or the seam of two, resampling others
def epoch_order(n_records, seed, epoch):
    order = list(range(n_records))
    random.Random(f'{seed} epoch {epoch}').shuffle(order)  # seeds that are texts give unrelated orders
    return order


def draw_indices(n_records: int, count: int, iteration: int, seed: int) -> list[int]:
    """
    The records of an iteration, a list of count indices, from an endless sequence of shuffled epochs. It
    depends on the arguments alone: a resumed run restores nothing, and each rank takes its share of it.
    """
    positions = range(iteration * count, (iteration + 1) * count)
    return [epoch_order(n_records, seed, p // n_records)[p % n_records] for p in positions]


def goes_through_template(prompt, tokenizer, chat_template):
    """
    Whether the chat template renders a prompt: with 'auto' where it is a list of messages. Raises ValueError
    for such a list that must be rendered and cannot be.
    """
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
    """(ids, text) of a prompt, through the chat template or as the system prompt and then the prompt."""
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
                   too_long='error', chat_template_kwargs=None, add_special_tokens=True):
    """
    (records, n_dropped): new dicts with 'ids', a list of int, and 'text', what the model reads. Of a prompt
    with more than max_prompt_length tokens 'error' raises and 'drop' leaves it out. add_special_tokens: a
    plain prompt gets the begin token that transformers gives it. Raises ValueError with the prompt's index in
    records, also for one without tokens.
    """
    if too_long not in ('error', 'drop'):
        raise ValueError(f"too_long is {too_long!r}; it must be 'error' or 'drop'")
    encoded = []
    for i, record in enumerate(records):
        try:
            ids, text = render(record, tokenizer, system_prompt, chat_template, chat_template_kwargs,
                               add_special_tokens)
        except ValueError as e:
            raise ValueError(f"prompt {i}: {e}") from None
        if not ids:
            raise ValueError(f"prompt {i} has no tokens: {record['prompt']!r}")
        if max_prompt_length is None or len(ids) <= max_prompt_length:
            encoded.append({**record, 'ids': list(ids), 'text': text})
        elif too_long == 'error':
            raise ValueError(f"prompt {i} has {len(ids)} tokens and max_prompt_length is "
                             f"{max_prompt_length}: raise it, or leave such prompts out with too_long='drop'")
    if not encoded:
        raise ValueError(f"all {len(records)} prompts are longer than max_prompt_length {max_prompt_length}")
    return encoded, len(records) - len(encoded)
