"""SelfClean: pairs by cosine distance, off-topic images by its dendrogram, on given features."""

import numpy as np
from selfclean.cleaner.issue_manager import IssueTypes
from selfclean.cleaner.selfclean_cleaner import SelfCleanCleaner

PACKAGE = "selfclean"
METHOD = "automatic cleaning, trained encoder"


def cleaned(z, *issues):
    cleaner = SelfCleanCleaner(memmap=False, auto_cleaning=True, log_level="ERROR")
    cleaner.fit(emb_space=z)
    return cleaner.predict(list(issues))


def find(paths, z):
    found = cleaned(z, IssueTypes.NEAR_DUPLICATES)["near_duplicates"]
    return found["indices"][found["auto_issues"]]


def rank(paths, z):
    found = cleaned(z, IssueTypes.NEAR_DUPLICATES)["near_duplicates"]
    return found["indices"], -found["scores"]


def strangeness(paths, z):
    found = cleaned(z, IssueTypes.OFF_TOPIC_SAMPLES)["off_topic_samples"]
    far = np.empty(len(z))
    far[found["indices"]] = -found["scores"]
    return far
