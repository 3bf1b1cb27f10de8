"""Stage `source`: the model's weights and preprocessing."""
