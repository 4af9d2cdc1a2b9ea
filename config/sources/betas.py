# The beta sweep of source 002: python -m tools.compare config/sources/betas.py. Not run at full size.
base = 'config/sources/alignment.py'
arms = {f'beta {_beta}': [f'--kl_beta={_beta}'] for _beta in (0.01, 0.05, 0.1, 0.15)}
seeds = (1,)
columns = {'eval/reward': 'reward', 'eval/cost': 'cost', 'eval/safe_ratio': 'safe', 'mean_kl': 'KL'}
out_dir = 'out-source-alignment/betas'
