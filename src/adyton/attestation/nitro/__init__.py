"""AWS Nitro Enclaves: an attestation document, a COSE_Sign1 object signed by a key of the hypervisor that lives for three hours.

`abi`: bytes to fields. `verify`: whether a document is genuine. Its root, of `trust`, is AWS's, whose fingerprint AWS publishes.
Sources: RFC 9052, and AWS's "Verifying the root of trust" (nitrocli, attestation_process).
"""
