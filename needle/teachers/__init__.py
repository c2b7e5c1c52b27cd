"""Who teaches: checkpoints, recorded answers, and the cache of what they say."""
