"""Free ports on loopback for tests that run in parallel."""

from chaos.ports import free_ports

__all__ = ["free_ports"]
