"""Sparsity Forcing training on TRL's GRPOTrainer: rollouts, rewards, reference, checkpoints."""
