"""The steps of points: the normal ones, each within what is left of the budget."""
