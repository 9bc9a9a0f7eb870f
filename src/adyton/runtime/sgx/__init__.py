"""An enclave in one process, under Gramine in SGX: supervisor and program on its threads, the enclave's memory being the only wall."""
