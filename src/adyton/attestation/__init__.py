"""What an enclave is (`identity`), what proves it (`evidence`), whether the proof is genuine (`verify`), and whether it is the
enclave that was wanted (`expectation`)."""
