"""The study as a graph of stages, for Snakemake and DVC."""
