"""Waiting for what will happen."""
