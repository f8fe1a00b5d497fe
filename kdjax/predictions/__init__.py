"""The store of the teachers' predictions."""
