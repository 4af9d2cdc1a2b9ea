# Six leashes, five seeds each, from one supervised start: the table and the picture of docs/mirror.md.
# `python -m tools.learn_mirror config/learn_mirror.py` first makes the learned mirror.
# 31 minutes on one CPU core, --processes=1.
base = 'config/neural_mirror.py'
# Curvature 2 * 0.05 at probability 1/2, for all but the first two.
_leash = ['--mirror_coefficient=0.05', '--mirror_weighting=is']
arms = {
    'no leash': ['--divergence=kl', '--kl_beta=0'],
    "neural mirror, its source's settings": [],
    'KL (k3), 0.05': ['--divergence=kl', '--kl_beta=0.05'],
    'prob_l2, 0.05': ['--divergence=prob_l2', *_leash],
    'neural mirror, normalized, 0.05': ['--mirror_normalize=True', *_leash],
    'learned mirror, normalized, 0.05': ['--mirror_normalize=True', *_leash,
                                         '--mirror_checkpoint=out-learn-mirror/mirror.pt'],
}
seeds = (1, 2, 3, 4, 5)
start_row = True
columns = {'eval/accuracy_greedy': 'greedy', 'eval/accuracy_sampled': 'sampled', 'mean_kl': 'KL to the start',
           'entropy': 'entropy', 'mean_length': 'length', 'seconds': 'seconds'}
plot_metric = 'eval/accuracy_sampled'
plot_label = 'held-out accuracy, sampled'
plot_path = 'docs/mirror.png'
out_dir = 'out-compare-mirrors'
