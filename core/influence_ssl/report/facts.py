"""The book's findings about the score, as stated on the page; tests check them by the records."""

FACTS = {
    "loss": (
        "On CIFAR-10, for three self-supervised encoders, the scores and the plain loss had rank "
        "correlations of 0.97 to 0.99, and the loss needs no gradient. The table in the section "
        "Distribution shows how well the two agree for this encoder and these images."
    ),
    "detector": (
        "On CIFAR-10, the score distinguished near-duplicates from other automobiles no better "
        "than chance for SimCLR and BYOL, whereas the nearest neighbour in the representation "
        "found nearly all of them. The duplicates and outliers on this page are therefore found "
        "with pixels and representations, not with the score. Both ends of the ranking are worth "
        "inspecting; neither is a list of images to remove."
    ),
    "cause": (
        "The score estimates the effect of a small change in an image's weight near the encoder's "
        "present weights. When small encoders were retrained without noise among their "
        "augmentations, its rank correlations with the effect of leaving an image out on that "
        "image's loss were below 0.3; those of the distance to the nearest neighbours reached 0.7."
    ),
}
