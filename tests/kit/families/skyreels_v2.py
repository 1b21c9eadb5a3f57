"""SkyReels-V2."""

from tests.kit.families.wan import ROWS as WAN
from tests.kit.families.wan import wan
from tests.kit.row import Tiny

ROWS = {"SkyReelsV2Transformer3DModel": Tiny(WAN["WanTransformer3DModel"].config, wan)}
