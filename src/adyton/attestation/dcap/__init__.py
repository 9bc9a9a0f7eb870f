"""Intel's quotes, of SGX (version 3) and TDX (4 and 5): what both platforms have in common.

`abi`: bytes to fields. `collateral`: Intel's documents, put together for one quote. `verify`: whether a quote is genuine, by dcap-qvl, a library
that does what Intel's own does. Sources: Intel SGX ECDSA quote library API, appendix A; Intel TDX DCAP quoting library API, appendix A.
"""
