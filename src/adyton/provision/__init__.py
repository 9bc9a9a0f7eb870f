"""Getting a proxy server for an image: locally, from a provision server, and being one."""

import adyton.remote  # noqa: F401 - what it tells gRPC must be said before gRPC is imported
