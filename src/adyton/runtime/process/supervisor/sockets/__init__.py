"""Sockets of the guest: stand-ins, which are pairs of unix sockets, and what is behind them on the client's machine."""
