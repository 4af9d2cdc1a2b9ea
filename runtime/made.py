"""
What a run makes for itself before it learns, a generator, a judge, activations, and finds there the next
time. Each such file or folder carries its recipe, a dict of JSON: `made`, what it is; `version`, of its
maker; `from`, what it was made from, in words; and all that shaped it, data and models by hashes of their
contents. By that made() tells what was asked for from what only has the same name.
"""
import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time

from formats.text_files import read_json
from formats.weights import local_folder
from runtime import console
from runtime.checkpoint import load_checkpoint
from runtime.console import say

TOLD = ('seed', 'eval_prompts_n')  # what differs in these alone is taken: seeds are compared on one start
CHUNK, CHUNKS = 1 << 18, 256       # of a file beyond their product, 64 MB, so many chunks are read


def content_of(*parts):
    """A hash, 12 hex digits, of arrays and of what JSON can hold; of anything else, as its text has it."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if hasattr(part, 'nbytes') else json.dumps(part, default=str).encode())
    return total.hexdigest()[:12]


def content_of_path(path):
    """The same of a file, a folder or a model on the hub; None of a checkpoint that is still to be made."""
    if not os.path.exists(path):
        if path.endswith('.pt'):
            return None
        path = local_folder(path)
    total, files = hashlib.sha256(), [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    for file in files:
        size = os.path.getsize(file)
        total.update(f'{os.path.relpath(file, path)} {size}'.encode())
        with open(file, 'rb') as f:
            for start in range(0, size, max(CHUNK, size // CHUNKS)):
                f.seek(start)
                total.update(f.read(CHUNK))
    return total.hexdigest()[:12]


def recipe_for(what, version, source, cfg, /, *keys, **more):
    """The recipe of `what`, made from `source`, by these settings of cfg and more; None is not known yet."""
    known = {key: value for key, value in more.items() if value is not None}
    settings = {key: getattr(cfg, key) for key in keys}
    recipe = {'made': what, 'version': version, 'from': source, **settings, **known}
    return json.loads(json.dumps(recipe))  # as it will be read back


def recipe_of(path):
    """The recipe that a file or folder carries; None where it says nothing of how it was made."""
    if os.path.isdir(path):
        file = os.path.join(path, 'recipe.json')
        carried = read_json(file) if os.path.isfile(file) else None
    else:
        carried = load_checkpoint(path, lazily=True)
        carried = carried.get('recipe') if isinstance(carried, dict) else None
    return carried if isinstance(carried, dict) and {'made', 'from'} <= carried.keys() else None


def check_made(path, describe, remake=False):
    """
    Raises ValueError where path holds what another recipe made than that which describe() returns, but for
    what remake allows and TOLD. What that recipe does not name is not compared. Returns in words what was
    found; '' where there is nothing yet.
    """
    if not os.path.exists(path):
        return ''
    before = recipe_of(path)
    if before is None:
        return "which says nothing of how it was made"
    what = f"{before['made']} from {before['from']}"
    if remake == 'never':
        return f"{what}, as it is"
    recipe = describe()
    if before['made'] != recipe['made']:
        raise ValueError(f"{path} is {what}; it must be {recipe['made']}: name another path")
    differing = [key for key, value in recipe.items() if key != 'from' and before.get(key) != value]
    differences = '; '.join(f"{key}: it has {json.dumps(before.get(key)):.60}, this run wants "
                            f"{json.dumps(recipe[key]):.60}" for key in differing)
    if remake is False and not set(differing) <= set(TOLD):
        raise ValueError(f"{path} is {what}, made with other settings or data ({differences}): --remake=True "
                         "makes it again, --remake=never uses it as it is; or name another path")
    return f"{what} ({differences})" if differing else f"{what}, as this run makes it"


def made(path, describe, make, remake=False):
    """
    Sees to it that path, a file or folder, holds what describe() returns the recipe of. What is found is
    taken, in a line, or refused as check_made does; what is missing make(path, recipe) makes, whole or not at
    all, one process at a time. remake: True makes it again, once in a run and nothing that carries no recipe;
    'never' takes whatever is found.
    """
    check_made(path, describe, remake)
    if is_due(path, remake):
        with locked(path):
            if is_due(path, remake):  # else another run has made it meanwhile
                recipe, again = describe(), ' again' if os.path.exists(path) else ''
                say(f"making {path}{again}: {recipe['made']} from {recipe['from']}")
                return make(path, recipe)
    say(f"found {path}, {check_made(path, describe, remake == 'never' and remake)}")


def is_due(path, remake):
    """Whether it is missing, or to be made again and not made since this run began."""
    if not os.path.exists(path):
        return True
    return remake is True and os.path.getmtime(path) < console.loaded and recipe_of(path) is not None


@contextlib.contextmanager
def locked(path):
    """Alone with path among the processes that ask so. It ends with the process, however that ends."""
    with lock_file(path) as file:
        holder = taken(file, fcntl.flock, path)
        if holder:
            say(f"waiting for {path}, which {holder} is making")
            fcntl.flock(file, fcntl.LOCK_EX)
            sign(file, path)
        yield


def hold(path):
    """Alone with path until this process ends; its children do not inherit that. Raises ValueError."""
    file = lock_file(path)
    holder = taken(file, fcntl.lockf, path)
    if holder:
        raise ValueError(f"in {path} {holder} is still running: wait for it, stop it, or name another folder")
    atexit.register(file.close)


def lock_file(path):
    """path.lock, open. Raises OSError."""
    name = f'{path.rstrip("/")}.lock'
    try:
        os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
        return open(name, 'a+b', buffering=0)  # what cannot be written is not tried again when it closes
    except OSError as e:
        raise OSError(f"{path} cannot be made there ({e.strerror}): name another path") from None


def taken(file, lock, path):
    """Who has the lock of path, in words; '' once it is ours."""
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().decode() or 'another process'
    except OSError:  # a file system that knows no locks
        pass
    sign(file, path)
    return ''


def sign(file, path):
    try:
        file.truncate(0)
        who = f"process {os.getpid()} on {socket.gethostname()} (since {time.strftime('%F %T')})"
        file.write(who.encode())
    except OSError as e:
        raise OSError(f"{path} cannot be written ({e.strerror}): make room, or name another path") from None
