# Learn a mirror map for the sums: short runs of config/neural_mirror.py, normalized so that only the shape of
# the potential can change, not its strength.
# 10 generations of 8 candidates: 20 min on 2 cores of an AMD EPYC.
base = 'config/neural_mirror.py'
settings = ['--mirror_normalize=True', '--mirror_coefficient=0.05', '--mirror_weighting=is',
            '--max_iters=120', '--eval_interval=120', '--eval_prompts_n=500', '--eval_samples=8']
generations = 10
pairs = 4
sigma = 0.5
learning_rate = 2.0
out_dir = 'out-learn-mirror'
