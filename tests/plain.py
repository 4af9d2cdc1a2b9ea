"""The settings of a step in which nothing holds the policy back, unless a test says so."""
from grpo import Settings


def plain(**settings):
    return Settings(**{'kl_beta': 0.0, 'kl_estimator': 'k3'} | settings)
