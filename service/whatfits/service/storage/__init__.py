"""The store of measurements, agents and what is learned from them: SQLite or PostgreSQL behind a few repositories."""
