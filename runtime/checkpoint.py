"""
Checkpoints: one file, written whole or not at all, read without running any code that may be inside.
"""
import os
import pickletools
import re
import zipfile

import torch

from formats import weights
from formats.text_files import first_line, near_path, replacing
from formats.tokenizer import char_tokenizer, load_tokenizer


def save_checkpoint(path: str, checkpoint: dict) -> None:
    """Write, flush to the disk, rename. Raises OSError, and leaves what was there, when the disk is full."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    try:
        with replacing(path) as temporary, open(temporary, 'wb') as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as e:  # torch's writer says RuntimeError when it cannot go on
        remedy = "make room and run again; where one was before it is whole, for --init_from=resume"
        raise OSError(f"{path} could not be written ({first_line(e)}); {remedy}") from None


# What a checkpoint's pickle may name. weights_only allows more, some of which (bytearray(n), torch.Tensor(n))
# lets a hundred bytes ask for gigabytes.
PICKLED = re.compile(r'collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|'
                     r'torch (Size|[A-Z][A-Za-z0-9]*Storage|b?float\w+|u?int\w+|bool)|'
                     r'torch\.storage UntypedStorage')


def tensors_in(value):
    """Every tensor in dicts, lists and tuples, once; a file may nest them deep, or in themselves."""
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


def load_pt(path, lazily=False):
    """
    What torch.save wrote to path, on the CPU; its sizes, checksums and the names in its pickle are checked
    first. lazily: tensors are neither checked nor read before they are used. Raises errors of every kind: the
    caller says which file it was.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as f, zipfile.ZipFile(f) as archive:
        f.seek(0)
        parts, names = archive.infolist(), [name.lower() for name in archive.namelist()]
        unpacked = sum(part.file_size for part in parts)
        if f.read(4) != b'PK\3\4' or len(set(names)) < len(names) or unpacked > size:
            raise ValueError("it is not the zip file that torch.save writes")
        changed = None if lazily else archive.testzip()
        if changed:
            raise ValueError(f"its part {changed!r} is not as it was written")
        for name in archive.namelist():
            opcodes = pickletools.genops(archive.read(name)) if name.lower().endswith('.pkl') else ()
            for kind, argument, _ in opcodes:
                if kind.name == 'GLOBAL' and not PICKLED.fullmatch(argument):
                    raise ValueError(f"it is no plain data: its pickle names {argument}")
    loaded = torch.load(path, map_location='cpu', weights_only=True, mmap=lazily)
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(loaded))
    if claimed > 2 * size:  # twice, for a tied head is in it under two names
        raise ValueError(f"its tensors claim {claimed} bytes and the file has {size}")
    return loaded


def load_checkpoint(path: str, *kinds: str, lazily: bool = False) -> dict:
    """
    The checkpoint's dict, on the CPU. kinds: what its 'kind' entry may be ('generator', 'judge', 'run');
    without any the file may hold anything. lazily: see load_pt. Raises FileNotFoundError, and ValueError when
    it is torn, of another program or of another kind.
    """
    if not os.path.isfile(path):
        meant = near_path(path) or ": train it first, or name another"
        raise FileNotFoundError(f"there is no checkpoint at {path}{meant}")
    try:
        checkpoint = load_pt(path, lazily)
    except Exception as e:
        raise ValueError(f"{path} cannot be read as a checkpoint (torn, or not one): {first_line(e)}; delete "
                         "it and run again, if a run made it") from None
    kind = checkpoint.get('kind') if isinstance(checkpoint, dict) else None
    if kind in kinds or not kinds:
        return checkpoint
    if kind == 'adapters':
        raise ValueError(f"{path} holds adapters alone: python -m tools.export makes a whole model of it")
    held = f'a {kind}' if isinstance(kind, str) else 'no'
    raise ValueError(f"{path} holds {held} checkpoint; it must be {' or '.join(kinds)}")


def entry(checkpoint, key, kind, path):
    """What stands under key in the checkpoint of path. Raises ValueError when it is not of that kind."""
    if not isinstance(checkpoint.get(key), kind):
        raise ValueError(f"{path} has no {kind.__name__} {key!r}: another program or version wrote it")
    return checkpoint[key]


def forms_of(tensors):
    """{name: '(2, 3)', '(2, 3) of integers' or 'no tensor'}"""
    forms = dict.fromkeys(tensors, 'no tensor')
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            forms[name] = f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of integers'}"
    return forms


def check_fit(source, target, where):
    """Raises ValueError unless two dicts of tensors agree in names, shapes, kinds; where: what source is."""
    seen, wanted = forms_of(source), forms_of(target)
    wrong = [f"{name} is {seen.get(name, 'missing')}, wanted {wanted.get(name, 'none')}"
             for name in sorted(seen.keys() | wanted.keys(), key=str) if seen.get(name) != wanted.get(name)]
    if wrong:
        raise ValueError(f"{len(wrong)} tensors of {where} do not fit this model: {'; '.join(wrong[:4])}")


def tokenizer_of(path, saved=None):
    """
    The tokenizer of the model at path: in our checkpoint (saved: what was read from it, if it was), in the
    run's tokenizer/, or beside the weights; of adapters without one, their base's.
    """
    if not path.endswith('.pt'):
        base, folder = weights.adapter_base(path), weights.local_folder(path)
        own = not base or os.path.isfile(os.path.join(folder, 'tokenizer.json'))
        return load_tokenizer(folder) if own else tokenizer_of(base)
    saved = saved or load_checkpoint(path, 'generator', 'run', 'adapters', 'nla', 'reward', 'cost')
    if 'chars' in saved:
        return char_tokenizer(saved, path)
    return load_tokenizer(os.path.join(os.path.dirname(path), 'tokenizer'))
