"""Pages, figures and tables of what the stages wrote."""
