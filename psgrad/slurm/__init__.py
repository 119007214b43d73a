"""Batch scripts of Slurm: written for a site, and looked through for what goes wrong in them."""
