"""Other approximations of the curvature, for comparison only, and the measures used.

The approximations are curvatures of the core: ``InfluenceScorer(encoder, curvature=EKFAC(...))``.
λ is always in the units of the full space, so that all approximations can share one value.
"""
