"""Commands that measure what the documentation claims, and write the tables it shows."""
