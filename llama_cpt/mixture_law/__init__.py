"""Fits of a mixture law to a table of runs, and the recommended mixture ratio and learning rate.

A law predicts the losses of two language groups, the additional and the original languages, from
the mixture ratio (ALMR), the learning rate, the model size and the token budget. A form is an
equation for the loss of one group. The objective combines both losses into a value to minimize, and
the target is the model size and the token budget for which the law recommends a mixture ratio and a
learning rate.
"""
