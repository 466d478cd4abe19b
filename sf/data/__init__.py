"""Rows of Video-R1-260k's schema: from files to manifests, prompts, rewards and model inputs."""
