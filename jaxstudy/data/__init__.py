"""Data: arrays that stay on the device, and where they come from."""
