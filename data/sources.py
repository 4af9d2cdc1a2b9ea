"""
Where prompts come from: files of several forms, packed with gzip or not, and data sets of the Hugging Face
hub. Each reader yields (where, item), an item being a text or a dict of columns.
"""
import ast
import contextlib
import csv
import io
import itertools
import json
import os
import re

from formats.optional import optional
from formats.text_files import parse_json, text_of

# a colon between brackets belongs to a slice: owner/name:main:train[:1%]
HUGGING_FACE_NAME = re.compile(r'[\w-][\w.-]*/[\w.-]+(:[\w.+%:\[\]()-]+)?')
COLON = re.compile(r':(?![^\[]*\])')
# what data sets call the held-out part, and pairs of answers
HUGGING_FACE_SPLITS = {'val': ('val', 'validation', 'valid', 'dev', 'test'), 'preferences': ('train',)}


class NoSplit(FileNotFoundError):
    """A source without the split that was asked for."""


def lines_of(text):
    """(number, line) of all lines but blank ones. str.splitlines would cut a JSON text at U+2028."""
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return ((number, line.removesuffix('\n')) for number, line in lines if line.strip())


def read_lines(text, path):
    return ((f'{path}, line {number}', line) for number, line in lines_of(text))


def is_json_lines(text):
    """Whether the first of several lines is a whole value: suffixes do not always say so."""
    head = list(itertools.islice(lines_of(text), 2))
    try:
        json.loads(head[0][1])
    except (ValueError, RecursionError):
        return False
    return len(head) > 1


def read_json(text, path):
    """A value a line, a list, or {"prompts": list}."""
    if is_json_lines(text):
        for number, line in lines_of(text):
            yield f'{path}, line {number}', parse_json(line, path, number)
        return
    items, name = parse_json(text, path), ''
    if isinstance(items, dict) and 'prompts' in items:
        items, name = items['prompts'], 'prompts'
        if not isinstance(items, list):
            raise ValueError(f"{path}: the prompts are {type(items).__name__}, they must be a list")
    if isinstance(items, list):
        yield from ((f'{path}, {name}[{i}]', item) for i, item in enumerate(items))
    else:
        yield f'{path}, line 1', items


def check_header(names, path):
    """Raises ValueError for two columns of one name."""
    twice = [name for name in names if name and names.count(name) > 1]  # pandas' index has none
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one")


def cell_value(cell):
    """A table's cell: None where it is empty, the messages where it is a list of them in JSON or Python."""
    if not re.match(r'\s*\[\s*\{', cell):
        return cell or None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            messages = read(cell.strip())
            if all(isinstance(m, dict) and ({'role', 'content'} <= set(m) or {'from', 'value'} <= set(m))
                   for m in messages):
                return messages
    return cell


def read_table(text, path):
    """
    The rows of a table with a header, see cell_value. The delimiter is a comma, semicolon or tab, whichever
    cuts the first line into the most parts.
    """
    first = next(lines_of(text))[1]
    delimiter = max(',;\t', key=lambda mark: len(next(csv.reader([first], delimiter=mark), ())))
    csv.field_size_limit(1 << 30)  # a prompt may be a book
    rows, header = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True), None
    try:
        for row in rows:
            if not ''.join(row).strip() or (header is None and row[0].startswith('sep=')):  # Excel's
                continue
            if header is None:
                header = [name.strip() for name in row]
                check_header(header, path)
                continue
            if any(row[len(header):]):
                raise ValueError(f"{path}, line {rows.line_num} has {len(row)} cells and the header "
                                 f"{len(header)}: text that holds {delimiter!r} must stand in quotes")
            cells = itertools.zip_longest(header, row, fillvalue='')
            yield f'{path}, line {rows.line_num}', {name: cell_value(cell) for name, cell in cells if name}
    except csv.Error as e:
        raise ValueError(f"{path}, line {rows.line_num}: not a table of cells ({e})") from None


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


READERS = {'.json': read_json, '.jsonl': read_json, '.ndjson': read_json, '.txt': read_lines,
           '.csv': read_table, '.tsv': read_table}
SUFFIXES = (*READERS, *(f'{suffix}.gz' for suffix in READERS), '.parquet')


def read_file(path):
    """(where, item) of all in a file of one of SUFFIXES. Raises ValueError, ImportError."""
    suffix = os.path.splitext(path.lower().removesuffix('.gz'))[1]
    if path.lower().endswith('.parquet'):
        return read_parquet(path)
    if suffix not in READERS:
        raise ValueError(f"{path}: prompts come as {', '.join(READERS)} (these as .gz too) or .parquet, not "
                         f"as {suffix or 'a file without a suffix'}")
    return READERS[suffix](text_of(path), path)


def hub_parts(source):
    """(`datasets`, name, config or None, split or None) of owner/name:config:split, the parts optional."""
    datasets = optional('datasets', f"{source!r} is no file here; from Hugging Face: pip install datasets")
    name, *parts = COLON.split(source)
    if len(parts) > 2:
        raise ValueError("a name has at most a config and a split: owner/name:config:split")
    if len(parts) == 1:
        try:
            named = datasets.get_dataset_split_names(name, parts[0])
        except ValueError:  # no config of that name
            named = parts
        is_split = parts[0] in named or re.search(r'[\[+]', parts[0])
        parts.insert(0 if is_split else 1, None)
    return datasets, name, *(parts or (None, None))


def is_one_split(source):
    """Whether a source has nothing held out already: a file, a split of a data set of the hub."""
    if ':' not in source or os.path.exists(source):
        return os.path.isfile(source)
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
