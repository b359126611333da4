"""Snapshots: another directory becomes a store as of one moment."""
