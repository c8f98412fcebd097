"""Studies: problems, optimizers and seeds, compared."""
