"""What runs on a user's device. The front door is ``Personalizer``."""

from ownlet.device.budget import Budget
from ownlet.device.conditions import PsutilConditions, TraceConditions
from ownlet.device.guard import Guard
from ownlet.device.learner import TrainingReport
from ownlet.device.personalizer import Personalizer, Recommendation, Status, VersionInfo
from ownlet.device.policy import Conditions, Policy, Reading
from ownlet.device.retention import Retention

__all__ = [
    "Budget",
    "Conditions",
    "Guard",
    "Personalizer",
    "Policy",
    "PsutilConditions",
    "Reading",
    "Recommendation",
    "Retention",
    "Status",
    "TraceConditions",
    "TrainingReport",
    "VersionInfo",
]
