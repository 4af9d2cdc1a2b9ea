import os

os.environ.setdefault('TRITON_INTERPRET', '1')  # before any kernel is defined: they run on the CPU then, where there is no GPU
