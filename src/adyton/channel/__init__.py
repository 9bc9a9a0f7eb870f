"""The attested channel: TLS 1.3 between client and enclave, with the enclave's evidence bound to it. Sans-IO, both ends.

    client                                            server (the enclave)
      │ ◄──────────────── TLS 1.3 handshake ────────────────► │     a fresh key; nobody vouches for it yet
      │ ── AttestRequest(version, nonce) ───────────────────► │     → EvidenceRequested(report data)
      │ ◄────────────────────────────── Evidence(evidence) ── │     ← provide
      │     EvidenceReceived → verified by the owner          │
      │ ── Accept ──────────────────────────────────────────► │     ← accept → Established
      │ ◄────────────────────── data ───────────────────────► │

Nothing secret moves before Accept, in either direction. What the evidence must be bound to: `adyton.attestation.binding`. Nothing can be
resumed and there is no early data, so each connection is attested anew.
"""
