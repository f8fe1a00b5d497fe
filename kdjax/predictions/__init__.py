"""Teachers as a student sees them, and the store of their predictions. It knows no stage."""
