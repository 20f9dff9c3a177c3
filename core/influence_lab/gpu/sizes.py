"""How large everything is, in full on a card and in miniature on a CPU; the code is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from influence_lab.experiments.memorisation import PLANS, Plan
from influence_lab.pretrain import Settings, settings_for


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    - profile: of the records and of the data (:func:`..records.recording.data_for`).
    - table: the profile whose settings the encoders are trained with.
    - width: of the ResNet-18 that is scored for speed alone.
    - images: in whole calls; ``some``: where batch sizes are compared and for the plain pass;
      ``agreed``: scored on the CPU as well; ``seen``: in the run whose kernels are listed.
    - batches, ranks, rounds: of the timings; ``matrix``: the side of the products that are timed.
    - large, side: how many images of which width the larger encoders get.
    - queries: for how many images influences are computed.
    - steps: of the trainings that show the pace; ``backend``: what ``torch.compile`` uses.
    - encoders: the plan of the small encoders on halves of a pool; ``together``: how many at once
      are compared.
    - pairs: the profile of the encoder, images and queries that the peers get.
    - least: seconds without which a long step is not begun, as a share of those in full.
    """

    profile: str
    table: str
    width: int
    images: int
    some: int
    agreed: int
    seen: int
    batches: tuple[int, ...]
    ranks: tuple[int, ...]
    rounds: int
    matrix: int
    large: int
    side: int
    queries: int
    steps: int
    backend: str
    encoders: Plan
    together: tuple[int, ...]
    pairs: str
    least: float

    def settings(self, method: str, epochs: int | None = None) -> Settings:
        """The training of a method: Table 2's settings, for as many epochs as there is time for."""
        found = replace(settings_for(method, self.table), profile=self.profile)
        return found if epochs is None else replace(found, epochs=min(epochs, found.epochs))


FULL = Sizes(
    profile="gpu", table="paper", width=64, images=50_000, some=4_096, agreed=256, seen=4_096,
    batches=(64, 128, 256, 512, 1024), ranks=(16, 32, 64), rounds=2, matrix=8_192, large=1_024,
    side=224, queries=1_000, steps=24, backend="inductor",
    encoders=PLANS["cifar10"]["gpu"], together=(64, 128, 256), pairs="cpu",
    least=1.0,
)  # fmt: skip
DRY = Sizes(
    profile="tiny", table="tiny", width=4, images=24, some=8, agreed=8, seen=4, batches=(4, 8),
    ranks=(2, 3), rounds=1, matrix=64, large=3, side=32, queries=4, steps=2, backend="eager",
    encoders=Plan(
        pool=16, queries=4, trainings=3, together=2, references=1, epochs=1, data="scenes",
        regimes=("crops",),
    ),
    together=(1, 2), pairs="tiny", least=0.0,
)  # fmt: skip
