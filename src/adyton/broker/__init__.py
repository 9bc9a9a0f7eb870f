"""The broker: gives named secrets to enclaves whose evidence meets the secret's policy, and keeps a log of it that nobody edits unnoticed.

    enclave (TLS client)                               broker (TLS server, whose key the enclave knows)
      │ ◄──────────────── TLS 1.3 handshake ─────────────► │
      │ ◄────────────────────── AttestRequest(nonce) ───── │
      │ ── Evidence, bound to this connection ───────────► │     verified; else the end
      │ ◄──────────────────────────────────── Accept ───── │
      │ ── Request(name) ────────────────────────────────► │     judged by that secret's policy, logged, and only then answered
      │ ◄───────────────────────────── Given | Refused ─── │

One secret for a connection, so that each is given on fresh evidence. `protocol`, `records`, `decisions` and `asking` (the enclave's end) have no
socket, thread, file or clock; `audit` is the log's file, `server` the sockets.
"""
