"""OpenTelemetry for who wants it: one trace from the client's call to what the enclave calls back, and metrics of both.

    application or OTEL_… ──► switch ──► providers ──► Telemetry, one for each loaded enclave
    EnclaveClient._call ──► calling ─┐                                 ┌─► spans (spans.py)
    ProxyClient         ──► send, told, serving ──► Telemetry ─────────┤
    Executor            ──► note  ───┘                                 └─► counters and histograms (instruments.py)

The enclave exports nothing: it has no network, and its client is told when entries and their host calls began and ended
(communicator.tracing), by the enclave's clock, which `clocks` matches to the client's. What it tells is put between what the client saw
itself, so a span never leaves its parent, whatever an enclave says; names are those that the client knows.

Nothing here sees a payload: no argument, result, text of an exception, path or content is in a span or a metric.

OpenTelemetry is imported by `providers`, and only when somebody asked for it.
"""
