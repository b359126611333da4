"""Salvage: what a damaged index still holds, and one index out of it and a copy."""
