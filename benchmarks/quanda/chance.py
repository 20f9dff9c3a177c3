"""What a method reaches that explains nothing."""

from quanda.explainers import RandomExplainer

PACKAGE = "quanda"


def methods(folder):
    return {"random numbers": (RandomExplainer, {"seed": 0})}
