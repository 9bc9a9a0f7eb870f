"""Proxy client, relay and the transports between them."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC reads it when it is imported: what it would log, our errors say
