"""Scoring with Ray: ScoreStage for pipelines of Ray Data and others, RayActors for `main-align score --engine ray`.

Importing this package does not import Ray.
"""

from .stage import ScoreStage as ScoreStage
