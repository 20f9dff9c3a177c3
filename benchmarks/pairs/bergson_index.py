"""bergson: gradients of every layer, collected in memory and projected to rank 16."""

import torch
from bergson import GradientProcessor, InMemoryCollector
from bergson.config import IndexConfig
from datasets import Dataset

PACKAGE = "bergson"
METHOD = "projected gradients, rank 16, per layer"


class Encoder(torch.nn.Module):
    """bergson asks the model for its device."""

    device = torch.device("cpu")

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x)


def influence(encoder, train, queries, damping):
    model = Encoder(encoder)

    def gradients(pair):
        n = len(pair[0])
        collector = InMemoryCollector(
            model=model,
            data=Dataset.from_dict({"image": list(range(n))}),
            cfg=IndexConfig(run_path=""),
            processor=GradientProcessor(projection_dim=16),
        )
        with collector:
            for start in range(0, n, 64):
                x, y = (images[start : start + 64] for images in pair)
                losses = 1 - torch.cosine_similarity(model(x), model(y))
                losses.sum().backward()
                collector.process_batch(list(range(start, start + len(x))), losses=losses)
        return collector.gradients

    sources, asked = gradients(train), gradients(queries)
    found = 0.0
    for name, g in sources.items():
        hessian = g.T @ g / len(g) + damping * torch.eye(g.shape[1])
        found = found + asked[name] @ torch.linalg.solve(hessian, g.T)
    return found
