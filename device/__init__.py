"""What runs on a user's device. The front door is ``Personalizer``."""

from ownlet.device.personalizer import Personalizer, Recommendation

__all__ = ["Personalizer", "Recommendation"]
