"""From a table of runs to a ratio and a learning rate, or to the reason why not."""
