"""A TPM 2.0: a quote over PCRs, signed by an attestation key (AK) of the TPM's.

Who vouches for the AK: the policy, which names the machine (the AK's name), or a CA whose root the verifier's collateral has (`trust`).
`abi`: bytes to fields. `event_log`: what PCRs were extended with. `report`, `raw`: what is shown. `verify`: whether it is genuine. `attest`: makes it.
Sources: TPM 2.0 Library, parts 2 (structures) and 3 (commands); TCG PC Client Platform Firmware Profile (event log).
"""
