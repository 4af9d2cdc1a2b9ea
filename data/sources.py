"""
Where prompts come from: files of several forms, packed with gzip or not, and data sets of the Hugging Face
hub. Each reader yields (where, item), an item being a text or a dict of columns.
"""
import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib

from formats.text_files import parse_json
from rewards.reward import optional

# a colon between brackets belongs to a slice: owner/name:main:train[:1%]
HUGGING_FACE_NAME = re.compile(r'[\w-][\w.-]*/[\w.-]+(:[\w.+%:\[\]()-]+)?')
LINE = re.compile(r'[^\r\n]*')
COLON = re.compile(r':(?![^\[]*\])')
# what data sets call the held-out part, and pairs of answers
HUGGING_FACE_SPLITS = {'val': ('val', 'validation', 'valid', 'dev', 'test'), 'preferences': ('train',)}


class NoSplit(FileNotFoundError):
    """A source without the split that was asked for."""


def text_of(path):
    """A file's text, in UTF-8 or with UTF-16's mark, unpacked where gzip packed it. Raises ValueError."""
    with open(path, 'rb') as f:
        data = f.read()
    if data.startswith(b'\x1f\x8b'):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{path} is not a whole gzip file ({e})") from None
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode('utf-16' if utf_16 else 'utf-8-sig')
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text (byte {e.start})") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from")
    return text


def lines_of(text):
    """(number, line) of all lines but blank ones. str.splitlines would cut a JSON text at U+2028."""
    if '\r' in text:
        text = text.replace('\r\n', '\n').replace('\r', '\n')
    return ((number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip())


def read_lines(text, path):
    return ((f'{path}, line {number}', line) for number, line in lines_of(text))


def read_json_lines(text, path):
    if text.lstrip().startswith('['):
        yield from read_json(text, path)
        return
    for number, line in lines_of(text):
        yield f'{path}, line {number}', parse_json(line, path, number)


def is_json_lines(text):
    """Whether the first of several lines is an object: some call such a file .json."""
    first, _, others = text.lstrip().partition('\n')
    try:
        return bool(others.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def read_json(text, path):
    if is_json_lines(text):
        yield from read_json_lines(text, path)
        return
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


def check_header(names, path):
    """Raises ValueError for two columns of one name. A column without a name is pandas' index."""
    names = [name.strip() for name in names]
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{path} has two columns {name!r}: rename one")
    return names


def read_table(text, path):
    """
    The rows of a table with a header, an empty cell as None. The delimiter is a comma, semicolon or tab,
    whichever cuts the header into the most parts; Excel's first line `sep=;` names it.
    """
    first, named, done, header = LINE.match(text)[0], re.match(r'"?sep=(.)"?[\r\n]+', text), 0, None
    if named:
        text, done, delimiter = text[named.end():], 1, named[1]
    else:
        cut = {mark: len(next(csv.reader([first], delimiter=mark), ())) for mark in ',;\t'}
        delimiter = max(cut, key=cut.get)
    csv.field_size_limit(1 << 30)  # a prompt may be a book
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    start, before = done + 1, done
    try:
        for row in reader:
            where, start = f'{path}, line {start}', before + reader.line_num + 1
            if not any(row) or not ''.join(row).strip():
                continue
            if header is None:
                header = check_header(row, path)
                continue
            if any(row[len(header):]):
                raise ValueError(f"{where} has {len(row)} cells and the header {len(header)}: text that "
                                 f"holds {delimiter!r} must stand in quotes")
            row += [''] * (len(header) - len(row))
            cells = zip(header, row, strict=False)
            yield where, {name: cell if cell else None for name, cell in cells if name}
    except csv.Error as e:
        raise ValueError(f"{path}, line {start}: not a table of cells ({e})") from None


def read_parquet(path):
    parquet = optional('pyarrow.parquet', f"reading {path} needs a package: pip install pyarrow")
    number = 0
    try:
        file = parquet.ParquetFile(path)
        check_header(file.schema_arrow.names, path)
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                row.pop('__index_level_0__', None)  # pandas' index
                yield f'{path}, row {number}', row
                number += 1
    except (OSError, ArithmeticError, ValueError, NotImplementedError) as e:
        raise ValueError(f"could not read {path}, row {number} ({' '.join(str(e).split())[:300]})") from None


READERS = {'.json': read_json, '.jsonl': read_json_lines, '.ndjson': read_json_lines, '.txt': read_lines,
           '.csv': read_table, '.tsv': read_table}
SUFFIXES = (*READERS, *(f'{suffix}.gz' for suffix in READERS), '.parquet')


def read_file(path):
    """(where, item) of all in a file of one of SUFFIXES. Raises ValueError, ImportError."""
    suffix = os.path.splitext(path.lower().removesuffix('.gz'))[1]
    if path.lower().endswith('.parquet'):
        return read_parquet(path)
    if suffix not in READERS:
        raise ValueError(f"{path}: prompts come as .json ({{\"prompts\": [...]}}), .jsonl (an object a "
                         "line), .csv, .tsv, .txt (a prompt a line), these as .gz too, or .parquet, not as "
                         f"{suffix or 'a file without a suffix'}")
    return READERS[suffix](text_of(path), path)


def hub_parts(source):
    """
    (`datasets`, name, config or None, split or None) of owner/name, owner/name:config, owner/name:split[:1%]
    and owner/name:config:split. A part without brackets is a config where the data set has one of that name.
    """
    datasets = optional('datasets', f"{source!r} is no file here; from Hugging Face: pip install datasets")
    name, *parts = COLON.split(source)
    if len(parts) > 2:
        raise ValueError("a name has at most a config and a split: owner/name:config:split")
    if len(parts) == 2:
        return datasets, name, *parts
    if not parts or re.search(r'[\[+]', parts[0]):
        return datasets, name, None, (parts or [None])[0]
    part = parts[0]
    try:
        is_config = part not in datasets.get_dataset_split_names(name, part)
    except ValueError:  # no such config
        is_config = False
    if is_config or part in datasets.get_dataset_config_names(name):
        return datasets, name, part, None
    splits = datasets.get_dataset_split_names(name, None)
    if part not in splits:
        raise ValueError(f"{part!r} is neither a config nor one of the splits {', '.join(splits)}")
    return datasets, name, None, part


def names_a_split(source):
    """Whether a name of the hub is that of one split, whatever is asked for."""
    return hub_parts(source)[-1] is not None


def read_hugging_face(source, split):
    """(where, row) of a data set of the hub, see hub_parts: through `datasets` and the network."""
    wanted = HUGGING_FACE_SPLITS.get(split, ())
    try:
        datasets, name, config, given = hub_parts(source)
        split = given or split
        if wanted and not given:
            known = datasets.get_dataset_split_names(name, config)
            split = next((s for s in wanted if s in known), None)
        rows = datasets.load_dataset(name, config, split=split) if split else None
    except ImportError:
        raise
    except Exception as e:
        raise ValueError(f"could not load {source!r} from Hugging Face ({type(e).__name__}: "
                         f"{' '.join(str(e).split())[:300]}); a local file needs no network") from None
    if rows is None:
        raise NoSplit(f"{source!r} has the splits {', '.join(known)} and none of {', '.join(wanted)}")
    return ((f'{source}, {split} row {i}', row) for i, row in enumerate(rows))
