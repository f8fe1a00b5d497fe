"""Figures, captions and tables of the parts, and the style that they share."""
