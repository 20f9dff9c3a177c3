"""Kronfluence: EK-FAC."""

import logging
import tempfile

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.utils.data import TensorDataset

PACKAGE = "kronfluence"
METHOD = "EK-FAC of the empirical Fisher"


class Pairs(Task):
    def compute_train_loss(self, batch, model, sample=False):
        return (1 - torch.cosine_similarity(model(batch[0]), model(batch[1]))).sum()

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def influence(encoder, train, queries, damping, batch=64):
    task = Pairs()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "pairs",
            prepare_model(encoder, task),
            task,
            cpu=train[0].device.type == "cpu",
            output_dir=folder,
            disable_tqdm=True,
            disable_model_save=True,
            log_level=logging.ERROR,
        )
        analyzer.fit_all_factors(
            "ekfac",
            TensorDataset(*train),
            per_device_batch_size=batch,
            factor_args=FactorArguments(use_empirical_fisher=True, has_shared_parameters=True),
        )
        analyzer.compute_pairwise_scores(
            "pairwise",
            "ekfac",
            TensorDataset(*queries),
            TensorDataset(*train),
            per_device_query_batch_size=50,
            per_device_train_batch_size=batch,
            score_args=ScoreArguments(damping_factor=damping),
        )
        return analyzer.load_pairwise_scores("pairwise")["all_modules"]
