"""Proxy client, relay and the transports between them."""
