"""A TPM 2.0: a quote over PCRs, signed by an attestation key (AK) of the TPM's.

Who vouches for the AK: the policy, which names the machine (the AK's name), or a certificate of it by a CA that the policy's collateral has.
`abi`: bytes to fields. `event_log`: what PCRs were extended with. `verify`: whether a quote is genuine.
Sources: TPM 2.0 Library, part 2 (structures); TCG PC Client Platform Firmware Profile (event log).
"""
