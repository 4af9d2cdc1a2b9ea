"""Text and JSON files: read with one clear error that names file and line, written whole or not at all."""
import codecs
import contextlib
import difflib
import glob
import gzip
import json
import os
import re
import shutil
import socket
import zlib
from pathlib import Path

HALF_PAIR = re.compile(r'\\u[dD][89a-fA-F]')  # JSON's escape for half of a character beyond U+FFFF


def first_line(error):
    """The first line of an error's message, at most 160 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def near_path(path):
    """What an error about a path that is not there ends with: '; did you mean ...?', or ''."""
    found = ''
    for part in Path(path).parts:
        if not os.path.exists(os.path.join(found, part)):
            here = found or '.'
            beside = os.listdir(here) if os.path.isdir(here) and os.access(here, os.R_OK) else []
            part = next(iter(difflib.get_close_matches(part, beside, n=1, cutoff=0.7)), '')
        if not part:
            return ''
        found = os.path.join(found, part)
    return '' if os.path.exists(path) or not found else f"; did you mean {found}?"


def read_bytes(path):
    try:
        with open(path, 'rb') as f:
            return f.read()
    except OSError as e:
        raise FileNotFoundError(f"{path} cannot be read: {e.strerror}{near_path(path)}") from None


def decoded(data, path, encoding='utf-8'):
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 text (byte {e.start})") from None


def read_text(path):
    """The text of a UTF-8 file, its line ends as they are. Raises ValueError, FileNotFoundError."""
    return decoded(read_bytes(path), path)


def text_of(path):
    """A file's text, in UTF-8 or with UTF-16's mark, unpacked where gzip packed it. Raises ValueError."""
    data = read_bytes(path)
    if data.startswith(b'\x1f\x8b'):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{path} is not a whole gzip file ({e})") from None
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = decoded(data, path, 'utf-16' if utf_16 else 'utf-8-sig')
    if not text.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from")
    return text


def check_unicode(text):
    """Raises ValueError for half a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        wrong = f"character {text[e.start]!r} at position {e.start} is half a surrogate pair"
        raise ValueError(f"{wrong}: this is not Unicode text") from None


def parse_json(text, where, first_line=1):
    """The value of a JSON text whose first line is line `first_line` of `where`. Raises ValueError."""
    try:
        value = json.loads(text)
        if HALF_PAIR.search(text):
            check_unicode(json.dumps(value, ensure_ascii=False))
    except json.JSONDecodeError as e:
        place = f'line {first_line + e.lineno - 1}, column {e.colno}'
        raise ValueError(f"{where}, {place}: not JSON ({e.msg})") from None
    except (ValueError, RecursionError) as e:  # a number of thousands of digits, a thousand brackets
        raise ValueError(f"{where}, line {first_line}: JSON that cannot be read ({e})") from None
    return value


def parse_object(text, where):
    """The dict of a JSON text. Raises ValueError."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}; it must be a JSON object in {{...}}")
    return value


def read_json(path):
    """The dict that a JSON file holds. Raises ValueError, OSError."""
    return parse_object(read_text(path), path)


@contextlib.contextmanager
def replacing(path):
    """
    A temporary path, of this process alone, for a file or folder; it takes the place of `path` when the block
    ends without an error. What killed processes of this machine have left there is removed.
    """
    start = f'{path}.{socket.gethostname()}-'
    temporary = f'{start}{os.getpid()}.tmp'
    for left in glob.glob(f'{glob.escape(start)}*.tmp'):
        pid = left[len(start):-4]
        if left == temporary or pid.isdecimal() and is_gone(int(pid)):
            discard(left)
    try:
        yield temporary
        if os.path.isdir(temporary):
            discard(path)
        os.replace(temporary, path)
    finally:
        discard(temporary)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False


def discard(path):
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def write_text(path, text):
    """Write text to path, as UTF-8 and with its own line ends."""
    with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='') as f:
        f.write(text)
