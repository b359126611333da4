"""The encrypted index: its rows and what must hold between them. The only SQL."""
