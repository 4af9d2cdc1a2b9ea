# Three ways to say how good a completion was, from one supervised start: the picture of the README.
# One thread of an AMD EPYC, --processes=1, other work beside: 50 minutes. 500 held-out sums, greedy and
# sampled, two seeds: start 0.425, 0.280 (of 1,000); GRPO 0.933 and 0.897, RLOO 0.927 and 0.896, PPO 0.929 and
# 0.904, at 2.5 times GRPO's time.
base = 'config/arithmetic.py'
_same = ['--max_iters=600', '--eval_interval=50', '--eval_prompts_n=500', '--eval_samples=1']
arms = {
    'GRPO': _same,
    'RLOO': [*_same, '--advantage=rloo', '--loss_type=reinforce'],
    'PPO (a value head, GAE)': [*_same, '--advantage=gae'],
}
seeds = (1, 2)
start_row = True
columns = {'eval/accuracy_greedy': 'greedy', 'eval/accuracy_sampled': 'sampled', 'entropy': 'entropy',
           'seconds': 'seconds'}
plot_metric = 'eval/accuracy_greedy'
plot_label = 'held-out sums that are right, greedy'
plot_path = 'docs/advantages.png'
out_dir = 'out-compare-advantages'
