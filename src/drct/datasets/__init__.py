"""Image sets for training and validation: folders, packs, patches, augmentation."""
