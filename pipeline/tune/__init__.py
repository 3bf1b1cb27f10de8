"""`doit tune`: the search for the fastest variant that passes its gate."""
