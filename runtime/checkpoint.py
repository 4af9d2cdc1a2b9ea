"""
Checkpoints: one file, written whole or not at all, read without running any code that may be inside.
"""
import os
import pickletools
import re
import zipfile

import torch

from formats import weights
from formats.tokenizer import char_tokenizer, load_tokenizer

# ---------------------------------------------------------------------------------------------------------------------
# checkpoints: one file, written whole or not at all, read without running any code that may be inside

def save_checkpoint(path: str, checkpoint: dict) -> None:
    """
    Write to a temporary file beside `path`, flush it to the disk, rename: a reader sees the old file or the new one. Raises OSError, and leaves what
    was there, when the disk is full.
    """
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.tmp'
    try:
        with open(temporary, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch's writer says RuntimeError when it cannot go on
        if os.path.exists(temporary):
            os.remove(temporary)
        raise OSError(f"{path} could not be written ({str(e).splitlines()[0][:120]}); " + ("the one from before is whole: make room, and go on from it with --init_from=resume" if os.path.exists(path) else "make room and run again")) from None


# What a checkpoint's pickle may name. weights_only allows more, and with some of that (bytearray(n), torch.Tensor(n)) a hundred bytes ask for gigabytes.
PICKLED = re.compile(r'collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch (Size|[A-Z][A-Za-z0-9]*Storage|b?float\w+|u?int\w+|bool)|torch\.storage UntypedStorage')


def tensors_in(value):
    """Every tensor in nested dicts, lists and tuples, once. They may be nested deep, or in themselves: a file says how."""
    seen, left = set(), [value]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, (list, tuple)):
            left.extend(value)


def load_pt(path):
    """
    What torch.save wrote to path, on the CPU. Before anything is made of it: its parts are no larger than the file, none has changed since it was written (their
    checksums), and its pickle names tensors and containers alone. Raises what zipfile, pickletools and torch.load raise, of every kind; its callers say which file it was.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as f, zipfile.ZipFile(f) as archive:
        f.seek(0)
        parts, names = archive.infolist(), [name.lower() for name in archive.namelist()]
        if f.read(4) != b'PK\3\4' or len(set(names)) < len(names) or sum(part.file_size for part in parts) > size:
            raise ValueError("it is not the zip file that torch.save writes")
        changed = archive.testzip()
        if changed:
            raise ValueError(f"its part {changed!r} is not as it was written")
        for name in archive.namelist():
            odd = name.lower().endswith('.pkl') and [str(what) for kind, what, _ in pickletools.genops(archive.read(name)) if kind.name == 'GLOBAL' and not PICKLED.fullmatch(what)]
            if odd:
                raise ValueError(f"it is no plain data: its pickle names {odd[0]}")
    found = torch.load(path, map_location='cpu', weights_only=True)
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(found))
    if claimed > 2 * size:  # twice, for a tied head is in it under two names
        raise ValueError(f"its tensors claim {claimed} bytes, and it has {size}")
    return found


def load_checkpoint(path: str, *kinds: str) -> dict:
    """
    The checkpoint's dict, on the CPU. kinds: what its 'kind' entry may be ('generator', 'judge', 'run').
    Raises FileNotFoundError when there is no such file, ValueError when it is torn, of another program, or of another kind.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        checkpoint = load_pt(path)
    except Exception as e:
        raise ValueError(f"{path} cannot be read as a checkpoint (torn, or not one): {(str(e) or type(e).__name__).splitlines()[0][:120]}. Is this the path you meant? If a run was cut off while it made it, delete it and that run makes it anew") from None
    found = checkpoint.get('kind') if isinstance(checkpoint, dict) else None
    found = found if isinstance(found, str) else None
    if found == 'adapters' and found not in kinds:
        raise ValueError(f"{path} holds LoRA adapters without their model: the two merged lie in export/ (an autoencoder's in nla.pt) beside it when the run is done")
    if found not in kinds:
        raise ValueError(f"{path} holds {'a ' + found if found else 'no'} checkpoint, and wanted is {' or '.join(kinds)}: check which path belongs to which key")
    return checkpoint


def entry(checkpoint, key, kind, path):
    """What stands under key in the checkpoint of path. Raises ValueError when there is nothing of that kind."""
    if not isinstance(checkpoint.get(key), kind):
        raise ValueError(f"{path} has no {kind.__name__} {key!r} in it: it is not one of ours, or of another version")
    return checkpoint[key]


def check_fit(source, target, where):
    """Raises ValueError unless the tensors of two dicts have the same names and shapes; where: what source is."""
    there, here = ({name: tuple(getattr(tensor, 'shape', ())) for name, tensor in tensors.items()} for tensors in (source, target))
    wrong = [f"{name} is {there.get(name, 'missing')}, wanted {here.get(name, 'none')}" for name in sorted(there | here, key=str) if there.get(name) != here.get(name)]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors of {where} do not fit this model: {'; '.join(wrong[:4])}")
    odd = [name for name, tensor in source.items() if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point() != target[name].is_floating_point()]
    if odd:
        raise ValueError(f"{where}: {odd[0]} is not a tensor of numbers of the kind that this model has")


def tokenizer_of(path):
    """
    The tokenizer that belongs to the model at path (see GPT.from_pretrained): of one of our checkpoint files it is in there, for
    characters, or in the run's tokenizer/ folder; else it lies beside the weights.
    """
    if path.endswith('.pt'):
        saved = load_checkpoint(path, 'generator', 'run', 'nla', 'reward', 'cost')
        if 'chars' in saved:
            return char_tokenizer(saved, path)
        return load_tokenizer(os.path.join(os.path.dirname(path), 'tokenizer'))
    return load_tokenizer(weights.local_folder(path))
