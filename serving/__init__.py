"""Answers from a bundle. Shares no code with training: the bundle's manifest is the contract."""

from serving.client import Client

__all__ = ["Client"]
