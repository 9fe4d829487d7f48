"""Side-by-side measurements of this project against a plain implementation; scripts to run by hand, not tests.

`docs/performance.md` and `docs/details/performance.md` hold what they gave and where.
"""
