"""The attested channel: TLS 1.3 between two ends, with the evidence of one or both bound to it. Sans-IO, both ends.

    verifier                                          prover (an enclave)
      │ ◄──────────────── TLS 1.3 handshake ────────────────► │     a fresh key; nobody vouches for it yet
      │ ── AttestRequest(version, nonce) ───────────────────► │     → EvidenceRequested(report data)
      │ ◄────────────────────────────── Evidence(evidence) ── │     ← provide
      │     EvidenceReceived → verified by the owner          │
      │ ── Accept ──────────────────────────────────────────► │     ← accept → Established
      │ ◄────────────────────── data ───────────────────────► │

Who is verifier does not depend on who is TLS client (`Part`): a client verifies the enclave that it calls; who listens verifies an enclave that
dials; of two enclaves the one that dials verifies first, then the other, and data follows the second Accept. Nothing secret moves before, in
either direction. What evidence must be bound to: `adyton.attestation.binding`. Nothing can be resumed and there is no early data, so each
connection is attested anew.
"""
