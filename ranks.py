"""
Several processes as one. torchrun starts them; here they join, wait for rank 0 where it works alone, and say who is lost.

A collective waits `timeout` seconds at most for a rank that hangs; one that died is noticed at once. Where rank 0 pretrains, evaluates or exports the others wait
for days if need be, asleep. When a wait was in vain, who still runs checks in with the others, and the message names those who do not.
"""
import datetime
import itertools
import os
import socket
import sys
import time
import traceback
from functools import partial

import torch.distributed as dist

CHECK_IN = 5.0   # seconds that those who are left have to report, after one of them has lost somebody
turns = itertools.count()


def join(backend, timeout):
    """Meet the others, by the environment that torchrun sets. timeout: seconds that a collective may take."""
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    the_store().set(f'who/{dist.get_rank()}', f"process {os.getpid()} on {socket.gethostname()}")
    sys.excepthook = partial(say_who_is_lost, sys.excepthook)


def the_store():
    """The keys and values that all ranks share."""
    return dist.distributed_c10d._get_default_store()


def wait_for_rank_0():
    """Until rank 0 comes here too, however long that takes. It does not wait for the others."""
    if dist.is_initialized():
        turn = f'turn/{next(turns)}'
        if dist.get_rank() == 0:
            the_store().set(turn, '')
        else:
            the_store().wait([turn], datetime.timedelta(days=7))


def say_who_is_lost(say_what, kind, error, trace):
    """The last act of a rank that an error ends. When it came out of a collective, it is another's fault: whose?"""
    say_what(kind, error, trace)
    here = os.path.dirname(dist.__file__)
    if isinstance(error, RuntimeError) and any(frame.filename.startswith(here) for frame in traceback.extract_tb(trace)):
        rank, world, store = dist.get_rank(), dist.get_world_size(), the_store()
        lost, until = set(range(world)), time.monotonic() + CHECK_IN
        try:
            store.set(f'left/{rank}', '')
            while lost and time.monotonic() < until:
                lost = {r for r in lost if not store.check([f'left/{r}'])}
                time.sleep(0.1)
            names = [f"rank {r} ({store.get(f'who/{r}').decode()})" for r in sorted(lost)]
        except RuntimeError:  # who kept the store is gone
            names = ['the process that the ranks met at']
        if names:
            print(f"rank {rank} stops: {', '.join(names)} no longer answer{'s' if len(names) == 1 else ''}. Go on from the last checkpoint with --init_from=resume", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(1)  # an ordinary exit would wait for threads that wait for the lost


def leave():
    """The end of a run that went well."""
    wait_for_rank_0()
    dist.barrier()  # nobody hangs up while another still speaks
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort an ordinary exit, long after the work is saved (pytorch issue 190489)
