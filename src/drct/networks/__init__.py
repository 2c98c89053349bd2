"""The architectures in pure torch: one file per family, each readable beside its paper."""

from drct.networks.base import SuperResolutionNetwork
from drct.networks.registry import create_network, list_networks

__all__ = ["SuperResolutionNetwork", "create_network", "list_networks"]
