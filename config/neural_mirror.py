# Neural Mirror GRPO on the sums of config/arithmetic.py: Dr. GRPO's loss and a leash made by a potential of
# 126 neurons, whose parameters nothing trains.
# As in its source the coefficient is 1e-4, which is next to nothing (mirror.py); --mirror_normalize=True
# --mirror_coefficient=0.05 makes it a leash, and docs/mirror.md compares it with five others.
# `python -m tools.learn_mirror config/learn_mirror.py` learns a potential for --mirror_checkpoint.
#
# 2 CPU cores (AMD EPYC, fp32): 40 s after a start of 14 s, held out 0.248 -> 0.684 sampled (seed 1).
from config.arithmetic import *

batch_size = 64
loss_type = 'dr_grpo'
advantage = 'dr_grpo'
kl_estimator = 'k3'
divergence = 'neural_mirror'
learning_rate = 1e-3
max_iters = 300

eval_interval = 100
eval_show = 0
save_interval = 1000
out_dir = 'out-neural-mirror'
