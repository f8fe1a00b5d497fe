"""Drawing, and the words beside it: from the arrays of a part to its figure and its caption."""

# Networks between which the error rises by less share a basin (Frankle et al. 2020, Section 2).
SAME_BASIN = 0.02
