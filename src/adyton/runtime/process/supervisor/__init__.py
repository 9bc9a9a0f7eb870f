"""An enclave's trusted process: keys, the attested channel, and the file system that its guest sees."""
