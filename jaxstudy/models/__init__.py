"""Networks: each file a factory that returns a `Model`."""
