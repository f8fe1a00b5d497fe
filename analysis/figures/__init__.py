"""Drawing, and the words beside it: from the arrays of a part to its figure and its caption."""
