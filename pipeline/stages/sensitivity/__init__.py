"""Stage `sensitivity`: the layers' sensitivities to quantisation."""
