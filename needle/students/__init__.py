"""The networks, a file or folder a family; checkpoints; starting from pretrained weights."""
