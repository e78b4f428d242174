"""UPO: pairs by reward, filtered by an estimator that says how sure it is of them.

Wang et al. 2024, "Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference
Optimization", arXiv:2409.11212. An estimator reads a prompt with two responses and says which is
better (`estimator`), T times with other units left out (`dropout`). Where its verdict contradicts
the reward the label is taken for noise, and of the others the ones it is surest of are kept
(`select`).
"""
