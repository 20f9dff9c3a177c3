"""What the book measured about the score, as the page says it; tests hold it to the records."""

FACTS = {
    "loss": (
        "On CIFAR-10, under three self-supervised encoders, the order of the scores and that of "
        "the plain loss had rank correlations of 0.97 to 0.99, and the loss needs no gradient. The "
        "table under Distribution says how much the two agree here."
    ),
    "detector": (
        "On CIFAR-10 the score told near duplicates from other automobiles no better than chance "
        "for SimCLR and BYOL, where the nearest neighbour in the representation found nearly all. "
        "So the duplicates and outliers on this page come from pixels and representations, and "
        "not from the score. Both ends of the ranking are worth a look; neither is a list of what "
        "to remove."
    ),
    "cause": (
        "The score estimates what a small change in an image's weight would do near these weights. "
        "In retrainings of small encoders without noise among their augmentations, it predicted "
        "what leaving an image out did to that image's loss with rank correlations below 0.3; the "
        "distance to the nearest neighbours reached 0.7."
    ),
}
