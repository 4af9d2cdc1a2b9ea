# Reward against cost, from one start: lambda adapted, none, other rules, a sweep over kl_beta, and evolution
# strategies. The table and picture of docs/alignment.md, there with --seeds="(1,)": half an hour on a busy
# machine. Not yet run with three.
base = 'config/alignment.py'
arms = {
    'lambda adapts': [],
    'no lambda': ['--lambda_adapt=False', '--lambda_cost=0'],
    'lambda adapts, weighted advantages': ['--reward_combination=advantages'],
    "lambda adapts, Safe RLHF's rule": ['--lambda_rule=safe_rlhf'],
    'lambda only rises': ['--lambda_positive_only=True'],
    'kl_beta 0.01': ['--kl_beta=0.01'],
    'kl_beta 0.05': ['--kl_beta=0.05'],
    'kl_beta 0.1': ['--kl_beta=0.1'],
    'kl_beta 0.15': ['--kl_beta=0.15'],
    'evolution strategies': ['--optimizer=es', '--kl_beta=0', '--es_pairs=8', '--learning_rate=0.05',
                             '--max_iters=40'],
}
seeds = (1, 2, 3)
start_row = True
columns = {'eval/true_reward': 'true reward', 'eval/true_cost': 'true cost', 'eval/reward': 'reward model',
           'eval/cost': 'cost model', 'eval/safe_ratio': 'safe', 'lambda': 'lambda', 'mean_kl': 'KL',
           'seconds': 'seconds'}
plot_metric = 'lambda'
plot_label = 'lambda'
plot_path = 'docs/alignment.png'
out_dir = 'out-compare-alignment'
