"""Runs: folders, checkpoints, statistics, figures, the report and the command line."""
