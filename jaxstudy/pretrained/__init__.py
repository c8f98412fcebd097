"""Networks that others trained: their weights, and features they compute."""
