"""The report: what the tables, figures, claims and explanations of a results folder say, as one HTML file that opens offline.

It computes no number: pages, figures and verdicts are those of the other verbs, laid out for a reader who clicks.
"""
