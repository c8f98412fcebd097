"""Images: decoding, sets, folders, augmentation and splits."""
