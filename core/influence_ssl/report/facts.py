"""The book's findings about the score, as stated on the page; tests check them by the records."""

FACTS = {
    "loss": (
        "The plain loss measures how far the perturbation moves the representation. On CIFAR-10, "
        "for three self-supervised encoders, the scores and the plain loss had rank correlations "
        "of 0.97 to 0.99, and the loss needs no gradient. The table in the section Distribution "
        "shows how well the two agree for this encoder and these images."
    ),
    "detector": (
        "On CIFAR-10, the score did not distinguish near-duplicates from other automobiles: its "
        "areas under the ROC curve for SimCLR, BYOL and Barlow Twins were 0.37 to 0.52, where 0.5 "
        "is chance. Those of the nearest neighbour in the representation were 0.98 to 0.99. The "
        "duplicates on this page are therefore found with files, pixels and representations, and "
        "the images far from the others with representations, not with the score. Both ends of the "
        "ranking are worth inspecting; neither is a list of images to remove."
    ),
    "far": (
        "For the 5 % of CIFAR-10 images that are isolated in the representation of another "
        "encoder, the distance to the nearest images had areas under the ROC curve of 0.71 to 0.86 "
        "with four encoders, and the score had 0.55 to 0.60, where 0.5 is chance. Foreign images "
        "that resemble one another are close to one another: for 50 images of five kinds, planted "
        "among photographs, this distance had an area of 0.01, and the Mahalanobis distance, by "
        "which influence-ssl check sorts, 0.77."
    ),
    "cause": (
        "The score estimates the effect of a small change in an image's weight near the encoder's "
        "present weights. When small encoders were retrained without noise among their "
        "augmentations, its rank correlations with the effect of leaving an image out on that "
        "image's two losses were 0.17 and 0.26 for digits, and 0.39 and 0.60 for photographs of "
        "CIFAR-10; those of the distance to the nearest neighbours were 0.64 to 0.77."
    ),
    "retraining": (
        "When small encoders of digits were retrained on random halves of their images, the rank "
        "correlation between predicted and measured effects on held-out queries was 0.14 if "
        "training used crops, and 0.01 if it used noise as well."
    ),
    "encoder": (
        "On CIFAR-10, the scores of two training runs of the same method had rank correlations of "
        "0.90 to 0.94 with the same noise. Those of two small encoders of digits, trained on "
        "different halves, had 0.36 and 0.47."
    ),
}
