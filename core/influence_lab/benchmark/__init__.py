"""Other approximations of the curvature, for comparison only, and what they are compared by.

The approximations are curvatures of the core: ``InfluenceScorer(encoder, curvature=EKFAC(...))``.
λ is a number in the units of the full space throughout, so that all of them can share one.
"""
