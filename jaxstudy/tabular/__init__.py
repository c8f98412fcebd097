"""Tables: reading, feature columns, cross-validation."""
