"""From averaged weights to images on the disk: `sampler`, `decoding`, `shards`, `grid`, `export`."""
