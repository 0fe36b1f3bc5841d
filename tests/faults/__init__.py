"""Input that cannot be meant, and what is said of it."""
