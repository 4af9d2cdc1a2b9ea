import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two test processes share the cores, and each starts more

import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before any kernel is defined: they run on the CPU then
