"""Parity with official implementations."""
